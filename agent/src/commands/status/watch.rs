//! `gpuacct status --watch`: the status again and again; live on a terminal, plain elsewhere.
//!
//! The terminal is given back as it was found, however this ends: by a key, by a signal, by an
//! error, by a panic. Nothing but SIGKILL leaves it in disorder.
//!
//! An agent that does not answer is waited for, with what it said last and since when it has been
//! silent; only one that does not answer at the very beginning ends the view.
//!
//! The view must cost less than the agent. It asks once in an interval, and it draws only if there is
//! something new: an answer with another commit, or a key that changes what is shown.

mod draw;
mod gpus;
mod history;
mod input;
mod look;
mod model;
mod screen;
mod sheet;
#[cfg(test)]
mod tests;

use std::io::{self, IsTerminal as _, stdout};
use std::pin::Pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use self::look::Look;
use self::model::{Answer, Question, View};
pub use self::screen::Screen;
use super::question::{Format, Options, PROCESSES, STATUS, StatusError, answer, fail};
use crate::commands::ask::{AskError, get, parse};
use crate::commands::charset::Charset;
use crate::commands::complaint::say;
use crate::commands::environment::has_control_sequences;
use crate::commands::explain;
use crate::commands::output::{Written, not_written, write_out};
use crate::errors::chain;

/// How often the agent is asked, at most and at least.
const INTERVALS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(200)..=Duration::from_secs(3_600);
/// Events of the terminal under way.
const UNDER_WAY: usize = 16;

/// What cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// Too often, or too seldom.
    #[error("--watch is {found:?}, expected 200ms to 1h")]
    Interval {
        /// What was asked for.
        found: Duration,
    },
    /// The terminal refuses.
    #[error("cannot use the terminal")]
    Terminal(#[source] io::Error),
    /// A signal handler cannot be installed.
    #[error("cannot listen for signals")]
    Signals(#[source] io::Error),
}

/// Shows the status until it is told to stop: 0, or 2 if no agent answers at the beginning.
pub async fn run(options: &Options, interval: Duration) -> ExitCode {
    if !INTERVALS.contains(&interval) {
        return fail_to_watch(&WatchError::Interval { found: interval }, 2);
    }
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => return fail_to_watch(&WatchError::Signals(error), 1),
    };
    let can_draw = stdout().is_terminal() && has_control_sequences();
    if !options.output.is_for_people() || !can_draw {
        return plain(options, interval, &mut signals).await;
    }
    let mut view = match first(options).await {
        Ok(view) => view,
        Err(error) => return fail(&error),
    };
    match live(options, interval, &mut view, &mut signals).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail_to_watch(&WatchError::Terminal(error), 1),
    }
}

fn fail_to_watch(error: &WatchError, code: u8) -> ExitCode {
    let remedy = match error {
        WatchError::Interval { .. } => "name an interval such as 2s, or none",
        WatchError::Terminal(_) | WatchError::Signals(_) => "leave out --watch",
    };
    say(&chain(error), Some(remedy), code)
}

/// Whatever ends a program from outside.
struct Signals([tokio::signal::unix::Signal; 4]);

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
            signal(SignalKind::quit())?,
        ]))
    }

    async fn recv(&mut self) {
        let [interrupt, terminate, hangup, quit] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
            _ = quit.recv() => {}
        }
    }
}

fn every(interval: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(interval);
    // After a pause of the machine one look is enough.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// The page again and again; JSON as one document a line, YAML as documents in one stream.
async fn plain(options: &Options, interval: Duration, signals: &mut Signals) -> ExitCode {
    let charset = Charset::of_the_environment();
    let mut ticks = every(interval);
    let mut shown = false;
    loop {
        tokio::select! {
            biased;
            () = signals.recv() => return ExitCode::SUCCESS,
            _ = ticks.tick() => {}
        }
        let answer = tokio::select! {
            biased;
            () = signals.recv() => return ExitCode::SUCCESS,
            answer = answer(options) => answer,
        };
        let text = match (answer, options.output) {
            (Ok((page, _)), Format::Table | Format::Wide) => {
                let between = if shown { "\n" } else { "" };
                charset.text(format!("{between}{page}"))
            }
            (Ok((json, _)), Format::Json) => {
                // Line breaks occur only between tokens: those in texts are escaped.
                json.lines().map(str::trim_start).collect::<String>() + "\n"
            }
            (Ok((yaml, _)), Format::Yaml) => format!("---\n{yaml}"),
            (Err(error), _) => {
                let code = fail(&error);
                if shown {
                    continue;
                }
                return code;
            }
        };
        shown = true;
        match write_out(&text) {
            Ok(Written::Whole) => {}
            // Whoever read has had enough.
            Ok(Written::NoReader) => return ExitCode::SUCCESS,
            Err(error) => return not_written(&error),
        }
    }
}

/// Asks for everything that the view shows now.
async fn ask(options: &Options, question: Question) -> Result<Answer, AskError> {
    let socket = options.agent.socket()?;
    let report = parse(STATUS, &get(&socket, STATUS).await?)?;
    let processes = match question.processes {
        false => None,
        true => Some(parse(PROCESSES, &get(&socket, PROCESSES).await?)?),
    };
    let explained = match question.explain {
        None => None,
        Some(subject) => {
            let request = explain::request(&subject);
            let explained = get(&socket, &request).await;
            let explained = explained.and_then(|json| parse(&request, &json));
            // What it was about may have ended; the view goes on.
            Some((subject, explained.map(Box::new)))
        }
    };
    Ok(Answer {
        report,
        processes,
        explained,
    })
}

/// The view with its first answer.
async fn first(options: &Options) -> Result<View, StatusError> {
    let question = Question {
        processes: options.processes,
        explain: None,
    };
    let answer = ask(options, question).await?;
    let known = answer.processes.as_deref().unwrap_or_default();
    let selection = options.selection.clone();
    // A GPU that is not there at the beginning is an error. Later it may come and go.
    selection.choose(&answer.report, known, true)?;
    let look = Look::of_the_environment(!options.no_headers);
    Ok(View::new(answer, selection, look))
}

type Asking<'a> = Option<Pin<Box<dyn Future<Output = Result<Answer, AskError>> + 'a>>>;

/// The answer to what is asked now. Never returns while nothing is.
async fn answered(asking: &mut Asking<'_>) -> Result<Answer, AskError> {
    let Some(question) = asking else {
        return std::future::pending().await;
    };
    let answer = question.await;
    *asking = None;
    answer
}

async fn live(
    options: &Options,
    interval: Duration,
    view: &mut View,
    signals: &mut Signals,
) -> io::Result<()> {
    let _screen = Screen::enter()?;
    let mut terminal = Terminal::new(CrosstermBackend::new(stdout()))?;
    let (events, mut keys) = mpsc::channel(UNDER_WAY);
    // It waits in a read that nothing ends but the end of the process.
    std::thread::Builder::new()
        .name("keys".into())
        .spawn(move || {
            while let Ok(event) = event::read()
                && events.blocking_send(event).is_ok()
            {}
        })?;
    let mut ticks = every(interval);
    // The first answer is there already.
    ticks.reset();
    let mut asking: Asking<'_> = None;
    let mut last_answer = Instant::now();
    let (mut has_changed, mut is_urgent) = (true, false);
    loop {
        if std::mem::take(&mut has_changed) {
            terminal.draw(|frame| view.draw(frame))?;
        }
        if is_urgent && asking.is_none() {
            is_urgent = false;
            asking = Some(Box::pin(ask(options, view.question())));
        }
        tokio::select! {
            biased;
            () = signals.recv() => return Ok(()),
            event = keys.recv() => {
                // The terminal is gone.
                let Some(event) = event else { return Ok(()) };
                match view.react(&event) {
                    input::After::Nothing => {}
                    input::After::Draw => has_changed = true,
                    input::After::Ask => (has_changed, is_urgent) = (true, true),
                    input::After::Quit => return Ok(()),
                }
            }
            answer = answered(&mut asking) => {
                if answer.is_ok() {
                    last_answer = Instant::now();
                }
                has_changed = view.take(answer, last_answer.elapsed());
            }
            _ = ticks.tick(), if asking.is_none() && !view.is_paused => {
                asking = Some(Box::pin(ask(options, view.question())));
            }
        }
    }
}

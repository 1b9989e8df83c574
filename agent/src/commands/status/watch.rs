//! `gpuacct status --watch`: the status again and again; live on a terminal, plain elsewhere.
//!
//! The terminal is given back as it was found, however this ends: by a key, by a signal, by an
//! error, by a panic. Nothing but SIGKILL leaves it in disorder.
//!
//! An agent that does not answer is waited for, with what it said last and for how long it has been
//! silent; only one that does not answer at the very beginning ends the view.

use std::cmp::Ordering;
use std::io::{self, IsTerminal as _, stdout};
use std::process::ExitCode;
use std::sync::Once;
use std::time::Duration;

use ratatui::Frame;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::Paragraph;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::page::{
    by_use, container_table, gpu_table, header, index_in, indexes, name, source_table,
};
use super::question::{Options, Output, answer};
use crate::commands::ask::{AskError, get, parse};
use crate::commands::complain;
use crate::commands::output::{Written, write};
use crate::commands::table::{Table, printable};
use crate::core::model::{BootTime, GpuUuid};
use crate::core::snapshot::ContainerAccount;
use crate::outputs::socket::StatusReport;

/// How often the agent is asked, at most and at least.
const INTERVALS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(200)..=Duration::from_secs(3_600);
/// Keys and answers under way.
const UNDER_WAY: usize = 16;
/// The longest filter.
const MAX_FILTER: usize = 64;
/// Lines of reasons that are shown.
const MAX_REASONS: usize = 6;
/// Below this height the containers need the room of the sources.
const ROOM_FOR_SOURCES: u16 = 18;

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
        return complain(&WatchError::Interval { found: interval }, 2);
    }
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => return complain(&WatchError::Signals(error), 1),
    };
    if options.output == Output::Json || !stdout().is_terminal() {
        return plain(options, interval, &mut signals).await;
    }
    let first = match report(options).await {
        Ok(report) => report,
        Err(error) => return complain(&error, 2),
    };
    match live(options, interval, first, &mut signals).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&WatchError::Terminal(error), 1),
    }
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

/// The page again and again; JSON as one document a line.
async fn plain(options: &Options, interval: Duration, signals: &mut Signals) -> ExitCode {
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
            (Ok((page, _)), Output::Table) if shown => format!("\n{page}"),
            (Ok((page, _)), Output::Table) => page,
            (Ok((json, _)), Output::Json) => {
                // Line breaks occur only between tokens: those in texts are escaped.
                json.lines().map(str::trim_start).collect::<String>() + "\n"
            }
            (Err(error), _) if shown => {
                complain(&error, 2);
                continue;
            }
            (Err(error), _) => return complain(&error, 2),
        };
        shown = true;
        match write(&mut stdout().lock(), &text) {
            Ok(Written::Whole) => {}
            // Whoever read has had enough.
            Ok(Written::NoReader) => return ExitCode::SUCCESS,
            Err(error) => return complain(&error, 1),
        }
    }
}

async fn report(options: &Options) -> Result<StatusReport, AskError> {
    let request = "/v1/status";
    parse(request, &get(&options.socket, request).await?)
}

async fn live(
    options: &Options,
    interval: Duration,
    first: StatusReport,
    signals: &mut Signals,
) -> io::Result<()> {
    let (answers, mut answered) = mpsc::channel(UNDER_WAY);
    let asked = options.clone();
    let asking = tokio::spawn(async move {
        let mut ticks = every(interval);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            if answers.send(report(&asked).await).await.is_err() {
                return;
            }
        }
    });
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
    let mut view = View::new(first);
    let ended = loop {
        if let Err(error) = terminal.draw(|frame| view.draw(frame)) {
            break Err(error);
        }
        tokio::select! {
            biased;
            () = signals.recv() => break Ok(()),
            event = keys.recv() => match event {
                Some(Event::Key(key)) if key.kind != KeyEventKind::Release => {
                    if view.press(key) == After::Quit {
                        break Ok(());
                    }
                }
                // Another size: it is drawn anew anyway.
                Some(_) => {}
                // The terminal is gone.
                None => break Ok(()),
            },
            Some(answer) = answered.recv() => view.take(answer),
        }
    };
    asking.abort();
    ended
}

/// The terminal while it is ours. Dropping it gives it back.
#[derive(Debug)]
pub struct Screen(());

impl Screen {
    /// Takes the terminal: raw, on its other screen. From now on a panic gives it back before it
    /// speaks, so that its message can be read.
    ///
    /// # Errors
    /// If there is no terminal, or it refuses.
    pub fn enter() -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                give_back();
                before(panic);
            }));
        });
        enable_raw_mode()?;
        // From here on dropping it undoes what has been done.
        let screen = Self(());
        execute!(stdout(), EnterAlternateScreen)?;
        Ok(screen)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// As often as called. A terminal that is gone takes nothing back.
fn give_back() {
    let _ = disable_raw_mode();
    let _ = execute!(stdout(), LeaveAlternateScreen, Show);
}

/// What the containers are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Use,
    Total,
    Memory,
    Name,
    Gpu,
}

impl Sort {
    const ALL: [Self; 5] = [Self::Use, Self::Total, Self::Memory, Self::Name, Self::Gpu];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Use => "use",
            Self::Total => "total",
            Self::Memory => "memory",
            Self::Name => "name",
            Self::Gpu => "gpu",
        }
    }

    fn next(self) -> Self {
        let at = Self::ALL.iter().position(|sort| *sort == self);
        Self::ALL[at.map_or(0, |at| (at + 1) % Self::ALL.len())]
    }

    /// What makes two accounts equal is told apart by their use.
    fn compare(self, a: &ContainerAccount, b: &ContainerAccount) -> Ordering {
        let first = match self {
            Self::Use => Ordering::Equal,
            Self::Total => b.amounts.busy.cmp(&a.amounts.busy),
            Self::Memory => b.memory.cmp(&a.memory),
            Self::Name => name(a).cmp(&name(b)),
            Self::Gpu => a.gpu.cmp(&b.gpu),
        };
        first.then_with(|| by_use(a, b))
    }
}

/// What follows upon a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    GoOn,
    Quit,
}

/// What is shown, and how.
#[derive(Debug)]
struct View {
    report: StatusReport,
    /// Why the last question was not answered.
    silent: Option<String>,
    sort: Sort,
    reversed: bool,
    filter: String,
    /// The filter is being typed.
    typing: bool,
    /// Containers above the first that is shown.
    above: usize,
    /// Containers that found room last time.
    room: usize,
}

impl View {
    fn new(report: StatusReport) -> Self {
        Self {
            report,
            silent: None,
            sort: Sort::Use,
            reversed: false,
            filter: String::new(),
            typing: false,
            above: 0,
            room: 0,
        }
    }

    fn take(&mut self, answer: Result<StatusReport, AskError>) {
        match answer {
            Ok(report) => {
                self.report = report;
                self.silent = None;
            }
            Err(error) => self.silent = Some(error.to_string()),
        }
    }

    fn press(&mut self, key: KeyEvent) -> After {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match (self.typing, key.code) {
            (_, KeyCode::Char('c' | 'd')) if control => return After::Quit,
            (true, KeyCode::Enter) => self.typing = false,
            (true, KeyCode::Esc) => {
                self.typing = false;
                self.filter.clear();
            }
            (true, KeyCode::Backspace) => {
                self.filter.pop();
            }
            (true, KeyCode::Char(c)) if !control && self.filter.len() < MAX_FILTER => {
                self.filter.push(c);
                self.above = 0;
            }
            (false, KeyCode::Char('q')) => return After::Quit,
            (false, KeyCode::Esc) => self.filter.clear(),
            (false, KeyCode::Char('/')) => self.typing = true,
            (false, KeyCode::Char('s')) => self.sort = self.sort.next(),
            (false, KeyCode::Char('r')) => self.reversed = !self.reversed,
            (_, KeyCode::Up) => self.above = self.above.saturating_sub(1),
            (_, KeyCode::Down) => self.above = self.above.saturating_add(1),
            (_, KeyCode::PageUp) => self.above = self.above.saturating_sub(self.room.max(1)),
            (_, KeyCode::PageDown) => self.above = self.above.saturating_add(self.room.max(1)),
            (_, KeyCode::Home) => self.above = 0,
            (_, KeyCode::End) => self.above = usize::MAX,
            _ => {}
        }
        After::GoOn
    }

    /// The accounts that the filter lets through, in their order.
    fn accounts(&self) -> Vec<&ContainerAccount> {
        let wanted = self.filter.to_lowercase();
        let matches = |account: &&ContainerAccount| {
            let ContainerAccount {
                id, image, runtime, ..
            } = account;
            [&name(account), id.as_str(), image, runtime]
                .iter()
                .any(|text| text.to_lowercase().contains(&wanted))
        };
        let accounts = self.report.snapshot.accounts.iter();
        let mut accounts: Vec<_> = accounts.filter(matches).collect();
        accounts.sort_by(|a, b| self.sort.compare(a, b));
        if self.reversed {
            accounts.reverse();
        }
        accounts
    }

    fn draw(&mut self, frame: &mut Frame<'_>) {
        let area = frame.area();
        let width = usize::from(area.width);
        let snapshot = &self.report.snapshot;
        let indexes = indexes(snapshot);
        let index = |gpu: &GpuUuid| index_in(&indexes, gpu);

        let mut top = String::new();
        header(&mut top, &self.report, &index);
        if let Some(silent) = &self.silent {
            top.push_str(&printable(silent));
            top.push('\n');
        }
        let top: Vec<&str> = top.lines().take(1 + MAX_REASONS).collect();
        let gpus = lines(&gpu_table(snapshot), width);
        let sources = match area.height >= ROOM_FOR_SOURCES {
            true => lines(&source_table(&self.report.agent, self.now()), width),
            false => Vec::new(),
        };
        let accounts = self.accounts();
        let containers = lines(&container_table(&accounts, &index), width);

        let rows = |lines: usize| Constraint::Length(u16::try_from(lines).unwrap_or(u16::MAX));
        let half = usize::from(area.height / 2);
        let [top_area, gpu_area, container_area, source_area, bottom_area] = Layout::vertical([
            rows(top.len()),
            rows((gpus.len() + 1).min(half)),
            Constraint::Min(3),
            rows(if sources.is_empty() {
                0
            } else {
                sources.len() + 1
            }),
            rows(1),
        ])
        .areas(area);

        // A heading with a blank line above it, and the rows that find room.
        let room = usize::from(container_area.height.saturating_sub(2));
        let above = self.above.min(accounts.len().saturating_sub(room));
        let all = accounts.len();
        let shown = containers
            .iter()
            .take(1)
            .chain(containers.iter().skip(1).skip(above).take(room));
        let containers: Vec<String> = shown.cloned().collect();
        let below = all.saturating_sub(above + room);
        let bottom = self.bottom(all, above, below);

        let style = if self.report.degraded.is_empty() && self.silent.is_none() {
            Style::new()
        } else {
            Style::new().add_modifier(Modifier::REVERSED)
        };
        let mut top: Vec<Line<'_>> = top
            .into_iter()
            .map(|line| Line::raw(line.to_owned()))
            .collect();
        if let Some(first) = top.first_mut() {
            first.style = style.add_modifier(Modifier::BOLD);
        }
        frame.render_widget(Paragraph::new(Text::from(top)), top_area);
        frame.render_widget(section(&gpus), gpu_area);
        frame.render_widget(section(&containers), container_area);
        frame.render_widget(section(&sources), source_area);
        let bottom = Line::styled(bottom, Style::new().add_modifier(Modifier::REVERSED));
        frame.render_widget(bottom, bottom_area);
        (self.above, self.room) = (above, room);
    }

    fn bottom(&self, all: usize, above: usize, below: usize) -> String {
        let order = if self.reversed { " reversed" } else { "" };
        let filter = match (self.typing, self.filter.is_empty()) {
            (true, _) => format!("filter: {}_", self.filter),
            (false, false) => format!("filter: {}", self.filter),
            (false, true) => "/ filter".to_owned(),
        };
        format!(
            " q quit  s sort: {}  r{}  {filter}  {all} shown, {above} above, {below} below",
            self.sort.as_str(),
            if order.is_empty() { " reverse" } else { order },
        )
    }

    /// When the answer was made; its ages are from then.
    fn now(&self) -> BootTime {
        self.report.now
    }
}

fn lines(table: &Table, width: usize) -> Vec<String> {
    let mut text = String::new();
    table.write(&mut text, width);
    text.lines().map(str::to_owned).collect()
}

/// A table below a blank line, its heading in bold.
fn section(lines: &[String]) -> Paragraph<'_> {
    let mut text = vec![Line::raw("")];
    text.extend(lines.iter().map(|line| Line::raw(line.as_str())));
    if let Some(heading) = text.get_mut(1) {
        heading.style = Style::new().add_modifier(Modifier::BOLD);
    }
    Paragraph::new(Text::from(text))
}

#[cfg(test)]
mod tests {
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::outputs::sample::{self, golden};

    fn view() -> View {
        View::new(sample::report(&sample::published()))
    }

    /// What a terminal of that size shows.
    fn drawn(view: &mut View, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer();
        let rows = buffer.content.chunks(usize::from(width));
        rows.map(|row| {
            let row: String = row.iter().map(ratatui::buffer::Cell::symbol).collect();
            row.trim_end().to_owned() + "\n"
        })
        .collect()
    }

    fn type_in(view: &mut View, keys: &str) -> After {
        let mut last = After::GoOn;
        for c in keys.chars() {
            let code = match c {
                '\n' => KeyCode::Enter,
                '\u{1b}' => KeyCode::Esc,
                '\u{8}' => KeyCode::Backspace,
                c => KeyCode::Char(c),
            };
            last = view.press(KeyEvent::new(code, KeyModifiers::NONE));
        }
        last
    }

    fn order(view: &View) -> Vec<String> {
        view.accounts().into_iter().map(name).collect()
    }

    #[test]
    fn the_sample_on_a_terminal() {
        golden("watch.txt", &drawn(&mut view(), 100, 30));
    }

    #[test]
    fn no_size_is_too_small_or_too_large() {
        for (width, height) in [(1, 1), (2, 40), (80, 3), (80, 10), (300, 5), (300, 200)] {
            let text = drawn(&mut view(), width, height);
            assert_eq!(text.lines().count(), usize::from(height));
        }
    }

    #[test]
    fn the_keys_sort_filter_and_quit() {
        let mut view = view();
        let by_use = order(&view);
        assert_eq!(by_use[0], "research/train-0/trainer");
        type_in(&mut view, "r");
        let reversed: Vec<_> = by_use.iter().rev().cloned().collect();
        assert_eq!(order(&view), reversed);
        type_in(&mut view, "rsss");
        assert_eq!(view.sort, Sort::Name);
        let mut by_name = by_use.clone();
        by_name.sort();
        assert_eq!(order(&view), by_name);
        type_in(&mut view, "ss");
        assert_eq!(order(&view), by_use, "round and back");

        // While a filter is typed, its letters are no commands.
        assert_eq!(type_in(&mut view, "/JUPq"), After::GoOn);
        assert_eq!(order(&view), Vec::<String>::new());
        type_in(&mut view, "\u{8}");
        assert_eq!(order(&view), ["jupyter"]);
        type_in(&mut view, "\n");
        assert!(drawn(&mut view, 100, 30).contains("filter: JUP  1 shown"));
        type_in(&mut view, "\u{1b}");
        assert_eq!(order(&view), by_use);
        assert_eq!(type_in(&mut view, "q"), After::Quit);
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(view.press(interrupt), After::Quit);
    }

    #[test]
    fn a_long_list_is_scrolled_and_never_past_its_end() {
        let mut view = view();
        let account = view.report.snapshot.accounts[1].clone();
        view.report.snapshot.accounts = (0..50)
            .map(|number| ContainerAccount {
                id: format!("{number:064}").as_str().into(),
                ..account.clone()
            })
            .collect();
        let first = drawn(&mut view, 100, 30);
        assert!(first.contains("50 shown, 0 above"), "{first}");
        for (key, expected) in [
            (KeyCode::Down, "1 above"),
            (KeyCode::Up, "0 above"),
            (KeyCode::Up, "0 above"),
            (KeyCode::End, " 0 below"),
            (KeyCode::PageDown, " 0 below"),
            (KeyCode::Home, "0 above"),
        ] {
            view.press(KeyEvent::new(key, KeyModifiers::NONE));
            let text = drawn(&mut view, 100, 30);
            assert!(text.contains(expected), "{key:?}: {text}");
        }
    }

    #[test]
    fn a_silent_agent_is_said_to_be_and_its_last_words_stay() {
        let mut view = view();
        view.take(Err(AskError::Timeout {
            request: "/v1/status".to_owned(),
        }));
        let text = drawn(&mut view, 100, 30);
        assert!(text.contains("has not answered /v1/status"), "{text}");
        assert!(text.contains("research/train-0/trainer"), "{text}");
        let again = view.report.clone();
        view.take(Ok(again));
        assert!(!drawn(&mut view, 100, 30).contains("has not answered"));
    }
}

//! A pseudo-terminal with a program on it, for programs that draw on a terminal. Its modes can be
//! compared before and after, and what it displays is read as its user would see it: a drawing program
//! writes only what has changed.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::num::NonZero;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{
    InputModes, LocalModes, OptionalActions, OutputModes, Winsize, tcgetattr, tcsetattr,
    tcsetwinsize,
};

/// Only ever waited for when something is broken.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// What a program may change of a terminal and has to undo.
type Modes = (InputModes, OutputModes, LocalModes);

/// A program on a terminal. Killed when dropped.
#[derive(Debug)]
pub struct Terminal {
    keyboard: File,
    /// Held open, so that the terminal outlives the program.
    line: File,
    child: Child,
    before: Modes,
    size: (u16, u16),
    written: Arc<(Mutex<Vec<u8>>, Condvar)>,
}

/// How a program left its terminal.
#[derive(Debug)]
pub struct Left {
    /// How it ended.
    pub status: ExitStatus,
    /// Everything that it wrote, control sequences included.
    pub screen: String,
    /// Whether the terminal's modes are those that it found.
    pub modes_restored: bool,
}

impl Left {
    /// Whether the terminal is as it was: modes, screen, cursor and mouse.
    #[must_use]
    pub fn is_in_order(&self) -> bool {
        let last = |sequence: &str| self.screen.rfind(sequence);
        let undone = |on: &str, off: &str| last(off) >= last(on);
        self.modes_restored
            && undone("\u{1b}[?1049h", "\u{1b}[?1049l")
            && undone("\u{1b}[?25l", "\u{1b}[?25h")
            && undone("\u{1b}[?1000h", "\u{1b}[?1000l")
    }
}

impl Terminal {
    /// Starts a program on a terminal of 120 by 40 characters.
    ///
    /// # Errors
    /// If there is no terminal to be had, or the program cannot be started.
    pub fn start(command: Command) -> Result<Self> {
        Self::of_size(command, 120, 40)
    }

    /// Starts a program on a terminal of this many columns and rows.
    ///
    /// # Errors
    /// If there is no terminal to be had, or the program cannot be started.
    pub fn of_size(mut command: Command, columns: u16, rows: u16) -> Result<Self> {
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&keyboard)?;
        unlockpt(&keyboard)?;
        let name = ptsname(&keyboard, Vec::new())?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let line = File::from(rustix::fs::open(name.as_c_str(), flags, Mode::empty())?);
        tcsetwinsize(
            &line,
            Winsize {
                ws_row: rows,
                ws_col: columns,
                ws_xpixel: 0,
                ws_ypixel: 0,
            },
        )?;
        keep_what_is_not_read(&line)?;
        let before = modes(&line)?;
        let has = |name: &str| command.get_envs().any(|(set, _)| set == name);
        let (has_terminal, has_locale) = (has("TERM"), has("LC_ALL"));
        if !has_terminal {
            command.env("TERM", "xterm");
        }
        if !has_locale {
            command.env("LC_ALL", "C.UTF-8");
        }
        let child = command
            .stdin(line.try_clone()?)
            .stdout(line.try_clone()?)
            .stderr(line.try_clone()?)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        // It holds the line's other ends, which must be closed for the reader to end.
        drop(command);
        let keyboard = File::from(keyboard);
        let written = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let (mut reader, shown) = (keyboard.try_clone()?, Arc::clone(&written));
        thread::spawn(move || {
            let mut buffer = [0; 4_096];
            // It ends with the last end of the line.
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                let (bytes, grown) = &*shown;
                let mut bytes = bytes.lock().unwrap_or_else(PoisonError::into_inner);
                bytes.extend(&buffer[..count]);
                grown.notify_all();
            }
        });
        Ok(Self {
            keyboard,
            line,
            child,
            before,
            size: (columns, rows),
            written,
        })
    }

    /// Waits until the program has written this, or the terminal displays it.
    ///
    /// # Errors
    /// If it does not.
    pub fn wait_for(&self, wanted: &str) -> Result<()> {
        let size = self.size;
        self.wait(wanted, |bytes| {
            String::from_utf8_lossy(bytes).contains(wanted)
                || displayed(bytes, size).contains(wanted)
        })
    }

    /// Waits until what the terminal displays is as wanted, and returns it. `what` is for the error.
    ///
    /// # Errors
    /// If it is not.
    pub fn wait_for_display(&self, what: &str, is_wanted: impl Fn(&str) -> bool) -> Result<String> {
        let size = self.size;
        self.wait(what, |bytes| is_wanted(&displayed(bytes, size)))?;
        Ok(self.display())
    }

    /// What the terminal displays.
    #[must_use]
    pub fn display(&self) -> String {
        displayed(&self.bytes(), self.size)
    }

    /// Everything that the program has written, control sequences included.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let bytes = self.written.0.lock();
        bytes.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn wait(&self, what: &str, is_wanted: impl Fn(&[u8]) -> bool) -> Result<()> {
        let (bytes, grown) = &*self.written;
        let bytes = bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let (bytes, waited) = grown
            .wait_timeout_while(bytes, PATIENCE, |bytes| !is_wanted(bytes))
            .unwrap_or_else(PoisonError::into_inner);
        ensure!(
            !waited.timed_out(),
            "no {what:?} in:\n{}\nwhich is the end of {:?}",
            displayed(&bytes, self.size),
            String::from_utf8_lossy(&bytes)
        );
        Ok(())
    }

    /// Gives the terminal another size, as a window that is resized.
    ///
    /// # Errors
    /// If it does not take it, or the program cannot be told.
    pub fn resize(&mut self, columns: u16, rows: u16) -> Result<()> {
        tcsetwinsize(
            &self.line,
            Winsize {
                ws_row: rows,
                ws_col: columns,
                ws_xpixel: 0,
                ws_ypixel: 0,
            },
        )?;
        self.size = (columns, rows);
        // The kernel tells the foreground processes of a session's terminal; this one has no session.
        self.signal(Signal::WINCH)
    }

    /// Whether the program has changed the terminal's modes.
    ///
    /// # Errors
    /// If the terminal does not say.
    pub fn is_changed(&self) -> Result<bool> {
        Ok(modes(&self.line)? != self.before)
    }

    /// Presses keys.
    ///
    /// # Errors
    /// If the terminal does not take them.
    pub fn press(&mut self, keys: &str) -> Result<()> {
        self.keyboard
            .write_all(keys.as_bytes())
            .context("cannot press keys")
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// If it cannot be sent.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?).context("a pid is not zero")?;
        kill_process(pid, signal).context("cannot signal the program")
    }

    /// Waits for the program's end.
    ///
    /// # Errors
    /// If it does not end.
    pub fn left(mut self) -> Result<Left> {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                bail!("it does not end");
            }
            thread::sleep(POLL);
        };
        let modes_restored = !self.is_changed()?;
        // What it wrote last is behind this.
        (&self.line).write_all(END.as_bytes())?;
        self.wait_for(END)?;
        let bytes = self.bytes();
        Ok(Left {
            status,
            screen: String::from_utf8_lossy(&bytes)
                .trim_end_matches(END)
                .to_owned(),
            modes_restored,
        })
    }
}

/// No program writes this.
const END: &str = "\u{0}end of the line\u{0}";

impl Drop for Terminal {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a terminal of this size displays after these bytes, without blanks at the ends of lines.
fn displayed(bytes: &[u8], (columns, rows): (u16, u16)) -> String {
    let at_least_one = |count| NonZero::new(count).unwrap_or(NonZero::<u16>::MIN);
    let mut parser = vt100::Parser::new(at_least_one(rows), at_least_one(columns), 0);
    parser.process(bytes);
    let contents = parser.screen().contents();
    let lines = contents
        .lines()
        .map(|line| line.trim_end().to_owned() + "\n");
    lines.collect()
}

/// Makes an interrupt character discard nothing (`NOFLSH`). Linux handles what is typed in a worker of
/// its own, so a Ctrl-C may discard what is written after it.
fn keep_what_is_not_read(line: &File) -> Result<()> {
    let mut modes = tcgetattr(line).context("cannot read the terminal's modes")?;
    modes.local_modes.insert(LocalModes::NOFLSH);
    tcsetattr(line, OptionalActions::Now, &modes).context("cannot set the terminal's modes")
}

fn modes(line: &File) -> Result<Modes> {
    let found = tcgetattr(line).context("cannot read the terminal's modes")?;
    Ok((found.input_modes, found.output_modes, found.local_modes))
}

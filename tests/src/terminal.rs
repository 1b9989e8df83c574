//! A pseudo-terminal with a program on it, for programs that draw on a terminal. Its modes can be
//! compared before and after.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{InputModes, LocalModes, OutputModes, Winsize, tcgetattr, tcsetwinsize};

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
    screen: Arc<(Mutex<String>, Condvar)>,
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
    /// Whether the terminal is as it was: modes, screen and cursor.
    #[must_use]
    pub fn is_in_order(&self) -> bool {
        let last = |sequence: &str| self.screen.rfind(sequence);
        let undone = |on: &str, off: &str| last(off) >= last(on);
        self.modes_restored
            && undone("\u{1b}[?1049h", "\u{1b}[?1049l")
            && undone("\u{1b}[?25l", "\u{1b}[?25h")
    }
}

impl Terminal {
    /// Starts a program on a terminal of 120 by 40 characters.
    ///
    /// # Errors
    /// If there is no terminal to be had, or the program cannot be started.
    pub fn start(mut command: Command) -> Result<Self> {
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&keyboard)?;
        unlockpt(&keyboard)?;
        let name = ptsname(&keyboard, Vec::new())?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let line = File::from(rustix::fs::open(name.as_c_str(), flags, Mode::empty())?);
        tcsetwinsize(
            &line,
            Winsize {
                ws_row: 40,
                ws_col: 120,
                ws_xpixel: 0,
                ws_ypixel: 0,
            },
        )?;
        let before = modes(&line)?;
        let child = command
            .env("TERM", "xterm")
            .stdin(line.try_clone()?)
            .stdout(line.try_clone()?)
            .stderr(line.try_clone()?)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        // It holds the line's other ends, which must be closed for the reader to end.
        drop(command);
        let keyboard = File::from(keyboard);
        let screen = Arc::new((Mutex::new(String::new()), Condvar::new()));
        let (mut reader, shown) = (keyboard.try_clone()?, Arc::clone(&screen));
        thread::spawn(move || {
            let mut buffer = [0; 4_096];
            // It ends with the last end of the line.
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                let (text, grown) = &*shown;
                let mut text = text.lock().unwrap_or_else(PoisonError::into_inner);
                text.push_str(&String::from_utf8_lossy(&buffer[..count]));
                grown.notify_all();
            }
        });
        Ok(Self {
            keyboard,
            line,
            child,
            before,
            screen,
        })
    }

    /// Waits until the program has written this.
    ///
    /// # Errors
    /// If it does not.
    pub fn wait_for(&self, wanted: &str) -> Result<()> {
        let (text, grown) = &*self.screen;
        let text = text.lock().unwrap_or_else(PoisonError::into_inner);
        let (text, waited) = grown
            .wait_timeout_while(text, PATIENCE, |text| !text.contains(wanted))
            .unwrap_or_else(PoisonError::into_inner);
        ensure!(!waited.timed_out(), "no {wanted:?} in {text:?}");
        Ok(())
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
        let text = self.screen.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Left {
            status,
            screen: text.trim_end_matches(END).to_owned(),
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

fn modes(line: &File) -> Result<Modes> {
    let found = tcgetattr(line).context("cannot read the terminal's modes")?;
    Ok((found.input_modes, found.output_modes, found.local_modes))
}

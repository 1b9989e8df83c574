//! The terminal while it is ours.

use std::io::{self, Write as _, stdout};
use std::sync::Once;

use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};

/// Reports of the mouse's buttons and wheel, in the form that has no bound on the column. Movements
/// are not asked for: each would wake the program for nothing.
const MOUSE_ON: &[u8] = b"\x1b[?1000h\x1b[?1006h";
/// The opposite.
const MOUSE_OFF: &[u8] = b"\x1b[?1006l\x1b[?1000l";

/// The terminal while it is ours. Dropping it gives it back.
#[derive(Debug)]
pub struct Screen(());

impl Screen {
    /// Takes the terminal: raw, on its other screen, with the mouse. From now on a panic gives it back
    /// before it speaks, so that its message can be read.
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
        stdout().write_all(MOUSE_ON)?;
        stdout().flush()?;
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
    let _ = stdout().write_all(MOUSE_OFF);
    let _ = disable_raw_mode();
    let _ = execute!(stdout(), LeaveAlternateScreen, Show);
}

//! What keys and the mouse do in the live view.

use ratatui::crossterm::event::{
    Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers, MouseEvent, MouseEventKind,
};

use super::model::{Row, View};
use super::sheet::{Kind, Sheet};
use crate::commands::status::words::name;

/// The longest filter, in bytes.
const MAX_FILTER: usize = 64;
/// Rows that a notch of the wheel scrolls.
const NOTCH: usize = 3;

/// What follows upon a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// Nothing that is shown has changed.
    Nothing,
    /// Something has.
    Draw,
    /// The agent has to be asked for what is shown now.
    Ask,
    /// The view ends.
    Quit,
}

/// A movement in a list or in a text.
#[derive(Clone, Copy, Debug)]
enum Move {
    Up(usize),
    Down(usize),
    PageUp,
    PageDown,
    First,
    Last,
}

impl Move {
    fn of(code: KeyCode) -> Option<Self> {
        Some(match code {
            KeyCode::Up | KeyCode::Char('k') => Self::Up(1),
            KeyCode::Down | KeyCode::Char('j') => Self::Down(1),
            KeyCode::PageUp => Self::PageUp,
            KeyCode::PageDown => Self::PageDown,
            KeyCode::Home => Self::First,
            KeyCode::End | KeyCode::Char('G') => Self::Last,
            _ => return None,
        })
    }

    /// The place after the movement, where a screen has `room`.
    const fn from(self, place: usize, room: usize) -> usize {
        let screen = if room == 0 { 1 } else { room };
        match self {
            Self::Up(by) => place.saturating_sub(by),
            Self::Down(by) => place.saturating_add(by),
            Self::PageUp => place.saturating_sub(screen),
            Self::PageDown => place.saturating_add(screen),
            Self::First => 0,
            Self::Last => usize::MAX,
        }
    }
}

impl View {
    /// Reacts to whatever the terminal tells.
    pub(super) fn react(&mut self, event: &Event) -> After {
        match event {
            Event::Key(key) if key.kind != KeyEventKind::Release => self.press(*key),
            Event::Mouse(mouse) => self.wheel(mouse),
            Event::Resize(..) => After::Draw,
            _ => After::Nothing,
        }
    }

    fn wheel(&mut self, mouse: &MouseEvent) -> After {
        match mouse.kind {
            MouseEventKind::ScrollUp => self.move_by(Move::Up(NOTCH)),
            MouseEventKind::ScrollDown => self.move_by(Move::Down(NOTCH)),
            _ => After::Nothing,
        }
    }

    fn move_by(&mut self, movement: Move) -> After {
        if let Some(sheet) = &mut self.sheet {
            let before = sheet.above;
            sheet.scroll(movement.from(before, sheet.room));
            return match sheet.above == before {
                true => After::Nothing,
                false => After::Draw,
            };
        }
        let before = (self.cursor, self.above);
        self.select(movement.from(self.cursor, self.room));
        match (self.cursor, self.above) == before {
            true => After::Nothing,
            false => After::Draw,
        }
    }

    fn press(&mut self, key: KeyEvent) -> After {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        if control && matches!(key.code, KeyCode::Char('c' | 'd')) {
            return After::Quit;
        }
        if self.is_typing {
            return self.type_in(key.code, control);
        }
        if self.sheet.is_some() {
            return self.press_on_sheet(key.code);
        }
        if let Some(movement) = Move::of(key.code) {
            return self.move_by(movement);
        }
        match key.code {
            KeyCode::Esc if !self.filter.is_empty() => {
                self.filter.clear();
                After::Draw
            }
            KeyCode::Char('q') | KeyCode::Esc => After::Quit,
            KeyCode::Char('/') => {
                self.is_typing = true;
                After::Draw
            }
            KeyCode::Char('s') => {
                self.sort = self.sort.next();
                After::Draw
            }
            KeyCode::Char('r') => {
                self.is_reversed = !self.is_reversed;
                After::Draw
            }
            KeyCode::Char('p') => {
                self.has_processes = !self.has_processes;
                match self.has_processes {
                    true => After::Ask,
                    false => After::Draw,
                }
            }
            KeyCode::Char(' ') => {
                self.is_paused = !self.is_paused;
                match self.is_paused {
                    true => After::Draw,
                    false => After::Ask,
                }
            }
            KeyCode::Char('?' | 'h') => self.open(Kind::Help),
            KeyCode::Char('a') => self.open(Kind::Page),
            KeyCode::Enter => self.details(),
            _ => After::Nothing,
        }
    }

    fn open(&mut self, kind: Kind) -> After {
        self.sheet = Some(Sheet::new(kind));
        After::Draw
    }

    fn details(&mut self) -> After {
        let rows = self.rows();
        let Some(row) = rows.get(self.cursor) else {
            return After::Nothing;
        };
        let title = match row {
            Row::Container(account) => name(account),
            Row::Unit(account) => account.unit.to_string(),
            Row::Process(process) => format!("process {}", process.pid),
        };
        let subject = row.subject();
        self.open(Kind::Details {
            subject,
            title,
            text: None,
        });
        After::Ask
    }

    fn press_on_sheet(&mut self, code: KeyCode) -> After {
        match (code, Move::of(code)) {
            (_, Some(movement)) => self.move_by(movement),
            (KeyCode::Char(' '), _) => self.move_by(Move::PageDown),
            (KeyCode::Esc | KeyCode::Enter | KeyCode::Char('q' | '?' | 'h' | 'a'), _) => {
                self.sheet = None;
                After::Draw
            }
            _ => After::Nothing,
        }
    }

    /// While a filter is typed, letters are no commands.
    fn type_in(&mut self, code: KeyCode, control: bool) -> After {
        match code {
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.is_typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char(c) if !control && self.filter.len() + c.len_utf8() <= MAX_FILTER => {
                self.filter.push(c);
                self.select(0);
            }
            KeyCode::Up | KeyCode::Down | KeyCode::PageUp | KeyCode::PageDown => {
                return Move::of(code).map_or(After::Nothing, |movement| self.move_by(movement));
            }
            _ => return After::Nothing,
        }
        After::Draw
    }
}

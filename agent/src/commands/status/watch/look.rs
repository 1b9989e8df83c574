//! With which characters and colours the view is drawn.
//!
//! `NO_COLOR` switches colours off if it is set to anything ([no-color.org](https://no-color.org)). A
//! terminal that is `dumb`, or that has no name, cannot move its cursor: there the page is printed
//! again and again.

use ratatui::style::{Color, Modifier, Style};

use crate::commands::charset::Charset;
use crate::commands::environment::allows_colour;

/// Eight heights of a bar.
const BLOCKS: [&str; 8] = ["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];
/// The same in ASCII, by how much ink they have.
const INK: [&str; 8] = ["_", ":", "-", "=", "+", "*", "%", "#"];
/// Less busy than this is shown as idle.
const IDLE: f64 = 0.005;

/// How the view looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) charset: Charset,
    pub(super) has_colours: bool,
    /// Whether tables have the names of their columns.
    pub(super) has_headings: bool,
}

/// What a part of the screen means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Nothing special.
    Plain,
    /// The names of columns, and titles.
    Heading,
    /// All is well.
    Good,
    /// Somebody should look at it.
    Degraded,
    /// It does not work.
    Bad,
    /// It is over, or of less importance.
    Faint,
    /// The keys and what is not shown.
    Footer,
}

impl Look {
    /// The look that the environment asks for.
    pub(super) fn of_the_environment(has_headings: bool) -> Self {
        Self {
            charset: Charset::of_the_environment(),
            has_colours: allows_colour(),
            has_headings,
        }
    }

    /// The style of a meaning. Without colours, what is degraded or does not work is inverted.
    pub(super) fn style(self, meaning: Meaning) -> Style {
        let colour = |colour: Color| match self.has_colours {
            true => Style::new().fg(colour),
            false => Style::new(),
        };
        let alarming = |of: Color| match self.has_colours {
            true => Style::new().fg(of).add_modifier(Modifier::BOLD),
            false => Style::new().add_modifier(Modifier::REVERSED),
        };
        match meaning {
            Meaning::Plain => Style::new(),
            Meaning::Heading => Style::new().add_modifier(Modifier::BOLD),
            Meaning::Good => colour(Color::Green),
            Meaning::Degraded => alarming(Color::Yellow),
            Meaning::Bad => alarming(Color::Red),
            Meaning::Faint => Style::new().add_modifier(Modifier::DIM),
            Meaning::Footer => Style::new().add_modifier(Modifier::REVERSED),
        }
    }

    /// A bar for the busy share of a time, 0..=1.
    pub(super) fn bar(self, share: f64) -> &'static str {
        let (bars, idle) = match self.charset {
            Charset::Unicode => (BLOCKS, "·"),
            Charset::Ascii => (INK, "."),
        };
        if share < IDLE {
            return idle;
        }
        let lower = (1..bars.len()).filter(|eighth| share * 8.0 > *eighth as f64);
        bars[lower.count()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_grow_with_the_share_and_ascii_has_as_many() {
        for charset in [Charset::Unicode, Charset::Ascii] {
            let look = Look {
                charset,
                has_colours: true,
                has_headings: true,
            };
            let mut seen: Vec<&str> = (0..=1_000)
                .map(|share| look.bar(f64::from(share) / 1_000.0))
                .collect();
            seen.dedup();
            assert_eq!(seen.len(), 9, "idle and eight bars: {seen:?}");
            let is_ascii = seen.iter().all(|bar| bar.is_ascii());
            assert_eq!(is_ascii, charset == Charset::Ascii);
        }
    }
}

//! Texts over the list: the help, the whole page of `gpuacct status`, the details of one row.

use unicode_width::UnicodeWidthChar as _;

use crate::words::printable;

/// The keys, in the help.
const HELP: &str = "\
j, down, wheel     next row; PgDn, space in a text: a screen further
k, up              row before; PgUp: a screen back
Home, End          first row, last row
Enter              what explain says of the selected row
p                  processes below their owners, or not
s                  sort by use, total, memory, name, gpu
r                  reverse the order
/                  filter by name, id, image or runtime; Esc ends it
a                  all that gpuacct status says: GPUs with their books,
                   allocations, coverage, every source, kernel events
space              pause, and go on
?, h               this help
q, Esc, Ctrl-C     back, or quit

A graph has the last two minutes, the newest at its right. A bar is the share of
time in which the GPU was busy; a dot is idle time; ? was not observed; blank is
the time before this view began. A bar is yellow if busy time has no owner.
NOW is of the last ten seconds, UTIL of the last minute. Columns that find no
room are left out, the least important first; Enter and a show everything.
";

/// What a sheet is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The keys.
    Help,
    /// All that `gpuacct status` says.
    Page,
    /// What `gpuacct explain` says of one subject.
    Details {
        /// The subject of the question.
        subject: String,
        /// What it is called in the list.
        title: String,
        /// The answer; absent until it comes.
        text: Option<String>,
    },
}

/// A text over the list, and how far it is scrolled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sheet {
    pub(super) kind: Kind,
    /// Lines above the first one that is shown.
    pub(super) above: usize,
    /// Lines that found room last time.
    pub(super) room: usize,
    /// Lines that there were last time.
    pub(super) all: usize,
}

impl Sheet {
    pub(super) const fn new(kind: Kind) -> Self {
        Self {
            kind,
            above: 0,
            room: 0,
            all: 0,
        }
    }

    /// The first line.
    pub(super) fn title(&self) -> String {
        match &self.kind {
            Kind::Help => "help".to_owned(),
            Kind::Page => "all that gpuacct status says".to_owned(),
            Kind::Details { title, .. } => title.clone(),
        }
    }

    /// The text, whose lines may be of any length; `None` for the page, which is made anew each time.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Help => Some(HELP),
            Kind::Page => None,
            Kind::Details { text, .. } => Some(text.as_deref().unwrap_or("asking the agent ...")),
        }
    }

    /// Scrolls to a line, the last screen at most.
    pub(super) fn scroll(&mut self, above: usize) {
        self.above = above.min(self.all.saturating_sub(self.room));
    }
}

/// The lines of a text, each at most `width` wide. What is longer is continued below, indented.
pub(super) fn folded(text: &str, width: usize) -> Vec<String> {
    const INDENT: &str = "    ";
    let width = width.max(1);
    let mut lines = Vec::new();
    for line in text.lines() {
        let (mut part, mut used) = (String::new(), 0);
        for c in printable(line).chars() {
            let columns = c.width().unwrap_or(0);
            if used + columns > width && used > 0 {
                lines.push(std::mem::take(&mut part));
                used = 0;
                if width > 2 * INDENT.len() {
                    part.push_str(INDENT);
                    used = INDENT.len();
                }
            }
            part.push(c);
            used += columns;
        }
        lines.push(part);
    }
    lines
}

#[cfg(test)]
mod tests {
    use unicode_width::UnicodeWidthStr as _;

    use super::*;

    #[test]
    fn a_folded_text_loses_nothing_and_is_no_wider() {
        let text = "short\n\n/kubepods/burstable/pod9d3f3c1e/日本語 and more";
        for width in 1..60 {
            let lines = folded(text, width);
            let kept: String = lines.concat().split_whitespace().collect();
            assert_eq!(kept, text.split_whitespace().collect::<String>());
            let widest = lines.iter().map(|line| line.width()).max();
            // One column is too narrow for half of these characters.
            assert!(widest <= Some(width.max(2)), "{width}: {lines:?}");
        }
    }
}

//! Columns of text for people, never wider than asked for.
//!
//! Names are of any length; columns that hold them give way first, and lose their middle: the
//! beginning of a name says whose it is and the end says which. Figures are never cut as long as there
//! is a column that may be left out instead.

use unicode_width::UnicodeWidthStr as _;

use crate::words::{elide, printable};

/// The width that a terminal can be relied upon to have.
pub(super) const WIDTH: usize = 80;
/// Between two columns.
const GAP: usize = 2;
/// Smallest width of a flexible column, unless there is no other way.
const FLEXIBLE_MIN: usize = 10;
/// The name of an optional column, and a width. The column is left out if it would make a flexible
/// column narrower than this width and narrower than its content.
pub(super) type Optional = (&'static str, usize);

/// Where a column's text stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Align {
    /// Left-aligned, for words.
    Left,
    /// Right-aligned, for numbers.
    Right,
    /// Words of any length, elided where there is no room.
    Flexible,
}

/// A table, filled row by row.
#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
    /// Columns that may be left out, the least important first.
    optional: &'static [Optional],
    has_heading: bool,
}

impl Table {
    /// A table with these columns.
    pub(super) fn new(columns: &[(&'static str, Align)]) -> Self {
        let owned = columns
            .iter()
            .map(|(name, align)| ((*name).to_owned(), *align));
        Self::of(owned.collect())
    }

    /// A table with columns that are known only when it is made.
    pub(super) fn of(columns: Vec<(String, Align)>) -> Self {
        Self {
            columns: columns
                .into_iter()
                .map(|(name, align)| (printable(&name), align))
                .collect(),
            rows: Vec::new(),
            optional: &[],
            has_heading: true,
        }
    }

    /// The table may leave out these columns where there is no room, the first ones first.
    pub(super) fn optional(mut self, columns: &'static [Optional]) -> Self {
        self.optional = columns;
        self
    }

    /// With or without the row of column names.
    pub(super) fn heading(mut self, has_heading: bool) -> Self {
        self.has_heading = has_heading;
        self
    }

    /// Adds a row: a cell for each column.
    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.row_of(cells.into());
    }

    /// Adds a row whose number of cells is known only at run time.
    pub(super) fn row_of(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.columns.len(), "a cell for each column");
        self.rows
            .push(cells.iter().map(|cell| printable(cell)).collect());
    }

    /// The names of the optional columns that find no room in `width`, the least important first.
    pub(super) fn left_out(&self, width: usize) -> Vec<&'static str> {
        let kept = self.kept(&self.natural_widths(), width);
        let gone: Vec<&String> = (0..self.columns.len())
            .filter(|column| !kept.contains(column))
            .map(|column| &self.columns[column].0)
            .collect();
        let names = self.optional.iter().map(|(name, _)| *name);
        names
            .filter(|name| gone.iter().any(|gone| gone == name))
            .collect()
    }

    /// Writes the heading and the rows, none wider than `width`.
    pub(super) fn write(&self, page: &mut String, width: usize) {
        let natural = self.natural_widths();
        let columns = self.kept(&natural, width);
        let widths = self.widths(&columns, &natural, width);
        self.put(page, &columns, &widths);
    }

    /// Writes the heading and the rows without the columns that [`Table::left_out`] names. All others
    /// are whole, even if a row is then wider than `width`.
    pub(super) fn write_whole(&self, page: &mut String, width: usize) {
        let natural = self.natural_widths();
        let columns = self.kept(&natural, width);
        let widths = self.widths(&columns, &natural, usize::MAX);
        self.put(page, &columns, &widths);
    }

    fn put(&self, page: &mut String, columns: &[usize], widths: &[usize]) {
        let heading: Vec<_> = self.columns.iter().map(|(name, _)| name.clone()).collect();
        let heading = self.has_heading.then_some(&heading);
        for row in heading.into_iter().chain(&self.rows) {
            let begin = page.len();
            for (column, width) in columns.iter().zip(widths) {
                if page.len() > begin {
                    page.push_str(&" ".repeat(GAP));
                }
                let cell = elide(&row[*column], *width);
                let padding = " ".repeat(width - cell.width().min(*width));
                match self.columns[*column].1 {
                    Align::Right => page.extend([padding, cell]),
                    Align::Left | Align::Flexible => page.extend([cell, padding]),
                }
            }
            page.truncate(page.trim_end_matches(' ').len());
            page.push('\n');
        }
    }

    /// The heading and the rows as lines, none wider than `width`.
    pub(super) fn lines(&self, width: usize) -> Vec<String> {
        let mut text = String::new();
        self.write(&mut text, width);
        text.lines().map(str::to_owned).collect()
    }

    /// The columns that find room, by their places.
    fn kept(&self, natural: &[usize], width: usize) -> Vec<usize> {
        let mut kept: Vec<usize> = (0..self.columns.len()).collect();
        for (name, wanted) in self.optional {
            let least = |column: &usize| match self.columns[*column].1 {
                Align::Flexible => natural[*column].min(*wanted),
                Align::Left | Align::Right => natural[*column],
            };
            if kept.iter().map(least).sum::<usize>() + gaps(kept.len()) <= width {
                continue;
            }
            kept.retain(|column| self.columns[*column].0 != *name);
        }
        kept
    }

    /// The width of each column's widest cell.
    fn natural_widths(&self) -> Vec<usize> {
        let columns = 0..self.columns.len();
        columns.map(|column| self.natural_width(column)).collect()
    }

    fn natural_width(&self, column: usize) -> usize {
        let cells = self.rows.iter().filter_map(|row| row.get(column));
        let name = self.has_heading.then(|| self.columns[column].0.width());
        cells
            .map(|cell| cell.width())
            .chain(name)
            .max()
            .unwrap_or(0)
    }

    fn widths(&self, columns: &[usize], natural: &[usize], width: usize) -> Vec<usize> {
        let mut widths: Vec<usize> = columns.iter().map(|column| natural[*column]).collect();
        while widths.iter().sum::<usize>() + gaps(widths.len()) > width {
            // The widest flexible column gives way; if none can, the widest of all.
            let flexible = (0..widths.len())
                .filter(|at| self.columns[columns[*at]].1 == Align::Flexible)
                .filter(|at| widths[*at] > FLEXIBLE_MIN)
                .max_by_key(|at| widths[*at]);
            let Some(at) = flexible.or_else(|| {
                (0..widths.len())
                    .filter(|at| widths[*at] > 1)
                    .max_by_key(|at| widths[*at])
            }) else {
                break;
            };
            widths[at] -= 1;
        }
        widths
    }
}

/// The width of the gaps between this many columns.
fn gaps(columns: usize) -> usize {
    GAP * columns.saturating_sub(1)
}

/// Writes `text` as [`wrap_at`] does, [`WIDTH`] wide.
pub(super) fn wrap(page: &mut String, text: &str, indent: &str) {
    wrap_at(page, text, indent, WIDTH);
}

/// Writes `text` and a line end, broken at spaces so that no line is wider than `width`; lines after
/// the first begin with `indent`. A line break at the beginning is kept.
pub(super) fn wrap_at(page: &mut String, text: &str, indent: &str, width: usize) {
    let body = text.trim_start_matches('\n');
    page.push_str(&text[..text.len() - body.len()]);
    let lead = body.len() - body.trim_start_matches(' ').len();
    page.push_str(&body[..lead]);
    let mut used = lead;
    let mut first = true;
    for word in printable(&body[lead..]).split(' ') {
        let word = elide(word, width.saturating_sub(indent.len()));
        let needed = word.width() + usize::from(!first);
        if !first && used + needed > width {
            page.push('\n');
            page.push_str(indent);
            used = indent.len() + word.width();
        } else {
            if !first {
                page.push(' ');
            }
            used += needed;
        }
        page.push_str(&word);
        first = false;
    }
    page.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_row_is_too_wide_however_long_its_cells() {
        for columns in 1..=8 {
            for (narrow, long) in [(80, 200), (80, 5), (20, 40)] {
                let align = [Align::Flexible, Align::Right, Align::Left];
                let names: Vec<_> = (0..columns).map(|c| ("NAME", align[c % 3])).collect();
                let mut table = Table::new(&names);
                table.rows = vec![vec!["x".repeat(long); columns]; 2];
                let mut page = String::new();
                table.write(&mut page, narrow);
                for line in page.lines() {
                    // Below a column's worth of room there is nothing left to give.
                    let floor = columns + GAP * (columns - 1);
                    assert!(line.width() <= narrow.max(floor), "{line}");
                }
            }
        }
    }

    #[test]
    fn columns_that_do_not_fit_are_left_out_and_the_others_stay_whole() {
        let columns = [
            ("KEY", Align::Left),
            ("A", Align::Right),
            ("B", Align::Right),
            ("C", Align::Right),
        ];
        for (width, left_out, expected) in [
            (
                usize::MAX,
                vec![],
                "KEY       A    B  C\nlong-key  1  222  3\n",
            ),
            (19, vec![], "KEY       A    B  C\nlong-key  1  222  3\n"),
            (18, vec!["C"], "KEY       A    B\nlong-key  1  222\n"),
            (15, vec!["C", "B"], "KEY       A\nlong-key  1\n"),
            // What may not be left out is wider than there is room for, and whole.
            (5, vec!["C", "B"], "KEY       A\nlong-key  1\n"),
        ] {
            let optional = &[("C", usize::MAX), ("none", usize::MAX), ("B", usize::MAX)];
            let mut table = Table::new(&columns).optional(optional);
            table.row(["long-key", "1", "222", "3"].map(str::to_owned));
            assert_eq!(table.left_out(width), left_out);
            let mut page = String::new();
            table.write_whole(&mut page, width);
            assert_eq!(page, expected, "in {width}");
        }
    }

    #[test]
    fn a_narrow_table_leaves_columns_out_and_cuts_no_figure() {
        let mut table = Table::new(&[
            ("NAME", Align::Flexible),
            ("TOTAL", Align::Right),
            ("MEMORY", Align::Right),
            ("STATE", Align::Left),
        ])
        .optional(&[("STATE", 24), ("MEMORY", 16)]);
        table.row([
            "research/train-0/trainer".into(),
            "213503d 23h".into(),
            "141 GiB".into(),
            "id only: not_found".into(),
        ]);
        for (width, expected) in [
            (80, ["NAME", "TOTAL", "MEMORY", "STATE"].as_slice()),
            (66, &["NAME", "TOTAL", "MEMORY", "STATE"]),
            (65, &["NAME", "TOTAL", "MEMORY"]),
            (50, &["NAME", "TOTAL", "MEMORY"]),
            (40, &["NAME", "TOTAL", "MEMORY"]),
            (30, &["NAME", "TOTAL"]),
        ] {
            let lines = table.lines(width);
            let names: Vec<&str> = lines[0].split_whitespace().collect();
            assert_eq!(names, expected, "{width}: {lines:?}");
            assert!(lines[1].contains("213503d 23h"), "{width}: {lines:?}");
            assert!(lines[1].width() <= width, "{width}: {lines:?}");
        }
        assert_eq!(table.heading(false).lines(80).len(), 1);
    }

    #[test]
    fn long_lines_break_at_spaces() {
        let mut page = String::new();
        wrap(&mut page, &format!("  - {}", "word ".repeat(40)), "    ");
        assert!(page.lines().count() > 2);
        assert!(page.lines().all(|line| line.width() <= WIDTH), "{page}");
        assert!(page.lines().skip(1).all(|line| line.starts_with("    ")));
    }
}

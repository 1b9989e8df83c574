//! How the live view is drawn: what is at the top, the list, the footer, and texts over the list.
//!
//! Nothing disappears silently. What finds no room is counted in the footer or below the part that it
//! belongs to, with the key that shows it. Columns are left out whole; figures are never cut.

use ratatui::Frame;
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::Paragraph;
use unicode_width::UnicodeWidthStr as _;

use super::look::{Look, Meaning};
use super::model::{Row, View};
use super::sheet::{Sheet, folded};
use crate::commands::status::page::{MORE_COLUMNS, Shape, more_cells, table};
use crate::commands::status::words::{Indexes, name, remarks, sources_in_short, uptime};
use crate::commands::table::{Align, Optional, Table, wrap_at};
use crate::core::model::{Nanos, SourceState};
use crate::core::snapshot::Attribution;
use crate::figures::{bytes, clock_time, duration, share, unknown};
use crate::words::{elide, place_and_reason, state};

/// From this height on there are blank lines between the parts.
const ROOM_FOR_BLANKS: usize = 20;
/// Columns of the list that may be left out, the least important first. Names are whole before any
/// column is shown that a narrow screen can do without.
const OPTIONAL: [Optional; 11] = [
    ("IMAGE", 40),
    ("ID", 40),
    ("RUNTIME", 40),
    ("LAST USED", 40),
    ("PROCESSES", 40),
    ("GIVEN", 40),
    ("HELD", 40),
    ("PEAK", 40),
    ("STATE", 24),
    ("MEMORY", 24),
    ("TOTAL", 24),
];

impl View {
    /// Draws everything.
    pub(super) fn draw(&mut self, frame: &mut Frame<'_>) {
        let area = frame.area();
        let lines = self.lines(usize::from(area.width), usize::from(area.height));
        frame.render_widget(Paragraph::new(Text::from(lines)), area);
    }

    /// The lines of a screen of this size.
    fn lines(&mut self, width: usize, height: usize) -> Vec<Line<'static>> {
        let look = self.look;
        let mut lines = self.top(width, (height / 4).max(3));
        if let Some(mut sheet) = self.sheet.take() {
            lines.truncate(1);
            self.sheet_lines(&mut sheet, &mut lines, width, height);
            self.sheet = Some(sheet);
        } else {
            let indexes = self.indexes();
            let blank = height >= ROOM_FOR_BLANKS;
            let room = height.saturating_sub(lines.len() + 1 + 2 * usize::from(blank));
            lines.extend(blank.then(Line::default));
            lines.extend(self.gpus(width, room));
            lines.extend(blank.then(Line::default));
            self.list(&mut lines, &indexes, width, height);
        }
        lines
            .into_iter()
            .map(|line| in_charset(line, look))
            .collect()
    }

    /// The state of the agent, and what needs attention, in `budget` lines at most.
    fn top(&self, width: usize, budget: usize) -> Vec<Line<'static>> {
        let report = &self.report;
        let (words, meaning) = match &self.silence {
            Some(silence) => {
                let nanos = u64::try_from(silence.lasts.as_nanos()).unwrap_or(u64::MAX);
                let since = clock_time(report.now_wall);
                let words = format!("no answer since {since} ({})", duration(Nanos(nanos)));
                (words, Meaning::Bad)
            }
            None if report.degraded.is_empty() => {
                (format!("{}, healthy", uptime(report)), Meaning::Good)
            }
            None => (format!("{}, degraded", uptime(report)), Meaning::Degraded),
        };
        let paused = if self.is_paused { ", paused" } else { "" };
        let mut first = format!("gpuacct {}, {words}{paused}", report.version);
        let joined = format!("{first}; {}", sources_in_short(&report.agent));
        // An agent that is silent says nothing of its sources, and those that are down have a line.
        if joined.width() <= width && self.silence.is_none() {
            first = joined;
        }
        let style = self.look.style(meaning).add_modifier(Modifier::BOLD);
        let mut lines = wrapped(&first, "  ", width, style);
        if self.sheet.is_some() {
            return lines;
        }
        let notes = self.notes();
        let all = notes.len();
        for (at, (note, meaning)) in notes.into_iter().enumerate() {
            let note = wrapped(&note, "    ", width, self.look.style(meaning));
            let is_last = at + 1 == all;
            let room = budget.saturating_sub(lines.len() + usize::from(!is_last));
            if note.len() > room {
                let more = format!("  {} more: press a", all - at);
                lines.push(Line::styled(more, self.look.style(Meaning::Degraded)));
                break;
            }
            lines.extend(note);
        }
        lines
    }

    /// What needs attention, the worst first.
    fn notes(&self) -> Vec<(String, Meaning)> {
        let report = &self.report;
        let mut notes = Vec::new();
        if let Some(silence) = &self.silence {
            notes.push((format!("  - {}", silence.reason), Meaning::Bad));
        }
        let down = report.agent.sources.iter();
        let down = down.filter(|health| matches!(health.state, SourceState::Down { .. }));
        let mut said = Vec::new();
        let mut of_sources = Vec::new();
        for health in down {
            let source = health.source.as_str();
            let lasts = duration(report.now.since(health.since));
            let why = place_and_reason(&health.place, &health.state, report.now);
            of_sources.push(format!("  - {source} is down for {lasts}: {why}"));
            said.push(format!("{source} is down: "));
        }
        // A reason that only says that a source is down says less than the source's own line.
        let reasons = report.degraded.iter();
        let reasons = reasons.filter(|reason| !said.iter().any(|said| reason.starts_with(said)));
        let reasons = reasons.map(|reason| format!("  - {reason}"));
        let degraded = reasons.chain(of_sources);
        notes.extend(degraded.map(|note| (note, Meaning::Degraded)));
        let remarks = remarks(report, &self.indexes()).into_iter();
        notes.extend(remarks.map(|remark| (remark, Meaning::Plain)));
        notes
    }

    /// The containers, host units and processes, and the footer, up to the screen's end.
    fn list(
        &mut self,
        lines: &mut Vec<Line<'static>>,
        indexes: &Indexes,
        width: usize,
        height: usize,
    ) {
        let look = self.look;
        let heading = usize::from(look.has_headings);
        let room = height.saturating_sub(lines.len() + heading + 1);
        let keys: Vec<String> = self.rows().iter().map(Row::key).collect();
        self.settle(&keys, room);
        let rows = self.rows();
        let shown = self.list_lines(&rows, indexes, width);
        if rows.is_empty() {
            let words = match self.filter.is_empty() {
                true => "no container has used a GPU",
                false => "nothing matches the filter",
            };
            lines.push(Line::raw(words));
        } else {
            let headings = shown.iter().take(heading);
            let headings =
                headings.map(|line| Line::styled(line.clone(), look.style(Meaning::Heading)));
            lines.extend(headings);
            let visible = shown.iter().skip(heading).enumerate();
            for (at, line) in visible.skip(self.above).take(room) {
                let mut style = self.style_of_row(&rows[at]);
                let mut line = line.clone();
                if at == self.cursor {
                    // The mark of the selected row is as wide as the screen.
                    style = style.add_modifier(Modifier::REVERSED);
                    line.push_str(&" ".repeat(width.saturating_sub(line.width())));
                }
                lines.push(Line::styled(line, style));
            }
        }
        let footer = self.footer(&rows, width);
        while lines.len() + 1 < height {
            lines.push(Line::default());
        }
        lines.truncate(height.saturating_sub(1));
        lines.push(footer);
    }

    /// The heading, if there is one, and a line for each row. Widths are those of all rows, so that
    /// columns stay where they are when the list is scrolled.
    fn list_lines(&self, rows: &[Row<'_>], indexes: &Indexes, width: usize) -> Vec<String> {
        let has_units = rows.iter().any(|row| matches!(row, Row::Unit(_)));
        let who = match has_units {
            true => "OWNER",
            false => "CONTAINER",
        };
        let mut columns = vec![
            (who, Align::Flexible),
            ("GPU", Align::Right),
            ("NOW", Align::Right),
            ("TOTAL", Align::Right),
            ("MEMORY", Align::Right),
            ("STATE", Align::Left),
        ];
        columns.extend(MORE_COLUMNS);
        let mut table = Table::new(&columns)
            .optional(&OPTIONAL)
            .heading(self.look.has_headings);
        let nothing = || vec![String::new(); MORE_COLUMNS.len()];
        for row in rows {
            let mut cells: Vec<String>;
            match row {
                Row::Container(account) => {
                    cells = vec![
                        name(account),
                        indexes.name(&account.gpu),
                        share(account.share),
                        duration(account.amounts.busy),
                        account.memory.map_or_else(unknown, bytes),
                        state(account),
                    ];
                    cells.extend(more_cells(account, self.report.now_wall));
                }
                Row::Unit(account) => {
                    cells = vec![
                        account.unit.to_string(),
                        indexes.name(&account.gpu),
                        share(account.share),
                        duration(account.amounts.busy),
                        account.memory.map_or_else(unknown, bytes),
                        "host".to_owned(),
                    ];
                    cells.extend(nothing());
                }
                Row::Process(process) => {
                    let inner = process.inner.last();
                    let inner = inner.map_or_else(String::new, |inner| format!(" in {inner}"));
                    // One without an owner that is in the list says who that is.
                    let owner = match process.owner.starts_with('(') {
                        true => format!(" {}", process.owner),
                        false => String::new(),
                    };
                    cells = vec![
                        format!("  {}{owner}{inner}", process.pid),
                        indexes.name(&process.gpu),
                        share(process.share),
                        String::new(),
                        process.memory.map_or_else(unknown, bytes),
                        if process.alive { "alive" } else { "gone" }.to_owned(),
                    ];
                    cells.extend(nothing());
                }
            }
            table.row_of(cells);
        }
        table.lines(width)
    }

    fn style_of_row(&self, row: &Row<'_>) -> Style {
        let meaning = match row {
            Row::Container(account) => match (account.ended, account.attribution) {
                (_, Attribution::Held | Attribution::IdOnly { .. }) if self.look.has_colours => {
                    Meaning::Degraded
                }
                (true, _) => Meaning::Faint,
                (false, _) => Meaning::Plain,
            },
            Row::Unit(_) => Meaning::Plain,
            Row::Process(process) if process.alive => Meaning::Plain,
            Row::Process(_) => Meaning::Faint,
        };
        self.look.style(meaning)
    }

    /// What is not shown, and the keys, as much as finds room.
    fn footer(&self, rows: &[Row<'_>], width: usize) -> Line<'static> {
        let mut items: Vec<Item> = Vec::new();
        let below = rows.get(self.above + self.room..).unwrap_or_default();
        if !below.is_empty() {
            let all = below.len();
            items.push(vec![
                format!("{}, press j", counted(below, " more")),
                format!("{all} more rows, press j"),
                format!("+{all}"),
            ]);
        }
        if self.is_typing {
            items.push(vec![format!("filter: {}_", self.filter)]);
        } else if !self.filter.is_empty() {
            items.push(vec![format!("filter: {} (Esc)", self.filter)]);
        }
        let above = rows.get(..self.above).unwrap_or_default();
        if !above.is_empty() {
            items.push(vec![
                format!("{} above, press k", counted(above, "")),
                format!("{} above", above.len()),
            ]);
        }
        let left_out = self.left_out.containers + self.left_out.units + self.left_out.processes;
        if left_out > 0 {
            items.push(vec![format!("{left_out} left out by --limit")]);
        }
        items.push(vec!["? help".to_owned(), "?".to_owned()]);
        let reversed = if self.is_reversed { " reversed" } else { "" };
        items.push(vec![format!("s sort: {}{reversed}", self.sort.as_str())]);
        let keys = [
            "q quit",
            "Enter details",
            "p processes",
            "/ filter",
            "a all",
        ];
        items.extend(keys.map(|key| vec![key.to_owned()]));
        joined(&items, width, self.look)
    }

    /// A text in place of the list, and its footer.
    fn sheet_lines(
        &self,
        sheet: &mut Sheet,
        lines: &mut Vec<Line<'static>>,
        width: usize,
        height: usize,
    ) {
        let title = elide(&sheet.title(), width);
        lines.push(Line::styled(title, self.look.style(Meaning::Heading)));
        let text = match sheet.text() {
            Some(text) => folded(text, width),
            None => {
                let shape = Shape {
                    width: width.max(Shape::NARROW.width),
                    ..Shape::NARROW
                };
                let processes = self.has_processes.then_some(&*self.processes);
                folded(&table(&self.report, processes, shape), width)
            }
        };
        sheet.room = height.saturating_sub(lines.len() + 1);
        sheet.all = text.len();
        sheet.scroll(sheet.above);
        let shown = text.into_iter().skip(sheet.above).take(sheet.room);
        lines.extend(shown.map(Line::raw));
        let below = sheet.all.saturating_sub(sheet.above + sheet.room);
        let mut items: Vec<Item> = Vec::new();
        if below > 0 {
            items.push(vec![
                format!("{below} more lines, press j"),
                format!("+{below}"),
            ]);
        }
        items.push(vec!["Esc back".to_owned()]);
        if sheet.above > 0 {
            items.push(vec![format!("{} above, press k", sheet.above)]);
        }
        while lines.len() + 1 < height {
            lines.push(Line::default());
        }
        lines.truncate(height.saturating_sub(1));
        lines.push(joined(&items, width, self.look));
    }
}

/// How many rows of which kind there are: `12 more containers, 3 processes`; empty if there are none.
fn counted(rows: &[Row<'_>], more: &str) -> String {
    let (mut containers, mut units, mut processes) = (0_usize, 0_usize, 0_usize);
    for row in rows {
        match row {
            Row::Container(_) => containers += 1,
            Row::Unit(_) => units += 1,
            Row::Process(_) => processes += 1,
        }
    }
    let counts = [
        (containers, "container", "containers"),
        (units, "host unit", "host units"),
        (processes, "process", "processes"),
    ];
    let counts = counts.into_iter().filter(|(count, ..)| *count > 0);
    let words = counts.enumerate().map(|(at, (count, one, many))| {
        let more = if at == 0 { more } else { "" };
        format!("{count}{more} {}", if count == 1 { one } else { many })
    });
    words.collect::<Vec<_>>().join(", ")
}

/// A part of the footer in several wordings, the longest first.
type Item = Vec<String>;

/// The items that find room in a line, the first ones first, each in the longest wording that does.
fn joined(items: &[Item], width: usize, look: Look) -> Line<'static> {
    let mut text = String::new();
    for item in items {
        let gap = if text.is_empty() { " " } else { "  " };
        let room = width.saturating_sub(text.width() + gap.len());
        if let Some(wording) = item.iter().find(|wording| wording.width() <= room) {
            text.push_str(gap);
            text.push_str(wording);
        }
    }
    text.push_str(&" ".repeat(width.saturating_sub(text.width())));
    Line::styled(text, look.style(Meaning::Footer))
}

/// A text in as many lines as it takes.
fn wrapped(text: &str, indent: &str, width: usize, style: Style) -> Vec<Line<'static>> {
    let mut page = String::new();
    wrap_at(&mut page, text, indent, width);
    let lines = page.lines();
    lines
        .map(|line| Line::styled(line.to_owned(), style))
        .collect()
}

fn in_charset(mut line: Line<'static>, look: Look) -> Line<'static> {
    for span in &mut line.spans {
        let text = std::mem::take(&mut span.content).into_owned();
        span.content = look.charset.text(text).into();
    }
    line
}

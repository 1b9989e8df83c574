//! The GPUs of the live view: a table with a graph for each of them, or side by side where there is no
//! room for a table.

use ratatui::style::Style;
use ratatui::text::{Line, Span};
use unicode_width::UnicodeWidthStr as _;

use super::history::Slot;
use super::look::Meaning;
use super::model::View;
use crate::commands::table::{Align, Table};
use crate::core::model::{GpuUuid, Nanos};
use crate::core::snapshot::GpuBook;
use crate::figures::{duration, memory_of, share, sum, unknown};
use crate::words::elide;

/// The widest graph, in slots: two seconds each, as often as the agent commits.
const MAX_GRAPH: usize = 60;
/// Widths of the graphs of GPUs side by side; the widest that finds room is used.
const GRAPHS: [usize; 6] = [30, 20, 12, 8, 4, 0];
/// Busy time without an owner that colours a bar, as a share of the time.
const UNOWNED: f64 = 0.05;

impl View {
    /// The lines of the GPUs, where the screen has `room` for them and all that is below.
    pub(super) fn gpus(&self, width: usize, room: usize) -> Vec<Line<'static>> {
        let books = &self.report.snapshot.gpus;
        if books.is_empty() {
            return vec![Line::raw("no GPU is known")];
        }
        let heading = usize::from(self.look.has_headings);
        if books.len() + heading <= room / 3 {
            self.gpu_table(width)
        } else {
            self.gpu_grid(width, (room / 2).max(1))
        }
    }

    fn gpu_table(&self, width: usize) -> Vec<Line<'static>> {
        let snapshot = &self.report.snapshot;
        let columns = [
            ("GPU", Align::Right),
            ("MODEL", Align::Flexible),
            ("UTIL", Align::Right),
            ("MEMORY", Align::Right),
            ("BUSY", Align::Right),
            ("IDLE", Align::Right),
            ("UNOBS.", Align::Right),
            ("NO OWNER", Align::Right),
        ];
        let mut table = Table::new(&columns)
            .optional(&[
                ("IDLE", 16),
                ("BUSY", 16),
                ("MODEL", 16),
                ("NO OWNER", 10),
                ("UNOBS.", 10),
                ("MEMORY", 10),
            ])
            .heading(self.look.has_headings);
        for book in &snapshot.gpus {
            table.row([
                book.gpu.index.to_string(),
                book.gpu.model.to_string(),
                book.utilization.map_or_else(unknown, share),
                memory_of(book.memory_used, book.gpu.memory_total),
                duration(book.busy),
                duration(book.idle),
                duration(sum(&book.unobserved)),
                duration(sum(&book.unattributed)),
            ]);
        }
        // The graph takes what is left, and a fourth of the width at least.
        let figures = table.lines(width.saturating_sub(width / 4));
        let widest = figures.iter().map(|line| line.width()).max().unwrap_or(0);
        let graph = width.saturating_sub(widest + 2).min(MAX_GRAPH);
        let heading = usize::from(self.look.has_headings);
        let lines = figures.into_iter().enumerate().map(|(at, line)| {
            let padding = widest + 2 - line.width();
            let mut spans = vec![Span::raw(line), Span::raw(" ".repeat(padding))];
            if at < heading {
                spans.push(Span::raw(elide("LAST 2 MIN", graph)));
                return Line::from(spans).style(self.look.style(Meaning::Heading));
            }
            let book = &snapshot.gpus[at - heading];
            spans[0].style = self.style_of(book);
            spans.extend(self.graph(&book.gpu.uuid, graph));
            Line::from(spans)
        });
        lines.collect()
    }

    fn gpu_grid(&self, width: usize, budget: usize) -> Vec<Line<'static>> {
        let books = &self.report.snapshot.gpus;
        let index_width = |book: &GpuBook| book.gpu.index.to_string().width();
        let index_width = books.iter().map(index_width).max().unwrap_or(1);
        let utilization = "100.0%".len();
        let cell = |graph: usize| {
            let graph = if graph == 0 { 0 } else { graph + 1 };
            index_width + 1 + graph + utilization
        };
        let side_by_side = |graph: usize| ((width + 2) / (cell(graph) + 2)).max(1);
        let fits = |graph: &usize| {
            let rows = books.len().div_ceil(side_by_side(*graph));
            cell(*graph) <= width && rows <= budget
        };
        let graph = GRAPHS.into_iter().find(fits).unwrap_or(0);
        let in_a_row = side_by_side(graph);
        let mut shown = books.len();
        if shown.div_ceil(in_a_row) > budget {
            // The last line says how many are not shown.
            shown = (budget.saturating_sub(1) * in_a_row).min(shown);
        }
        let mut lines: Vec<Line<'static>> = Vec::new();
        for row in books[..shown].chunks(in_a_row) {
            let mut spans = Vec::new();
            for (at, book) in row.iter().enumerate() {
                let gap = if at == 0 { "" } else { "  " };
                let index = format!("{gap}{:>index_width$} ", book.gpu.index);
                spans.push(Span::styled(index, self.style_of(book)));
                if graph > 0 {
                    spans.extend(self.graph(&book.gpu.uuid, graph));
                    spans.push(Span::raw(" "));
                }
                let used = book.utilization.map_or_else(unknown, share);
                let used = format!("{used:>utilization$}");
                spans.push(Span::styled(used, self.style_of(book)));
            }
            lines.push(Line::from(spans));
        }
        let hidden = books.len() - shown;
        if hidden > 0 {
            let more = format!("{hidden} more GPUs: press a");
            lines.push(Line::styled(more, self.look.style(Meaning::Degraded)));
        }
        lines
    }

    /// A GPU whose last minute is not known or owned as it should be is coloured.
    fn style_of(&self, book: &GpuBook) -> Style {
        let coverage = &book.coverage;
        let is_most = |part: Nanos, whole: Nanos| part.0.saturating_mul(20) > whole.0;
        let is_degraded = is_most(sum(&coverage.unobserved), coverage.elapsed)
            || is_most(sum(&coverage.unattributed), coverage.busy);
        match is_degraded && self.look.has_colours {
            true => self.look.style(Meaning::Degraded),
            false => Style::new(),
        }
    }

    /// The last minutes of a GPU, a character for each slot.
    fn graph(&self, gpu: &GpuUuid, slots: usize) -> Vec<Span<'static>> {
        let now = self.report.snapshot.at;
        let slots = self.history.slots(gpu, now, slots);
        let look = self.look;
        let bars = slots.into_iter().map(|slot| {
            let Slot {
                known,
                busy,
                unowned,
                unobserved,
            } = slot;
            if known <= 0.0 {
                return Span::raw(" ");
            }
            if unobserved > 0.5 {
                return Span::styled("?", look.style(Meaning::Bad));
            }
            let bar = look.bar(busy);
            match unowned > UNOWNED && look.has_colours {
                true => Span::styled(bar, look.style(Meaning::Degraded)),
                false => Span::styled(bar, look.style(Meaning::Good)),
            }
        });
        bars.collect()
    }
}

//! What the page says: the words and figures that its template puts into place.
//!
//! Every text that comes from outside goes through [`shown`] on its way here, and is escaped by the template
//! and by the writer of the picture.

use std::collections::BTreeMap;
use std::sync::Arc;

use rust_decimal::Decimal;

use super::super::page::{became, is_shared, names, nothing};
use super::super::print::{Cell, Cells, Sheet, seconds};
use super::bands::{Bands, class_of};
use super::picture::{Band, draw};
use super::table::{Figure, Heading, Line, Name, Table, Unit};
use crate::core::model::{NONE, Nanos};
use crate::outputs::instruments::VERSION;
use crate::report::tally::{Dimension, Kind, Report, Row, Timeline, without_times};
use crate::words::shown;

/// The columns of any other text from outside.
const TEXT_WIDTH: usize = 400;

/// Everything on the page.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) version: &'static str,
    /// Both ends of the report, for people and for programs.
    pub(super) since: Ends,
    pub(super) until: Ends,
    /// What the report is about, in words: names and values.
    pub(super) facts: Vec<(&'static str, String)>,
    /// Why it is less than was asked for, or wrong.
    pub(super) warnings: Vec<String>,
    pub(super) notes: Vec<String>,
    /// The figures that matter most, with what they are.
    pub(super) heads: Vec<(String, Figure)>,
    /// The picture, as SVG, with what it shows.
    pub(super) picture: Option<(String, String)>,
    pub(super) who: Table,
    /// Why `who` is empty, if it is.
    pub(super) nobody: Option<&'static str>,
    pub(super) what: Table,
    /// Time that nobody owns, row by row, where there is more to it than in `what`.
    pub(super) unowned: Option<Table>,
    pub(super) times: Option<Table>,
}

/// An end of the range.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) people: String,
    pub(super) programs: String,
}

/// A column of figures of those who own their time: the field of the JSON, what it is called, its unit, and
/// whether only a wide page has it.
type Column = (&'static str, &'static str, Unit, bool);

const COLUMNS: [Column; 15] = [
    ("busy_seconds", "Busy h", Unit::Hours, false),
    ("allocated_seconds", "Allocated h", Unit::Hours, false),
    ("allocated_share_seconds", "Divided h", Unit::Hours, true),
    ("allocated_unused_seconds", "Unused h", Unit::Hours, false),
    ("held_seconds", "Held h", Unit::Hours, true),
    (
        "engine_memory_busy_seconds",
        "Memory interface h",
        Unit::Hours,
        true,
    ),
    (
        "engine_encoder_busy_seconds",
        "Encoder h",
        Unit::Hours,
        true,
    ),
    (
        "engine_decoder_busy_seconds",
        "Decoder h",
        Unit::Hours,
        true,
    ),
    ("engine_jpeg_busy_seconds", "JPEG h", Unit::Hours, true),
    ("engine_ofa_busy_seconds", "OFA h", Unit::Hours, true),
    ("memory_byte_seconds", "GiB h", Unit::GibibyteHours, false),
    ("processes_started", "Started", Unit::AsItIs, true),
    ("memory_peak_bytes", "Peak GiB", Unit::Gibibytes, true),
    ("energy_joules", "kWh", Unit::KilowattHours, false),
    ("busy_share", "Share", Unit::Percent, false),
];
/// What the column of money is in the JSON.
const COST: &str = "cost";
/// What a row's whole time is in the JSON.
const GPU_SECONDS: &str = "gpu_seconds";
const JOULES: &str = "energy_joules";

impl Page {
    pub(super) fn new(report: &Report, wide: bool) -> Self {
        let sheet = Sheet::of(report);
        let bands = report.timeline.as_ref().map(Bands::of).unwrap_or_default();
        let who = who(report, &sheet, &bands, wide);
        let text = |text: &String| shown(text, TEXT_WIDTH);
        let ends = |at| {
            let programs = report.zone.show(at);
            let people = programs.replacen('T', " ", 1);
            Ends { people, programs }
        };
        Self {
            version: VERSION,
            since: ends(report.since),
            until: ends(report.until),
            facts: facts(report),
            warnings: report.warnings.iter().map(text).collect(),
            notes: report.notes.iter().map(text).collect(),
            heads: heads(report, &sheet),
            picture: report.timeline.as_ref().and_then(|of| draw(of, &bands.all)),
            nobody: who.rows.is_empty().then(|| nothing(report).trim_end()),
            who,
            what: what(report, &sheet),
            unowned: unowned(report, &sheet),
            times: report.timeline.as_ref().map(|of| times(of, report, &bands)),
        }
    }

    /// The title of the document, in which no name from outside is.
    pub(super) fn title(&self) -> String {
        format!("GPU use, {} to {}", self.since.people, self.until.people)
    }
}

/// What the report is about.
fn facts(report: &Report) -> Vec<(&'static str, String)> {
    let nodes: Vec<&str> = report.nodes.iter().map(|node| &**node).collect();
    let by: Vec<String> = report.by.iter().map(ToString::to_string).collect();
    let mut facts = vec![("Grouped by", by.join(", "))];
    match nodes.len() {
        0 => {}
        1 => facts.push(("Node", nodes.join(""))),
        count => facts.push(("Nodes", format!("{count}: {}", nodes.join(", ")))),
    }
    if !report.only.is_empty() {
        facts.push(("Only", report.only.join(" and ")));
    }
    facts.push(("Time zone", report.zone.to_string()));
    facts.push(("Last commit", report.zone.show(report.committed)));
    let facts = facts.into_iter();
    facts
        .map(|(name, text)| (name, shown(&text, TEXT_WIDTH)))
        .collect()
}

/// The cell of a field in a row.
fn cell<'a>(cells: &Cells<'a>, field: &str) -> Cell<'a> {
    let found = cells.0.iter().find(|(name, _)| *name == field);
    found.map_or(Cell::Nothing, |(_, cell)| *cell)
}

/// The figure of a field in a row.
fn figure(cells: &Cells<'_>, field: &str, unit: Unit) -> Figure {
    match cell(cells, field) {
        Cell::Number(number) => Figure::new(number, unit.show(number)),
        _ => Figure::nothing(),
    }
}

/// The figures that matter most.
fn heads(report: &Report, sheet: &Sheet<'_>) -> Vec<(String, Figure)> {
    let (owned, total) = (sheet.cells(&report.owned), sheet.cells(&report.total));
    let mut heads = vec![(
        "GPU hours used".to_owned(),
        figure(&owned, "busy_seconds", Unit::Hours),
    )];
    let unused = figure(&owned, "allocated_unused_seconds", Unit::Hours);
    if unused.exact.as_deref().is_some_and(|exact| exact != "0") {
        heads.push(("GPU hours allocated and not used".to_owned(), unused));
    }
    if report.only.is_empty() {
        heads.push((
            "GPU hours in all".to_owned(),
            figure(&total, GPU_SECONDS, Unit::Hours),
        ));
    }
    if let Some(currency) = &report.currency {
        heads.push((currency.clone(), figure(&total, COST, Unit::AsItIs)));
    }
    heads
}

/// Containers and the host, with what is known of them.
fn who(report: &Report, sheet: &Sheet<'_>, bands: &Bands, wide: bool) -> Table {
    let owned: Vec<&Row> = report
        .rows
        .iter()
        .filter(|row| row.kind.is_owned())
        .collect();
    if owned.is_empty() {
        return Table::default();
    }
    let all: Vec<Cells<'_>> = owned.iter().map(|row| sheet.cells(row)).collect();
    let is_divided = is_shared(report);
    let is_known = |field: &str| {
        let mut cells = all.iter().map(|cells| cell(cells, field));
        cells.any(|cell| !matches!(cell, Cell::Nothing))
    };
    let columns: Vec<Column> = COLUMNS
        .into_iter()
        .filter(|(field, _, _, is_wide)| {
            let is_wanted = !is_wide || wide || (*field == "allocated_share_seconds" && is_divided);
            is_wanted && is_known(field)
        })
        .collect();
    let figures = |cells: &Cells<'_>| -> Vec<Figure> {
        let figures = columns.iter();
        let figures = figures.map(|(field, _, unit, _)| figure(cells, field, *unit));
        let cost = report.currency.is_some();
        let cost = cost.then(|| figure(cells, COST, Unit::AsItIs));
        figures.chain(cost).collect()
    };
    let mark = report.by.iter().position(Dimension::is_identity);
    let rows = owned.iter().zip(&all).map(|(row, cells)| Line {
        class: bands.class(row.kind, &without_times(&report.by, &row.key)),
        kind: row.kind.as_str(),
        names: names(row.kind, &row.key, mark)
            .iter()
            .map(|name| Name::new(name))
            .collect(),
        figures: figures(cells),
        part: None,
    });
    let rows: Vec<Line> = rows.collect();
    let mut sum = vec![Name::new("together")];
    sum.resize_with(rows[0].names.len(), || Name::new(""));
    let heads = columns.iter();
    let heads = heads.map(|(field, text, ..)| Heading::of_field(text, field));
    let cost = report.currency.iter();
    let cost = cost.map(|currency| Heading::of_field(currency, COST));
    Table {
        names: headings(mark.is_none(), &report.by),
        figures: heads.chain(cost).collect(),
        rows,
        sum: Some(Line {
            class: String::new(),
            kind: "owned",
            names: sum,
            figures: figures(&sheet.cells(&report.owned)),
            part: None,
        }),
    }
}

/// The heads of the columns that say whose it is.
fn headings(is_marked: bool, by: &[Dimension]) -> Vec<Heading> {
    let head = |dimension: &Dimension| {
        let text = match dimension {
            Dimension::GpuIndex => "Index".to_owned(),
            Dimension::Label(key) => format!("Label {key}"),
            Dimension::Gpu => "GPU".to_owned(),
            dimension => capital(&dimension.to_string().replace('_', " ")),
        };
        Heading::plain(&text)
    };
    let mark = is_marked.then(|| Heading::plain("Who"));
    mark.into_iter().chain(by.iter().map(head)).collect()
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_uppercase());
    first.into_iter().flatten().chain(chars).collect()
}

/// The heads of the columns of time that nobody owns.
fn figures_of_time(report: &Report) -> Vec<Heading> {
    let mut figures = vec![
        Heading::of_field("GPU h", GPU_SECONDS),
        Heading::of_field("kWh", JOULES),
    ];
    let cost = report.currency.iter();
    figures.extend(cost.map(|currency| Heading::of_field(currency, COST)));
    figures
}

/// What became of the GPUs' time, all of it: one row for each kind and reason.
fn what(report: &Report, sheet: &Sheet<'_>) -> Table {
    // All of the time is no part of a report on some accounts.
    if !report.only.is_empty() {
        return Table::default();
    }
    let mut kinds: BTreeMap<(Kind, Arc<str>), [Option<Decimal>; 3]> = BTreeMap::new();
    for row in report.rows.iter().filter(|row| !row.kind.is_owned()) {
        let cells = sheet.cells(row);
        let sums = kinds
            .entry((row.kind, Arc::clone(&row.reason)))
            .or_default();
        for (sum, field) in sums.iter_mut().zip([GPU_SECONDS, JOULES, COST]) {
            if let Cell::Number(number) = cell(&cells, field) {
                *sum = Some(sum.unwrap_or_default() + number);
            }
        }
    }
    let all = report.total.sums.gpu;
    let line = |class: &str, kind: &'static str, name: &str, sums: [Option<Decimal>; 3]| {
        let [time, energy, cost] = sums;
        let time = time.unwrap_or_default();
        let energy = energy.map(|energy| Figure::new(energy, Unit::KilowattHours.show(energy)));
        let mut figures = vec![Figure::hours(time), energy.unwrap_or_else(Figure::nothing)];
        if report.currency.is_some() {
            figures.push(Figure::money(cost));
        }
        Line {
            class: class.to_owned(),
            kind,
            names: vec![Name::new(name)],
            figures,
            part: Some(part_of(time, seconds(all))),
        }
    };
    let of_row = |row: &Row| {
        let cells = sheet.cells(row);
        [GPU_SECONDS, JOULES, COST].map(|field| match cell(&cells, field) {
            Cell::Number(number) => Some(number),
            _ => None,
        })
    };
    let mut rows = vec![line(
        "owned",
        "owned",
        "used by somebody",
        of_row(&report.owned),
    )];
    rows.extend(kinds.into_iter().map(|((kind, reason), sums)| {
        let reason = match &*reason {
            NONE => String::new(),
            reason => format!(": {reason}"),
        };
        line(
            class_of(kind),
            kind.as_str(),
            &format!("{}{reason}", became(kind)),
            sums,
        )
    }));
    Table {
        names: vec![Heading::plain("What")],
        figures: figures_of_time(report),
        rows,
        sum: Some(line(
            "",
            Kind::Total.as_str(),
            "total",
            of_row(&report.total),
        )),
    }
}

/// A part of a whole, in whole percents and in words.
fn part_of(part: Decimal, whole: Decimal) -> (u32, String) {
    let part = part.checked_div(whole).unwrap_or_default();
    let percents = (part * Decimal::ONE_HUNDRED).round();
    let percents = u32::try_from(percents).unwrap_or(0).min(100);
    (percents, Unit::Percent.show(part))
}

/// Time that nobody owns, row by row, if the report is grouped by something that such time has.
fn unowned(report: &Report, sheet: &Sheet<'_>) -> Option<Table> {
    let places: Vec<usize> = (0..report.by.len())
        .filter(|at| !report.by[*at].is_identity())
        .collect();
    if places.is_empty() || !report.only.is_empty() {
        return None;
    }
    let by: Vec<Dimension> = places.iter().map(|at| report.by[*at].clone()).collect();
    let rows = report.rows.iter().filter(|row| !row.kind.is_owned());
    let rows = rows.map(|row| {
        let cells = sheet.cells(row);
        let what = match &*row.reason {
            NONE => became(row.kind).to_owned(),
            reason => format!("{}: {reason}", became(row.kind)),
        };
        let places = places.iter().map(|at| &*row.key[*at]);
        let mut figures = vec![
            figure(&cells, GPU_SECONDS, Unit::Hours),
            figure(&cells, JOULES, Unit::KilowattHours),
        ];
        if report.currency.is_some() {
            figures.push(figure(&cells, COST, Unit::AsItIs));
        }
        Line {
            class: class_of(row.kind).to_owned(),
            kind: row.kind.as_str(),
            names: [&*what].into_iter().chain(places).map(Name::new).collect(),
            figures,
            part: None,
        }
    });
    let mut names = vec![Heading::plain("What")];
    names.extend(headings(false, &by));
    Some(Table {
        names,
        figures: figures_of_time(report),
        rows: rows.collect(),
        sum: None,
    })
}

/// GPU time in the order of time: a row for each column of the picture.
fn times(timeline: &Timeline, report: &Report, bands: &Bands) -> Table {
    let figures = |times: &mut dyn Iterator<Item = Nanos>, cost: Option<Decimal>| {
        let times: Vec<Nanos> = times.collect();
        let all = times.iter().copied().sum();
        let times = times.into_iter().chain([all]);
        let mut figures: Vec<Figure> = times.map(|time| Figure::hours(seconds(time))).collect();
        if report.currency.is_some() {
            figures.push(Figure::money(cost));
        }
        figures
    };
    let rows = timeline
        .columns
        .iter()
        .enumerate()
        .map(|(at, column)| Line {
            class: String::new(),
            kind: "",
            names: vec![Name::new(&column.name.replacen('T', " ", 1))],
            figures: figures(
                &mut bands.all.iter().map(|band| band.times[at]),
                column.cost,
            ),
            part: None,
        });
    let sums = &mut bands.all.iter().map(Band::sum);
    let sum = Line {
        class: String::new(),
        kind: Kind::Total.as_str(),
        names: vec![Name::new("total")],
        figures: figures(sums, report.total.cost),
        part: None,
    };
    let heads = bands.all.iter().map(|band| Heading {
        class: band.class.clone(),
        ..Heading::plain(&band.name)
    });
    let mut heads: Vec<Heading> = heads.collect();
    heads.push(Heading::plain("together"));
    heads.extend(
        report
            .currency
            .iter()
            .map(|currency| Heading::plain(currency)),
    );
    Table {
        names: vec![Heading::plain(&capital(&timeline.unit.to_string()))],
        figures: heads,
        rows: rows.collect(),
        sum: Some(sum),
    }
}

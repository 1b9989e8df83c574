//! A report as a page for people: hours with three decimals, GiB hours, kWh. First who used what, then
//! what became of all the time, in which the first table is one line.
//!
//! A file or a pipe gets every column of the page. On a terminal that is too narrow the least important
//! figures are left out, and the command says which. What the report is grouped by was asked for, and
//! is always whole.

use std::sync::Arc;

use rust_decimal::Decimal;

use super::super::table::{Align, Optional, Table, wrap};
use super::print::{SECONDS_OF_AN_HOUR, count_of, hours, joules};
use crate::core::model::{NONE, Nanos, WallTime};
use crate::outputs::store::query::AccountLife;
use crate::report::hour::moment_of;
use crate::report::tally::{Absent, Dimension, Figure as Shown, Kind, Report, Row};

/// Figures that are left out where the others do not fit whole, the least important first. The others
/// are what the report is about.
const LEAST_FIRST: [Optional; 6] = [
    ("SHARE", usize::MAX),
    ("kWh", usize::MAX),
    ("GiB h", usize::MAX),
    ("UNUSED h", usize::MAX),
    ("DIV. h", usize::MAX),
    ("ALLOC. h", usize::MAX),
];

/// A page, and the columns for which there was no room.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) text: String,
    pub(super) left_out: Vec<&'static str>,
}

/// Draws a page for a terminal of so many columns, or for a file or a pipe. A `wide` one has all figures
/// and any width. A file has the warnings in it, which a terminal shows beside it.
pub(super) fn table(report: &Report, wide: bool, width: Option<usize>) -> Page {
    let mut text = String::new();
    let range = [report.since, report.until].map(|at| report.zone.show(at));
    wrap(&mut text, &range.join(" to "), "  ");
    let warnings = report.warnings.iter().filter(|_| width.is_none());
    for note in warnings.chain(&report.notes) {
        wrap(&mut text, &format!("  - {note}"), "    ");
    }
    let room = width.filter(|_| !wide).unwrap_or(usize::MAX);
    let mut left_out: Vec<&str> = Vec::new();
    let mut draw = |table: Table, text: &mut String| {
        for name in table.left_out(room) {
            if !left_out.contains(&name) {
                left_out.push(name);
            }
        }
        table.write_whole(text, room);
    };
    let (owned, nobodys): (Vec<&Row>, Vec<&Row>) =
        report.rows.iter().partition(|row| row.kind.is_owned());
    text.push('\n');
    if owned.is_empty() {
        text.push_str(nothing(report));
    } else {
        draw(who(report, &owned, wide), &mut text);
    }
    // All of the time is no part of a report on some accounts.
    if report.only.is_empty() {
        text.push('\n');
        draw(what(report, &nobodys), &mut text);
    }
    Page { text, left_out }
}

/// Why there is nobody in the report.
pub(super) fn nothing(report: &Report) -> &'static str {
    let is_observed = report
        .rows
        .iter()
        .any(|row| matches!(row.kind, Kind::Idle | Kind::Unattributed) && !row.sums.gpu.is_zero());
    match (report.has_gpus, report.only.is_empty()) {
        (false, _) => "the ledger has no GPU\n",
        (true, false) => "none of these used a GPU or was given one\n",
        (true, true) if is_observed => "no GPU was used or allocated\n",
        (true, true) => "no use was recorded\n",
    }
}

/// Containers and the host, with what is known of them.
fn who(report: &Report, rows: &[&Row], wide: bool) -> Table {
    // That a row is the host's stands in the first column that says who; where none does, in one of
    // its own.
    let mark = report.by.iter().position(Dimension::is_identity);
    let figures = figures(report, wide);
    let mut columns = vec![("WHO".to_owned(), Align::Left); usize::from(mark.is_none())];
    columns.extend(report.by.iter().map(heading));
    let figure = |(name, _): &Figure| (name.clone(), Align::Right);
    columns.extend(figures.iter().map(figure));
    let mut table = Table::of(columns).optional(&LEAST_FIRST);
    let mut line = |mut cells: Vec<String>, row: &Row| {
        cells.extend(figures.iter().map(|(_, of)| of(row)));
        table.row_of(cells);
    };
    for row in rows {
        line(names(row.kind, &row.key, mark), row);
    }
    let mut owned = vec![String::new(); report.by.len() + usize::from(mark.is_none())];
    OWNED.clone_into(&mut owned[mark.unwrap_or(0)]);
    line(owned, &report.owned);
    table
}

/// What of a report says who. That a row is the host's stands at `mark`, the first of the values that say
/// who, if it has none there. Without such a value a further one is before the others.
pub(super) fn names(kind: Kind, key: &[Arc<str>], mark: Option<usize>) -> Vec<String> {
    let mut names: Vec<String> = key.iter().map(ToString::to_string).collect();
    match (kind, mark) {
        (Kind::Host, Some(at)) if names[at] == NONE => HOST.clone_into(&mut names[at]),
        (_, Some(_)) => {}
        (Kind::Host, None) => names.insert(0, HOST.to_owned()),
        (_, None) => names.insert(0, "(containers)".to_owned()),
    }
    names
}

/// What a row of the host's is called.
const HOST: &str = "(host)";

/// What became of the GPUs' time, all of it.
fn what(report: &Report, rows: &[&Row]) -> Table {
    let of_device: Vec<usize> = (0..report.by.len())
        .filter(|at| !report.by[*at].is_identity())
        .collect();
    let mut columns = vec![("WHAT".to_owned(), Align::Left)];
    columns.extend(of_device.iter().map(|at| heading(&report.by[*at])));
    for name in ["HOURS", "kWh", "SHARE"]
        .into_iter()
        .chain(report.currency.as_deref())
    {
        columns.push((name.to_owned(), Align::Right));
    }
    let mut table = Table::of(columns).optional(&LEAST_FIRST);
    let mut line = |what: String, key: &dyn Fn(usize) -> String, row: &Row| {
        let mut cells = vec![what];
        cells.extend(of_device.iter().map(|at| key(*at)));
        cells.extend([
            short(hours(row.sums.gpu, 9)),
            kwh(row, &report.absent),
            share(row),
        ]);
        if report.currency.is_some() {
            cells.push(row.cost.map_or_else(dash, |cost| cost.to_string()));
        }
        table.row_of(cells);
    };
    let no_key = |_| String::new();
    line(OWNED.to_owned(), &no_key, &report.owned);
    for row in rows {
        let reason = match &*row.reason {
            NONE => String::new(),
            reason => format!(": {reason}"),
        };
        let what = format!("{}{reason}", became(row.kind));
        line(what, &|at| row.key[at].to_string(), row);
    }
    line("total".to_owned(), &no_key, &report.total);
    table
}

/// What became of time that nobody owns, in words.
pub(super) const fn became(kind: Kind) -> &'static str {
    match kind {
        Kind::Unattributed => "no owner",
        Kind::Unobserved => "not observed",
        Kind::Unaccounted => "in no book",
        kind => kind.as_str(),
    }
}

/// What the two tables have in common.
const OWNED: &str = "owned";

fn heading(dimension: &Dimension) -> (String, Align) {
    let name = match dimension {
        Dimension::GpuIndex => "INDEX".to_owned(),
        _ => dimension.to_string().to_uppercase().replace('_', " "),
    };
    (name, Align::Left)
}

type Figure = (String, Box<dyn Fn(&Row) -> String>);

/// The columns of figures of those who own their time.
fn figures(report: &Report, wide: bool) -> Vec<Figure> {
    let mut figures: Vec<Figure> = Vec::new();
    let mut column = |name: &str, of: Box<dyn Fn(&Row) -> String>| {
        figures.push((name.to_owned(), of));
    };
    // A dash stands for what is not known of some rows; a figure that is known of none has no column.
    let has = |figure| report.absent.has(Kind::Total, figure);
    let time = |figure: Option<Shown>, of: fn(&Row) -> Nanos| -> Box<dyn Fn(&Row) -> String> {
        let absent = report.absent.clone();
        Box::new(move |row| match figure {
            Some(figure) if !absent.has(row.kind, figure) => dash(),
            _ => short(hours(of(row), 9)),
        })
    };
    column("BUSY h", time(None, |row| row.sums.amounts.busy));
    let allocated = Shown::Allocated;
    if has(allocated) {
        column(
            "ALLOC. h",
            time(Some(allocated), |row| row.sums.amounts.allocated),
        );
    }
    let share = Shown::AllocatedShare;
    if has(share) && (wide || is_shared(report)) {
        column(
            "DIV. h",
            time(Some(share), |row| row.sums.amounts.allocated_share),
        );
    }
    if has(allocated) {
        column("UNUSED h", time(Some(allocated), |row| row.sums.unused));
    }
    if wide && has(Shown::Held) {
        column(
            "HELD h",
            time(Some(Shown::Held), |row| row.sums.amounts.held),
        );
    }
    if wide && has(Shown::Engines) {
        let mut engine = |name, of: fn(&Row) -> Nanos| column(name, time(Some(Shown::Engines), of));
        engine("MEM. IF h", |row| row.sums.amounts.engines.memory);
        engine("ENCODER h", |row| row.sums.amounts.engines.encoder);
        engine("DECODER h", |row| row.sums.amounts.engines.decoder);
        engine("JPEG h", |row| row.sums.amounts.engines.jpeg);
        engine("OFA h", |row| row.sums.amounts.engines.ofa);
    }
    if has(Shown::Memory) {
        let absent = report.absent.clone();
        let cell = move |row: &Row| {
            if !absent.has(row.kind, Shown::Memory) {
                return dash();
            }
            let gibibyte_seconds = count_of(row.sums.amounts.memory.0) / GIBIBYTE;
            short(gibibyte_seconds / SECONDS_OF_AN_HOUR)
        };
        column("GiB h", Box::new(cell));
    }
    if wide && report.rows.iter().any(|row| row.life.is_some()) {
        let of_life = |cell: fn(AccountLife) -> Option<String>| -> Box<dyn Fn(&Row) -> String> {
            Box::new(move |row| row.life.and_then(cell).unwrap_or_else(dash))
        };
        let moment = |of: fn(AccountLife) -> Option<WallTime>| -> Box<dyn Fn(&Row) -> String> {
            let zone = report.zone.clone();
            let show = move |at| zone.show(moment_of(at));
            Box::new(move |row| row.life.and_then(of).map_or_else(dash, &show))
        };
        column(
            "STARTED",
            of_life(|life| Some(life.processes_started.to_string())),
        );
        column("FIRST USED", moment(|life| life.first_used));
        column("LAST USED", moment(|life| life.last_used));
        let peak = |life: AccountLife| {
            let peak = Decimal::from(life.memory_peak?);
            Some(short(peak / GIBIBYTE))
        };
        column("PEAK GiB", of_life(peak));
    }
    let absent = report.absent.clone();
    column("kWh", Box::new(move |row| kwh(row, &absent)));
    column("SHARE", Box::new(self::share));
    if let Some(currency) = &report.currency {
        column(
            currency,
            Box::new(|row| row.cost.map_or_else(dash, |cost| cost.to_string())),
        );
    }
    figures
}

/// Whether a GPU was allocated to several containers at once: their parts of it differ from their
/// allocated time by more than what is on its way.
pub(super) fn is_shared(report: &Report) -> bool {
    let owned = report.rows.iter().filter(|row| row.kind.is_owned());
    owned.map(|row| row.sums.amounts).any(|of| {
        let rest = of.allocated.minus(of.allocated_share);
        rest > ON_ITS_WAY && rest.0 > of.allocated.0 / 20
    })
}

/// Allocated time that no window accounts for yet, at most: it is not divided yet.
const ON_ITS_WAY: Nanos = Nanos::from_secs(5);

fn kwh(row: &Row, absent: &Absent) -> String {
    match row.kind {
        Kind::Unaccounted => dash(),
        kind if !absent.has(kind, Shown::Energy) => dash(),
        _ => short(joules(row) / JOULES_OF_A_KWH),
    }
}

fn share(row: &Row) -> String {
    let percent = row.share.map(|share| share * Decimal::ONE_HUNDRED);
    percent.map_or_else(dash, |percent| format!("{:.1}%", percent.round_dp(1)))
}

pub(super) const GIBIBYTE: Decimal = Decimal::from_parts(1 << 30, 0, 0, false, 0);
pub(super) const JOULES_OF_A_KWH: Decimal = Decimal::from_parts(3_600_000, 0, 0, false, 0);

fn dash() -> String {
    "-".to_owned()
}

/// A number with three decimals; what is there and smaller is not shown as nothing.
pub(super) fn short(number: Decimal) -> String {
    let smallest = Decimal::new(1, 3);
    match number {
        number if number.is_zero() => "0".to_owned(),
        number if number < smallest => "<0.001".to_owned(),
        // Formatting alone would cut, not round.
        number => format!("{:.3}", number.round_dp(3)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_not_shown_as_nothing() {
        for (number, expected) in [
            ("0", "0"),
            ("0.0000000001", "<0.001"),
            ("0.000999", "<0.001"),
            ("0.001", "0.001"),
            ("1.7166", "1.717"),
            ("12", "12.000"),
        ] {
            assert_eq!(short(Decimal::from_str_exact(number).unwrap()), expected);
        }
    }
}

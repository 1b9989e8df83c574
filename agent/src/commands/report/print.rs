//! A report as it is printed. CSV, JSON and NDJSON are made of the same cells under the same names;
//! the tables are a choice of them, in units that people read.
//!
//! **Exact**: `…_seconds` are decimals to the nanosecond, `…_joules` to the millijoule,
//! `memory_byte_seconds` is whole; they add up to the last digit. **Rounded**: `…_gpu_hours` to nine
//! decimals, `memory_byte_hours` to a byte-hour, `busy_share` to six decimals; money as
//! [`crate::report::prices`] says.
//!
//! A cell that does not apply (held time of an idle GPU) is `null` in JSON and nothing in CSV. No name
//! is ever nothing. In CSV a text that a spreadsheet would take for a formula, one that begins with
//! `=`, `+`, `-`, `@`, a tab or a line's end, has an apostrophe before it: tenants choose names.

use std::borrow::Cow;
use std::io;

use rust_decimal::Decimal;
use rust_decimal::prelude::FromPrimitive as _;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::value::RawValue;

use super::super::table::{Align, Table, WIDTH, wrap};
use crate::core::amounts::Engine;
use crate::core::model::{NONE, Nanos, WallTime};
use crate::outputs::instruments::VERSION;
use crate::outputs::store::query::AccountLife;
use crate::report::tally::{Dimension, Kind, Report, Row, Sums};

/// What is printed of one column of one row.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Cell<'a> {
    Text(&'a str),
    Number(Decimal),
    Moment(WallTime),
    /// The column does not apply to the row.
    Nothing,
}

impl Serialize for Cell<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => serializer.serialize_str(text),
            Self::Moment(at) => serializer.serialize_str(&moment(*at)),
            Self::Nothing => serializer.serialize_none(),
            // Digit by digit: no binary fraction between the books and who reads them.
            Self::Number(number) => RawValue::from_string(number.to_string())
                .map_err(serde::ser::Error::custom)?
                .serialize(serializer),
        }
    }
}

/// The row's cells under their names, in order. Every row of a report has the same names.
struct Cells<'a>(Vec<(&'a str, Cell<'a>)>);

impl Serialize for Cells<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, cell) in &self.0 {
            map.serialize_entry(name, cell)?;
        }
        map.end()
    }
}

/// A report, and what is the same in each of its rows, of which there can be many thousands.
struct Sheet<'a> {
    report: &'a Report,
    since: String,
    until: String,
    by: Vec<String>,
    engines: [(Engine, String); Engine::ALL.len()],
}

impl<'a> Sheet<'a> {
    fn of(report: &'a Report) -> Self {
        let name = |engine: Engine| format!("engine_{}_busy_seconds", engine.as_str());
        Self {
            report,
            since: report.since.to_string(),
            until: report.until.to_string(),
            by: report.by.iter().map(ToString::to_string).collect(),
            engines: Engine::ALL.map(|engine| (engine, name(engine))),
        }
    }

    fn cells<'b>(&'b self, row: &'b Row) -> Cells<'b> {
        let if_so = |applies: bool, number: &dyn Fn() -> Decimal| match applies {
            true => Cell::Number(number()),
            false => Cell::Nothing,
        };
        let (busy, owned) = (row.kind.is_busy(), row.kind.is_owned());
        let of_device = row.kind != Kind::Unaccounted;
        let Sums {
            gpu,
            amounts,
            unused,
            ..
        } = &row.sums;
        let memory = || count_of(amounts.memory.0);
        let byte_hours = || (memory() / SECONDS_OF_AN_HOUR).round();
        let mut cells = Vec::with_capacity(MOST_COLUMNS + row.key.len());
        cells.extend([
            ("since", Cell::Text(&self.since)),
            ("until", Cell::Text(&self.until)),
            ("kind", Cell::Text(row.kind.as_str())),
            ("reason", Cell::Text(&row.reason)),
        ]);
        let by = self.by.iter().zip(&row.key);
        cells.extend(by.map(|(dimension, value)| (&**dimension, Cell::Text(value))));
        let time = |applies: bool, of: Nanos| if_so(applies, &|| seconds(of));
        cells.extend([
            ("gpu_seconds", time(true, *gpu)),
            ("busy_seconds", time(busy, amounts.busy)),
            ("allocated_seconds", time(owned, amounts.allocated)),
            (
                "allocated_share_seconds",
                time(owned, amounts.allocated_share),
            ),
            ("allocated_unused_seconds", time(owned, *unused)),
            ("held_seconds", time(owned, amounts.held)),
        ]);
        let engines = self.engines.iter();
        cells.extend(
            engines.map(|(engine, name)| (&**name, time(owned, amounts.engines.of(*engine)))),
        );
        cells.extend([
            ("memory_byte_seconds", if_so(owned, &memory)),
            ("energy_joules", if_so(of_device, &|| joules(row))),
            ("busy_gpu_hours", if_so(busy, &|| hours(amounts.busy, 9))),
            (
                "allocated_gpu_hours",
                if_so(owned, &|| hours(amounts.allocated, 9)),
            ),
            (
                "allocated_share_gpu_hours",
                if_so(owned, &|| hours(amounts.allocated_share, 9)),
            ),
            ("memory_byte_hours", if_so(owned, &byte_hours)),
            ("busy_share", row.share.map_or(Cell::Nothing, Cell::Number)),
        ]);
        if let Some(currency) = &self.report.currency {
            cells.push(("cost", row.cost.map_or(Cell::Nothing, Cell::Number)));
            cells.push(("currency", Cell::Text(currency)));
        }
        let of_life = |cell: &dyn Fn(AccountLife) -> Option<Cell<'b>>| {
            let life = row.life.filter(|_| owned);
            life.and_then(cell).unwrap_or(Cell::Nothing)
        };
        let count = |count: u64| Cell::Number(count.into());
        let started = of_life(&|life| Some(count(life.processes_started)));
        cells.extend([
            ("processes_started", started),
            (
                "first_used",
                of_life(&|life| life.first_used.map(Cell::Moment)),
            ),
            (
                "last_used",
                of_life(&|life| life.last_used.map(Cell::Moment)),
            ),
            (
                "memory_peak_bytes",
                of_life(&|life| life.memory_peak.map(count)),
            ),
        ]);
        Cells(cells)
    }
}

/// Columns beside those of the dimensions.
const MOST_COLUMNS: usize = 23 + Engine::ALL.len();

/// Formats a time to the second.
fn moment(at: WallTime) -> String {
    let seconds = i64::try_from(at.0 / 1_000_000_000).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).map_or_else(|_| dash(), |at| at.to_string())
}

const SECONDS_OF_AN_HOUR: Decimal = Decimal::from_parts(3_600, 0, 0, false, 0);

/// A count; the largest decimal, of 96 bits, stands for all that are larger.
fn count_of(count: u128) -> Decimal {
    Decimal::from_u128(count).unwrap_or(Decimal::MAX)
}

fn seconds(time: Nanos) -> Decimal {
    Decimal::from_i128_with_scale(time.0.into(), 9).normalize()
}

fn hours(time: Nanos, decimals: u32) -> Decimal {
    (seconds(time) / SECONDS_OF_AN_HOUR)
        .round_dp(decimals)
        .normalize()
}

fn joules(row: &Row) -> Decimal {
    Decimal::from_i128_with_scale(row.sums.amounts.energy.0.into(), 3).normalize()
}

/// RFC 4180, but for lines that end as they do here.
pub(super) fn csv(report: &Report) -> io::Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let sheet = Sheet::of(report);
    let names = sheet.cells(&report.total).0;
    writer.write_record(names.iter().map(|(name, _)| tame(name).into_owned()))?;
    for row in report.rows.iter().chain([&report.total]) {
        for (_, cell) in sheet.cells(row).0 {
            match cell {
                Cell::Text(text) => writer.write_field(&*tame(text))?,
                Cell::Number(number) => writer.write_field(number.to_string())?,
                Cell::Moment(at) => writer.write_field(moment(at))?,
                Cell::Nothing => writer.write_field("")?,
            }
        }
        // It ends the record.
        writer.write_record(None::<&[u8]>)?;
    }
    let bytes = writer.into_inner().map_err(io::Error::other)?;
    String::from_utf8(bytes).map_err(io::Error::other)
}

/// A text that no spreadsheet calculates.
fn tame(text: &str) -> Cow<'_, str> {
    match text.starts_with(['=', '+', '-', '@', '\t', '\r', '\n']) {
        true => Cow::Owned(format!("'{text}")),
        false => Cow::Borrowed(text),
    }
}

/// A document for each row, the total last.
pub(super) fn ndjson(report: &Report) -> io::Result<String> {
    let sheet = Sheet::of(report);
    let mut text = Vec::new();
    for row in report.rows.iter().chain([&report.total]) {
        serde_json::to_writer(&mut text, &sheet.cells(row))?;
        text.push(b'\n');
    }
    String::from_utf8(text).map_err(io::Error::other)
}

/// One document.
pub(super) fn json(report: &Report) -> io::Result<String> {
    #[derive(serde::Serialize)]
    struct Document<'a> {
        version: &'a str,
        asked_since: String,
        asked_until: Option<String>,
        since: String,
        until: String,
        committed: String,
        by: Vec<String>,
        currency: Option<&'a str>,
        rows: Vec<Cells<'a>>,
        total: Cells<'a>,
        imbalance_seconds: Cell<'a>,
        notes: &'a [String],
    }
    let sheet = Sheet::of(report);
    let document = Document {
        version: VERSION,
        asked_since: report.asked.since.to_string(),
        asked_until: report.asked.until.map(|until| until.to_string()),
        since: report.since.to_string(),
        until: report.until.to_string(),
        committed: report.committed.to_string(),
        by: report.by.iter().map(ToString::to_string).collect(),
        currency: report.currency.as_deref(),
        rows: report.rows.iter().map(|row| sheet.cells(row)).collect(),
        total: sheet.cells(&report.total),
        imbalance_seconds: Cell::Number(seconds(report.imbalance)),
        notes: &report.notes,
    };
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

/// A page for people: hours with three decimals, GiB hours, kWh. First who used what, then what
/// became of all the time, in which the first table is one line.
pub(super) fn table(report: &Report, wide: bool) -> String {
    let mut page = String::new();
    let range = format!("{} to {}", report.since, report.until);
    wrap(&mut page, &range, "  ");
    for note in &report.notes {
        wrap(&mut page, &format!("  - {note}"), "    ");
    }
    let width = if wide { usize::MAX } else { WIDTH };
    let (owned, nobodys): (Vec<&Row>, Vec<&Row>) =
        report.rows.iter().partition(|row| row.kind.is_owned());
    page.push('\n');
    if owned.is_empty() {
        page.push_str("no GPU was used or allocated\n");
    } else {
        who(report, &owned, wide).write(&mut page, width);
    }
    page.push('\n');
    what(report, &nobodys).write(&mut page, width);
    page
}

/// Containers and the host, with what is known of them.
fn who(report: &Report, rows: &[&Row], wide: bool) -> Table {
    // That a row is the host's stands in the first column that says who; where none does, in one of
    // its own.
    let mark = report.by.iter().position(Dimension::is_identity);
    let figures = figures(report, wide);
    let mut columns = vec![("WHO".to_owned(), Align::Flexible); usize::from(mark.is_none())];
    columns.extend(report.by.iter().map(heading));
    let figure = |(name, _): &Figure| (name.clone(), Align::Right);
    columns.extend(figures.iter().map(figure));
    let mut table = Table::of(columns);
    let mut line = |mut key: Vec<String>, kind: &str, row: &Row| {
        match mark {
            None => key.insert(0, kind.to_owned()),
            Some(at) if !kind.is_empty() && [NONE, ""].contains(&key[at].as_str()) => {
                kind.clone_into(&mut key[at]);
            }
            Some(_) => {}
        }
        key.extend(figures.iter().map(|(_, of)| of(row)));
        table.row_of(key);
    };
    for row in rows {
        let key = row.key.iter().map(ToString::to_string).collect();
        match (row.kind, mark) {
            (Kind::Host, _) => line(key, "(host)", row),
            (_, None) => line(key, "(containers)", row),
            (_, Some(_)) => line(key, "", row),
        }
    }
    line(vec![String::new(); report.by.len()], OWNED, &report.owned);
    table
}

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
    let mut table = Table::of(columns);
    let mut line = |what: String, key: &dyn Fn(usize) -> String, row: &Row| {
        let mut cells = vec![what];
        cells.extend(of_device.iter().map(|at| key(*at)));
        cells.extend([short(hours(row.sums.gpu, 9)), kwh(row), share(row)]);
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
        let what = match row.kind {
            Kind::Unattributed => format!("no owner{reason}"),
            Kind::Idle => "idle".to_owned(),
            Kind::Unobserved => format!("not observed{reason}"),
            Kind::Unaccounted => "in no book".to_owned(),
            kind => kind.as_str().to_owned(),
        };
        line(what, &|at| row.key[at].to_string(), row);
    }
    line("total".to_owned(), &no_key, &report.total);
    table
}

/// What the two tables have in common.
const OWNED: &str = "owned";

fn heading(dimension: &Dimension) -> (String, Align) {
    let name = dimension.to_string().to_uppercase().replace('_', " ");
    (name, Align::Flexible)
}

type Figure = (String, Box<dyn Fn(&Row) -> String>);

/// The columns of figures of those who own their time.
fn figures(report: &Report, wide: bool) -> Vec<Figure> {
    let mut figures: Vec<Figure> = Vec::new();
    let mut column = |name: &str, of: Box<dyn Fn(&Row) -> String>| {
        figures.push((name.to_owned(), of));
    };
    let time = |of: fn(&Row) -> Nanos| -> Box<dyn Fn(&Row) -> String> {
        Box::new(move |row| short(hours(of(row), 9)))
    };
    column("BUSY h", time(|row| row.sums.amounts.busy));
    column("ALLOC. h", time(|row| row.sums.amounts.allocated));
    if wide || is_shared(report) {
        column("DIV. h", time(|row| row.sums.amounts.allocated_share));
    }
    column("UNUSED h", time(|row| row.sums.unused));
    if wide {
        column("HELD h", time(|row| row.sums.amounts.held));
        column("MEM. IF h", time(|row| row.sums.amounts.engines.memory));
        column("ENCODER h", time(|row| row.sums.amounts.engines.encoder));
        column("DECODER h", time(|row| row.sums.amounts.engines.decoder));
        column("JPEG h", time(|row| row.sums.amounts.engines.jpeg));
        column("OFA h", time(|row| row.sums.amounts.engines.ofa));
    }
    column(
        "GiB h",
        Box::new(|row| {
            let gibibyte_seconds = count_of(row.sums.amounts.memory.0) / GIBIBYTE;
            short(gibibyte_seconds / SECONDS_OF_AN_HOUR)
        }),
    );
    if wide && report.rows.iter().any(|row| row.life.is_some()) {
        let of_life = |cell: fn(AccountLife) -> Option<String>| -> Box<dyn Fn(&Row) -> String> {
            Box::new(move |row| row.life.and_then(cell).unwrap_or_else(dash))
        };
        column(
            "STARTED",
            of_life(|life| Some(life.processes_started.to_string())),
        );
        column("FIRST USED", of_life(|life| life.first_used.map(moment)));
        column("LAST USED", of_life(|life| life.last_used.map(moment)));
        let peak = |life: AccountLife| {
            let peak = Decimal::from(life.memory_peak?);
            Some(short(peak / GIBIBYTE))
        };
        column("PEAK GiB", of_life(peak));
    }
    column("kWh", Box::new(kwh));
    column("SHARE", Box::new(share));
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
fn is_shared(report: &Report) -> bool {
    let owned = report.rows.iter().filter(|row| row.kind.is_owned());
    owned.map(|row| row.sums.amounts).any(|of| {
        let rest = of.allocated.minus(of.allocated_share);
        rest > ON_ITS_WAY && rest.0 > of.allocated.0 / 20
    })
}

/// Allocated time that no window accounts for yet, at most: it is not divided yet.
const ON_ITS_WAY: Nanos = Nanos::from_secs(5);

fn kwh(row: &Row) -> String {
    match row.kind {
        Kind::Unaccounted => dash(),
        _ => short(joules(row) / JOULES_OF_A_KWH),
    }
}

fn share(row: &Row) -> String {
    let percent = row.share.map(|share| share * Decimal::ONE_HUNDRED);
    percent.map_or_else(dash, |percent| format!("{:.1}%", percent.round_dp(1)))
}

const GIBIBYTE: Decimal = Decimal::from_parts(1 << 30, 0, 0, false, 0);
const JOULES_OF_A_KWH: Decimal = Decimal::from_parts(3_600_000, 0, 0, false, 0);

fn dash() -> String {
    "-".to_owned()
}

/// With three decimals; what is there and smaller is not shown as nothing.
fn short(number: Decimal) -> String {
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

    #[test]
    fn no_spreadsheet_calculates_a_name() {
        for (text, expected) in [
            ("=1+1", "'=1+1"),
            ("+1", "'+1"),
            ("-1", "'-1"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("\t=1", "'\t=1"),
            ("\n=1", "'\n=1"),
            ("research", "research"),
            ("a=b", "a=b"),
            ("(none)", "(none)"),
        ] {
            assert_eq!(tame(text), expected);
        }
    }

    #[test]
    fn seconds_are_exact() {
        for (time, expected) in [
            (0, "0"),
            (1, "0.000000001"),
            (1_500_000_000, "1.5"),
            (100_000_000_000, "100"),
            (u64::MAX, "18446744073.709551615"),
        ] {
            let cell = Cell::Number(seconds(Nanos(time)));
            assert_eq!(serde_json::to_string(&cell).unwrap(), expected);
        }
    }
}

//! A report as files have it. CSV, JSON and NDJSON are made of the same cells under the same names.
//! Moments are whole seconds, in the report's time zone.
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
use std::sync::Arc;

use jiff::Timestamp;
use rust_decimal::Decimal;
use rust_decimal::prelude::FromPrimitive as _;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::value::RawValue;

use crate::core::amounts::Engine;
use crate::core::model::Nanos;
use crate::outputs::instruments::VERSION;
use crate::outputs::store::query::AccountLife;
use crate::report::hour::moment_of;
use crate::report::tally::{Figure, Kind, Report, Row, Sums};
use crate::report::zone::Zone;

/// What is printed of one column of one row.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cell<'a> {
    Text(&'a str),
    Number(Decimal),
    Moment(Timestamp, &'a Zone),
    /// The column does not apply to the row.
    Nothing,
}

impl Serialize for Cell<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => serializer.serialize_str(text),
            Self::Moment(at, zone) => serializer.serialize_str(&zone.show(*at)),
            Self::Nothing => serializer.serialize_none(),
            // Digit by digit: no binary fraction between the books and who reads them.
            Self::Number(number) => RawValue::from_string(number.to_string())
                .map_err(serde::ser::Error::custom)?
                .serialize(serializer),
        }
    }
}

/// The row's cells under their names, in order. Every row of a report has the same names.
pub(super) struct Cells<'a>(pub(super) Vec<(&'a str, Cell<'a>)>);

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
pub(super) struct Sheet<'a> {
    report: &'a Report,
    since: String,
    until: String,
    by: Vec<String>,
    engines: [(Engine, String); Engine::ALL.len()],
}

impl<'a> Sheet<'a> {
    pub(super) fn of(report: &'a Report) -> Self {
        let name = |engine: Engine| format!("engine_{}_busy_seconds", engine.as_str());
        Self {
            report,
            since: report.zone.show(report.since),
            until: report.zone.show(report.until),
            by: report.by.iter().map(ToString::to_string).collect(),
            engines: Engine::ALL.map(|engine| (engine, name(engine))),
        }
    }

    pub(super) fn cells<'b>(&'b self, row: &'b Row) -> Cells<'b> {
        let if_so = |applies: bool, number: &dyn Fn() -> Decimal| match applies {
            true => Cell::Number(number()),
            false => Cell::Nothing,
        };
        let (busy, owned) = (row.kind.is_busy(), row.kind.is_owned());
        let has = |figure| self.report.absent.has(row.kind, figure);
        let of_device = row.kind != Kind::Unaccounted && has(Figure::Energy);
        let allocated = owned && has(Figure::Allocated);
        let shared = owned && has(Figure::AllocatedShare);
        let has_memory = owned && has(Figure::Memory);
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
            ("allocated_seconds", time(allocated, amounts.allocated)),
            (
                "allocated_share_seconds",
                time(shared, amounts.allocated_share),
            ),
            ("allocated_unused_seconds", time(allocated, *unused)),
            (
                "held_seconds",
                time(owned && has(Figure::Held), amounts.held),
            ),
        ]);
        let has_engines = owned && has(Figure::Engines);
        let engines = self.engines.iter();
        cells.extend(
            engines.map(|(engine, name)| (&**name, time(has_engines, amounts.engines.of(*engine)))),
        );
        cells.extend([
            ("memory_byte_seconds", if_so(has_memory, &memory)),
            ("energy_joules", if_so(of_device, &|| joules(row))),
            ("busy_gpu_hours", if_so(busy, &|| hours(amounts.busy, 9))),
            (
                "allocated_gpu_hours",
                if_so(allocated, &|| hours(amounts.allocated, 9)),
            ),
            (
                "allocated_share_gpu_hours",
                if_so(shared, &|| hours(amounts.allocated_share, 9)),
            ),
            ("memory_byte_hours", if_so(has_memory, &byte_hours)),
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
        let moment = |at| Cell::Moment(moment_of(at), &self.report.zone);
        let started = of_life(&|life| Some(count(life.processes_started)));
        cells.extend([
            ("processes_started", started),
            ("first_used", of_life(&|life| life.first_used.map(moment))),
            ("last_used", of_life(&|life| life.last_used.map(moment))),
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

pub(super) const SECONDS_OF_AN_HOUR: Decimal = Decimal::from_parts(3_600, 0, 0, false, 0);

/// A count; the largest decimal, of 96 bits, stands for all that are larger.
pub(super) fn count_of(count: u128) -> Decimal {
    Decimal::from_u128(count).unwrap_or(Decimal::MAX)
}

pub(super) fn seconds(time: Nanos) -> Decimal {
    Decimal::from_i128_with_scale(time.0.into(), 9).normalize()
}

pub(super) fn hours(time: Nanos, decimals: u32) -> Decimal {
    (seconds(time) / SECONDS_OF_AN_HOUR)
        .round_dp(decimals)
        .normalize()
}

pub(super) fn joules(row: &Row) -> Decimal {
    Decimal::from_i128_with_scale(row.sums.amounts.energy.0.into(), 3).normalize()
}

/// RFC 4180: a header first, and lines that end in CR LF.
pub(super) fn csv(report: &Report) -> io::Result<String> {
    let mut writer = csv::WriterBuilder::new()
        .terminator(csv::Terminator::CRLF)
        .from_writer(Vec::new());
    let sheet = Sheet::of(report);
    let names = sheet.cells(&report.total).0;
    writer.write_record(names.iter().map(|(name, _)| tame(name).into_owned()))?;
    for row in report.rows.iter().chain([&report.total]) {
        for (_, cell) in sheet.cells(row).0 {
            match cell {
                Cell::Text(text) => writer.write_field(&*tame(text))?,
                Cell::Number(number) => writer.write_field(number.to_string())?,
                Cell::Moment(at, zone) => writer.write_field(zone.show(at))?,
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
pub(super) fn tame(text: &str) -> Cow<'_, str> {
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
        nodes: &'a [Arc<str>],
        asked_since: String,
        asked_until: Option<String>,
        since: String,
        until: String,
        complete: bool,
        committed: String,
        timezone: String,
        by: Vec<String>,
        only: &'a [String],
        currency: Option<&'a str>,
        rows: Vec<Cells<'a>>,
        total: Cells<'a>,
        imbalance_seconds: Cell<'a>,
        warnings: &'a [String],
        notes: &'a [String],
    }
    let sheet = Sheet::of(report);
    let zone = &report.zone;
    let document = Document {
        version: VERSION,
        nodes: &report.nodes,
        asked_since: zone.show(report.asked.since),
        asked_until: report.asked.until.map(|until| zone.show(until)),
        since: zone.show(report.since),
        until: zone.show(report.until),
        complete: report.is_complete,
        committed: zone.show(report.committed),
        timezone: zone.to_string(),
        only: &report.only,
        by: report.by.iter().map(ToString::to_string).collect(),
        currency: report.currency.as_deref(),
        rows: report.rows.iter().map(|row| sheet.cells(row)).collect(),
        total: sheet.cells(&report.total),
        imbalance_seconds: Cell::Number(seconds(report.imbalance)),
        warnings: &report.warnings,
        notes: &report.notes,
    };
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

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

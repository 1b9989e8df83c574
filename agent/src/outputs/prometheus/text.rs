//! The text of an exposition.
//!
//! Figures are written as exact decimals of the integer nanoseconds in the books, so that what is
//! scraped is what is booked, to the last digit.

use std::fmt::Write as _;
use std::ops::Range;

use super::negotiation::Format;
use crate::core::model::WallTime;
use crate::outputs::instruments::{self, Instrument, Kind, LabelValues, Sink, Value, View};

/// Writes the whole exposition of `view` over `out`.
pub fn render(view: &View<'_>, format: Format, out: &mut String) {
    out.clear();
    let mut writer = Writer {
        format,
        owner_prefix: &view.opt_in.owner_prefix,
        prefix: "",
        out,
        shared: Vec::new(),
    };
    instruments::write(view, &mut writer);
    instruments::write_process(view, &mut writer);
    if format == Format::OpenMetrics {
        out.push_str("# EOF\n");
    }
}

/// Keys of labels that name an owner. A scraper may overwrite some of them: an operator that enforces
/// a label `namespace`, and one that does not honour labels of targets.
const OWNER_KEYS: [&str; 5] = ["namespace", "pod", "container", "pod_uid", "container_id"];

struct Writer<'a> {
    format: Format,
    /// What these keys begin with, so that nobody overwrites them.
    owner_prefix: &'a str,
    /// The same in the present family: families under others' names have others' labels.
    prefix: &'a str,
    out: &'a mut String,
    /// Where labels stand in `out` that several families have, by their number. They are copied from
    /// there, since escaping them is most of the work.
    shared: Vec<Range<usize>>,
}

impl Sink for Writer<'_> {
    fn family(&mut self, instrument: &'static Instrument) {
        self.prefix = match instrument.name.starts_with("gpuacct_") {
            true => self.owner_prefix,
            false => "",
        };
        let (family, kind) = match (self.format, instrument.kind) {
            (Format::Text, Kind::Counter) => (instrument.name, "counter"),
            (Format::Text, Kind::Info) => (instrument.name, "gauge"),
            (_, Kind::Gauge) => (instrument.name, "gauge"),
            (Format::OpenMetrics, Kind::Counter) => (family_name(instrument), "counter"),
            (Format::OpenMetrics, Kind::Info) => (family_name(instrument), "info"),
        };
        put(self.out, format_args!("# HELP {family} "));
        escape(
            self.out,
            instrument.help,
            self.format == Format::OpenMetrics,
        );
        put(self.out, format_args!("\n# TYPE {family} {kind}\n"));
        if let (Format::OpenMetrics, Some(unit)) = (self.format, instrument.unit.suffix()) {
            put(self.out, format_args!("# UNIT {family} {unit}\n"));
        }
    }

    fn point(
        &mut self,
        instrument: &'static Instrument,
        labels: LabelValues<'_>,
        start: WallTime,
        value: Value,
    ) {
        self.out.push_str(instrument.name);
        let from = self.out.len();
        self.labels(instrument.keys, labels);
        let labels = from..self.out.len();
        match value {
            Value::Nanos(amount) => decimal(self.out, amount),
            Value::Count(count) => integer(self.out, count),
            Value::Wide(count) => integer(self.out, count),
            Value::Ratio(ratio) => put(self.out, format_args!("{ratio}")),
        }
        self.out.push('\n');
        if self.format == Format::OpenMetrics && instrument.kind == Kind::Counter {
            self.out.push_str(family_name(instrument));
            self.out.push_str("_created");
            self.out.extend_from_within(labels);
            decimal(self.out, i128::from(start.0));
            self.out.push('\n');
        }
    }
}

impl Writer<'_> {
    fn labels(&mut self, keys: &[&str], labels: LabelValues<'_>) {
        let mut keys = keys.iter();
        let mut opening = '{';
        if let Some((number, values)) = labels.shared() {
            if self.shared.len() <= number {
                self.shared.resize(number + 1, 0..0);
            }
            let of_family = keys.by_ref().take(values.len());
            let written = self.shared[number].clone();
            if written.is_empty() {
                let from = self.out.len();
                for (key, value) in of_family.zip(values) {
                    let prefix = prefix_of(key, self.prefix);
                    label(self.out, opening, prefix, key, value);
                    opening = ',';
                }
                self.shared[number] = from..self.out.len();
            } else {
                of_family.for_each(drop);
                self.out.extend_from_within(written);
                opening = ',';
            }
        }
        for (key, value) in keys.zip(labels.own()) {
            let prefix = prefix_of(key, self.prefix);
            label(self.out, opening, prefix, key, value);
            opening = ',';
        }
        for (key, value) in labels.configured() {
            label(self.out, opening, "", key, value);
            opening = ',';
        }
        self.out.push_str(if opening == '{' { " " } else { "} " });
    }
}

fn prefix_of<'a>(key: &str, prefix: &'a str) -> &'a str {
    match !prefix.is_empty() && OWNER_KEYS.contains(&key) {
        true => prefix,
        false => "",
    }
}

fn label(out: &mut String, before: char, prefix: &str, key: &str, value: &str) {
    out.push(before);
    out.push_str(prefix);
    out.push_str(key);
    out.push_str("=\"");
    escape(out, value, true);
    out.push('"');
}

/// The name of the family in OpenMetrics, where `_total` and `_info` belong to the sample.
fn family_name(instrument: &Instrument) -> &'static str {
    let name = instrument.name;
    name.strip_suffix("_total")
        .or_else(|| name.strip_suffix("_info"))
        .unwrap_or(name)
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a String takes everything");
}

fn escape(out: &mut String, text: &str, quotes: bool) {
    let is_special = |byte| matches!(byte, b'\\' | b'\n') || (quotes && byte == b'"');
    // Nearly always nothing is. Without an early end, many bytes are looked at in one instruction.
    if !text.bytes().fold(false, |any, byte| any | is_special(byte)) {
        out.push_str(text);
        return;
    }
    let mut rest = text;
    // All of these are ASCII, which no other character's bytes are.
    while let Some(at) = rest.bytes().position(is_special) {
        let (plain, special) = rest.split_at(at);
        out.push_str(plain);
        out.push_str(match special.as_bytes()[0] {
            b'\\' => "\\\\",
            b'\n' => "\\n",
            _ => "\\\"",
        });
        rest = &special[1..];
    }
    out.push_str(rest);
}

fn integer(out: &mut String, number: impl itoa::Integer) {
    out.push_str(itoa::Buffer::new().format(number));
}

/// Nanoseconds as seconds, exactly: no exponent, no trailing zeros.
fn decimal(out: &mut String, nanos: i128) {
    const SECOND: u64 = 1_000_000_000;
    let magnitude = nanos.unsigned_abs();
    if nanos < 0 {
        out.push('-');
    }
    // 128 bits are slow to divide and rarely needed.
    let fraction = if let Ok(magnitude) = u64::try_from(magnitude) {
        integer(out, magnitude / SECOND);
        magnitude % SECOND
    } else {
        integer(out, magnitude / u128::from(SECOND));
        (magnitude % u128::from(SECOND)) as u64
    };
    if fraction != 0 {
        // The digit in front keeps the zeros behind it.
        let mut digits = itoa::Buffer::new();
        let digits = digits.format(SECOND + fraction);
        out.push('.');
        out.push_str(digits[1..].trim_end_matches('0'));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outputs::counters::OutputCounters;
    use crate::outputs::sample;

    #[test]
    fn a_prefix_is_before_the_keys_of_owners_and_no_others() {
        let mut opt_in = sample::opt_in();
        let mut text = |prefix: &str| {
            opt_in.owner_prefix = prefix.to_owned();
            let mut text = String::new();
            let view = View {
                snapshot: &sample::snapshot(),
                agent: &sample::agent_status(),
                counters: &OutputCounters::default(),
                opt_in: &opt_in,
            };
            render(&view, Format::OpenMetrics, &mut text);
            text
        };
        let plain = text("");
        let prefixed = text("owner_");
        for key in OWNER_KEYS {
            for before in ['{', ','] {
                assert!(!prefixed.contains(&format!("{before}{key}=")), "{key}");
            }
            assert!(prefixed.contains(&format!("owner_{key}=")), "{key}");
        }
        // Nothing else has changed.
        assert_eq!(prefixed.replace("owner_", ""), plain.replace("owner_", ""));
        // Whatever the prefix is, no key becomes another one of the family.
        for instrument in instruments::families() {
            for key in instrument
                .keys
                .iter()
                .filter(|key| !OWNER_KEYS.contains(key))
            {
                let is_one = |owner: &&str| key.ends_with(owner) && instrument.keys.contains(owner);
                let owner = OWNER_KEYS.into_iter().find(is_one);
                assert_eq!(owner, None, "{}: {key}", instrument.name);
            }
        }
    }

    #[test]
    fn seconds_are_exact_decimals() {
        let rows: [(i128, &str); 10] = [
            (0, "0"),
            (1, "0.000000001"),
            (-1, "-0.000000001"),
            (1_000_000_000, "1"),
            (1_500_000_000, "1.5"),
            (-10_000_000_000, "-10"),
            (9_007_199_254_740_993, "9007199.254740993"),
            (i128::from(u64::MAX), "18446744073.709551615"),
            (i128::from(u64::MAX) + 1, "18446744073.709551616"),
            (i128::MAX, "170141183460469231731687303715.884105727"),
        ];
        for (nanos, expected) in rows {
            let mut out = String::from("100 ");
            decimal(&mut out, nanos);
            assert_eq!(out, format!("100 {expected}"));
        }
    }
}

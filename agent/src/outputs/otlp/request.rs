//! The books as OTLP messages.
//!
//! Every counter is a monotonic sum with the start time of its own account, which the SDK's
//! aggregation cannot carry: cumulative, or what came since the last time ([`SentTotals`]). Seconds are doubles, since that is what Prometheus' `_seconds`
//! are; whole numbers stay whole. What is too much for one message goes into several, bounded in
//! points and in bytes: receivers refuse more than 4 MiB.

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum,
    metric, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;

use super::sent_totals::{Growth, SentTotals};
use super::starts::Starts;
use crate::core::model::WallTime;
use crate::core::snapshot::Snapshot;
use crate::outputs::instruments::{
    self, Instrument, Kind, LabelValues, Sink, VERSION, Value, View,
};
use crate::outputs::receiver::Origin;

/// About the most bytes that one message may have before it is closed and another begun.
pub(super) const MAX_BYTES: usize = 3 << 20;

/// What the points of counters say.
#[derive(Debug)]
pub(super) enum Counters<'a> {
    /// Their totals, and since when, where that is not left out.
    Totals(&'a mut Starts),
    /// What has come since the last export.
    Growths(&'a mut SentTotals),
}

/// One message and what is in it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Outgoing {
    /// The message.
    pub(super) request: ExportMetricsServiceRequest,
    /// How many points it has.
    pub(super) points: u64,
    /// What it sends for the first time, where it has deltas.
    pub(super) growths: Vec<Growth>,
}

/// The whole of `view` in messages of at most `max_points` points and about [`MAX_BYTES`] bytes.
pub(super) fn build(
    view: &View<'_>,
    origin: &Origin,
    max_points: usize,
    counters: Counters<'_>,
) -> Vec<Outgoing> {
    let mut batch = Batch {
        resource: resource(origin),
        snapshot: view.snapshot,
        time: view.snapshot.wall.0,
        temporality: match counters {
            Counters::Growths(_) => AggregationTemporality::Delta,
            Counters::Totals(_) => AggregationTemporality::Cumulative,
        },
        counters,
        growths: Vec::new(),
        max_points: max_points.max(1),
        family: None,
        pending: Vec::new(),
        metrics: Vec::new(),
        points: 0,
        bytes: 0,
        done: Vec::new(),
    };
    instruments::write(view, &mut batch);
    batch.close_request();
    batch.done
}

fn resource(origin: &Origin) -> Resource {
    Resource {
        attributes: origin
            .attributes()
            .map(|(key, value)| attribute(key, value))
            .collect(),
        ..Resource::default()
    }
}

fn attribute(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(any_value::Value::StringValue(value.to_owned())),
        }),
        ..KeyValue::default()
    }
}

/// Messages under construction.
struct Batch<'a> {
    resource: Resource,
    snapshot: &'a Snapshot,
    temporality: AggregationTemporality,
    counters: Counters<'a>,
    /// What the message that is being written contains.
    growths: Vec<Growth>,
    time: u64,
    max_points: usize,
    family: Option<&'static Instrument>,
    /// Points of the family that is being written.
    pending: Vec<NumberDataPoint>,
    /// Families of the message that is being written.
    metrics: Vec<Metric>,
    /// Points in that message, pending ones included.
    points: usize,
    /// About its size.
    bytes: usize,
    done: Vec<Outgoing>,
}

impl Sink for Batch<'_> {
    fn family(&mut self, instrument: &'static Instrument) {
        self.close_family();
        self.family = Some(instrument);
    }

    fn point(
        &mut self,
        instrument: &'static Instrument,
        labels: LabelValues<'_>,
        start: WallTime,
        mut value: Value,
    ) {
        let mut from = 0;
        let mut growth = None;
        if instrument.kind == Kind::Counter {
            match &mut self.counters {
                Counters::Totals(starts) => from = starts.of(start, self.time),
                Counters::Growths(sent) => {
                    let grown = sent.growth(instrument, labels, start, value, self.snapshot);
                    let Some((delta, grown)) = grown else {
                        return;
                    };
                    (from, value, growth) = (delta.from, delta.value, Some(grown));
                }
            }
        }
        let configured = labels.configured().iter();
        let point = NumberDataPoint {
            attributes: instrument
                .keys
                .iter()
                .zip(labels.iter())
                .map(|(key, value)| attribute(key, value))
                .chain(configured.map(|(key, value)| attribute(key, value)))
                .collect(),
            start_time_unix_nano: from,
            time_unix_nano: self.time,
            value: Some(number(value)),
            ..NumberDataPoint::default()
        };
        // Its length, its tag and its length's own bytes.
        let bytes = point.encoded_len() + 4;
        if self.points > 0 && (self.points >= self.max_points || self.bytes + bytes > MAX_BYTES) {
            self.close_request();
        }
        self.points += 1;
        self.bytes += bytes;
        self.pending.push(point);
        self.growths.extend(growth);
    }
}

impl Batch<'_> {
    fn close_family(&mut self) {
        let Some(instrument) = self.family else {
            return;
        };
        if self.pending.is_empty() {
            return;
        }
        let data_points = std::mem::take(&mut self.pending);
        let data = match instrument.kind {
            Kind::Counter => metric::Data::Sum(Sum {
                data_points,
                aggregation_temporality: self.temporality.into(),
                is_monotonic: true,
            }),
            Kind::Gauge | Kind::Info => metric::Data::Gauge(Gauge { data_points }),
        };
        self.metrics.push(Metric {
            name: instrument.otlp.to_owned(),
            description: instrument.help.to_owned(),
            unit: instrument.unit.ucum().to_owned(),
            data: Some(data),
            ..Metric::default()
        });
    }

    /// Closes the message; the family that is being written goes on in the next one.
    fn close_request(&mut self) {
        self.close_family();
        let metrics = std::mem::take(&mut self.metrics);
        if metrics.is_empty() {
            return;
        }
        let scope = InstrumentationScope {
            name: "gpuacct".to_owned(),
            version: VERSION.to_owned(),
            ..InstrumentationScope::default()
        };
        self.done.push(Outgoing {
            request: ExportMetricsServiceRequest {
                resource_metrics: vec![ResourceMetrics {
                    resource: Some(self.resource.clone()),
                    scope_metrics: vec![ScopeMetrics {
                        scope: Some(scope),
                        metrics,
                        ..ScopeMetrics::default()
                    }],
                    ..ResourceMetrics::default()
                }],
            },
            points: self.points as u64,
            growths: std::mem::take(&mut self.growths),
        });
        self.points = 0;
        self.bytes = 0;
    }
}

fn number(value: Value) -> number_data_point::Value {
    match value {
        Value::Nanos(nanos) => {
            // Split, so that the whole seconds are exact whatever the size.
            let (seconds, rest) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
            number_data_point::Value::AsDouble(seconds as f64 + rest as f64 / 1e9)
        }
        Value::Count(count) => {
            number_data_point::Value::AsInt(i64::try_from(count).unwrap_or(i64::MAX))
        }
        // OTLP's integers end at 2^63 - 1. A total that stopped there would say that nothing grows.
        Value::Wide(count) => match i64::try_from(count) {
            Ok(count) => number_data_point::Value::AsInt(count),
            Err(_) => number_data_point::Value::AsDouble(count as f64),
        },
        Value::Ratio(ratio) => number_data_point::Value::AsDouble(ratio),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fmt::Write as _;
    use std::sync::Arc;

    use super::*;
    use crate::core::model::HostUnit;
    use crate::core::snapshot::{HostSeries, Snapshot};
    use crate::outputs::counters::OutputCounters;
    use crate::outputs::prometheus::{Format, render};
    use crate::outputs::sample::{self, golden};

    fn origin() -> Origin {
        Origin {
            host_name: "gpu-node-7".to_owned(),
            host_id: Some("0123456789abcdef".to_owned()),
            node_name: None,
        }
    }

    fn built(snapshot: &Snapshot, max_points: usize) -> Vec<Outgoing> {
        built_with(snapshot, max_points, &mut Starts::new(None, Arc::default()))
    }

    fn built_with(snapshot: &Snapshot, max_points: usize, starts: &mut Starts) -> Vec<Outgoing> {
        let view = View {
            snapshot,
            agent: &sample::agent_status(),
            counters: &OutputCounters::default(),
            opt_in: &sample::opt_in(),
        };
        build(&view, &origin(), max_points, Counters::Totals(starts))
    }

    fn attributes(attributes: &[KeyValue]) -> String {
        let mut text = String::new();
        for attribute in attributes {
            let Some(AnyValue {
                value: Some(any_value::Value::StringValue(value)),
            }) = &attribute.value
            else {
                panic!("{attribute:?} is no text");
            };
            write!(text, " {}={value}", attribute.key).unwrap();
        }
        text
    }

    /// A line for each point, so that a change is seen in a diff.
    fn lines(outgoing: &Outgoing) -> Vec<String> {
        let [resource] = outgoing.request.resource_metrics.as_slice() else {
            panic!("one resource");
        };
        let [scope] = resource.scope_metrics.as_slice() else {
            panic!("one scope");
        };
        let mut lines = Vec::new();
        for metric in &scope.metrics {
            let (kind, points) = match metric.data.as_ref().expect("it has data") {
                metric::Data::Sum(sum) => {
                    assert!(sum.is_monotonic);
                    assert_eq!(
                        sum.aggregation_temporality(),
                        AggregationTemporality::Cumulative
                    );
                    ("sum", &sum.data_points)
                }
                metric::Data::Gauge(gauge) => ("gauge", &gauge.data_points),
                other => panic!("{other:?}"),
            };
            assert!(!points.is_empty(), "{} has no points", metric.name);
            for point in points {
                assert!(point.start_time_unix_nano <= point.time_unix_nano);
                let value = match point.value.expect("it has a value") {
                    number_data_point::Value::AsDouble(value) => format!("{value:?}"),
                    number_data_point::Value::AsInt(value) => value.to_string(),
                };
                lines.push(format!(
                    "{} [{}] {kind} {}..{}{} = {value}",
                    metric.name,
                    metric.unit,
                    point.start_time_unix_nano,
                    point.time_unix_nano,
                    attributes(&point.attributes)
                ));
            }
        }
        assert_eq!(lines.len() as u64, outgoing.points);
        lines
    }

    #[test]
    fn the_sample_as_points() {
        let [outgoing] = built(&sample::snapshot(), 100_000).try_into().unwrap();
        let resource = outgoing.request.resource_metrics[0].resource.as_ref();
        let mut text = format!("resource{}\n", attributes(&resource.unwrap().attributes));
        for line in lines(&outgoing) {
            writeln!(text, "{line}").unwrap();
        }
        golden("otlp.txt", &text);
    }

    #[test]
    fn there_is_a_point_for_every_scraped_series() {
        let snapshot = sample::snapshot();
        let mut text = String::new();
        let counters = OutputCounters::default();
        let view = View {
            snapshot: &snapshot,
            agent: &sample::agent_status(),
            counters: &counters,
            opt_in: &sample::opt_in(),
        };
        render(&view, Format::Text, &mut text);
        // What the process takes goes out under OpenTelemetry's names.
        let is_point = |line: &&str| !line.starts_with('#') && !line.starts_with("process_");
        let scraped = text.lines().filter(is_point).count();
        assert_eq!(built(&snapshot, 100_000)[0].points, scraped as u64);
    }

    #[test]
    fn what_is_too_much_for_one_message_goes_into_several() {
        let snapshot = sample::snapshot();
        let whole: BTreeSet<_> = lines(&built(&snapshot, 100_000)[0]).into_iter().collect();
        for max_points in [0, 1, 3, 7, whole.len() - 1, whole.len()] {
            let parts = built(&snapshot, max_points);
            assert_eq!(parts.len(), whole.len().div_ceil(max_points.max(1)));
            let mut together = BTreeSet::new();
            for part in &parts {
                assert!(part.points <= max_points.max(1) as u64);
                for line in lines(part) {
                    assert!(together.insert(line.clone()), "{line} went out twice");
                }
            }
            assert_eq!(together, whole);
        }
    }

    #[test]
    fn a_message_stays_below_what_receivers_take() {
        let mut snapshot = sample::snapshot();
        let series = snapshot.host_series[0].clone();
        snapshot.host_series = (0..20_000)
            .map(|n| HostSeries {
                unit: HostUnit::from(format!("{n:0>253}").as_str()),
                ..series.clone()
            })
            .collect();
        let parts = built(&snapshot, usize::MAX);
        assert!(parts.len() > 1);
        for part in &parts {
            assert!(part.request.encoded_len() < 4 << 20);
        }
        let points: u64 = parts.iter().map(|part| part.points).sum();
        assert!(points > 20_000);
    }

    /// A start that moves from one push to the next says that the counter began anew, and whoever
    /// adds up what came since bills the whole amount with each push.
    #[test]
    fn a_clock_that_was_set_back_neither_puts_the_start_after_the_time_nor_moves_it() {
        let mut snapshot = sample::snapshot();
        let starts = [5, 6].map(|wall| {
            snapshot.wall = WallTime(wall);
            // `lines` holds the promise that no start is after the time.
            lines(&built(&snapshot, 100_000)[0])
                .iter()
                .filter(|line| line.contains(" sum "))
                .map(|line| line.split("..").next().unwrap_or_default().to_owned())
                .collect::<Vec<_>>()
        });
        assert!(!starts[0].is_empty());
        assert_eq!(starts[0], starts[1]);
    }

    /// Receivers that add up what came since would bill the whole amount once more.
    #[test]
    fn a_start_that_was_sent_as_0_stays_0_when_the_clock_has_caught_up() {
        let mut snapshot = sample::snapshot();
        let now = snapshot.wall;
        let mut exporter = Starts::new(None, Arc::default());
        let mut sums = |wall| {
            snapshot.wall = wall;
            let lines = lines(&built_with(&snapshot, 100_000, &mut exporter)[0]);
            let sums = lines.into_iter().filter(|line| line.contains(" sum "));
            let starts = sums.map(|line| line.split("..").next().unwrap_or_default().to_owned());
            starts.collect::<Vec<_>>()
        };
        let behind = sums(WallTime(5));
        assert!(behind.iter().all(|line| line.ends_with(" 0")), "{behind:?}");
        assert_eq!(behind, sums(now));
    }

    #[test]
    fn numbers_keep_what_a_double_can_hold() {
        let rows = [
            (Value::Nanos(0), number_data_point::Value::AsDouble(0.0)),
            (
                Value::Nanos(1_500_000_001),
                number_data_point::Value::AsDouble(1.500_000_001),
            ),
            (
                Value::Nanos(-250_000_000),
                number_data_point::Value::AsDouble(-0.25),
            ),
            (
                Value::Count(u64::MAX),
                number_data_point::Value::AsInt(i64::MAX),
            ),
            (Value::Wide(7), number_data_point::Value::AsInt(7)),
            (
                Value::Wide(1 << 70),
                number_data_point::Value::AsDouble(2_f64.powi(70)),
            ),
            (Value::Ratio(0.5), number_data_point::Value::AsDouble(0.5)),
        ];
        for (value, expected) in rows {
            assert_eq!(number(value), expected);
        }
    }
}

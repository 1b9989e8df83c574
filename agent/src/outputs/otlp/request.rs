//! The books as OTLP messages.
//!
//! Every counter is a monotonic sum with the start time of its own account, which the SDK's
//! aggregation cannot carry: cumulative, or what came since the last time ([`SentTotals`]). Seconds are doubles, since that is what Prometheus' `_seconds`
//! are; whole numbers stay whole. What is too much for one message goes into several, bounded in
//! points and in bytes: receivers refuse more than 4 MiB.
//!
//! What a point is called ([`Shape`]) says nothing of what was sent: a series is known by its family
//! and its labels, whatever they are called.

use std::collections::HashMap;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum,
    metric, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;

use super::attributes::{Attributes, Owner, attribute};
use super::sent_totals::{Growth, SentTotals};
use super::shape::{Layout, Naming, Shape};
use super::starts::Starts;
use crate::core::model::WallTime;
use crate::core::snapshot::Snapshot;
use crate::outputs::instruments::conventions::{OtlpInstrument, SCHEMA_URL};
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
    shape: Shape,
    max_points: usize,
    counters: Counters<'_>,
) -> Vec<Outgoing> {
    let mut batch = Batch {
        origin,
        shape,
        attributes: Attributes::new(view.snapshot, shape.naming),
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
        groups: Vec::new(),
        by_owner: HashMap::new(),
        points: 0,
        bytes: 0,
        done: Vec::new(),
    };
    instruments::write(view, &mut batch);
    batch.close_request();
    batch.done
}

/// What of a message has one resource.
struct Group {
    resource: Resource,
    /// Points of the family that is being written.
    pending: Vec<NumberDataPoint>,
    /// The families that are written.
    metrics: Vec<Metric>,
}

/// Messages under construction.
struct Batch<'a> {
    origin: &'a Origin,
    shape: Shape,
    attributes: Attributes<'a>,
    snapshot: &'a Snapshot,
    temporality: AggregationTemporality,
    counters: Counters<'a>,
    /// What the message that is being written contains.
    growths: Vec<Growth>,
    time: u64,
    max_points: usize,
    family: Option<&'static Instrument>,
    groups: Vec<Group>,
    /// The group of a container, by the values of its labels; the agent's own has none.
    by_owner: HashMap<Vec<String>, usize>,
    /// Points in that message, pending ones included.
    points: usize,
    /// About its size.
    bytes: usize,
    done: Vec<Outgoing>,
}

impl Sink for Batch<'_> {
    fn family(&mut self, instrument: &'static Instrument) {
        self.close_family();
        self.attributes.family(instrument);
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
        let (owner, attributes) = self.attributes.of(labels);
        // Where each container has a resource, its names are there.
        let (owner, attributes) = match (self.shape.layout, owner) {
            (Layout::Resource, Some(owner)) => (Some(owner), attributes),
            (_, Some(owner)) => (None, [owner.attributes, attributes].concat()),
            (_, None) => (None, attributes),
        };
        let point = NumberDataPoint {
            attributes,
            start_time_unix_nano: from,
            time_unix_nano: self.time,
            value: Some(number(value)),
            ..NumberDataPoint::default()
        };
        // Its length, its tag and its length's own bytes.
        let bytes = point.encoded_len() + 4;
        let is_full = self.points >= self.max_points || self.bytes + bytes > MAX_BYTES;
        if self.points > 0 && is_full {
            self.close_request();
        }
        let key = owner
            .as_ref()
            .map(|owner| owner.key.clone())
            .unwrap_or_default();
        let group = match self.by_owner.get(&key) {
            Some(group) => *group,
            None => {
                let resource = self.resource(owner.as_ref());
                self.bytes += resource.encoded_len() + 64;
                self.groups.push(Group {
                    resource,
                    pending: Vec::new(),
                    metrics: Vec::new(),
                });
                self.by_owner.insert(key, self.groups.len() - 1);
                self.groups.len() - 1
            }
        };
        let pending = &mut self.groups[group].pending;
        if pending.is_empty() {
            self.bytes += instrument.help.len() + instrument.otlp.len() + 32;
        }
        pending.push(point);
        self.points += 1;
        self.bytes += bytes;
        self.growths.extend(growth);
    }
}

impl Batch<'_> {
    /// The agent's resource, or that of a container, which is an instance of its own.
    fn resource(&self, container: Option<&Owner>) -> Resource {
        const INSTANCE: &str = "service.instance.id";
        let own = self.origin.attributes();
        let mut attributes: Vec<_> = own.map(|(key, value)| attribute(key, value)).collect();
        if let Some(container) = container {
            let replaced = |key: &str| {
                key == INSTANCE || container.attributes.iter().any(|of_it| of_it.key == key)
            };
            attributes.retain(|known| !replaced(&known.key));
            attributes.push(attribute(INSTANCE, &container.instance()));
            attributes.extend_from_slice(&container.attributes);
        }
        Resource {
            attributes,
            ..Resource::default()
        }
    }

    fn close_family(&mut self) {
        let Some(instrument) = self.family else {
            return;
        };
        let is_conventional = self.shape.naming == Naming::Conventions;
        let name = match is_conventional {
            true => instrument.conventional(),
            false => instrument.otlp,
        };
        for group in &mut self.groups {
            if group.pending.is_empty() {
                continue;
            }
            let data_points = std::mem::take(&mut group.pending);
            let data = match instrument.otlp_instrument() {
                OtlpInstrument::Counter => metric::Data::Sum(Sum {
                    data_points,
                    aggregation_temporality: self.temporality.into(),
                    is_monotonic: true,
                }),
                // A level is what it is now, also for a receiver that adds growths up.
                OtlpInstrument::UpDownCounter if is_conventional => metric::Data::Sum(Sum {
                    data_points,
                    aggregation_temporality: AggregationTemporality::Cumulative.into(),
                    is_monotonic: false,
                }),
                _ => metric::Data::Gauge(Gauge { data_points }),
            };
            group.metrics.push(Metric {
                name: name.to_owned(),
                description: instrument.help.to_owned(),
                unit: instrument.unit.ucum().to_owned(),
                data: Some(data),
                ..Metric::default()
            });
        }
    }

    /// Closes the message; the family that is being written goes on in the next one.
    fn close_request(&mut self) {
        self.close_family();
        let groups = std::mem::take(&mut self.groups);
        self.by_owner.clear();
        if groups.is_empty() {
            return;
        }
        let schema_url = match self.shape.naming {
            Naming::Conventions => SCHEMA_URL.to_owned(),
            Naming::Labels => String::new(),
        };
        let resource_metrics = groups.into_iter().map(|group| ResourceMetrics {
            resource: Some(group.resource),
            scope_metrics: vec![ScopeMetrics {
                scope: Some(InstrumentationScope {
                    name: "gpuacct".to_owned(),
                    version: VERSION.to_owned(),
                    ..InstrumentationScope::default()
                }),
                metrics: group.metrics,
                schema_url: schema_url.clone(),
            }],
            schema_url: schema_url.clone(),
        });
        self.done.push(Outgoing {
            request: ExportMetricsServiceRequest {
                resource_metrics: resource_metrics.collect(),
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

    use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};

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
            ..Origin::default()
        }
    }

    fn built(snapshot: &Snapshot, shape: Shape, max_points: usize) -> Vec<Outgoing> {
        let mut starts = Starts::new(None, Arc::default());
        built_with(snapshot, shape, max_points, &mut starts)
    }

    fn built_with(
        snapshot: &Snapshot,
        shape: Shape,
        max_points: usize,
        starts: &mut Starts,
    ) -> Vec<Outgoing> {
        let view = View {
            snapshot,
            agent: &sample::agent_status(),
            counters: &OutputCounters::default(),
            opt_in: &sample::opt_in(),
        };
        build(
            &view,
            &origin(),
            shape,
            max_points,
            Counters::Totals(starts),
        )
    }

    fn shown(value: Option<&any_value::Value>) -> String {
        match value {
            Some(any_value::Value::StringValue(value)) => value.clone(),
            Some(any_value::Value::ArrayValue(list)) => {
                let of_it = |value: &AnyValue| shown(value.value.as_ref());
                let values: Vec<_> = list.values.iter().map(of_it).collect();
                format!("[{}]", values.join(" "))
            }
            other => panic!("{other:?} is no text"),
        }
    }

    fn attributes(attributes: &[KeyValue]) -> String {
        let mut text = String::new();
        for attribute in attributes {
            let value = attribute
                .value
                .as_ref()
                .and_then(|value| value.value.as_ref());
            write!(text, " {}={}", attribute.key, shown(value)).unwrap();
        }
        text
    }

    /// A line for each point, so that a change is seen in a diff.
    fn lines(outgoing: &Outgoing) -> Vec<String> {
        let mut lines = Vec::new();
        for (at, resource) in outgoing.request.resource_metrics.iter().enumerate() {
            let [scope] = resource.scope_metrics.as_slice() else {
                panic!("one scope");
            };
            assert_eq!(scope.schema_url, resource.schema_url);
            // The agent's own is in front of all, where there are others.
            let of_it = &resource.resource.as_ref().expect("it has one").attributes;
            let is_a_container = attributes(of_it).contains(" container.id=")
                || attributes(of_it).contains(" container_id=");
            assert!(is_a_container || lines.is_empty() || at > 0);
            let owner = match is_a_container {
                true => attributes(of_it),
                false => String::new(),
            };
            lines_of(scope, &owner, &mut lines);
        }
        assert_eq!(lines.len() as u64, outgoing.points);
        lines
    }

    fn lines_of(scope: &ScopeMetrics, owner: &str, lines: &mut Vec<String>) {
        for metric in &scope.metrics {
            let (kind, points) = match metric.data.as_ref().expect("it has data") {
                metric::Data::Sum(sum) => {
                    assert_eq!(
                        sum.aggregation_temporality(),
                        AggregationTemporality::Cumulative
                    );
                    let kind = if sum.is_monotonic { "sum" } else { "level" };
                    (kind, &sum.data_points)
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
                    "{} [{}] {kind} {}..{}{owner}{} = {value}",
                    metric.name,
                    metric.unit,
                    point.start_time_unix_nano,
                    point.time_unix_nano,
                    attributes(&point.attributes)
                ));
            }
        }
    }

    #[test]
    fn the_sample_as_points() {
        let files = [
            "otlp.txt",
            "otlp_resource.txt",
            "otlp_labels.txt",
            "otlp_labels_resource.txt",
        ];
        for (shape, file) in Shape::EVERY.into_iter().zip(files) {
            let [outgoing] = built(&sample::snapshot(), shape, 100_000)
                .try_into()
                .unwrap();
            let mut text = String::new();
            for resource in &outgoing.request.resource_metrics {
                let of_it = resource.resource.as_ref().unwrap();
                let (schema, attributes) = (&resource.schema_url, attributes(&of_it.attributes));
                writeln!(text, "resource [{schema}]{attributes}").unwrap();
            }
            for line in lines(&outgoing) {
                writeln!(text, "{line}").unwrap();
            }
            golden(file, &text);
        }
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
        for shape in Shape::EVERY {
            assert_eq!(built(&snapshot, shape, 100_000)[0].points, scraped as u64);
        }
    }

    #[test]
    fn what_is_too_much_for_one_message_goes_into_several() {
        let snapshot = sample::snapshot();
        for shape in Shape::EVERY {
            let whole = lines(&built(&snapshot, shape, 100_000)[0]);
            let whole: BTreeSet<_> = whole.into_iter().collect();
            for max_points in [0, 1, 3, 7, whole.len() - 1, whole.len()] {
                let parts = built(&snapshot, shape, max_points);
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
        // And as many containers, each of which is a resource of its own.
        let container = snapshot.container_series[0].clone();
        snapshot.container_series = (0..3_000)
            .map(|n| {
                let mut series = container.clone();
                let mut labels = (*series.labels).clone();
                labels.container_id = format!("{n:0>64}").as_str().into();
                series.labels = Arc::new(labels);
                series
            })
            .collect();
        for shape in Shape::EVERY {
            let parts = built(&snapshot, shape, usize::MAX);
            assert!(parts.len() > 1);
            for part in &parts {
                assert!(part.request.encoded_len() < 4 << 20, "{shape:?}");
            }
            let points: u64 = parts.iter().map(|part| part.points).sum();
            assert!(points > 40_000);
        }
    }

    /// Whatever the points are called, and wherever their names are, the growths are those of the same
    /// series: an agent that is told to use other names goes on where the last one stopped.
    #[test]
    fn deltas_are_the_same_in_every_shape_and_go_on_from_one_to_another() {
        let agent = sample::agent_status();
        let (counters, opt_in) = (OutputCounters::default(), sample::opt_in());
        let mut snapshot = sample::snapshot();
        let growths = |snapshot: &Snapshot, sent: &mut SentTotals, shape| {
            let view = View {
                snapshot,
                agent: &agent,
                counters: &counters,
                opt_in: &opt_in,
            };
            let parts = build(&view, &origin(), shape, 7, Counters::Growths(sent));
            let mut all = Vec::new();
            for part in parts {
                sent.advance(&part.growths);
                all.extend(part.growths);
            }
            all
        };
        let first = Shape::EVERY.map(|shape| {
            let mut sent = SentTotals::new("", snapshot.agent_started);
            let all = growths(&snapshot, &mut sent, shape);
            (all, sent)
        });
        assert!(first[0].0.len() > 30);
        assert!(first.iter().all(|of_it| *of_it == first[0]));
        let [(_, mut sent), ..] = first;
        for (at, shape) in Shape::EVERY.into_iter().enumerate() {
            assert_eq!(growths(&snapshot, &mut sent, shape), [], "{shape:?}");
            snapshot.agent.commits += 1;
            assert_eq!(growths(&snapshot, &mut sent, shape).len(), 1, "{at}");
        }
    }

    #[test]
    fn a_container_is_a_resource_with_an_instance_of_its_own() {
        let snapshot = sample::snapshot();
        let shape = Shape::of(Naming::Conventions, Layout::Resource);
        let [outgoing] = built(&snapshot, shape, 100_000).try_into().unwrap();
        let mut instances = BTreeSet::new();
        for resource in &outgoing.request.resource_metrics {
            let of_it = &resource.resource.as_ref().unwrap().attributes;
            let keys: BTreeSet<_> = of_it.iter().map(|of_it| &of_it.key).collect();
            assert_eq!(keys.len(), of_it.len(), "{of_it:?}");
            let instance = of_it
                .iter()
                .find(|of_it| of_it.key == "service.instance.id");
            assert!(
                instances.insert(format!("{instance:?}")),
                "{instance:?} twice"
            );
        }
        // Three containers and the agent.
        assert_eq!(instances.len(), 4);
    }

    /// A start that moves from one push to the next says that the counter began anew, and whoever
    /// adds up what came since bills the whole amount with each push.
    #[test]
    fn a_clock_that_was_set_back_neither_puts_the_start_after_the_time_nor_moves_it() {
        let mut snapshot = sample::snapshot();
        let starts = [5, 6].map(|wall| {
            snapshot.wall = WallTime(wall);
            // `lines` holds the promise that no start is after the time.
            lines(&built(&snapshot, Shape::default(), 100_000)[0])
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
            let lines = lines(&built_with(&snapshot, Shape::default(), 100_000, &mut exporter)[0]);
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

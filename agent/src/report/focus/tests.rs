//! Tests of charges, over reports of ledgers that are made up.

use std::collections::HashMap;

use jiff::SignedDuration;
use proptest::prelude::*;

use super::*;
use crate::core::amounts::{Amounts, Millijoules};
use crate::core::model::{GpuUuid, WallTime};
use crate::outputs::store::query::{
    AccountLife, AccountRecord, GpuRecord, GpuUsed, LedgerExtent, ReasonUsed, Used,
};
use crate::report::hour::begin_of;
use crate::report::range::Asked;
use crate::report::tally::{Filter, Tally};

const FIRST: i64 = 490_000;
const HOUR: u64 = 3_600_000_000_000;

/// A GPU's hour: what each owner used and was given, busy time of nobody, idle and unobserved time.
#[derive(Clone, Debug, Default)]
struct Hour {
    owners: Vec<(u64, u64)>,
    nobody: u64,
    idle: u64,
    unobserved: u64,
}

impl Hour {
    fn busy(&self) -> u64 {
        self.owners.iter().map(|(busy, _)| busy).sum::<u64>() + self.nobody
    }

    fn all(&self) -> u64 {
        self.busy() + self.idle + self.unobserved
    }
}

fn owner(gpu: i64, number: usize) -> AccountRecord {
    let text = |what: &str| -> Arc<str> { format!("{what}-{number}").into() };
    let none: Arc<str> = NONE.into();
    let host = AccountRecord {
        gpu,
        kind: "host".into(),
        owner: text("unit"),
        namespace: none.clone(),
        pod: none.clone(),
        container: none.clone(),
        pod_uid: none.clone(),
        container_id: none.clone(),
        image: none.clone(),
        runtime: none,
        attribution: "host".into(),
        labels: "{}".into(),
        profile: None,
        life: AccountLife::default(),
    };
    match number {
        // An owner of the host, and one whose names are not known.
        0 => host,
        1 => AccountRecord {
            kind: "container".into(),
            namespace: UNRESOLVED.into(),
            pod: UNRESOLVED.into(),
            container: UNRESOLVED.into(),
            container_id: text("id"),
            ..host
        },
        _ => AccountRecord {
            kind: "container".into(),
            namespace: text("namespace"),
            pod: text("pod"),
            container: text("container"),
            pod_uid: text("uid"),
            container_id: text("id"),
            labels: "{\"team\":\"\"}".into(),
            attribution: "named".into(),
            ..host
        },
    }
}

fn asked(prices: &str, only: &[String]) -> Question {
    let asked = Question {
        asked: Asked {
            since: begin_of(FIRST),
            until: None,
        },
        zone: Zone::UTC,
        by: vec![Dimension::Pod, Dimension::Label("team".into())],
        filter: Filter::new(only, &[]),
        prices: Some(Prices::parse(prices, "prices").unwrap()),
        timeline: false,
    };
    question(asked).unwrap()
}

/// The report of the hours of one GPU after the other.
fn report(question: &Question, gpus: &[Vec<Hour>]) -> Report {
    let hours = gpus.iter().map(Vec::len).max().unwrap_or(0);
    let last = FIRST + i64::try_from(hours).unwrap() - 1;
    let committed = begin_of(last + 1) - SignedDuration::from_nanos(1);
    let extent = LedgerExtent {
        node: "gpu-7".into(),
        path: "gpuacct.db".into(),
        store: "5704e".into(),
        committed: WallTime(u64::try_from(committed.as_nanosecond()).unwrap()),
        hour: last,
        first_hour: FIRST,
    };
    let record = |number: usize| GpuRecord {
        node: "gpu-7".into(),
        cluster: "east".into(),
        uuid: GpuUuid(format!("GPU-{number}").into()),
        index: number.to_string().into(),
        model: "A100".into(),
        profile: None,
        parent: None,
        first_hour: FIRST,
        last_hour: last,
    };
    let records: HashMap<i64, GpuRecord> = (0..).zip((0..gpus.len()).map(record)).collect();
    let mut tally = Tally::new(extent, records, question);
    for (gpu, hours) in (0..).zip(gpus) {
        for (at, hour) in (FIRST..).zip(hours) {
            for (number, (busy, allocated)) in hour.owners.iter().enumerate() {
                let account = gpu * 100 + i64::try_from(number).unwrap();
                let amounts = Amounts {
                    allocated: Nanos(*allocated),
                    allocated_share: Nanos(*allocated),
                    ..Amounts::busy(Nanos(*busy))
                };
                let used = Used {
                    hour: at,
                    account,
                    amounts,
                };
                tally
                    .account(used, |_| Ok::<_, MoneyError>(owner(gpu, number)))
                    .unwrap();
            }
            let reason = |unobserved, reason: &str, time| ReasonUsed {
                hour: at,
                gpu,
                unobserved,
                reason: reason.into(),
                time: Nanos(time),
            };
            tally.reason(reason(false, "no_row", hour.nobody));
            tally.reason(reason(true, "driver_error", hour.unobserved));
            tally.book(GpuUsed {
                hour: at,
                gpu,
                elapsed: Nanos(hour.all()),
                busy: Nanos(hour.busy()),
                idle: Nanos(hour.idle),
                energy: Millijoules(0),
                energy_idle: Millijoules(0),
            });
        }
    }
    tally.report(committed).unwrap()
}

fn made(prices: &str, gpus: &[Vec<Hour>]) -> (Report, Vec<Charge>) {
    let question = asked(prices, &[]);
    let report = report(&question, gpus);
    let charges = charges(&report, question.prices.as_ref().unwrap(), true).unwrap();
    (report, charges)
}

/// The charges of each hour.
fn origins(charges: &[Charge]) -> Vec<Vec<&Charge>> {
    let mut origins: Vec<Vec<&Charge>> = Vec::new();
    for charge in charges {
        match origins.last_mut() {
            Some(last) if last[0].origin == charge.origin => last.push(charge),
            _ => origins.push(vec![charge]),
        }
    }
    origins
}

fn sum(charges: &[&Charge], of: impl Fn(&Charge) -> Decimal) -> Decimal {
    charges.iter().map(|charge| of(charge)).sum()
}

/// What a duration is in hours, as exactly as decimals can say it.
fn exact(nanos: u64) -> Decimal {
    Decimal::from(nanos) / Decimal::from(HOUR)
}

#[test]
fn an_hour_is_split_among_its_owners_and_what_nobody_used() {
    let hour = Hour {
        owners: vec![(0, 0), (HOUR / 4, 0), (HOUR / 8, HOUR / 2)],
        nobody: HOUR / 16,
        idle: HOUR / 2,
        unobserved: HOUR / 16,
    };
    let prices = "currency = \"EUR\"\n[default]\nbusy_hour = \"1.80\"\nallocated_hour = \"0.40\"\n";
    let (report, charges) = made(prices, &[vec![hour]]);
    let shown: Vec<String> = charges
        .iter()
        .map(|charge| {
            let payer = charge.payer.as_ref().and_then(Payer::name);
            format!(
                "{} {} {} {} h {} {} {}",
                charge.origin.meter.as_str(),
                charge.part.as_str(),
                payer.unwrap_or_default(),
                charge.hours,
                charge.ratio,
                charge.cost,
                charge.billed
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            "busy container id-1 0.25 h 0.25 0.45 0.45",
            "busy container namespace-2/pod-2/container-2 0.125 h 0.125 0.225 0.225",
            "busy unattributed  0.0625 h 0.0625 0.1125 0.1125",
            "busy idle  0.5 h 0.5 0.9 0",
            "busy unobserved  0.0625 h 0.0625 0.1125 0",
            "allocated container namespace-2/pod-2/container-2 0.5 h 0.5 0.2 0.2",
            "allocated unallocated  0.5 h 0.5 0.2 0",
        ]
    );
    let billed: Decimal = charges.iter().map(|charge| charge.billed).sum();
    assert_eq!(report.total.cost, Some(billed.round_dp(2)));
    // The empty label is a label, and one that is not known is none.
    let labels: Vec<_> = charges
        .iter()
        .filter_map(|charge| Some(charge.payer.as_ref()?.labels.clone()))
        .collect();
    assert_eq!(labels[0], []);
    assert_eq!(labels[1], [("team".into(), "".into())]);
}

#[test]
fn only_a_price_that_is_there_splits_an_hour() {
    let hour = Hour {
        owners: vec![(0, 0), (0, HOUR)],
        idle: HOUR,
        ..Hour::default()
    };
    let price = |key: &str| format!("currency = \"EUR\"\n[default]\n{key} = \"1\"\n");
    let parts = |key: &str| {
        let (_, charges) = made(&price(key), &[vec![hour.clone()]]);
        let parts = charges.iter().map(|charge| charge.part.as_str());
        parts.collect::<Vec<_>>()
    };
    assert_eq!(parts("busy_hour"), ["idle"]);
    assert_eq!(parts("allocated_hour"), ["container"]);
}

#[test]
fn what_cannot_be_split_or_priced_is_said() {
    let hour = Hour {
        owners: vec![(HOUR / 2, 0)],
        idle: HOUR / 2,
        ..Hour::default()
    };
    let prices = "currency = \"EUR\"\n[default]\nbusy_hour = \"1\"\n";
    let question = asked(prices, &["namespace-2".to_owned()]);
    let limited = report(&question, &[vec![hour.clone()]]);
    let prices = question.prices.as_ref().unwrap();
    assert!(matches!(
        charges(&limited, prices, true),
        Err(FocusError::Limited)
    ));
    // Without whole hours there is nothing to split.
    assert_eq!(charges(&limited, prices, false).unwrap(), []);

    let whole = Question {
        filter: Filter::default(),
        ..question
    };
    let whole = report(&whole, &[vec![hour]]);
    let others = "currency = \"EUR\"\n[gpu.H100]\nbusy_hour = \"1\"\n";
    let others = Prices::parse(others, "prices").unwrap();
    let error = charges(&whole, &others, true).unwrap_err();
    assert!(
        error.to_string().contains("no price for \"A100\""),
        "{error}"
    );

    let credits = Prices::parse(
        "currency = \"credits\"\n[default]\nbusy_hour = \"1\"\n",
        "prices",
    );
    let again = |prices| {
        super::question(Question {
            prices,
            ..asked("currency = \"EUR\"\n[default]\nbusy_hour = \"1\"\n", &[])
        })
    };
    assert!(matches!(again(None), Err(FocusError::NoPrices)));
    let error = again(credits.ok()).unwrap_err().to_string();
    assert!(
        error.starts_with("the prices are in \"credits\""),
        "{error}"
    );
}

#[test]
fn a_node_or_a_cluster_may_have_prices_of_its_own_and_owners_may_not() {
    let hour = || Hour {
        owners: vec![(HOUR, 0)],
        nobody: 0,
        idle: 0,
        unobserved: 0,
    };
    let own = |what: &str| {
        format!(
            "currency = \"EUR\"\n[default]\nbusy_hour = \"1\"\n[[for]]\n{what}\n[for.default]\nbusy_hour = \"3\"\n"
        )
    };
    for (what, price) in [
        ("node = \"gpu-7\"", 3),
        ("cluster = \"east\"", 3),
        ("cluster = \"west\"", 1),
    ] {
        let (_, charges) = made(&own(what), &[vec![hour()]]);
        let prices: Vec<Decimal> = charges.iter().map(|charge| charge.origin.price).collect();
        assert_eq!(prices, [Decimal::from(price)], "{what}");
    }
    let prices = Prices::parse(&own("label = { team = \"x\" }"), "prices");
    let asked = Question {
        prices: Some(prices.unwrap()),
        ..asked("currency = \"EUR\"\n[default]\nbusy_hour = \"1\"\n", &[])
    };
    assert!(matches!(question(asked), Err(FocusError::PricesOfOwners)));
}

fn hours() -> impl Strategy<Value = Vec<Vec<Hour>>> {
    let time = || prop_oneof![Just(0), 1..1_000_u64, 0..HOUR];
    let hour = (
        prop::collection::vec((time(), time()), 0..6),
        time(),
        time(),
        time(),
    );
    let hour = hour.prop_map(|(owners, nobody, idle, unobserved)| Hour {
        owners,
        nobody,
        idle,
        unobserved,
    });
    prop::collection::vec(prop::collection::vec(hour, 1..4), 1..3)
}

proptest! {
    #[test]
    fn no_second_and_no_money_is_lost(
        gpus in hours(),
        busy in 0_u64..2_000_000_000,
        allocated in prop::option::of(0_u64..2_000_000_000),
    ) {
        let price = |digits: u64| Decimal::from_i128_with_scale(digits.into(), 9);
        let mut prices = format!("currency = \"EUR\"\n[default]\nbusy_hour = \"{}\"\n", price(busy));
        if let Some(allocated) = allocated {
            prices += &format!("allocated_hour = \"{}\"\n", price(allocated));
        }
        let (report, charges) = made(&prices, &gpus);
        let smallest = Decimal::new(1, DECIMALS);
        for charges in origins(&charges) {
            let origin = &charges[0].origin;
            prop_assert_eq!(sum(&charges, |of| of.ratio), Decimal::ONE);
            let time: u64 = charges.iter().map(|of| of.time.0).sum();
            let hours = sum(&charges, |of| of.hours);
            prop_assert!((hours - exact(time)).abs() <= smallest);
            prop_assert_eq!(sum(&charges, |of| of.cost), hours * origin.price);
            for charge in &charges {
                prop_assert_eq!(charge.cost, charge.hours * origin.price);
                prop_assert!(charge.billed == charge.cost || charge.billed.is_zero());
                // Each nanosecond can be had back.
                let nanos = (charge.hours * Decimal::from(HOUR)).round();
                prop_assert_eq!(nanos, Decimal::from(charge.time.0));
                let ratio = Decimal::from(charge.time.0) / Decimal::from(time);
                prop_assert!((charge.ratio - ratio).abs() <= Decimal::new(1, RATIO_DECIMALS));
            }
        }
        // All time of the GPUs is split by busy time, and all time that was given to somebody is billed.
        let of = |meter| charges.iter().filter(move |charge| charge.origin.meter == meter);
        let split: u64 = of(Meter::Busy).map(|charge| charge.time.0).sum();
        prop_assert_eq!(split, gpus.iter().flatten().map(Hour::all).sum::<u64>());
        let given: u64 = of(Meter::Allocated)
            .filter(|charge| charge.part != Part::Unallocated)
            .map(|charge| charge.time.0)
            .sum();
        let owners = gpus.iter().flatten().flat_map(|hour| &hour.owners);
        let expected: u64 = owners.map(|(_, allocated)| allocated).sum();
        prop_assert_eq!(given, if allocated.is_some() { expected } else { 0 });
        // What is billed is the report's total, which is rounded once, to a cent.
        let billed: Decimal = charges.iter().map(|charge| charge.billed).sum();
        let total = report.total.cost.unwrap_or_default();
        let strays = Decimal::from(charges.len()) * smallest * Decimal::TWO;
        prop_assert!((billed - total).abs() <= Decimal::new(5, 3) + strays, "{} {}", billed, total);
    }
}

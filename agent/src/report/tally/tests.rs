//! Tests of `tally`.

use jiff::SignedDuration;

use super::dimension::PLAIN;
use super::keys::{AccountValues, EMPTY, shown};
use super::*;
use crate::core::model::{GpuUuid, UNRESOLVED, WallTime};
use crate::report::prices::Prices;
use crate::report::range::Asked;
use crate::report::zone::Zone;

const FIRST: i64 = 490_000;
const SECOND: u64 = 1_000_000_000;
const WHOLE: u64 = 3_600 * SECOND;

fn standing(minutes_of_the_last_hour: u64) -> LedgerExtent {
    let last = u64::try_from(FIRST + 1).unwrap();
    LedgerExtent {
        node: "gpu-7".into(),
        path: "gpuacct.db".into(),
        store: "5704e".into(),
        committed: WallTime(last * WHOLE + minutes_of_the_last_hour * 60 * SECOND),
        hour: FIRST + 1,
        first_hour: FIRST,
    }
}

fn asked() -> Asked {
    Asked {
        since: begin_of(FIRST),
        until: None,
    }
}

/// All of the ledger, by these dimensions.
fn question(by: &[Dimension]) -> Question {
    Question {
        asked: asked(),
        zone: Zone::UTC,
        by: by.to_vec(),
        filter: Filter::default(),
        prices: None,
        timeline: true,
    }
}

fn gpus(hours: std::ops::RangeInclusive<i64>) -> HashMap<i64, GpuRecord> {
    let record = GpuRecord {
        node: "gpu-7".into(),
        cluster: "lab".into(),
        uuid: GpuUuid("GPU-0".into()),
        index: "3".into(),
        model: "A100".into(),
        profile: None,
        parent: None,
        first_hour: *hours.start(),
        last_hour: *hours.end(),
    };
    HashMap::from([(1, record)])
}

fn record(namespace: &str, attribution: &str, labels: &str) -> AccountRecord {
    AccountRecord {
        gpu: 1,
        kind: "container".into(),
        owner: "id".into(),
        namespace: namespace.into(),
        pod: "p".into(),
        container: "c".into(),
        pod_uid: "u".into(),
        container_id: "id".into(),
        image: "i".into(),
        runtime: "docker".into(),
        attribution: attribution.into(),
        labels: labels.into(),
        profile: None,
        life: AccountLife::default(),
    }
}

/// Nothing is charged in fractions of a second here.
fn used(hour: i64, account: i64, busy: u64, allocated: u64) -> Used {
    Used {
        hour: FIRST + hour,
        account,
        amounts: Amounts {
            allocated: Nanos::from_secs(allocated),
            allocated_share: Nanos::from_secs(allocated),
            energy: Millijoules(busy),
            ..Amounts::busy(Nanos::from_secs(busy))
        },
    }
}

fn book(hour: i64, busy: u64, idle: u64, unobserved: u64) -> GpuUsed {
    GpuUsed {
        hour: FIRST + hour,
        gpu: 1,
        elapsed: Nanos::from_secs(busy + idle + unobserved),
        busy: Nanos::from_secs(busy),
        idle: Nanos::from_secs(idle),
        energy: Millijoules(busy + idle + unobserved),
        energy_idle: Millijoules(idle),
    }
}

fn reason(hour: i64, reason: &str, unobserved: bool, time: u64) -> ReasonUsed {
    ReasonUsed {
        hour: FIRST + hour,
        gpu: 1,
        unobserved,
        reason: reason.into(),
        time: Nanos::from_secs(time),
    }
}

fn known(_: i64) -> Result<AccountRecord, MoneyError> {
    Ok(record("ns", "named", "{}"))
}

#[test]
fn what_one_did_not_use_is_not_what_another_used_unasked() {
    // Busy and allocated seconds of accounts in hours, and what is unused of them all together.
    for (rows, expected) in [
        (vec![(0, 1, 100, 3_600)], 3_500),
        (vec![(0, 1, 100, 0)], 0),
        (vec![(0, 1, 100, 3_600), (0, 2, 900, 0)], 3_500),
        (vec![(0, 1, 3_600, 1_800), (1, 1, 0, 600)], 600),
        (vec![(0, 1, 0, 3_600), (0, 2, 0, 3_600)], 7_200),
    ] {
        let question = question(&[Dimension::Namespace]);
        let mut tally = Tally::new(standing(0), gpus(FIRST..=FIRST), &question);
        for (hour, account, busy, allocated) in &rows {
            let used = used(*hour, *account, *busy, *allocated);
            tally.account(used, known).unwrap();
        }
        let report = tally.report(begin_of(FIRST + 1)).unwrap();
        let found = report.total.sums.unused;
        assert_eq!(found, Nanos::from_secs(expected), "{rows:?}");
    }
}

#[test]
fn who_shares_a_gpu_pays_for_a_part_of_it() {
    let prices = "currency = \"EUR\"\n[gpu.\"A100\"]\nallocated_hour = \"0.40\"\n";
    let prices = Prices::parse(prices, "p").unwrap();
    let question = Question {
        prices: Some(prices),
        ..question(&[Dimension::ContainerId])
    };
    let mut tally = Tally::new(standing(0), gpus(FIRST..=FIRST), &question);
    for account in 1..=2 {
        let mut used = used(0, account, 0, 3_600);
        used.amounts.allocated_share = Nanos::from_secs(1_800);
        tally.account(used, known).unwrap();
    }
    let report = tally.report(begin_of(FIRST + 1)).unwrap();
    let total = &report.total;
    assert_eq!(total.sums.amounts.allocated, Nanos::from_secs(7_200));
    assert_eq!(total.sums.amounts.allocated_share, Nanos::from_secs(3_600));
    assert_eq!(total.cost, Some(Decimal::new(40, 2)));
}

#[test]
fn all_of_the_energy_and_all_of_the_time_has_a_row() {
    let question = question(&[Dimension::Hour]);
    let mut tally = Tally::new(standing(0), gpus(FIRST..=FIRST), &question);
    tally.account(used(0, 1, 1_000, 0), known).unwrap();
    tally.book(book(0, 1_001, 2_096, 503));
    tally.reason(reason(0, "no_row", false, 1));
    tally.reason(reason(0, "ring_overrun", true, 502));
    tally.reason(reason(0, "a reason of a later version", true, 1));
    let report = tally.report(begin_of(FIRST + 1)).unwrap();
    assert_eq!(report.imbalance, Nanos::ZERO);
    let found: Vec<_> = report
        .rows
        .iter()
        .map(|row| {
            let seconds = row.sums.gpu.0 / SECOND;
            (row.kind, &*row.reason, seconds, row.sums.amounts.energy.0)
        })
        .collect();
    assert_eq!(
        found,
        [
            (Kind::Container, NONE, 1_000, 1_000),
            (Kind::Unattributed, "no_row", 1, 1),
            (Kind::Idle, NONE, 2_096, 2_096),
            (Kind::Unobserved, "ring_overrun", 502, 502),
            (Kind::Unobserved, "a reason of a later version", 1, 1),
        ]
    );
    let time: Nanos = report.rows.iter().map(|row| row.sums.gpu).sum();
    assert_eq!(time, report.total.sums.gpu);
    assert_eq!(report.total.sums.amounts.energy, Millijoules(3_600));
    assert!(report.rows.iter().all(|row| row.key.len() == 1));
}

#[test]
fn an_imbalance_is_found_in_the_hour_that_has_it() {
    // By how much each hour's accounts are beyond the device's busy time; one does not hide the
    // other.
    for (beyond, expected) in [([0, 0], 0), ([1, 0], 1), ([1, -1], 2), ([-3, 0], 3)] {
        let question = question(&[Dimension::Namespace]);
        let mut tally = Tally::new(standing(60), gpus(FIRST..=FIRST + 1), &question);
        for (hour, beyond) in (0..).zip(beyond) {
            let busy = 100_u64.checked_add_signed(beyond).unwrap();
            tally.account(used(hour, 1, busy, 0), known).unwrap();
            tally.book(book(hour, 100, 3_500, 0));
        }
        let report = tally.report(begin_of(FIRST + 2)).unwrap();
        assert_eq!(report.imbalance, Nanos::from_secs(expected), "{beyond:?}");
        let says_so = report
            .warnings
            .iter()
            .any(|warning| warning.contains("out of balance"));
        assert_eq!(says_so, expected > 0);
    }
}

#[test]
fn what_no_book_covers_is_no_idle_time() {
    // First and last hour of the GPU, what is booked in either, and what is in no book: windows
    // under way are not missed.
    for (hours, booked, expected) in [
        (0..=1, [3_600, 1_800], 0),
        (0..=1, [3_595, 1_795], 0),
        (0..=1, [3_603, 1_800], 0),
        (0..=1, [600, 1_800], 3_000),
        (0..=1, [3_600, 60], 1_740),
        (0..=1, [0, 1_800], 3_600),
        // Booked late, and once.
        (0..=1, [600, 4_800], 0),
        (0..=1, [600, 2_400], 2_400),
        // It was not known before, and has been gone since.
        (1..=1, [0, 1_800], 0),
        (0..=0, [3_600, 0], 0),
    ] {
        let question = question(&[Dimension::Namespace]);
        let known = FIRST + hours.start()..=FIRST + hours.end();
        let mut tally = Tally::new(standing(30), gpus(known), &question);
        for (hour, idle) in (0..).zip(booked) {
            tally.book(book(hour, 0, idle, 0));
        }
        let report = tally.report(begin_of(FIRST + 2)).unwrap();
        let missing = report
            .rows
            .iter()
            .filter(|row| row.kind == Kind::Unaccounted);
        let missing: Nanos = missing.map(|row| row.sums.gpu).sum();
        assert_eq!(missing, Nanos::from_secs(expected), "{hours:?} {booked:?}");
        let booked = Nanos::from_secs(booked.iter().sum());
        assert_eq!(report.total.sums.gpu, booked.plus(missing));
    }
}

#[test]
fn no_label_is_blank() {
    for (attribution, labels, expected) in [
        ("named", r#"{"team":"vision"}"#, "vision"),
        ("named", r#"{"team":"a\"b"}"#, "a\"b"),
        ("named", r#"{"team":""}"#, EMPTY),
        ("named", "{}", NONE),
        ("named", "no JSON", UNRESOLVED),
        ("id_only", "{}", UNRESOLVED),
        ("held", r#"{"team":"vision"}"#, UNRESOLVED),
    ] {
        let record = record("", attribution, labels);
        let found = AccountValues::new(&record).label("team");
        assert_eq!(&*found, expected, "{attribution} {labels}");
    }
    assert_eq!(&*shown(&"".into()), UNRESOLVED);
}

#[test]
fn dimensions_are_written_as_they_are_read() {
    for (name, dimension) in PLAIN {
        assert_eq!(name.parse(), Ok(dimension.clone()));
        assert_eq!(dimension.to_string(), name);
    }
    let label: Dimension = "label:app.kubernetes.io/name".parse().unwrap();
    assert_eq!(label.to_string(), "label:app.kubernetes.io/name");
    for text in ["", "label:", "Namespace", "pod ", "labels:x"] {
        assert!(text.parse::<Dimension>().is_err(), "{text:?}");
    }
}

#[test]
fn an_answer_to_less_than_was_asked_for_says_so() {
    let at = |seconds: i64| begin_of(FIRST) + SignedDuration::from_secs(seconds);
    // Asked since and until, in seconds from the ledger's first hour; minutes committed of the
    // second; the present, likewise; whether all of it is answered; what is said.
    for (since, until, minutes, now, is_complete, expected) in [
        (0, Some(3_600), 60, 7_200, true, None),
        (0, None, 60, 7_200, true, None),
        (
            60,
            Some(3_600),
            60,
            7_200,
            true,
            Some("note: the report counts whole hours: it includes all of the hour of"),
        ),
        (
            0,
            Some(3_660),
            60,
            7_200,
            true,
            Some("nothing of the hour of"),
        ),
        (
            0,
            None,
            30,
            5_400,
            true,
            Some("note: the hour of 2025-11-24T17:00:00Z is included up to"),
        ),
        (
            -3_600,
            Some(3_600),
            60,
            7_200,
            false,
            Some(
                "warning: the range begins at 2025-11-24T15:00:00Z, and the ledger begins with the hour of 2025-11-24T16:00:00Z",
            ),
        ),
        (
            0,
            Some(7_200),
            59,
            7_200,
            false,
            Some(
                "warning: the range ends at 2025-11-24T18:00:00Z, and the report ends with the last commit, at 2025-11-24T17:59:00Z",
            ),
        ),
        (
            0,
            Some(7_200),
            30,
            5_400,
            false,
            Some("warning: the range reaches into the future: it ends at 2025-11-24T18:00:00Z"),
        ),
        (
            0,
            Some(7_200),
            10,
            7_200,
            false,
            Some(
                "warning: nothing was committed after 2025-11-24T17:10:00Z: is the agent running?",
            ),
        ),
        (
            0,
            None,
            10,
            7_200,
            true,
            Some("warning: nothing was committed after"),
        ),
    ] {
        let question = Question {
            asked: Asked {
                since: at(since),
                until: until.map(at),
            },
            ..question(&[Dimension::Namespace])
        };
        let tally = Tally::new(standing(minutes), HashMap::new(), &question);
        let report = tally.report(at(now)).unwrap();
        let warnings = report
            .warnings
            .iter()
            .map(|text| format!("warning: {text}"));
        let notes = report.notes.iter().map(|text| format!("note: {text}"));
        let said: Vec<String> = warnings.chain(notes).collect();
        let case = format!("{since} to {until:?}, {minutes}: {said:?}");
        match expected {
            None => assert!(said.is_empty(), "{case}"),
            Some(expected) => {
                assert!(said.iter().any(|line| line.contains(expected)), "{case}");
            }
        }
        assert_eq!(report.is_complete, is_complete, "{case}");
        assert_eq!(report.since, at(since.max(0) / 3_600 * 3_600), "{case}");
        let committed = at(3_600 + i64::try_from(60 * minutes).unwrap());
        assert_eq!(
            report.until,
            until.map_or(committed, |until| at(until / 3_600 * 3_600).min(committed)),
            "{case}"
        );
    }
}

#[test]
fn a_hole_in_the_ledger_is_not_called_unused() {
    for (idle, unobserved, is_known) in [(3_600, 0, true), (0, 3_600, false), (0, 0, false)] {
        let question = question(&[Dimension::Namespace]);
        let mut tally = Tally::new(standing(0), gpus(FIRST..=FIRST), &question);
        tally.book(book(0, 0, idle, unobserved));
        let report = tally.report(begin_of(FIRST + 1)).unwrap();
        let says_so = report
            .warnings
            .iter()
            .any(|warning| warning.contains("whether one was used is not known"));
        assert_eq!(says_so, !is_known, "{:?}", report.warnings);
    }
}

#[test]
fn a_limited_report_has_the_accounts_that_were_asked_for_and_no_others() {
    let labels = |text: &str| text.parse::<Label>().unwrap();
    let accounts = [
        record("research", "named", r#"{"team":"vision","tier":"a"}"#),
        record("research", "named", r#"{"team":"vision","tier":""}"#),
        record("serving", "named", r#"{"team":"language"}"#),
        record("", "id_only", "{}"),
        AccountRecord {
            kind: "host".into(),
            ..record("(none)", "host", "{}")
        },
    ];
    for (namespaces, wanted, expected) in [
        (vec!["research"], vec![], vec![0, 1]),
        (vec!["research", "serving"], vec![], vec![0, 1, 2]),
        (vec!["(unresolved)"], vec![], vec![3]),
        (vec!["(none)"], vec![], vec![4]),
        (vec![], vec!["team=vision"], vec![0, 1]),
        (vec![], vec!["team=vision", "team=language"], vec![0, 1, 2]),
        (vec![], vec!["team=vision", "tier=a"], vec![0]),
        (vec![], vec!["tier="], vec![1]),
        (vec![], vec!["tier=(none)"], vec![2, 4]),
        (vec!["serving"], vec!["team=vision"], vec![]),
        (vec!["reserach"], vec![], vec![]),
    ] {
        let namespaces: Vec<String> = namespaces.into_iter().map(str::to_owned).collect();
        let wanted: Vec<Label> = wanted.into_iter().map(labels).collect();
        // The GPU has no price: whoever is not in the report does not ask for it.
        let prices = "currency = \"EUR\"\n[gpu.\"A100\"]\nbusy_hour = \"3.60\"\n";
        let mut gpus = gpus(FIRST..=FIRST);
        let other = GpuRecord {
            node: "gpu-7".into(),
            uuid: GpuUuid("GPU-1".into()),
            model: "none".into(),
            ..gpus[&1].clone()
        };
        gpus.insert(2, other);
        let question = Question {
            filter: Filter::new(&namespaces, &wanted),
            prices: Some(Prices::parse(prices, "p").unwrap()),
            ..question(&[Dimension::ContainerId])
        };
        let mut tally = Tally::new(standing(0), gpus, &question);
        for (number, record) in (0..).zip(&accounts) {
            let record = AccountRecord {
                container_id: number.to_string().into(),
                owner: number.to_string().into(),
                gpu: if expected.contains(&number) { 1 } else { 2 },
                ..record.clone()
            };
            let used = used(0, number, 100, 0);
            tally
                .account(used, |_| Ok::<_, MoneyError>(record))
                .unwrap();
        }
        let mine = 100 * u64::try_from(expected.len()).unwrap();
        tally.book(book(0, mine, 3_600 - mine, 0));
        tally.book(GpuUsed {
            gpu: 2,
            ..book(0, 500 - mine, 3_100 + mine, 0)
        });
        let report = tally.report(begin_of(FIRST + 1)).unwrap();
        let case = format!("{:?}: {:?}", report.only, report.rows);
        assert_eq!(report.imbalance, Nanos::ZERO, "{case}");
        assert_eq!(report.rows.len(), expected.len(), "{case}");
        assert!(report.rows.iter().all(|row| row.kind.is_owned()), "{case}");
        let seconds = Nanos::from_secs(mine);
        assert_eq!(report.total.sums.amounts.busy, seconds, "{case}");
        assert_eq!(report.total.sums.gpu, seconds, "{case}");
        assert_eq!(
            report.total.cost,
            Some(Decimal::new(i64::try_from(mine).unwrap() / 10, 2))
        );
        // Of the busy time of all.
        let share = Decimal::from(mine) / Decimal::from(500);
        assert_eq!(report.total.share, Some(share), "{case}");
        let says_so = report
            .warnings
            .iter()
            .any(|text| text.contains("no account"));
        assert_eq!(says_so, expected.is_empty(), "{:?}", report.warnings);
    }
    for text in ["", "team", "=vision"] {
        assert!(text.parse::<Label>().is_err(), "{text:?}");
    }
}

#[test]
fn rows_are_in_the_order_of_time_when_clocks_are_set_back() {
    let first = hour_of("2026-10-24T23:00:00Z".parse().unwrap());
    let question = Question {
        asked: Asked {
            since: begin_of(first),
            until: None,
        },
        zone: "Europe/Berlin".parse().unwrap(),
        ..question(&[Dimension::Hour, Dimension::Day])
    };
    let extent = LedgerExtent {
        node: "gpu-7".into(),
        path: "gpuacct.db".into(),
        store: "5704e".into(),
        committed: WallTime(u64::try_from(begin_of(first + 4).as_nanosecond()).unwrap()),
        hour: first + 4,
        first_hour: first,
    };
    let mut tally = Tally::new(extent, gpus(first..=first + 3), &question);
    for hour in first..first + 4 {
        tally.book(GpuUsed {
            hour,
            ..book(0, 0, 3_600, 0)
        });
    }
    let report = tally.report(begin_of(first + 4)).unwrap();
    let keys: Vec<[&str; 2]> = report
        .rows
        .iter()
        .map(|row| [&*row.key[0], &*row.key[1]])
        .collect();
    assert_eq!(
        keys,
        [
            ["2026-10-25T01:00:00+02:00", "2026-10-25"],
            ["2026-10-25T02:00:00+02:00", "2026-10-25"],
            ["2026-10-25T02:00:00+01:00", "2026-10-25"],
            ["2026-10-25T03:00:00+01:00", "2026-10-25"],
        ]
    );
}

#[test]
fn a_gpu_has_its_index_beside_its_uuid() {
    let by = |names: &[&str]| -> Vec<Dimension> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    };
    for (asked, expected) in [
        (vec!["gpu"], vec!["gpu", "gpu_index"]),
        (
            vec!["hour", "gpu", "pod"],
            vec!["hour", "gpu", "gpu_index", "pod"],
        ),
        (vec!["gpu_index", "gpu"], vec!["gpu_index", "gpu"]),
        (vec!["gpu_index"], vec!["gpu_index"]),
        (vec!["pod"], vec!["pod"]),
    ] {
        assert_eq!(Dimension::with_index(&by(&asked)), by(&expected));
    }
    let question = question(&Dimension::with_index(&by(&["gpu"])));
    let mut tally = Tally::new(standing(0), gpus(FIRST..=FIRST), &question);
    tally.account(used(0, 1, 100, 0), known).unwrap();
    tally.book(book(0, 100, 3_500, 0));
    let report = tally.report(begin_of(FIRST + 1)).unwrap();
    assert_eq!(report.rows.len(), 2);
    for row in &report.rows {
        assert_eq!(row.key, ["GPU-0".into(), Arc::<str>::from("3")]);
    }
}

#[test]
fn what_has_the_default_price_is_named() {
    let prices = "currency = \"EUR\"\n[default]\nbusy_hour = \"3.60\"\n";
    let question = Question {
        prices: Some(Prices::parse(prices, "p").unwrap()),
        ..question(&[Dimension::Namespace])
    };
    let mut tally = Tally::new(standing(0), gpus(FIRST..=FIRST), &question);
    tally.account(used(0, 1, 1_000, 0), known).unwrap();
    tally.book(book(0, 1_000, 2_600, 0));
    let report = tally.report(begin_of(FIRST + 1)).unwrap();
    assert_eq!(report.total.cost, Some(Decimal::new(100, 2)));
    assert_eq!(report.notes, ["the default price applies to \"A100\""]);
}

#[test]
fn a_timeline_has_all_of_the_time_and_all_of_the_money() {
    let prices = "currency = \"EUR\"\n[default]\nbusy_hour = \"1\"\nallocated_hour = \"0.5\"\n";
    for by in [
        &[Dimension::Namespace][..],
        &[Dimension::Namespace, Dimension::Hour],
        &[Dimension::Day, Dimension::Node],
        &[Dimension::Unit],
    ] {
        let question = Question {
            prices: Some(Prices::parse(prices, "p").unwrap()),
            ..question(by)
        };
        let mut tally = Tally::new(standing(30), gpus(FIRST..=FIRST + 1), &question);
        for hour in 0..2 {
            tally.account(used(hour, 1, 1_000, 2_000), known).unwrap();
            let other = |_| Ok::<_, MoneyError>(record("other", "named", "{}"));
            tally.account(used(hour, 2, 1, 7), other).unwrap();
        }
        tally.book(book(0, 1_001, 2_000, 99));
        tally.book(book(1, 1_001, 700, 99));
        tally.reason(reason(0, "driver_error", true, 99));
        tally.reason(reason(1, "driver_error", true, 99));
        let report = tally.report(begin_of(FIRST + 2)).unwrap();
        let timeline = report.timeline.unwrap();
        assert_eq!(timeline.unit, Dimension::Hour);
        assert!(!timeline.by.iter().any(Dimension::is_time), "{by:?}");
        let names: Vec<String> = timeline
            .columns
            .iter()
            .map(|of| of.name.to_string())
            .collect();
        let hours = [FIRST, FIRST + 1].map(|hour| begin_of(hour).to_string());
        assert_eq!(names, hours);
        let all: Nanos = timeline.strands.iter().map(Strand::sum).sum();
        assert_eq!(all, report.total.sums.gpu, "{by:?}");
        let owned = timeline.strands.iter().filter(|of| of.kind.is_owned());
        let owned: Nanos = owned.map(Strand::sum).sum();
        assert_eq!(owned, report.owned.sums.gpu, "{by:?}");
        let costs = timeline.columns.iter().map(|of| of.cost.unwrap());
        assert_eq!(Some(costs.sum()), report.total.cost, "{by:?}");
        for (strand, next) in timeline.strands.iter().zip(&timeline.strands[1..]) {
            let is_nobodys = !strand.kind.is_owned() && next.kind.is_owned();
            assert!(!is_nobodys, "{strand:?} before {next:?}");
        }
    }
}

#[test]
fn long_ranges_are_cut_into_days_and_months() {
    for (hours, unit, columns) in [
        (48, Dimension::Hour, 48),
        (49, Dimension::Day, 3),
        (100 * 24, Dimension::Day, 101),
        (101 * 24, Dimension::Month, 5),
    ] {
        let question = question(&[Dimension::Namespace]);
        let committed = (FIRST + hours) * i64::try_from(WHOLE).unwrap();
        let extent = LedgerExtent {
            committed: WallTime(u64::try_from(committed).unwrap()),
            hour: FIRST + hours,
            ..standing(0)
        };
        let mut tally = Tally::new(extent, gpus(FIRST..=FIRST + hours - 1), &question);
        tally.account(used(0, 1, 10, 0), known).unwrap();
        tally.account(used(hours - 1, 1, 10, 0), known).unwrap();
        let report = tally.report(begin_of(FIRST + hours)).unwrap();
        let timeline = report.timeline.unwrap();
        assert_eq!((&timeline.unit, timeline.columns.len()), (&unit, columns));
        // It begins at 2025-11-24T16:00, so the first column is not whole.
        let owner = timeline
            .strands
            .iter()
            .find(|of| of.kind.is_owned())
            .unwrap();
        assert_eq!(owner.times[0], Nanos::from_secs(10), "{unit}");
        assert_eq!(*owner.times.last().unwrap(), Nanos::from_secs(10), "{unit}");
    }
}

#[test]
fn prices_can_be_for_a_node_a_cluster_or_a_label() {
    let prices = "currency = \"EUR\"\n[default]\nbusy_hour = \"1\"\n\
                  [[for]]\nlabel.team = \"vision\"\n[for.default]\nbusy_hour = \"10\"\n\
                  [[for]]\nlabel.team = \"(none)\"\n[for.default]\nbusy_hour = \"100\"\n\
                  [[for]]\ncluster = \"lab\"\nnode = \"gpu-7\"\n[for.gpu.A100]\nbusy_hour = \"1000\"\n";
    let question = Question {
        prices: Some(Prices::parse(prices, "p").unwrap()),
        ..question(&[Dimension::Label("team".into()), Dimension::Unit])
    };
    assert_eq!(question.needs_cluster(), Some("prices by cluster"));
    let mut tally = Tally::new(standing(30), gpus(FIRST..=FIRST), &question);
    let vision = record("ns", "named", "{\"team\":\"vision\"}");
    let other = record("ns", "named", "{\"team\":\"other\"}");
    let host = AccountRecord {
        kind: "host".into(),
        ..record("ns", "host", "{}")
    };
    for (account, record) in (1..).zip([vision, other, host]) {
        let known = |_| Ok::<_, MoneyError>(record.clone());
        tally.account(used(0, account, 360, 0), known).unwrap();
    }
    // Time that nobody owns has no label.
    tally.book(book(0, 1_440, 0, 0));
    tally.reason(reason(0, "no_row", false, 360));
    let report = tally.report(begin_of(FIRST + 1)).unwrap();
    let costs = report
        .rows
        .iter()
        .map(|row| (row.kind, row.key[0].to_string(), row.cost));
    let mut costs: Vec<_> = costs.filter(|(.., cost)| cost.is_some()).collect();
    costs.sort();
    let row =
        |kind, team: &str, euros: i64| (kind, team.to_owned(), Some(Decimal::new(euros * 100, 2)));
    let expected = [
        row(Kind::Container, "other", 100),
        row(Kind::Container, "vision", 1),
        row(Kind::Host, "(none)", 10),
        row(Kind::Unattributed, "(none)", 100),
    ];
    assert_eq!(costs, expected);
}

//! Tests of `tally`.

use super::dimension::PLAIN;
use super::*;
use crate::core::model::{GpuUuid, WallTime};

const FIRST: i64 = 490_000;
const SECOND: u64 = 1_000_000_000;
const WHOLE: u64 = 3_600 * SECOND;

fn standing(minutes_of_the_last_hour: u64) -> LedgerExtent {
    let last = u64::try_from(FIRST + 1).unwrap();
    LedgerExtent {
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

fn gpus(hours: std::ops::RangeInclusive<i64>) -> HashMap<i64, GpuRecord> {
    let record = GpuRecord {
        uuid: GpuUuid("GPU-0".into()),
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
        let by = [Dimension::Namespace];
        let mut tally = Tally::new(standing(0), gpus(FIRST..=FIRST), asked(), &by, None);
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
    let by = [Dimension::ContainerId];
    let mut tally = Tally::new(
        standing(0),
        gpus(FIRST..=FIRST),
        asked(),
        &by,
        Some(&prices),
    );
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
    let by = [Dimension::Hour];
    let mut tally = Tally::new(standing(0), gpus(FIRST..=FIRST), asked(), &by, None);
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
        let by = [Dimension::Namespace];
        let mut tally = Tally::new(standing(60), gpus(FIRST..=FIRST + 1), asked(), &by, None);
        for (hour, beyond) in (0..).zip(beyond) {
            let busy = 100_u64.checked_add_signed(beyond).unwrap();
            tally.account(used(hour, 1, busy, 0), known).unwrap();
            tally.book(book(hour, 100, 3_500, 0));
        }
        let report = tally.report(begin_of(FIRST + 2)).unwrap();
        assert_eq!(report.imbalance, Nanos::from_secs(expected), "{beyond:?}");
        let says_so = report
            .notes
            .iter()
            .any(|note| note.contains("out of balance"));
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
        let by = [Dimension::Namespace];
        let known = FIRST + hours.start()..=FIRST + hours.end();
        let mut tally = Tally::new(standing(30), gpus(known), asked(), &by, None);
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
        assert_eq!(&*label(&record, "team"), expected, "{attribution} {labels}");
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
fn the_notes_say_which_hours_were_cut() {
    let at = |seconds: i64| begin_of(FIRST) + SignedDuration::from_secs(seconds);
    // Asked since and until, in seconds from the ledger's first hour; minutes committed of the
    // second; what is said.
    for (since, until, minutes, expected) in [
        (0, Some(3_600), 60, None),
        (60, Some(3_600), 60, Some("all of the hour of")),
        (0, Some(3_660), 60, Some("nothing of the hour of")),
        (-3_600, Some(3_600), 60, Some("the ledger begins")),
        (0, None, 30, Some("up to the last commit")),
        (0, Some(7_200), 10, Some("nothing was committed after")),
    ] {
        let asked = Asked {
            since: at(since),
            until: until.map(at),
        };
        let by = [Dimension::Namespace];
        let tally = Tally::new(standing(minutes), HashMap::new(), asked, &by, None);
        let now = at(3_600 + i64::try_from(60 * minutes).unwrap());
        let now = if minutes == 10 { at(7_200) } else { now };
        let notes = tally.report(now).unwrap().notes;
        match expected {
            None => assert!(notes.is_empty(), "{notes:?}"),
            Some(expected) => {
                let said = notes.iter().any(|note| note.contains(expected));
                assert!(said, "{since} to {until:?}: {notes:?}");
            }
        }
    }
}

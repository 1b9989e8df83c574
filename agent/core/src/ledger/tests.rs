use super::*;
use crate::amounts::{ByteSeconds, Engines};
use crate::input::WindowQuality;
use crate::model::{ContainerId, HostUnit};
use crate::owners::Charge;
use crate::testing::gpu_info;

fn clock() -> Clock {
    Clock {
        boot: BootTime(100_000_000_000),
        wall: WallTime(1_700_000_100_000_000_000),
    }
}

fn window(start: u64, busy: u64, idle: u64, unobserved: u64) -> GpuWindow {
    GpuWindow {
        gpu: gpu_info(0).uuid,
        start: BootTime(start),
        end: BootTime(start + busy + idle + unobserved),
        busy: Nanos(busy),
        idle: Nanos(idle),
        unobserved: vec![(UnobservedReason::SampleGap, Nanos(unobserved))],
        credits: vec![],
        below_resolution: Nanos::ZERO,
        no_row: Nanos::ZERO,
        engines: vec![],
        energy: None,
        quality: WindowQuality::default(),
        clocks: None,
    }
}

fn charge(owner: Result<Owner, UnattributedReason>, busy: u64) -> Charge {
    Charge {
        pid: Some(Pid(1)),
        process: None,
        owner,
        busy: Nanos(busy),
        engines: Engines::default(),
    }
}

fn container(id: &str) -> Result<Owner, UnattributedReason> {
    Ok(Owner::Container(ContainerId::from(id)))
}

fn ledger() -> Ledger {
    let mut ledger = Ledger::new(100);
    ledger.list(vec![gpu_info(0), gpu_info(1)], clock());
    ledger
}

#[test]
fn the_books_balance_through_charges_closures_and_reasons() {
    let mut ledger = ledger();
    let charges = vec![
        charge(container("a"), 50),
        charge(Ok(Owner::Host(HostUnit::from("sshd.service"))), 30),
        charge(Err(UnattributedReason::NoRow), 20),
    ];
    assert!(
        ledger
            .book(window(0, 100, 40, 5), charges, clock())
            .is_none()
    );
    assert_eq!(ledger.imbalances(), [0, 0]);
    ledger.close(BootTime(1_000_000_000_000), &mut |_, _| true);
    assert_eq!(ledger.accounts().len(), 0);
    assert_eq!(ledger.imbalances(), [0, 0]);
    assert_eq!(ledger.books()[0].closed, Amounts::busy(Nanos(80)));
}

#[test]
fn energy_goes_by_share_of_busy_time_and_adds_up() {
    let mut ledger = ledger();
    let charges = vec![
        charge(container("a"), 50),
        charge(Ok(Owner::Host(HostUnit::from("sshd.service"))), 30),
        charge(Err(UnattributedReason::NoRow), 20),
    ];
    let mut window = window(0, 100, 60, 40);
    window.energy = Some(Millijoules(2_000));
    let _ = ledger.book(window, charges, clock());
    let book = EnergyBook {
        total: Millijoules(2_000),
        idle: Millijoules(600),
        // What nobody owns, and what nobody saw.
        unattributed: Millijoules(200 + 400),
    };
    assert_eq!(ledger.books()[0].energy, Some(book));
    assert_eq!(ledger.books()[1].energy, None, "no meter is not no energy");
    let mut energies: Vec<_> = ledger
        .accounts()
        .iter()
        .map(|(_, a)| a.amounts.energy.0)
        .collect();
    energies.sort_unstable();
    assert_eq!(energies, [300, 500]);
}

#[test]
fn the_check_can_fail() {
    let mut ledger = ledger();
    // The device was busy for 100 and only 90 were charged.
    let _ = ledger.book(
        window(0, 100, 0, 0),
        vec![charge(container("a"), 90)],
        clock(),
    );
    assert_eq!(ledger.imbalances(), [10, 0]);
    let mut ledger = super::tests::ledger();
    let mut torn = window(0, 100, 50, 0);
    torn.end = BootTime(149);
    let _ = ledger.book(torn, vec![charge(container("a"), 100)], clock());
    assert_eq!(ledger.imbalances(), [-1, 0]);
}

/// Found by fuzzing: the next account had the same start, and its counter fell.
#[test]
fn an_account_that_is_opened_anew_without_a_window_in_between_begins_later() {
    let mut ledger = ledger();
    let owner = container("a").expect("it is one");
    let _ = ledger.book(window(0, 60, 40, 0), vec![], clock());
    let mut last = WallTime::default();
    for _ in 0..3 {
        ledger.open(0, &owner, clock());
        let closed = ledger.close(BootTime(1_000_000_000_000), &mut |_, _| true);
        let opened = closed[0].1.opened;
        assert!(opened > last, "{opened:?} after {last:?}");
        last = opened;
    }
}

#[test]
fn a_gap_between_windows_is_booked_as_not_observed() {
    let mut ledger = ledger();
    let charged = || vec![charge(container("a"), 100)];
    // The first window begins wherever the source began.
    let _ = ledger.book(window(1_000, 100, 0, 0), charged(), clock());
    let _ = ledger.book(window(1_130, 100, 0, 0), charged(), clock());
    assert_eq!(ledger.imbalances(), [0, 0]);
    let book = &ledger.books()[0];
    assert_eq!((book.elapsed, book.busy), (Nanos(230), Nanos(200)));
    assert_eq!(book.unobserved[&UnobservedReason::WindowLost], Nanos(30));
    assert_eq!(book.windows, 2, "what is missing is no window");
    assert_eq!(
        book.coverage().unobserved,
        [
            (UnobservedReason::SampleGap, Nanos::ZERO),
            (UnobservedReason::WindowLost, Nanos(30))
        ]
    );
    let mended = TilingRepairs {
        gaps: 1,
        ..TilingRepairs::default()
    };
    assert_eq!(ledger.mended(), mended);
}

#[test]
fn a_window_that_overlaps_the_one_before_bills_no_time_twice() {
    let mut ledger = ledger();
    let charged = |busy| vec![charge(container("a"), busy)];
    let _ = ledger.book(window(0, 60, 30, 10), charged(60), clock());
    // Half of it is booked already.
    let _ = ledger.book(window(50, 60, 30, 10), charged(60), clock());
    assert_eq!(ledger.imbalances(), [0, 0]);
    let book = &ledger.books()[0];
    assert_eq!(book.through, Some(BootTime(150)));
    assert_eq!((book.elapsed, book.busy), (Nanos(150), Nanos(90)));
    // All of these.
    for start in [0, 50] {
        let _ = ledger.book(window(start, 60, 30, 10), charged(60), clock());
    }
    assert_eq!(ledger.imbalances(), [0, 0]);
    let book = &ledger.books()[0];
    assert_eq!((book.elapsed, book.windows), (Nanos(150), 2));
    let mended = TilingRepairs {
        gaps: 0,
        overlaps: 1,
        refused: 2,
    };
    assert_eq!(ledger.mended(), mended);
}

#[test]
fn an_instance_that_is_made_anew_had_no_time_in_between() {
    let mut ledger = ledger();
    let _ = ledger.book(window(0, 0, 100, 0), vec![], clock());
    ledger.list(vec![gpu_info(1)], clock());
    ledger.list(vec![gpu_info(0), gpu_info(1)], clock());
    let _ = ledger.book(window(500, 0, 100, 0), vec![], clock());
    assert_eq!(ledger.books()[0].elapsed, Nanos(200));
    assert_eq!(ledger.mended(), TilingRepairs::default());
    // Once: from there on its windows tile again.
    let _ = ledger.book(window(700, 0, 100, 0), vec![], clock());
    assert_eq!(ledger.books()[0].elapsed, Nanos(400));
    assert_eq!(ledger.mended().gaps, 1);
}

#[test]
fn the_check_of_held_and_allocated_time_can_fail() {
    let second = 1_000_000_000;
    let at = |seconds: u64| BootTime(seconds * second);
    let owner = container("a").expect("it is one");
    let opened = |seconds| Clock {
        boot: at(seconds),
        ..Clock::default()
    };
    let mut ledger = ledger();
    // Allocated since before the first window, which opened the account.
    ledger.open(1, &owner, opened(15));
    ledger.allocate(1, &owner, opened(10), (at(10), at(40)));
    assert_eq!(ledger.excesses(at(40)), [Nanos::ZERO; 2]);
    // The same time once more.
    ledger.allocate(1, &owner, opened(10), (at(35), at(40)));
    assert_eq!(ledger.excesses(at(40)), [Nanos::ZERO, Nanos::from_secs(5)]);
    assert_eq!(ledger.excesses(at(45)), [Nanos::ZERO; 2], "time has passed");
    // Held time before the account's beginning moves that; held twice it does not fit.
    let account = ledger.account_mut(1, &owner).expect("it is open");
    account.add_held(at(5), Nanos::from_secs(40), ByteSeconds::default());
    assert_eq!(ledger.excesses(at(45)), [Nanos::ZERO; 2]);
    let account = ledger.account_mut(1, &owner).expect("it is open");
    account.add_held(at(44), Nanos::from_secs(1), ByteSeconds::default());
    assert_eq!(ledger.excesses(at(45)), [Nanos::ZERO, Nanos::from_secs(1)]);
    // A part of the GPU's time that no book accounts for, and one beyond what was allocated.
    assert_eq!(ledger.excesses(at(50)), [Nanos::ZERO; 2]);
    let account = ledger.account_mut(1, &owner).expect("it is open");
    account.add_share(Nanos(3));
    assert_eq!(ledger.excesses(at(50)), [Nanos::ZERO, Nanos(3)]);
    let account = ledger.account_mut(1, &owner).expect("it is open");
    account.amounts.allocated_share = account.amounts.allocated.plus(Nanos(7));
    let beyond = account.amounts.allocated_share;
    assert_eq!(
        ledger.excesses(at(50)),
        [Nanos::ZERO, beyond],
        "of the book"
    );
    let mut account = Account::new(1, None, opened(0));
    account.add_share(Nanos(7));
    assert_eq!(
        account.excess(at(1)),
        Nanos::ZERO,
        "there was room for none"
    );
    account.amounts.allocated_share = Nanos(7);
    assert_eq!(account.excess(at(1)), Nanos(7));
}

#[test]
fn a_window_of_an_unlisted_gpu_comes_back_whole() {
    let mut ledger = Ledger::new(100);
    let back = ledger.book(window(0, 1, 1, 1), vec![], clock());
    assert_eq!(back, Some(window(0, 1, 1, 1)));
}

#[test]
fn a_full_ledger_books_to_overflow_and_keeps_known_accounts() {
    let mut ledger = Ledger::new(1);
    ledger.list(vec![gpu_info(0)], clock());
    for start in [0, 100] {
        let charges = vec![charge(container("a"), 60), charge(container("b"), 40)];
        let _ = ledger.book(window(start, 100, 0, 0), charges, clock());
    }
    assert_eq!(ledger.imbalances(), [0]);
    assert_eq!(ledger.overflows(), 2);
    let book = &ledger.books()[0];
    assert_eq!(book.unattributed[&UnattributedReason::Overflow], Nanos(80));
}

#[test]
fn shares_are_of_ten_seconds_and_coverage_of_a_minute() {
    let mut ledger = ledger();
    let second = 1_000_000_000;
    for n in 0..100 {
        let owner = if n < 95 { "a" } else { "b" };
        let charges = vec![
            charge(container(owner), second / 2),
            charge(Err(UnattributedReason::UnknownPid), second / 4),
        ];
        let busy = second / 2 + second / 4;
        let _ = ledger.book(window(n * second, busy, second / 4, 0), charges, clock());
    }
    let book = &ledger.books()[0];
    let (span, charges) = book.recent();
    assert_eq!(span, Nanos::from_secs(10));
    let a: Nanos = charges
        .filter(|charge| charge.owner == container("a"))
        .map(|charge| charge.busy)
        .sum();
    assert_eq!(a, Nanos(5 * second / 2));
    let coverage = book.coverage();
    assert_eq!(coverage.elapsed, Nanos::from_secs(60));
    assert_eq!(coverage.attributed, Nanos::from_secs(30));
    assert_eq!(
        coverage.unattributed,
        [(UnattributedReason::UnknownPid, Nanos::from_secs(15))]
    );
}

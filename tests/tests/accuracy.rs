//! The scenarios of `cargo xtask bench accuracy`, cut down to ten seconds: long enough for
//! every kind of mistake, too short for the figures to mean much.
//!
//! A program of its own that runs alone: pids are used again within a second and a half here, which
//! takes setting the pid that the kernel gives next. Processes that other tests start take that pid,
//! and are taken for the ones that are accounted.

use std::time::Duration;

use gpuacct::core::model::UnattributedReason;
use gpuacct_tests::accuracy::{self, Plan, REUSE, SCENARIOS, SHORT};
use gpuacct_tests::agent;
use gpuacct_tests::requirement::require;
use sim_nvml::library::{self, Driver};

/// Besides the goal of a thousandth of the time: two samples, for those that straddle the ends.
const EDGES: u64 = 2 * sim_nvml::RING_PERIOD_NS;

#[test]
fn the_books_are_what_was_sampled_in_every_scenario() {
    if require("agent", agent::binary()).is_none() {
        return;
    }
    let may = rustix::process::geteuid().is_root();
    let root = may.then_some(()).ok_or("needs root to load the object");
    if require("kernel", root).is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let library = library::install(Driver::R550, &dir.path().join("lib")).expect("the library");
    let plan = Plan {
        length: Duration::from_secs(10),
        short_jobs: 40,
    };
    let poller = env!("CARGO_BIN_EXE_naive-poller").as_ref();
    let outcome = accuracy::run(dir.path(), &library, poller, plan, &|| false).expect("it runs");
    assert_eq!(outcome.snapshot.agent.imbalances, 0);
    for (gpu, scenario) in (0..).zip(SCENARIOS) {
        // Others on this machine may have had a job's pid just before it.
        let ambiguous = outcome
            .unattributed(gpu, UnattributedReason::AmbiguousPid)
            .0;
        let most = outcome.watched.as_nanos() / 1_000 + u128::from(EDGES + ambiguous);
        for account in outcome.on(gpu).filter(|_| gpu != REUSE) {
            let difference = account.booked.abs_diff(account.sampled);
            let books: Vec<_> = outcome.books(gpu).collect();
            assert!(
                u128::from(difference) <= most,
                "{scenario}: {account:?} of {books:?}"
            );
        }
        for account in outcome.on(gpu) {
            assert!(
                account.booked <= account.sampled + EDGES,
                "{scenario}: somebody else's: {account:?}"
            );
        }
        let unknown = outcome.unattributed(gpu, UnattributedReason::UnknownPid);
        assert!(unknown.is_zero(), "{scenario}: {unknown:?} of nobody known");
    }
    assert!(outcome.sum(SHORT, |it| it.sampled) > 0, "jobs were sampled");
}

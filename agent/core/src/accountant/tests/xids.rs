//! To whom Xid errors are counted.

use super::*;
use crate::input::{GpuHealth, HealthFigure, Reading, XidGpu, XidReport, XidReporter};
use crate::snapshot::XidSeries;

const PCI: &str = "0000:17:00";

/// A node whose GPU has an address.
fn node(grace: u64) -> Node {
    let mut node = Node::new(grace, 0);
    node.take(Input::Gpus(vec![GpuInfo {
        pci: Some(PCI.into()),
        ..gpu_info(0)
    }]));
    node
}

fn logged(node: &mut Node, xid: u32, pid: Option<u32>) {
    let report = XidReport {
        at: BootTime(node.now),
        reporter: XidReporter::KernelLog,
        gpu: XidGpu::Pci(PCI.into()),
        xid,
        pid: pid.map(Pid),
    };
    node.take(Input::Xid(report));
}

fn by_nvml(node: &mut Node, xid: u32) {
    let report = XidReport {
        at: BootTime(node.now),
        reporter: XidReporter::Nvml,
        gpu: XidGpu::Uuid(gpu()),
        xid,
        pid: None,
    };
    node.take(Input::Xid(report));
}

fn lists(node: &mut Node, pids: &[u32]) {
    let processes = pids.iter().map(|pid| GpuProcess {
        pid: Pid(*pid),
        memory: None,
        mps: MpsRole::None,
    });
    let lists = GpuProcesses {
        gpu: gpu(),
        at: BootTime(node.now),
        processes: processes.collect(),
        memory_used: None,
    };
    node.take(Input::GpuProcesses(lists));
}

/// The errors of a commit after `millis`, as (number, namespace, container, unit, errors).
fn after(node: &mut Node, millis: u64) -> Vec<(u32, String, String, String, u64)> {
    node.pass(millis, &[]);
    let series = node.commit().xids.into_iter();
    series
        .map(|series| {
            let XidSeries { labels, unit, .. } = series;
            let (namespace, container) = (labels.namespace.to_string(), &labels.container);
            let container = container.to_string();
            (
                series.xid,
                namespace,
                container,
                unit.0.to_string(),
                series.count,
            )
        })
        .collect()
}

fn of(
    xid: u32,
    namespace: &str,
    container: &str,
    unit: &str,
) -> (u32, String, String, String, u64) {
    let owned = str::to_owned;
    (xid, owned(namespace), owned(container), owned(unit), 1)
}

#[test]
fn the_log_s_pid_names_the_owner_as_of_the_time_of_the_line() {
    let mut node = node(0);
    node.named(A, Some(UID));
    let start = node.fork(7, 10);
    node.pass(1_000, &[(7, 500)]);
    logged(&mut node, 31, Some(7));
    // It dies of it, and its pid goes to another container, before the line is looked at.
    node.now += 1_000_000;
    node.exit(7, start, 10);
    node.now += 1_000_000;
    node.fork(7, 4);
    let found = after(&mut node, 1_000);
    assert_eq!(found, [of(31, "ml", "main", NONE)]);
}

#[test]
fn the_owner_of_a_host_process_is_its_unit() {
    let mut node = node(0);
    node.fork(7, 6);
    logged(&mut node, 13, Some(7));
    let found = after(&mut node, 1_000);
    assert_eq!(found, [of(13, NONE, NONE, "sshd.service")]);
}

#[test]
fn a_line_is_counted_once_with_its_pid_though_nvml_reported_it_first() {
    let mut node = node(0);
    node.named(A, Some(UID));
    node.fork(7, 10);
    node.pass(1_000, &[(7, 500)]);
    by_nvml(&mut node, 43);
    assert_eq!(after(&mut node, 500), [], "the line may still come");
    logged(&mut node, 43, Some(7));
    assert_eq!(after(&mut node, 500), [of(43, "ml", "main", NONE)]);
    assert_eq!(after(&mut node, 20_000), [of(43, "ml", "main", NONE)]);
}

#[test]
fn without_a_pid_the_sole_holder_of_the_gpu_is_the_owner() {
    for (holders, expected) in [
        (&[7][..], of(79, "ml", "main", NONE)),
        (&[7, 8], of(79, "ml", "main", NONE)),
        (&[7, 9], of(79, UNRESOLVED, UNRESOLVED, UNRESOLVED)),
        // One that nobody knows may have caused it as well.
        (&[7, 99], of(79, UNRESOLVED, UNRESOLVED, UNRESOLVED)),
        (&[], of(79, UNRESOLVED, UNRESOLVED, UNRESOLVED)),
    ] {
        let mut node = node(0);
        node.named(A, Some(UID));
        node.fork(7, 10);
        node.fork(8, 10);
        node.fork(9, 4);
        node.pass(1_000, &[]);
        lists(&mut node, holders);
        node.pass(1_000, &[]);
        by_nvml(&mut node, 79);
        // Nobody holds it by the time at which the error is looked at.
        node.pass(500, &[]);
        lists(&mut node, &[]);
        assert_eq!(after(&mut node, 5_000), [expected], "{holders:?}");
    }
}

#[test]
fn an_error_is_not_counted_to_a_holder_that_had_ended_before_it() {
    for (ended_before, expected) in [
        // The lists are read each five seconds, so they still name it.
        (2_000, of(79, UNRESOLVED, UNRESOLVED, UNRESOLVED)),
        // NVML's event has no time, and the driver ends the process that caused the error.
        (100, of(79, "ml", "main", NONE)),
    ] {
        let mut node = node(0);
        node.named(A, Some(UID));
        let start = node.fork(7, 10);
        node.pass(1_000, &[]);
        lists(&mut node, &[7]);
        node.pass(1_000, &[]);
        node.exit(7, start, 10);
        node.now += ended_before * 1_000_000;
        by_nvml(&mut node, 79);
        assert_eq!(after(&mut node, 5_000), [expected], "{ended_before} ms");
    }
}

#[test]
fn an_error_keeps_its_owner_while_names_are_waited_for_longer_than_dead_processes_are_kept() {
    let mut node = node(120_000);
    let start = node.fork(7, 10);
    node.pass(1_000, &[(7, 500)]);
    logged(&mut node, 31, Some(7));
    node.exit(7, start, 10);
    for _ in 0..90 {
        assert_eq!(after(&mut node, 1_000), [], "the names are asked for");
    }
    node.named(A, Some(UID));
    assert_eq!(after(&mut node, 1_000), [of(31, "ml", "main", NONE)]);
}

#[test]
fn a_pid_that_nobody_knows_is_not_blamed_on_the_sole_holder() {
    let mut node = node(0);
    node.fork(7, 10);
    node.pass(1_000, &[]);
    lists(&mut node, &[7]);
    logged(&mut node, 31, Some(4_711));
    let found = after(&mut node, 5_000);
    assert_eq!(found, [of(31, UNRESOLVED, UNRESOLVED, UNRESOLVED)]);
}

#[test]
fn the_labels_of_an_error_wait_for_the_names_and_never_change() {
    let mut node = node(10_000);
    node.fork(7, 10);
    node.pass(1_000, &[(7, 500)]);
    logged(&mut node, 31, Some(7));
    assert_eq!(after(&mut node, 5_000), [], "the names are asked for");
    node.named(A, Some(UID));
    assert_eq!(after(&mut node, 1_000), [of(31, "ml", "main", NONE)]);
    assert_eq!(after(&mut node, 60_000), [of(31, "ml", "main", NONE)]);
}

#[test]
fn the_last_commit_counts_what_still_waits() {
    let mut node = node(10_000);
    by_nvml(&mut node, 94);
    node.accountant.await_nothing();
    let found = after(&mut node, 1);
    assert_eq!(found, [of(94, UNRESOLVED, UNRESOLVED, UNRESOLVED)]);
}

#[test]
fn an_error_of_a_gpu_that_nvml_does_not_list_is_counted_apart() {
    let mut node = node(0);
    node.take(Input::Xid(XidReport {
        at: BootTime(node.now),
        reporter: XidReporter::KernelLog,
        gpu: XidGpu::Pci("0000:ff:00".into()),
        xid: 79,
        pid: None,
    }));
    node.pass(5_000, &[]);
    let snapshot = node.commit();
    assert_eq!(snapshot.xids, []);
    assert_eq!(snapshot.agent.xids_elsewhere, 1);
}

#[test]
fn the_health_of_a_gpu_is_in_its_book_until_it_is_too_old() {
    let mut node = node(0);
    let health = |gpu: &str, at| {
        Input::GpuHealth(GpuHealth {
            gpu: gpu.into(),
            at: BootTime(at),
            figures: [(HealthFigure::Power, Reading::Ok(55_000))].into(),
        })
    };
    assert_eq!(node.commit().gpus[0].health, None);
    node.take(health("GPU-0", node.now));
    node.take(health("GPU-of-nobody", node.now));
    let power = |node: &mut Node| {
        let health = node.commit().gpus[0].health.clone();
        health.and_then(|health| health.value(HealthFigure::Power))
    };
    assert_eq!(power(&mut node), Some(55_000));
    node.now += 31 * SECOND;
    assert_eq!(power(&mut node), None, "three intervals are over");
    // Given back: nothing is said of it, not even that it cannot be read.
    node.take(Input::Gpus(vec![]));
    assert_eq!(node.commit().gpus[0].health, None);
}

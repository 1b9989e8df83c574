//! Tests of `procfs`.

use std::fs;

use tempfile::TempDir;

use tokio::sync::watch;

use super::*;
use crate::sources::clock;

/// A `stat` line of a process with this command, parent, flags and start.
fn stat(comm: &str, parent: u32, flags: u64, start: u64) -> String {
    format!(
        "7 ({comm}) S {parent} 7 7 0 -1 {flags} 1 2 3 4 5 6 7 8 20 0 1 0 {start} 9 10 \
         18446744073709551615 0 0 0\n"
    )
}

/// [`stat`] of a thread that is on its way out or a zombie, of a process with so many threads.
fn exiting(comm: &str, threads: u32, start: u64) -> String {
    let text = stat(comm, 1, PF_EXITING, start);
    text.replace(" 20 0 1 0 ", &format!(" 20 0 {threads} 0 "))
}

fn proc_of(files: &[(u32, &str, &str)]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (pid, stat, cgroup) in files {
        let directory = root.path().join(pid.to_string());
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("stat"), stat).unwrap();
        fs::write(directory.join("cgroup"), cgroup).unwrap();
    }
    // What else there is in a /proc.
    fs::create_dir(root.path().join("sys")).unwrap();
    fs::write(root.path().join("uptime"), "1 1\n").unwrap();
    fs::create_dir(root.path().join("12x")).unwrap();
    root
}

#[test]
fn a_stat_is_read_whatever_the_command_is_called() {
    let expected = Some(Stat {
        parent: Pid(41),
        flags: 4_194_560,
        threads: 1,
        start: StartTicks(1234),
    });
    for comm in [
        "sleep",
        "",
        ") S 1 1",
        "a b",
        "(((",
        ")))",
        "new\nline",
        "Web Content)",
    ] {
        let text = stat(comm, 41, 4_194_560, 1234);
        assert_eq!(Stat::parse(text.as_bytes()), expected, "{comm:?}");
    }
    assert_eq!(
        Stat::parse(b"7 (\xff\xfe) S 41 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 1234 9"),
        expected
    );
}

#[test]
fn a_stat_that_is_none_is_refused() {
    let whole = stat("sleep", 41, 0, 1234);
    let start = whole.find("1234").unwrap();
    for cut in 0..start {
        assert_eq!(Stat::parse(&whole.as_bytes()[..cut]), None, "{cut}");
    }
    for text in [
        "7 (x) S -1 7 7 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 1 9",
        "7 (x) S 4294967296 7 7 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 1 9",
        "7 (x) S 1 7 7 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 +1 9",
        "7 (x) S 1 7 7 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 18446744073709551616 9",
    ] {
        assert_eq!(Stat::parse(text.as_bytes()), None, "{text}");
    }
}

#[test]
fn a_walk_finds_processes_and_counts_what_it_could_not_read() {
    let docker = "4:memory:/docker/x\n0::/docker/x\n";
    let root = proc_of(&[
        (1, &stat("init", 0, 0, 1), "0::/init.scope\n"),
        (2, &stat("kthreadd", 0, PF_KTHREAD, 1), "0::/\n"),
        (7, &stat("train)\n", 1, 0, 77), docker),
        (8, &stat("train", 7, 0, 78), docker),
        (9, "garbage", docker),
        (10, &stat("x", 1, 0, 1), "no colons"),
        (11, &stat("x", 1, 0, 1), "1:name=systemd:/a:b\n"),
    ]);
    fs::create_dir(root.path().join("12")).unwrap();

    let scan = scan(root.path().to_owned(), clock::now).unwrap();
    assert!(scan.started <= scan.finished);
    assert_eq!(scan.skipped, 3);
    let mut unread = scan.unread.clone();
    unread.sort_unstable();
    // The one that has no files has vanished.
    assert_eq!(unread, [Pid(9), Pid(10)]);
    let mut found: Vec<_> = scan
        .processes
        .iter()
        .map(|p| (p.pid.0, p.parent.0, p.start.0, p.cgroups.to_vec()))
        .collect();
    found.sort();
    let docker = vec![(4, "/docker/x".into()), (0, "/docker/x".into())];
    assert_eq!(
        found,
        [
            (1, 0, 1, vec![(0, "/init.scope".into())]),
            (7, 1, 77, docker.clone()),
            (8, 7, 78, docker),
            (11, 1, 1, vec![(1, "/a:b".into())]),
        ]
    );
    let of = |pid| {
        let found = scan.processes.iter().find(|p| p.pid == Pid(pid));
        Arc::clone(&found.unwrap().cgroups)
    };
    assert!(Arc::ptr_eq(&of(7), &of(8)), "equal files are kept once");
    assert!(Arc::ptr_eq(&of(7)[0].1, &of(7)[1].1), "equal paths too");
}

#[test]
fn a_dead_leader_does_not_move_its_process_to_the_root() {
    // What the kernel shows of a zombie under v1, and of its live thread.
    let (zombie, docker) = ("4:memory:/\n0::/\n", "4:memory:/docker/x\n0::/\n");
    let root = proc_of(&[
        (1, &stat("init", 0, 0, 1), "0::/\n"),
        (7, &exiting("train", 3, 77), zombie),
    ]);
    let tasks = root.path().join("7/task");
    for (thread, stat, cgroup) in [
        (7, exiting("train", 3, 77), zombie),
        (8, exiting("train", 3, 78), zombie),
        (9, stat("train", 1, 0, 79), docker),
    ] {
        let directory = tasks.join(thread.to_string());
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("stat"), stat).unwrap();
        fs::write(directory.join("cgroup"), cgroup).unwrap();
    }
    let scan = scan(root.path().to_owned(), clock::now).unwrap();
    assert_eq!((scan.processes.len(), scan.skipped), (2, 0));
    let found = scan.processes.iter().find(|p| p.pid == Pid(7)).unwrap();
    assert_eq!((found.start.0, &*found.cgroups[0].1), (77, "/docker/x"));
}

#[test]
fn a_process_without_a_live_thread_is_left_out() {
    let root = proc_of(&[
        (1, &stat("init", 0, 0, 1), "0::/\n"),
        (7, &exiting("train", 1, 77), "4:memory:/\n0::/docker/x\n"),
        (8, &exiting("train", 2, 78), "4:memory:/\n0::/docker/x\n"),
    ]);
    let directory = root.path().join("8/task/8");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("stat"), exiting("train", 2, 78)).unwrap();
    let scan = scan(root.path().to_owned(), clock::now).unwrap();
    let pids: Vec<u32> = scan.processes.iter().map(|p| p.pid.0).collect();
    assert_eq!((pids, scan.skipped), (vec![1], 0));
}

#[test]
fn cgroups_that_are_not_utf_8_stay_different() {
    let mut cgroups = Interner::default();
    let mut path = |file: &[u8]| cgroups.lines(file).unwrap()[0].1.to_string();
    assert_eq!(path(b"0::/job-\xff\n"), r"/job-\xff");
    assert_eq!(path(b"0::/job-\xfe\n"), r"/job-\xfe");
    assert_eq!(path(b"0::/job-\\xff\n"), r"/job-\x5cxff");
    assert_eq!(path(b"0::/a\\x2db.scope\n"), r"/a\x2db.scope");
}

#[test]
fn a_file_without_an_end_is_skipped() {
    let endless = format!("0::/{}\n", "x".repeat(MAX_FILE));
    let root = proc_of(&[
        (1, &stat("init", 0, 0, 1), "0::/\n"),
        (2, &stat("x", 1, 0, 1), &endless),
    ]);
    let scan = scan(root.path().to_owned(), clock::now).unwrap();
    assert_eq!((scan.processes.len(), scan.skipped), (1, 1));
    assert_eq!(scan.unread, [Pid(2)], "a failed read is not a death");
}

#[test]
fn a_process_whose_files_cannot_be_read_is_told_apart_from_one_that_is_gone() {
    let root = proc_of(&[
        (1, &stat("init", 0, 0, 1), "0::/\n"),
        (7, &exiting("train", 2, 77), "0::/\n"),
    ]);
    let make = |path: &str| fs::create_dir_all(root.path().join(path)).unwrap();
    // A directory opens as a file does, and its read fails: EISDIR.
    make("2/stat");
    fs::create_dir(root.path().join("3")).unwrap();
    fs::write(root.path().join("3/stat"), stat("x", 1, 0, 3)).unwrap();
    make("3/cgroup");
    // Nor can a process be told from a thread of which nothing is known.
    make("7/task/8/stat");
    let scan = scan(root.path().to_owned(), clock::now).unwrap();
    let mut unread = scan.unread.clone();
    unread.sort_unstable();
    assert_eq!(unread, [Pid(2), Pid(3), Pid(7)]);
    assert_eq!((scan.processes.len(), scan.skipped), (1, 3));
}

#[test]
fn a_root_that_is_no_proc_is_an_error() {
    let root = proc_of(&[]);
    let error = scan(root.path().to_owned(), clock::now).unwrap_err();
    assert_eq!(error.class(), "empty");
    let error = scan(root.path().join("nowhere"), clock::now).unwrap_err();
    assert_eq!(error.class(), "not_found");
}

#[test]
fn the_machines_own_proc_shows_this_process() {
    let scan = scan(PathBuf::from("/proc"), clock::now).unwrap();
    let own = scan
        .processes
        .iter()
        .find(|p| p.pid == Pid(std::process::id()))
        .unwrap();
    assert!(own.start.earliest() <= scan.started);
    assert!(!own.cgroups.is_empty());
    assert_eq!(own.parent.0, std::os::unix::process::parent_id());
}

/// It ran 344 ms before the eBPF object was attached, and who was born in between was unknown.
#[tokio::test(start_paused = true)]
async fn the_first_scan_waits_for_the_kernel_source() {
    let root = proc_of(&[(1, &stat("init", 0, 0, 1), "0::/\n")]);
    let config = config::Procfs::default();
    let (ask, requests) = mpsc::channel(8);
    let (out, mut inputs) = mpsc::channel(8);
    let (stop, shutdown) = watch::channel(false);
    let (tried, begin) = tokio::sync::oneshot::channel();
    let begin = async {
        let _: Result<(), _> = begin.await;
    };
    let task = tokio::spawn(run(
        config,
        root.path().to_owned(),
        begin,
        requests,
        Io {
            out,
            clock: clock::now,
            shutdown,
        },
    ));
    // Not even whoever asks has one. The clock stands still, so this waits for all that can run.
    ask.send(()).await.unwrap();
    let early = tokio::time::timeout(Duration::from_secs(3600), inputs.recv()).await;
    assert!(early.is_err(), "{early:?}");
    let attached = clock::now().boot;
    tried.send(()).unwrap();
    let scan = loop {
        match inputs.recv().await.unwrap() {
            Input::Processes(scan) => break scan,
            Input::Health(health) => assert_eq!(health.state, SourceState::Up),
            other => panic!("unexpected {other:?}"),
        }
    };
    assert!(scan.started >= attached);
    stop.send(true).unwrap();
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn requests_are_gathered_and_failures_are_reported_and_mended() {
    let root = proc_of(&[]);
    let config = config::Procfs::default();
    let (ask, requests) = mpsc::channel(8);
    let (out, mut inputs) = mpsc::channel(8);
    let (stop, shutdown) = watch::channel(false);
    let begin = std::future::ready(());
    let task = tokio::spawn(run(
        config,
        root.path().to_owned(),
        begin,
        requests,
        Io {
            out,
            clock: clock::now,
            shutdown,
        },
    ));

    // Nothing there yet; then there is, and the source notices by itself.
    let Some(Input::Health(health)) = inputs.recv().await else {
        panic!("expected a health report");
    };
    assert_eq!(health.source, SourceId::Procfs);
    assert_eq!(health.state.as_str(), "down");
    let directory = root.path().join("1");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("cgroup"), "0::/\n").unwrap();
    fs::write(directory.join("stat"), stat("init", 0, 0, 1)).unwrap();
    loop {
        match inputs.recv().await.unwrap() {
            Input::Health(health) if health.state == SourceState::Up => break,
            // It is down for another while as long as the files are being written.
            Input::Health(health) => assert_eq!(health.state.as_str(), "down"),
            other => panic!("unexpected {other:?}"),
        }
    }
    assert!(matches!(inputs.recv().await, Some(Input::Processes(_))));

    // Five requests, one scan; the next comes with the timer.
    let asked = Instant::now();
    for _ in 0..5 {
        ask.send(()).await.unwrap();
    }
    assert!(matches!(inputs.recv().await, Some(Input::Processes(_))));
    assert!(asked.elapsed() < Duration::from_secs(60), "on request");
    let scanned = Instant::now();
    assert!(matches!(inputs.recv().await, Some(Input::Processes(_))));
    assert!(scanned.elapsed() > Duration::from_secs(50), "on the timer");

    // Without anyone to ask, the timer alone.
    drop(ask);
    assert!(matches!(inputs.recv().await, Some(Input::Processes(_))));
    stop.send(true).unwrap();
    task.await.unwrap();
}

#[test]
fn paths_of_a_namespace_of_its_own_become_the_hosts_or_the_process_is_unread() {
    let mut interner = Interner::new(&CgroupNamespace::at(0, "/kubepods/podA/1"));
    let lines = interner.lines(b"4:memory:/\n0::/../../podB/2\n").unwrap();
    let lines: Vec<_> = lines.iter().map(|(at, path)| (*at, &**path)).collect();
    assert_eq!(lines, [(0, "/kubepods/podB/2")]);
    for unknown in [
        "4:memory:/\n0::/../../../../x\n",
        "4:memory:/x\n0::/\n",
        "4:memory:/\n",
        "",
    ] {
        assert!(interner.lines(unknown.as_bytes()).is_none(), "{unknown:?}");
    }
}

//! A process that does one thing of which the kernel tests want to see the events.
//!
//! Each verb prints a line when it is where it should be, and goes on when it is sent a line or
//! when its input ends. The system calls are bare, since the standard library has good reasons to
//! offer none of this: a leader that ends before its threads, a process that is forked without an
//! exec, one that is born into another cgroup.

use std::collections::BTreeSet;
use std::io::{BufRead, Write};
use std::{env, fs, io, process, thread};

use anyhow::{Context, Result, bail, ensure};
use gpuacct::sources::kernel::{KernelConfig, KernelSource};

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["wait"] => {
            announce(process::id());
            await_line();
            Ok(())
        }
        ["leader-ends-first"] => leader_ends_first(),
        ["exec-from-thread"] => exec_from_thread(),
        ["pid-namespace"] => pid_namespace(),
        ["into-cgroup", path] => into_cgroup(path),
        ["fork", count] => fork_many(count.parse()?),
        ["reuse-pid"] => reuse_pid(),
        ["open", path] => open(path),
        ["open-from-thread", path] => open_from_thread(path),
        ["load-as-nobody"] => load_as_nobody(),
        ["memory"] => memory(),
        _ => bail!("unknown arguments {arguments:?}"),
    }
}

fn announce(what: impl std::fmt::Display) {
    println!("{what}");
    // Whoever reads this waits for it.
    let _ = io::stdout().flush();
}

/// Returns at the end of a line or of the input.
fn await_line() {
    let mut line = String::new();
    let _ = io::stdin().lock().read_line(&mut line);
}

/// The leader ends, a zombie remains, a thread goes on until it is told to end.
fn leader_ends_first() -> Result<()> {
    let thread = thread::spawn(|| {
        // The leader is a zombie once its state says so.
        loop {
            let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
            if stat
                .rsplit_once(") ")
                .is_some_and(|(_, rest)| rest.starts_with('Z'))
            {
                break;
            }
            thread::yield_now();
        }
        announce("leader is gone");
        await_line();
        // SAFETY: ends this process, and was not going to return.
        unsafe { libc::_exit(0) }
    });
    // Its handle would be waited for by nobody: it ends the process.
    drop(thread);
    // SAFETY: ends the calling thread alone; nothing of it is used by the other.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    unreachable!("a thread that has ended does not go on")
}

/// A thread that is not the leader replaces the process by one that waits.
fn exec_from_thread() -> Result<()> {
    use std::os::unix::process::CommandExt;
    let me = env::current_exe()?;
    let thread = thread::spawn(move || process::Command::new(me).arg("wait").exec());
    match thread.join() {
        Ok(error) => Err(error).context("cannot exec"),
        Err(_) => bail!("the thread panicked"),
    }
}

/// A child that is process 1 of a pid namespace of its own. Prints its pid outside.
fn pid_namespace() -> Result<()> {
    // SAFETY: affects only children that are yet to be made.
    let unshared = unsafe { libc::unshare(libc::CLONE_NEWPID) };
    ensure!(unshared == 0, "unshare: {}", io::Error::last_os_error());
    // SAFETY: there is no other thread; the child makes one system call, and reads.
    match unsafe { libc::fork() } {
        -1 => bail!("fork: {}", io::Error::last_os_error()),
        0 => {
            await_line();
            // SAFETY: as in `leader_ends_first`.
            unsafe { libc::_exit(i32::from(process::id() != 1)) }
        }
        child => {
            announce(child);
            wait_for(child)
        }
    }
}

/// A child that is born in the cgroup at `path`. Prints its pid.
fn into_cgroup(path: &str) -> Result<()> {
    use std::os::fd::AsRawFd;
    let directory = fs::File::open(path)?;
    // SAFETY: all zeros are "nothing asked for" in each of its fields.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    // Not libc's constant, which has the wrong sign.
    arguments.flags = 0x2_0000_0000;
    arguments.exit_signal = u64::try_from(libc::SIGCHLD)?;
    arguments.cgroup = u64::try_from(directory.as_raw_fd())?;
    // SAFETY: the arguments live through the call; without CLONE_VM it is a fork, and the child
    // makes one system call.
    let child = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut arguments,
            size_of::<libc::clone_args>(),
        )
    };
    match child {
        -1 => bail!("clone3: {}", io::Error::last_os_error()),
        // SAFETY: as above.
        0 => unsafe { libc::_exit(0) },
        child => {
            wait_for(i32::try_from(child)?)?;
            announce(child);
            await_line();
            Ok(())
        }
    }
}

/// Forks that many children, one after the other, each of which ends at once.
fn fork_many(count: u32) -> Result<()> {
    announce("ready");
    await_line();
    for _ in 0..count {
        wait_for(fork_and_exit()?)?;
    }
    announce("done");
    Ok(())
}

/// Where the kernel says which pid it gave last, and takes it.
const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";

/// Two children, one after the other, with the same pid. Prints it.
fn reuse_pid() -> Result<()> {
    // Somebody else may take the number in between: then the next round gets it, or another number
    // is tried if he keeps it.
    let mut had = BTreeSet::new();
    for _ in 0..100 {
        let first = fork_and_exit()?;
        wait_for(first)?;
        if !had.insert(first) {
            continue;
        }
        let last: u32 = fs::read_to_string(LAST_PID)?.trim().parse()?;
        for attempt in 1..=100 {
            fs::write(LAST_PID, (first - 1).to_string())?;
            let second = fork_and_exit()?;
            // Everybody else goes on with pids that nobody has had for long: who is given one of a
            // moment ago is taken for whoever had it.
            let ahead = fs::write(LAST_PID, (last + 100 * attempt).to_string());
            ahead.or_else(|_| fs::write(LAST_PID, last.to_string()))?;
            wait_for(second)?;
            had.insert(second);
            if second == first {
                announce(first);
                return Ok(());
            }
        }
    }
    bail!("no pid was given again");
}

/// Opens a file by each system call that there is for it, when it is told to. Prints how many took
/// it and how many did not.
fn open(path: &str) -> Result<()> {
    announce(process::id());
    await_line();
    let path = std::ffi::CString::new(path)?;
    // SAFETY: all zeros are "for reading" and "no restriction".
    let how: libc::open_how = unsafe { std::mem::zeroed() };
    // SAFETY: path and structure live through the calls.
    let answers = unsafe {
        [
            #[cfg(target_arch = "x86_64")]
            libc::syscall(libc::SYS_open, path.as_ptr(), libc::O_RDONLY),
            libc::syscall(
                libc::SYS_openat,
                libc::AT_FDCWD,
                path.as_ptr(),
                libc::O_RDONLY,
            ),
            libc::syscall(
                libc::SYS_openat2,
                libc::AT_FDCWD,
                path.as_ptr(),
                &raw const how,
                size_of::<libc::open_how>(),
            ),
        ]
    };
    let opened = answers.iter().filter(|answer| **answer >= 0).count();
    announce(format_args!("{opened} {}", answers.len() - opened));
    await_line();
    Ok(())
}

/// A thread that is not the leader opens a file.
fn open_from_thread(path: &str) -> Result<()> {
    announce(process::id());
    await_line();
    let path = path.to_owned();
    let opened = thread::spawn(move || fs::File::open(path).map(drop)).join();
    let Ok(opened) = opened else {
        bail!("the thread panicked")
    };
    announce(if opened.is_ok() { "1 0" } else { "0 1" });
    await_line();
    Ok(())
}

/// Loads the object as an ordinary user, and prints what it gets for it.
fn load_as_nobody() -> Result<()> {
    // SAFETY: these change nothing but this process's identity.
    let changed = unsafe { libc::setgid(65534) == 0 && libc::setuid(65534) == 0 };
    ensure!(changed, "setuid: {}", io::Error::last_os_error());
    // Whoever changes its identity loses its own /proc, which an ordinary user's process has.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable)?;
    match KernelSource::load(&KernelConfig::default()) {
        Ok(_) => bail!("an ordinary user has loaded the object"),
        Err(error) => announce(error),
    }
    Ok(())
}

/// Loads the object and prints the resident memory before, at its peak and after, in KiB.
fn memory() -> Result<()> {
    let before = status_kib("VmRSS:")?;
    let (source, mut events) = KernelSource::load(&KernelConfig::default())?;
    events.blocking_recv().context("the stream has ended")?;
    let (peak, after) = (status_kib("VmHWM:")?, status_kib("VmRSS:")?);
    announce(format_args!("{before} {peak} {after}"));
    drop(source);
    Ok(())
}

fn status_kib(field: &str) -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .with_context(|| format!("/proc/self/status has no {field}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn fork_and_exit() -> Result<i32> {
    // SAFETY: there is no other thread, and the child makes one system call.
    match unsafe { libc::fork() } {
        -1 => bail!("fork: {}", io::Error::last_os_error()),
        // SAFETY: as above.
        0 => unsafe { libc::_exit(0) },
        child => Ok(child),
    }
}

fn wait_for(child: i32) -> Result<()> {
    let mut status = 0;
    // SAFETY: `status` lives through the call.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    ensure!(waited == child, "waitpid: {}", io::Error::last_os_error());
    ensure!(status == 0, "child {child} ended with status {status:#x}");
    Ok(())
}

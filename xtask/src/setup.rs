//! `cargo xtask setup`: what gpuacct is built and tested with, installed where it is missing.
//!
//! On Debian and its kin, as root, it installs Debian's packages. Elsewhere it says what is missing
//! and how to get it, and fails: it never guesses at another system's package manager, and never
//! asks for a password. What is there is left alone, so that it can be run again at no cost; the
//! other verbs do.
//!
//! The eBPF linker is built from source and kept in the target folder.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::archive;
use crate::command::{Cmd, find_program};
use crate::kubernetes;
use crate::toolchain::{self, Toolchain};
use crate::workspace;

/// The version of bpf-linker. It is part of the object's build like a dependency, so it is pinned.
const BPF_LINKER: &str = "0.13.0";

/// Install what gpuacct is built and tested with
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// What for; everything but guard, images, kubernetes and packages if not given
    #[arg(value_enum)]
    groups: Vec<Group>,
}

/// What something is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// Building the eBPF object
    Ebpf,
    /// Running real containers
    Runtimes,
    /// Receiving what the agent publishes
    Receivers,
    /// Running other people's NVML clients
    Python,
    /// Looking at the page for people
    Browser,
    /// Running containers under further runtimes
    OtherRuntimes,
    /// Loading completions and reading man pages
    Shells,
    /// Checking packages, `cargo xtask package`
    Packages,
    /// Pushing, pulling and emulating images, `cargo xtask image`
    Images,
    /// Building the fuzz targets
    Fuzz,
    /// Counting instructions, `cargo xtask bench --guard`
    Guard,
    /// Running pods under a kubelet and a control plane, which take minutes to build
    Kubernetes,
}

impl Group {
    /// Whether it is set up only if it is named.
    fn is_slow(self) -> bool {
        matches!(
            self,
            Self::Kubernetes | Self::Guard | Self::Packages | Self::Images
        )
    }
}

/// A thing that must be there.
struct Need {
    group: Group,
    what: &'static str,
    is_there: fn() -> bool,
    /// Debian's packages that bring it.
    packages: &'static [&'static str],
    /// How to get it elsewhere.
    elsewhere: &'static str,
}

const NEEDS: &[Need] = &[
    Need {
        group: Group::Ebpf,
        what: "a C compiler, which links Rust programs",
        is_there: || find_program("cc").is_some(),
        packages: &["gcc", "libc6-dev"],
        elsewhere: "install gcc or clang",
    },
    Need {
        group: Group::Ebpf,
        what: "a Rust compiler with the standard library's source",
        is_there: || toolchain::find().is_ok(),
        packages: &["rustc-web", "rust-web-src"],
        elsewhere: "rustup toolchain install nightly --component rust-src",
    },
    Need {
        group: Group::Runtimes,
        what: "dockerd",
        is_there: || find_program("dockerd").is_some(),
        packages: &["docker.io"],
        elsewhere: "install Docker Engine",
    },
    Need {
        group: Group::Runtimes,
        what: "containerd",
        is_there: || find_program("containerd").is_some(),
        packages: &["containerd"],
        elsewhere: "install containerd",
    },
    Need {
        group: Group::Runtimes,
        what: "runc",
        is_there: || find_program("runc").is_some(),
        packages: &["runc"],
        elsewhere: "install runc",
    },
    Need {
        group: Group::Runtimes,
        what: "iptables, which dockerd looks for even when told not to use it",
        is_there: || find_program("iptables").is_some(),
        packages: &["iptables"],
        elsewhere: "install iptables",
    },
    Need {
        group: Group::Runtimes,
        what: "a static busybox, from which images are made",
        is_there: || find_program("busybox").is_some_and(|path| is_static(&path)),
        packages: &["busybox-static"],
        elsewhere: "install a busybox that is linked statically",
    },
    Need {
        group: Group::Receivers,
        what: "prometheus and promtool",
        is_there: || {
            ["prometheus", "promtool"]
                .iter()
                .all(|name| find_program(name).is_some())
        },
        packages: &["prometheus"],
        elsewhere: "install Prometheus 2.40 or newer",
    },
    Need {
        group: Group::Python,
        what: "python3 with venv",
        is_there: || {
            Cmd::new("python3")
                .args(["-c", "import ensurepip, venv"])
                .read()
                .is_ok()
        },
        packages: &["python3", "python3-venv"],
        elsewhere: "install Python 3.9 or newer with its venv module",
    },
    Need {
        group: Group::Browser,
        what: "chromium",
        is_there: || {
            ["chromium", "chromium-browser"]
                .iter()
                .any(|name| find_program(name).is_some())
        },
        // Without a font it draws no letters.
        packages: &["chromium", "fonts-dejavu-core"],
        elsewhere: "install Chromium",
    },
    Need {
        group: Group::OtherRuntimes,
        what: "podman",
        is_there: || find_program("podman").is_some(),
        packages: &["podman"],
        elsewhere: "install Podman 4 or newer",
    },
    Need {
        group: Group::OtherRuntimes,
        what: "apt, and the keys of Debian's archive, from which newer runtimes are unpacked",
        is_there: has_archive,
        packages: &["debian-archive-keyring"],
        elsewhere: "no way is known; the tests that want them are skipped",
    },
    Need {
        group: Group::Shells,
        what: "zsh and fish",
        is_there: || are_there(&["zsh", "fish"]),
        packages: &["zsh", "fish"],
        elsewhere: "install zsh and fish",
    },
    Need {
        group: Group::Shells,
        what: "man and mandoc",
        is_there: || are_there(&["man", "mandoc"]),
        packages: &["man-db", "groff-base", "mandoc"],
        elsewhere: "install man-db with groff, and mandoc",
    },
    Need {
        group: Group::Packages,
        what: "lintian",
        is_there: || are_there(&["lintian"]),
        packages: &["lintian"],
        elsewhere: "install lintian",
    },
    Need {
        group: Group::Packages,
        what: "rpm and rpmlint",
        is_there: || are_there(&["rpm", "rpmlint"]),
        packages: &["rpm", "rpmlint"],
        elsewhere: "install rpm and rpmlint",
    },
    Need {
        group: Group::Packages,
        what: "mmdebstrap and the keys of Debian's archive, which make a Debian to install the package in",
        is_there: || are_there(&["mmdebstrap"]) && Path::new(archive::KEYS).is_file(),
        packages: &["mmdebstrap", "debian-archive-keyring"],
        elsewhere: "install mmdebstrap and debian-archive-keyring",
    },
    Need {
        group: Group::Images,
        what: "apt, and the keys of Debian's archive, whose packages are in the image",
        is_there: has_archive,
        packages: &["debian-archive-keyring"],
        elsewhere: "install apt and debian-archive-keyring",
    },
    Need {
        group: Group::Images,
        what: "skopeo, which copies images",
        is_there: || are_there(&["skopeo"]),
        packages: &["skopeo"],
        elsewhere: "install skopeo",
    },
    Need {
        group: Group::Images,
        what: "qemu's emulation of a 64-bit Arm, which runs the program of that image",
        is_there: || are_there(&["qemu-aarch64-static"]),
        packages: &["qemu-user-static"],
        elsewhere: "install qemu-user-static",
    },
    Need {
        group: Group::Fuzz,
        what: "a C++ compiler, which builds libFuzzer",
        is_there: || find_program("c++").is_some(),
        packages: &["g++", "libc6-dev"],
        elsewhere: "install g++ or clang",
    },
    Need {
        group: Group::Guard,
        what: "valgrind, whose callgrind counts instructions",
        is_there: || find_program("valgrind").is_some(),
        packages: &["valgrind"],
        elsewhere: "install Valgrind 3.19 or newer",
    },
    Need {
        group: Group::Kubernetes,
        what: "apt, and the keys of Debian's archive, whose source of Kubernetes is built",
        is_there: has_archive,
        packages: &["debian-archive-keyring"],
        elsewhere: "no way is known; the tests that want it are skipped",
    },
    Need {
        group: Group::Kubernetes,
        what: "dpkg-source, which unpacks it",
        is_there: || find_program("dpkg-source").is_some(),
        packages: &["dpkg-dev"],
        elsewhere: "no way is known; the tests that want it are skipped",
    },
    Need {
        group: Group::Kubernetes,
        what: "gcc, which Go has link what calls the C library",
        is_there: || find_program("gcc").is_some(),
        packages: &["gcc", "libc6-dev"],
        elsewhere: "install gcc",
    },
];

fn are_there(programs: &[&str]) -> bool {
    programs.iter().all(|name| find_program(name).is_some())
}

fn has_archive() -> bool {
    are_there(&["apt-get", "dpkg-deb"]) && Path::new(archive::KEYS).is_file()
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut groups = options.groups.clone();
    if groups.is_empty() {
        groups.extend(Group::value_variants());
        groups.retain(|group| !group.is_slow());
    }
    ensure(&groups)?;
    if groups.contains(&Group::Ebpf) {
        let linker = bpf_linker(&ebpf_toolchain()?)?;
        println!("bpf-linker {BPF_LINKER}: {}", linker.display());
    }
    if groups.contains(&Group::OtherRuntimes) {
        println!("newer runtimes: {}", archive::newer_runtimes()?.display());
    }
    if groups.contains(&Group::Receivers) && has_archive() {
        let tree = archive::newest_prometheus()?;
        println!("newest Prometheus: {}", tree.display());
        println!("amtool: {}", archive::amtool()?.display());
    }
    if groups.contains(&Group::Kubernetes) {
        println!("Kubernetes: {}", kubernetes::built()?.display());
        println!("etcd: {}", archive::etcd()?.display());
        println!("network plugins: {}", archive::network_plugins()?.display());
    }
    println!("everything is there");
    Ok(())
}

/// Sees to it that what the groups need is there, or fails with what is not and how to get it.
pub(crate) fn ensure(groups: &[Group]) -> Result<()> {
    let missing = missing(groups);
    if missing.is_empty() {
        return Ok(());
    }
    if is_debian() && rustix::process::geteuid().is_root() {
        install(&missing)?;
    }
    let missing = self::missing(groups);
    if missing.is_empty() {
        return Ok(());
    }
    bail!("{}", explain(&missing, is_debian()));
}

fn missing(groups: &[Group]) -> Vec<&'static Need> {
    NEEDS
        .iter()
        .filter(|need| groups.contains(&need.group) && !(need.is_there)())
        .collect()
}

/// What is missing and how to get it.
fn explain(missing: &[&Need], debian: bool) -> String {
    let mut text = String::from("this is missing:\n");
    for need in missing {
        text += &format!("  {}\n    {}\n", need.what, need.elsewhere);
    }
    if debian {
        let packages = packages_of(missing).join(" ");
        text += &format!(
            "on Debian, as root: apt-get update && apt-get install --no-install-recommends {packages}\n"
        );
    }
    text + "then run this again"
}

fn packages_of(needs: &[&Need]) -> Vec<&'static str> {
    needs
        .iter()
        .flat_map(|need| need.packages.iter().copied())
        .collect()
}

fn install(missing: &[&Need]) -> Result<()> {
    let _no_daemons = NoDaemons::declare();
    let apt = || {
        Cmd::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["-q", "-y", "-o", "DPkg::Lock::Timeout=120"])
    };
    apt().arg("update").run()?;
    // Nothing that is installed may have to go for it: Debian's rustc-web excludes Debian's rustup.
    apt()
        .args(["install", "--no-install-recommends", "--no-remove"])
        .args(packages_of(missing))
        .run()
}

/// Keeps Debian from starting the daemons that are installed, as long as it is there: the tests run
/// these programs on sockets of their own, and no system service is wanted.
struct NoDaemons {
    policy: Option<&'static Path>,
}

impl NoDaemons {
    /// Debian asks this file before it starts a daemon; 101 is "forbidden".
    const POLICY: &'static str = "/usr/sbin/policy-rc.d";

    fn declare() -> Self {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = Path::new(Self::POLICY);
        // One that is there has been put there for a reason, and stays.
        let policy = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(path)
            .and_then(|mut file| file.write_all(b"#!/bin/sh\nexit 101\n"))
            .is_ok()
            .then_some(path);
        Self { policy }
    }
}

impl Drop for NoDaemons {
    fn drop(&mut self) {
        if let Some(path) = self.policy
            && let Err(error) = fs::remove_file(path)
        {
            eprintln!("cannot remove {}: {error}", path.display());
        }
    }
}

/// The compiler for the object.
pub(crate) fn ebpf_toolchain() -> Result<Toolchain> {
    toolchain::find().map_err(|lacking| {
        anyhow::anyhow!(
            "no compiler can build the eBPF object:\n  {}",
            lacking.join("\n  ")
        )
    })
}

/// bpf-linker for that compiler, built if it has not been.
pub(crate) fn bpf_linker(toolchain: &Toolchain) -> Result<PathBuf> {
    let llvm = &toolchain.llvm;
    let tools = workspace::target().join("tools");
    let root = tools.join(format!("bpf-linker-{BPF_LINKER}-llvm-{}", llvm.version));
    let linker = root.join("bin/bpf-linker");
    // It may be there and not run, if the compiler that it borrows its LLVM from is gone.
    if Cmd::new(&linker).arg("--version").read().is_ok() {
        return Ok(linker);
    }

    // What its build looks for is a folder `lib` with a `libLLVM.so`; what it runs with is the
    // library under its own name.
    let lib = root.join("lib");
    fs::create_dir_all(&lib).with_context(|| format!("cannot make {}", lib.display()))?;
    let own_name = llvm
        .library
        .file_name()
        .context("the library's path ends in a name")?;
    for name in [Path::new("libLLVM.so"), Path::new(own_name)] {
        let link = lib.join(name);
        let _ = fs::remove_file(&link);
        symlink(&llvm.library, &link).with_context(|| format!("cannot link {}", link.display()))?;
    }

    let build = tools.join("build");
    Cmd::new(workspace::cargo())
        .env("LLVM_PREFIX", &root)
        .without_env("RUSTFLAGS")
        .without_env("CARGO_ENCODED_RUSTFLAGS")
        .without_env("RUSTC_WRAPPER")
        .without_env("RUSTC_WORKSPACE_WRAPPER")
        .args([
            "install",
            &format!("bpf-linker@{BPF_LINKER}"),
            "--locked",
            "--force",
            "--quiet",
        ])
        .args([
            "--no-default-features",
            "--features",
            &format!("llvm-{}", llvm.major),
        ])
        .arg("--root")
        .arg(&root)
        .arg("--target-dir")
        .arg(&build)
        .run()?;
    // Some 300 MB that nothing needs again.
    fs::remove_dir_all(&build).with_context(|| format!("cannot remove {}", build.display()))?;
    Ok(linker)
}

/// Debian, or what is derived from it.
fn is_debian() -> bool {
    fs::read_to_string("/etc/os-release").is_ok_and(|release| is_debian_release(&release))
        && find_program("apt-get").is_some()
}

fn is_debian_release(os_release: &str) -> bool {
    os_release
        .lines()
        .filter_map(|line| line.strip_prefix("ID=").or(line.strip_prefix("ID_LIKE=")))
        .flat_map(|value| value.trim_matches('"').split(' '))
        .any(|id| id == "debian")
}

/// Whether a program needs no dynamic linker, whose name would be near its beginning.
fn is_static(program: &Path) -> bool {
    let mut head = Vec::new();
    let read = fs::File::open(program).and_then(|file| file.take(4096).read_to_end(&mut head));
    read.is_ok() && head.starts_with(b"\x7fELF") && !head.windows(4).any(|part| part == b"/ld-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_and_its_kin_are_known() {
        for (text, expected) in [
            ("PRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\n", true),
            ("ID=ubuntu\nID_LIKE=debian\n", true),
            ("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", true),
            ("ID=fedora\n", false),
            (
                "ID=\"rhel\"\nID_LIKE=\"fedora\"\nNAME=\"not debian\"\n",
                false,
            ),
            ("", false),
        ] {
            assert_eq!(is_debian_release(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_missing_is_said_with_its_remedy() {
        let needs: Vec<&Need> = NEEDS
            .iter()
            .filter(|need| need.group == Group::Ebpf)
            .collect();
        let elsewhere = explain(&needs, false);
        assert!(elsewhere.contains("rustup toolchain install nightly --component rust-src"));
        assert!(!elsewhere.contains("apt-get"));
        let debian = explain(&needs, true);
        assert!(
            debian.contains("--no-install-recommends gcc libc6-dev rustc-web rust-web-src\n"),
            "{debian}"
        );
    }

    #[test]
    fn every_group_has_something_to_it() {
        for group in Group::value_variants() {
            assert!(NEEDS.iter().any(|need| need.group == *group), "{group:?}");
        }
    }
}

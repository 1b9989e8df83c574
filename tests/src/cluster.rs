//! A real Kubernetes of one node: etcd, the API server, the controllers, the scheduler, and a kubelet on
//! a [`Host`] of its own, with what users have to speak with it, kubectl and helm.
//!
//! Everything is in the host's namespaces, so its ports are apart from everybody else's. Pods have a
//! network of their own by the plugins `ptp` and `host-local`: an address that the host reaches, and no
//! way out of it. There is no DNS and no kube-proxy, hence no Service has an address that works.
//!
//! It ends all that it has started by its process. What the node's folders have stays in the folder that
//! it was given.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use gpuacct::outputs::socket::StatusReport;
use rcgen::KeyPair;
use serde_json::{Value, json};

use crate::agent::{PATIENCE, POLL};
use crate::certificates::Authority;
use crate::daemon::Daemon;
use crate::host::{self, Host};
use crate::kubelet::{self, Kubelet, NODE};
use crate::manifests::{Tools, root};
use crate::python::run;
use crate::requirement::{fetched, fetched_program};

/// The environment variable that names etcd's program.
pub const ETCD: &str = "GPUACCT_ETCD";
/// The environment variable that names the folder of the plugins for pods' networks.
pub const PLUGINS: &str = "GPUACCT_CNI";
/// The environment variable that names the image of the agent, a folder in OCI's layout.
pub const IMAGE: &str = "GPUACCT_IMAGE";
/// The name in the API server's certificate.
const NAME: &str = "kubernetes";
/// Whoever has it may do everything. Nobody else reaches the API server.
const TOKEN: &str = "gpuacct-tests";
const ETCD_ADDRESS: &str = "http://127.0.0.1:2379";
const API_PORT: u16 = 6443;
/// The addresses of Services. RFC 5737 keeps them for examples.
const SERVICES: &str = "203.0.113.0/24";

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Parts {
    etcd: PathBuf,
    api_server: PathBuf,
    controllers: PathBuf,
    scheduler: PathBuf,
    kubelet: PathBuf,
    plugins: PathBuf,
}

/// The parts, if this machine has them; if not, why.
///
/// # Errors
/// If one of them has not been built or fetched, or the rights are missing.
pub fn available() -> Result<Parts> {
    let plugins = fetched(PLUGINS)?;
    for name in ["host-local", "loopback", "ptp"] {
        let plugin = plugins.join(name);
        ensure!(plugin.is_file(), "{} is not a file", plugin.display());
    }
    Ok(Parts {
        etcd: fetched_program(ETCD)?,
        api_server: kubelet::program("kube-apiserver")?,
        controllers: kubelet::program("kube-controller-manager")?,
        scheduler: kubelet::program("kube-scheduler")?,
        kubelet: kubelet::available()?,
        plugins,
    })
}

/// A cluster. Everything goes with it.
#[derive(Debug)]
pub struct Cluster {
    // First, and with it what it runs: what is below ends when nobody needs it any more.
    kubelet: Kubelet,
    _control_plane: [Daemon; 4],
    tools: Tools,
    kubeconfig: PathBuf,
    root: PathBuf,
}

impl Cluster {
    /// Starts one in a folder and waits until its node is ready for pods.
    ///
    /// # Errors
    /// If a part of it does not come up; the message has the end of its log.
    pub fn start(parts: &Parts, tools: Tools, root: &Path) -> Result<Self> {
        let host = Host::start(root, Some(&parts.plugins))?;
        let at = |name: &str| root.join(name);
        let etcd = etcd(&host, parts, root)?;
        let authority = Authority::new(root, "authority")?;
        let kubeconfig = at("kubeconfig");
        fs::write(&kubeconfig, kubeconfig_text(&authority.ca()).to_string())
            .context("cannot write a kubeconfig")?;
        let accounts = at("accounts.key");
        let mut api_server = api_server(&host, parts, root, &authority, &accounts)?;
        let kubectl = |arguments: &[&str]| {
            let mut kubectl = host.join_network(&program(&tools.kubectl()))?;
            run(client(&mut kubectl, root, &kubeconfig).args(arguments))
        };
        api_server.wait_until_up(|| kubectl(&["get", "--raw=/readyz"]).is_ok())?;
        let controller = |name: &'static str, program: &Path, arguments: &[&str]| {
            let mut command = host.enter(program)?;
            command
                .arg("--kubeconfig")
                .arg(&kubeconfig)
                // There is one of each, and nobody asks it anything.
                .args(["--leader-elect=false", "--port=0", "--secure-port=0"])
                .args(arguments);
            Daemon::start(name, &mut command, &at(&format!("{name}.log")))
        };
        let accounts = format!("--service-account-private-key-file={}", accounts.display());
        let control_plane = [
            controller("controllers", &parts.controllers, &[&accounts])?,
            controller("scheduler", &parts.scheduler, &[])?,
            api_server,
            etcd,
        ];
        let kubelet = Kubelet::start_on(host, &parts.kubelet, root, Some(&kubeconfig))?;
        let cluster = Self {
            kubelet,
            _control_plane: control_plane,
            tools,
            kubeconfig,
            root: root.to_owned(),
        };
        let node = format!("node/{NODE}");
        cluster.kubectl(&["wait", "--for=create", &node, "--timeout=60s"])?;
        cluster.kubectl(&["wait", "--for=condition=Ready", &node, "--timeout=60s"])?;
        Ok(cluster)
    }

    /// Its node's kubelet.
    pub const fn kubelet(&mut self) -> &mut Kubelet {
        &mut self.kubelet
    }

    /// Its node.
    #[must_use]
    pub const fn host(&self) -> &Host {
        self.kubelet.host()
    }

    /// What `kubectl` prints with these arguments.
    ///
    /// # Errors
    /// If it fails; the message has what it said.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        run(self.client(&self.tools.kubectl())?.args(arguments))
    }

    /// What `helm` prints with these arguments, in the folder of the source.
    ///
    /// # Errors
    /// If it fails; the message has what it said.
    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        run(self
            .client(&self.tools.helm())?
            .current_dir(root())
            .args(arguments))
    }

    /// Applies an object, or a list of them, with further arguments of `kubectl apply`.
    ///
    /// # Errors
    /// If the API server refuses it.
    pub fn apply(&self, object: &Value, further: &[&str]) -> Result<()> {
        let file = self.root.join("object.json");
        fs::write(&file, object.to_string()).context("cannot write an object")?;
        let file = file.display().to_string();
        let arguments = ["apply", "--filename", &file];
        self.kubectl(&[&arguments[..], further].concat()).map(drop)
    }

    /// An object as the API server has it, or a list of them.
    ///
    /// # Errors
    /// If there is none.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get", "--output=json"], arguments].concat())?;
        serde_json::from_str(&text).context("kubectl printed no JSON")
    }

    /// What becomes of `kubectl` with these arguments.
    ///
    /// # Errors
    /// If it cannot be run. That it fails is no error.
    pub fn kubectl_output(&self, arguments: &[&str]) -> Result<Output> {
        let mut kubectl = self.client(&self.tools.kubectl())?;
        kubectl.args(arguments);
        kubectl
            .output()
            .with_context(|| format!("cannot run {kubectl:?}"))
    }

    /// Runs a command of the agent in a pod of a DaemonSet, as a user does.
    ///
    /// # Errors
    /// If kubectl cannot be run. That the command fails is no error.
    pub fn gpuacct(&self, words: &[&str]) -> Result<Output> {
        let exec = ["--namespace", "gpuacct", "exec", "daemonset/gpuacct"];
        self.kubectl_output(&[&exec[..], &["--", "gpuacct"], words].concat())
    }

    /// Looks until `holds` says so. A look that fails is made again.
    ///
    /// # Errors
    /// If it does not within [`PATIENCE`]; the message has what the last look failed with, and the pods'
    /// logs.
    pub fn wait_for(&self, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let held = holds();
            if let Ok(true) = held {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "waited in vain for {what}: {held:?}; {}",
                self.agent_log()
            );
            std::thread::sleep(POLL);
        }
    }

    /// Looks at the agent's status until `holds` says so, and returns the one for which it did.
    ///
    /// # Errors
    /// As [`Cluster::wait_for`]; the message has the last status, too.
    pub fn wait_for_status(
        &self,
        what: &str,
        holds: impl Fn(&StatusReport) -> bool,
    ) -> Result<StatusReport> {
        let mut last = None;
        let waited = self.wait_for(what, || {
            // It exits with 1 as long as something is missing; the answer is whole all the same.
            let output = self.gpuacct(&["status", "-o", "json"])?;
            let status: StatusReport = serde_json::from_slice(&output.stdout)
                .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
            let held = holds(&status);
            last = Some(status);
            Ok(held)
        });
        waited.with_context(|| format!("the last status: {last:#?}"))?;
        last.context("the loop looks at least once")
    }

    /// What the agent in that pod says to whoever scrapes it, by way of the API server.
    ///
    /// # Errors
    /// If nobody answers at the pod's address.
    pub fn metrics(&self, pod: &str) -> Result<String> {
        let path = format!("--raw=/api/v1/namespaces/gpuacct/pods/{pod}:10944/proxy/metrics");
        self.kubectl(&["get", &path])
    }

    /// What is known of the agent's pods and what they have logged, for a message.
    #[must_use]
    pub fn agent_log(&self) -> String {
        let in_namespace = ["--namespace", "gpuacct"];
        [
            &["describe", "pods"][..],
            &["get", "events"],
            &["logs", "daemonset/gpuacct", "--tail=30"],
        ]
        .map(|words| {
            let said = self.kubectl(&[&in_namespace[..], words].concat());
            said.unwrap_or_else(|error| format!("{error:#}"))
        })
        .join("\n")
    }

    /// How to run a client of the API server's, yet without arguments.
    fn client(&self, own: &Command) -> Result<Command> {
        let mut command = self.host().join_network(&program(own))?;
        client(&mut command, &self.root, &self.kubeconfig);
        Ok(command)
    }
}

fn program(command: &Command) -> PathBuf {
    command.get_program().into()
}

/// Has a client know the cluster and keep what it remembers in a folder.
fn client<'a>(command: &'a mut Command, root: &Path, kubeconfig: &Path) -> &'a mut Command {
    command
        .env("KUBECONFIG", kubeconfig)
        .env("HOME", root.join("home"))
}

fn etcd(host: &Host, parts: &Parts, root: &Path) -> Result<Daemon> {
    let mut command = host.enter(&parts.etcd)?;
    command
        .arg("--data-dir")
        .arg(root.join("etcd"))
        .args(["--listen-client-urls", ETCD_ADDRESS])
        .args(["--advertise-client-urls", ETCD_ADDRESS])
        .args(["--listen-peer-urls", "http://127.0.0.1:2380"])
        // What a power cut would take is no loss.
        .arg("--unsafe-no-fsync");
    Daemon::start("etcd", &mut command, &root.join("etcd.log"))
}

/// Starts the API server, which signs the tokens of service accounts with a key that it leaves in
/// `accounts`.
fn api_server(
    host: &Host,
    parts: &Parts,
    root: &Path,
    authority: &Authority,
    accounts: &Path,
) -> Result<Daemon> {
    let certificate = authority.for_name(NAME)?;
    let key = KeyPair::generate().context("cannot make a key")?;
    let public = accounts.with_extension("pub");
    let tokens = root.join("tokens.csv");
    for (file, text) in [
        (accounts, key.serialize_pem()),
        (&public, key.public_key_pem()),
        (&tokens, format!("{TOKEN},tests,1,system:masters\n")),
    ] {
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let flag = |name: &str, value: &dyn std::fmt::Display| format!("--{name}={value}");
    let mut command = host.enter(&parts.api_server)?;
    command.args([
        flag("advertise-address", &host::ADDRESS),
        flag("allow-privileged", &true),
        flag("authorization-mode", &"RBAC"),
        flag("bind-address", &host::ADDRESS),
        flag("cert-dir", &root.join("api-server").display()),
        flag("etcd-servers", &ETCD_ADDRESS),
        flag("kubelet-preferred-address-types", &"InternalIP"),
        flag("secure-port", &API_PORT),
        flag("service-account-issuer", &"https://kubernetes.default.svc"),
        flag("service-account-key-file", &public.display()),
        flag("service-account-signing-key-file", &accounts.display()),
        flag("service-cluster-ip-range", &SERVICES),
        flag("tls-cert-file", &certificate.cert.display()),
        flag("tls-private-key-file", &certificate.key.display()),
        flag("token-auth-file", &tokens.display()),
    ]);
    Daemon::start("api-server", &mut command, &root.join("api-server.log"))
}

/// What tells a client how to reach the API server.
fn kubeconfig_text(authority: &Path) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "tests", "cluster": {
            "server": format!("https://{}:{API_PORT}", host::ADDRESS),
            "certificate-authority": authority,
            "tls-server-name": NAME,
        }}],
        "users": [{ "name": "tests", "user": { "token": TOKEN } }],
        "contexts": [{ "name": "tests", "context": { "cluster": "tests", "user": "tests" } }],
        "current-context": "tests",
    })
}

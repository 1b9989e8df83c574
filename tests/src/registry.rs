//! A registry of images and charts on this machine: the reference implementation, as Debian has it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::daemon::Daemon;
use crate::http::free_address;
use crate::requirement::fetched_program;

/// Names the program, which `cargo xtask test` fetches.
pub const VARIABLE: &str = "GPUACCT_REGISTRY";

/// The program.
///
/// # Errors
/// If there is none.
pub fn binary() -> Result<PathBuf> {
    fetched_program(VARIABLE)
}

/// A running registry without TLS. Ended when dropped.
#[derive(Debug)]
pub struct Registry {
    daemon: Daemon,
    address: SocketAddr,
}

impl Registry {
    /// Keeps what it is given below `dir`.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start(program: &Path, dir: &Path) -> Result<Self> {
        let dir = dir.join("registry");
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let address = free_address()?;
        let text = format!(
            "version: 0.1\nlog: {{level: warn}}\nhttp: {{addr: '{address}'}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\n",
            dir.join("data").display()
        );
        let config = dir.join("config.yml");
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        let mut command = Command::new(program);
        command.arg("serve").arg(&config);
        let mut daemon = Daemon::start("registry", &mut command, &dir.join("registry.log"))?;
        daemon.wait_until_listening(&[address])?;
        Ok(Self { daemon, address })
    }

    /// Ends it.
    ///
    /// # Errors
    /// If it does not heed SIGTERM.
    pub fn stop(&mut self) -> Result<()> {
        self.daemon.stop().map(drop)
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

//! nginx, which ends TLS in front of a server that has none, and wants a client certificate.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::certificates::Authority;
use crate::daemon::Daemon;
use crate::http::free_address;
use crate::requirement::fetched_program;

/// Names the program, which `cargo xtask test` fetches.
pub const VARIABLE: &str = "GPUACCT_NGINX";

/// The program.
///
/// # Errors
/// If there is none.
pub fn available() -> Result<PathBuf> {
    fetched_program(VARIABLE)
}

/// A running nginx. Ended when dropped.
#[derive(Debug)]
pub struct Nginx {
    _daemon: Daemon,
    address: SocketAddr,
}

impl Nginx {
    /// In front of gRPC at `behind`. It lets in who has a certificate of this authority, which has also
    /// signed its own.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start(
        program: &Path,
        dir: &Path,
        authority: &Authority,
        behind: SocketAddr,
    ) -> Result<Self> {
        let place = format!("grpc_pass grpc://{behind};");
        Self::start_with(program, dir, authority, &place)
    }

    /// In front of HTTP at `behind`. It lets in who has a certificate of this authority and this bearer
    /// token.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start_with_token(
        program: &Path,
        dir: &Path,
        authority: &Authority,
        behind: SocketAddr,
        token: &str,
    ) -> Result<Self> {
        let place = format!(
            "if ($http_authorization != \"Bearer {token}\") {{ return 401; }} proxy_pass http://{behind};"
        );
        Self::start_with(program, dir, authority, &place)
    }

    fn start_with(program: &Path, dir: &Path, authority: &Authority, place: &str) -> Result<Self> {
        let dir = dir.join("nginx");
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let address = free_address()?;
        let own = authority.for_address(address)?;
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("  {name}_temp_path {}/{name};\n", dir.display()))
            .concat();
        let text = format!(
            "daemon off;\nuser root;\nworker_processes 1;\npid {dir}/nginx.pid;\n\
             error_log stderr info;\nevents {{}}\nhttp {{\n  access_log off;\n\
             {temporary}  client_max_body_size 16m;\n  server {{\n    listen {address} ssl http2;\n    \
             ssl_certificate {cert};\n    ssl_certificate_key {key};\n    \
             ssl_client_certificate {ca};\n    ssl_verify_client on;\n    \
             location / {{ {place} }}\n  }}\n}}\n",
            dir = dir.display(),
            cert = own.cert.display(),
            key = own.key.display(),
            ca = authority.ca().display(),
        );
        let config = dir.join("nginx.conf");
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        let mut command = Command::new(program);
        command
            .arg("-e")
            .arg("stderr")
            .arg("-c")
            .arg(&config)
            .arg("-p")
            .arg(&dir);
        let mut daemon = Daemon::start("nginx", &mut command, &dir.join("nginx.log"))?;
        daemon.wait_until_listening(&[address])?;
        Ok(Self {
            _daemon: daemon,
            address,
        })
    }

    /// Where it listens, by TLS.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

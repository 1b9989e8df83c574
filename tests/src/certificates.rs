//! Certificates of an authority that a test has made up.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};

/// An authority, with its files in a folder.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

/// A certificate and its key, in files.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// PEM.
    pub cert: PathBuf,
    /// PEM.
    pub key: PathBuf,
}

impl Authority {
    /// An authority of that name, whose files are in `dir`.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn new(dir: &Path, name: &str) -> Result<Self> {
        let dir = dir.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let authority = Self { issuer, dir };
        let ca = authority.ca();
        fs::write(&ca, authority.issuer.pem())
            .with_context(|| format!("cannot write {}", ca.display()))?;
        Ok(authority)
    }

    /// Its own certificate, in a file.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// A certificate for whoever listens there.
    ///
    /// # Errors
    /// If its files cannot be written.
    pub fn for_address(&self, address: SocketAddr) -> Result<Certificate> {
        self.for_name(&address.ip().to_string())
    }

    /// A certificate for a name.
    ///
    /// # Errors
    /// If its files cannot be written.
    pub fn for_name(&self, name: &str) -> Result<Certificate> {
        let params = CertificateParams::new(vec![name.to_owned()])?;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let files = Certificate {
            cert: self.dir.join(format!("{name}.pem")),
            key: self.dir.join(format!("{name}.key")),
        };
        fs::write(&files.cert, certificate.pem()).context("cannot write a certificate")?;
        fs::write(&files.key, key.serialize_pem()).context("cannot write a key")?;
        Ok(files)
    }
}

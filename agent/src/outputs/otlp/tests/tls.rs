//! The same over TLS, which a program in front of the receiver ends, as proxies do.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::outputs::receiver::Compression;
use crate::receiver::TlsFiles;

const TLS_1_2: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];
const TLS_1_3: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// An authority whose files are in a folder.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Certificate and key of a name, as PEM.
    fn signs(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// Writes them into files.
    fn writes(&self, (certificate, key): &(String, String)) -> TlsFiles {
        std::fs::write(self.file("cert.pem"), certificate).unwrap();
        std::fs::write(self.file("key.pem"), key).unwrap();
        TlsFiles {
            cert_file: Some(self.file("cert.pem")),
            key_file: Some(self.file("key.pem")),
            ..self.trusted()
        }
    }

    /// Trust in this authority.
    fn trusted(&self) -> TlsFiles {
        TlsFiles {
            ca_file: Some(self.file("ca.pem")),
            ..TlsFiles::default()
        }
    }
}

fn roots(ca: &Path) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(ca).unwrap())
        .unwrap();
    roots
}

/// What ends TLS in front of a receiver.
struct Front {
    own: (String, String),
    /// The authority of the clients that are let in; absent for all.
    clients: Option<PathBuf>,
    versions: &'static [&'static SupportedProtocolVersion],
}

impl Front {
    /// Begins before the plain endpoint. Returns its own.
    fn start(self, endpoint: &str) -> String {
        let provider = Arc::new(default_provider());
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(self.versions)
            .unwrap();
        let config = match &self.clients {
            None => config.with_no_client_auth(),
            Some(ca) => {
                let roots = Arc::new(roots(ca));
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                config.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let (certificate, key) = &self.own;
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let mut config = config.with_single_cert(vec![certificate], key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let own = format!(
            "https://localhost:{}",
            listener.local_addr().unwrap().port()
        );
        let behind = endpoint.strip_prefix("http://").unwrap().to_owned();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, behind) = (acceptor.clone(), behind.clone());
                tokio::spawn(async move {
                    // A handshake that fails is what some tests are about.
                    if let Ok(mut stream) = acceptor.accept(stream).await {
                        let mut behind = TcpStream::connect(behind).await.unwrap();
                        let _ = copy_bidirectional(&mut stream, &mut behind).await;
                    }
                });
            }
        });
        own
    }
}

/// A bench whose receiver is behind a front.
async fn behind(
    protocol: Protocol,
    front: Front,
    files: TlsFiles,
    change: impl FnOnce(&mut Options),
) -> Bench {
    bench(protocol, &[], |options| {
        options.receiver.endpoint = front.start(&options.receiver.endpoint);
        options.receiver.tls = files;
        change(options);
    })
    .await
}

#[tokio::test]
async fn the_books_arrive_over_tls_with_and_without_a_client_certificate_and_compressed() {
    let authority = Authority::new("ours");
    for protocol in BOTH {
        for versions in [TLS_1_2, TLS_1_3] {
            for clients in [None, Some(authority.file("ca.pem"))] {
                for compression in [Compression::None, Compression::Gzip] {
                    let front = Front {
                        own: authority.signs("localhost", |_| {}),
                        clients: clients.clone(),
                        versions,
                    };
                    let files = match clients {
                        None => authority.trusted(),
                        Some(_) => authority.writes(&authority.signs("agent", |_| {})),
                    };
                    let set = |options: &mut Options| options.receiver.compression = compression;
                    let mut bench = behind(protocol, front, files, set).await;
                    assert_eq!(bench.state().await, SourceState::Up);
                    let arrived = bench.arrival().await;
                    assert_eq!(arrived.commits, 1);
                    assert_eq!(arrived.token.as_deref(), Some("secret"));
                    let is_compressed = compression == Compression::Gzip;
                    assert_eq!(arrived.is_compressed, is_compressed, "{protocol:?}");
                    bench.stop().await;
                }
            }
        }
    }
}

#[tokio::test]
async fn each_thing_that_is_wrong_with_a_certificate_has_its_own_class() {
    // Two that have the same name, and a third.
    let (ours, theirs) = (Authority::new("ours"), Authority::new("ours"));
    let others = Authority::new("others");
    let ca = || Some(ours.file("ca.pem"));
    let good = || ours.signs("localhost", |_| {});
    let expired = |params: &mut CertificateParams| params.not_after = date_time_ymd(2001, 1, 1);
    let early = |params: &mut CertificateParams| params.not_before = date_time_ymd(2999, 1, 1);
    let missing = TlsFiles {
        ca_file: Some(ours.file("absent.pem")),
        ..TlsFiles::default()
    };
    let garbled = TlsFiles {
        ca_file: Some(ours.file("garbled.pem")),
        ..TlsFiles::default()
    };
    std::fs::write(ours.file("garbled.pem"), "no certificate").unwrap();
    let foreign = TlsFiles {
        ca_file: ca(),
        ..theirs.writes(&theirs.signs("agent", |_| {}))
    };
    let mismatched = {
        let files = theirs.writes(&theirs.signs("agent", |_| {}));
        let (_, key) = theirs.signs("agent", |_| {});
        std::fs::write(theirs.file("other.pem"), key).unwrap();
        TlsFiles {
            ca_file: ca(),
            key_file: Some(theirs.file("other.pem")),
            ..files
        }
    };
    // What the receiver has, whom it lets in, what the agent has; class, and what is said.
    let rows = [
        (
            theirs.signs("localhost", |_| {}),
            None,
            ours.trusted(),
            "tls_unknown_ca",
            "no trusted authority",
        ),
        (
            good(),
            None,
            others.trusted(),
            "tls_unknown_ca",
            "no trusted authority",
        ),
        (
            ours.signs("localhost", expired),
            None,
            ours.trusted(),
            "tls_expired",
            "is not valid now",
        ),
        (
            ours.signs("localhost", early),
            None,
            ours.trusted(),
            "tls_expired",
            "is not valid now",
        ),
        (
            ours.signs("collector", |_| {}),
            None,
            ours.trusted(),
            "tls_wrong_name",
            "has another name",
        ),
        (
            good(),
            ca(),
            ours.trusted(),
            "tls_client_certificate",
            "wants a client certificate",
        ),
        (
            good(),
            ca(),
            foreign.clone(),
            "tls_client_certificate",
            "refuses the client",
        ),
        (
            good(),
            None,
            missing,
            "tls_files",
            "absent.pem: No such file",
        ),
        (
            good(),
            None,
            garbled,
            "tls_files",
            "it has no certificate in PEM",
        ),
        (good(), ca(), mismatched, "tls_files", "other.pem: "),
    ];
    for protocol in BOTH {
        for versions in [TLS_1_2, TLS_1_3] {
            for (own, clients, files, class, words) in &rows {
                let front = Front {
                    own: own.clone(),
                    clients: clients.clone(),
                    versions,
                };
                let at = format!("{protocol:?} {versions:?} {class}");
                let mut bench = behind(protocol, front, files.clone(), deltas).await;
                let (found, reason) = bench.down().await;
                assert_eq!(found, *class, "{at}: {reason}");
                assert!(reason.contains(words), "{at}: {reason}");
                assert!(bench.arrived.try_recv().is_err(), "{at}");
                // Nothing of it can have arrived, so deltas are sent again.
                assert_eq!(
                    bench.counters.otlp_points_unknown.get(),
                    0,
                    "{at}: {reason}"
                );
                bench.exporter.abort();
                bench.receiver.abort();
            }
        }
    }
}

#[tokio::test]
async fn certificates_that_are_replaced_are_used_without_a_restart() {
    for protocol in BOTH {
        let authority = Authority::new("ours");
        let expired = |params: &mut CertificateParams| params.not_after = date_time_ymd(2001, 1, 1);
        let front = Front {
            own: authority.signs("collector", |_| {}),
            clients: Some(authority.file("ca.pem")),
            versions: TLS_1_3,
        };
        let files = TlsFiles {
            server_name: Some("collector".to_owned()),
            ..authority.writes(&authority.signs("agent", expired))
        };
        let mut bench = behind(protocol, front, files, |_| {}).await;
        let (class, reason) = bench.down().await;
        assert_eq!(class, "tls_client_certificate", "{reason}");
        authority.writes(&authority.signs("agent", |_| {}));
        while bench.state().await != SourceState::Up {}
        bench.stop().await;
    }
}

#[tokio::test]
async fn a_receiver_that_speaks_no_tls_is_said() {
    for protocol in BOTH {
        let mut bench = bench(protocol, &[], |options| {
            let endpoint = options.receiver.endpoint.replace("http://", "https://");
            options.receiver.endpoint = endpoint;
        })
        .await;
        let (class, reason) = bench.down().await;
        assert_eq!(class, "tls", "{protocol:?}: {reason}");
        bench.stop().await;
    }
}

#[tokio::test]
async fn the_value_of_a_header_is_read_from_its_file_for_each_message() {
    for protocol in BOTH {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let mut bench = bench(protocol, &[], |options| {
            options.receiver.headers.clear();
            options.receiver.header_files = vec![("x-token".to_owned(), file.clone())];
        })
        .await;
        let (class, reason) = bench.down().await;
        assert_eq!(class, "header", "{reason}");
        for token in ["first", "second"] {
            let new = folder.path().join("new");
            std::fs::write(&new, format!("{token}\n")).unwrap();
            std::fs::rename(&new, &file).unwrap();
            while bench.arrival().await.token.as_deref() != Some(token) {}
        }
        bench.stop().await;
    }
}

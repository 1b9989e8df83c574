//! Which certificate a client has to show: Go's `ClientAuthType`, and the names that are allowed.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use super::error::WebConfigError;

/// What is demanded of a client, by Go's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Demand {
    /// `NoClientCert`: a client is not asked for a certificate.
    None,
    /// `RequestClientCert`: it is asked, and what it says does not matter.
    Request,
    /// `RequireAnyClientCert`: it has to show one, whoever has signed it.
    RequireAny,
    /// `VerifyClientCertIfGiven`: it may show none; one that it shows has to be valid.
    VerifyIfGiven,
    /// `RequireAndVerifyClientCert`: it has to show a valid one.
    RequireAndVerify,
}

impl Demand {
    /// Reads `client_auth_type`. `has_authorities`: whether the file names authorities.
    pub(super) fn read(text: &str, has_authorities: bool) -> Result<Self, WebConfigError> {
        const KEY: &str = "tls_server_config.client_auth_type";
        let demand = match text {
            "" | "NoClientCert" => Self::None,
            "RequestClientCert" => Self::Request,
            // The second is an older name that exporter-toolkit still takes.
            "RequireAnyClientCert" | "RequireClientCert" => Self::RequireAny,
            "VerifyClientCertIfGiven" => Self::VerifyIfGiven,
            "RequireAndVerifyClientCert" => Self::RequireAndVerify,
            _ => {
                return Err(WebConfigError::value(
                    KEY,
                    format!(
                        "found {text:?}, expected NoClientCert, RequestClientCert, \
                         RequireAnyClientCert, VerifyClientCertIfGiven or \
                         RequireAndVerifyClientCert"
                    ),
                ));
            }
        };
        if has_authorities && demand == Self::None {
            return Err(WebConfigError::value(
                KEY,
                "there is a client_ca_file or client_ca, so expected RequireAndVerifyClientCert or another one that asks for a certificate",
            ));
        }
        if !has_authorities && demand.verifies() {
            return Err(WebConfigError::value(
                KEY,
                format!(
                    "found {text}, expected client_ca_file or client_ca with it; the authorities of the system are not used"
                ),
            ));
        }
        Ok(demand)
    }

    /// Whether a client without a certificate is refused.
    pub(super) const fn is_mandatory(self) -> bool {
        matches!(self, Self::RequireAny | Self::RequireAndVerify)
    }

    /// Whether an authority has to have signed a certificate that is shown.
    pub(super) const fn verifies(self) -> bool {
        matches!(self, Self::VerifyIfGiven | Self::RequireAndVerify)
    }
}

/// Judges clients' certificates.
pub(super) struct ClientCertificates {
    demand: Demand,
    /// Checks signatures, dates and purposes. Absent where any certificate will do.
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    allowed_names: Option<Vec<String>>,
    authorities: Vec<DistinguishedName>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl fmt::Debug for ClientCertificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCertificates")
            .field("demand", &self.demand)
            .field("allowed_names", &self.allowed_names)
            .finish_non_exhaustive()
    }
}

impl ClientCertificates {
    pub(super) fn new(
        demand: Demand,
        authorities: Option<Arc<RootCertStore>>,
        allowed_names: Option<Vec<String>>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, WebConfigError> {
        let names = authorities.as_ref().map(|store| store.subjects());
        let verifier = match authorities {
            Some(store) if demand.verifies() => {
                let builder =
                    WebPkiClientVerifier::builder_with_provider(store, Arc::clone(provider));
                let verifier = builder
                    .build()
                    .map_err(|error| WebConfigError::Certificate {
                        key: "tls_server_config.client_ca_file",
                        problem: error.to_string(),
                    })?;
                Some(verifier)
            }
            _ => None,
        };
        Ok(Self {
            demand,
            verifier,
            allowed_names,
            authorities: names.unwrap_or_default(),
            algorithms: provider.signature_verification_algorithms,
        })
    }
}

impl ClientCertVerifier for ClientCertificates {
    fn client_auth_mandatory(&self) -> bool {
        self.demand.is_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.authorities
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if let Some(verifier) = &self.verifier {
            verifier.verify_client_cert(end_entity, intermediates, now)?;
        }
        if let Some(allowed) = &self.allowed_names {
            let names = names(end_entity)
                .ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
            if !names.iter().any(|name| allowed.contains(name)) {
                return Err(Error::InvalidCertificate(
                    CertificateError::ApplicationVerificationFailure,
                ));
            }
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The subject's alternative names, written as Go writes them. `None` if they cannot be read.
fn names(certificate: &CertificateDer<'_>) -> Option<Vec<String>> {
    let certificate = Certificate::from_der(certificate).ok()?;
    let names = certificate
        .tbs_certificate()
        .get_extension::<SubjectAltName>()
        .ok()?;
    let names = names.map(|(_, names)| names.0).unwrap_or_default();
    Some(names.iter().filter_map(written).collect())
}

fn written(name: &GeneralName) -> Option<String> {
    match name {
        GeneralName::DnsName(name)
        | GeneralName::Rfc822Name(name)
        | GeneralName::UniformResourceIdentifier(name) => Some(name.as_str().to_owned()),
        GeneralName::IpAddress(bytes) => {
            let bytes = bytes.as_bytes();
            let address = <[u8; 4]>::try_from(bytes)
                .map(IpAddr::from)
                .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from));
            Some(address.ok()?.to_canonical().to_string())
        }
        _ => None,
    }
}

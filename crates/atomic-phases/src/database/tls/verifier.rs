//! The checks of the server's certificate that `sslmode` asks for.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    WebPkiSupportedAlgorithms, ring::default_provider, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::UrlError;

/// Where systems keep their certificate authorities in one file: Debian, Red Hat, and Alpine or macOS.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// A TLS connector that makes these checks.
pub(super) fn connector(checks: Checks) -> MakeRustlsConnect {
    let provider = default_provider();
    let verifier = Verifier { checks, algorithms: provider.signature_verification_algorithms };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .expect("the provider supports the versions that rustls does")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    // Postgres 17 insists on the protocol's name where sslnegotiation=direct skips its own handshake.
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    MakeRustlsConnect::new(config)
}

/// The certificates at which a chain may end.
#[derive(Debug)]
pub(super) struct Roots {
    anchors: RootCertStore,
    /// The certificates of `sslrootcert` as they are, to recognise a server that presents one of them as its own.
    certificates: Vec<CertificateDer<'static>>,
}

impl Roots {
    pub(super) fn load(root_certificate: Option<&str>) -> Result<Self, UrlError> {
        match root_certificate {
            None => Ok(Self::mozilla()),
            Some("system") => {
                let bundle = SYSTEM_ROOTS.into_iter().find_map(|path| Self::read(Path::new(path)).ok());
                Ok(bundle.unwrap_or_else(Self::mozilla))
            }
            Some(path) => Self::read(Path::new(path)),
        }
    }

    /// Returns no roots, so that no certificate is trusted.
    pub(super) fn none() -> Self {
        Self { anchors: RootCertStore::empty(), certificates: Vec::new() }
    }

    fn mozilla() -> Self {
        let anchors = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        Self { anchors, certificates: Vec::new() }
    }

    fn read(path: &Path) -> Result<Self, UrlError> {
        let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let certificates = read.map_err(|source| UrlError::RootCertificate { path: path.to_owned(), source })?;
        let mut anchors = RootCertStore::empty();
        let (usable, _) = anchors.add_parsable_certificates(certificates.iter().cloned());
        if usable == 0 {
            return Err(UrlError::NoRootCertificate { path: path.to_owned() });
        }
        Ok(Self { anchors, certificates })
    }
}

/// Which parts of the server's certificate are checked.
#[derive(Debug)]
pub(super) enum Checks {
    Nothing,
    Chain(Roots),
    ChainAndName(Roots),
}

/// Carries out the [`Checks`]. rustls' own verifier always checks both chain and name, and has no mode that leaves one
/// out.
#[derive(Debug)]
struct Verifier {
    checks: Checks,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn check_chain(
        &self,
        roots: &Roots,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.algorithms.all;
        match verify_server_cert_signed_by_trust_anchor(&parsed, &roots.anchors, intermediates, now, algorithms) {
            // A self-signed certificate usually calls itself an authority, and an authority's certificate must not be a
            // server's. libpq accepts it if it is the very one in sslrootcert. (For one that has expired, rustls
            // returns another error.)
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(_)))
                if roots.certificates.contains(end_entity) =>
            {
                Ok(())
            }
            checked => checked,
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match &self.checks {
            Checks::Nothing => {}
            Checks::Chain(roots) => self.check_chain(roots, end_entity, intermediates, now)?,
            Checks::ChainAndName(roots) => {
                self.check_chain(roots, end_entity, intermediates, now)?;
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    // The signature proves that the server has the certificate's key. Where any certificate is accepted, that proves
    // nothing, and checking it would refuse certificates whose form is too old for rustls to read.

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        match self.checks {
            Checks::Nothing => Ok(HandshakeSignatureValid::assertion()),
            Checks::Chain(_) | Checks::ChainAndName(_) => {
                verify_tls12_signature(message, certificate, signed, &self.algorithms)
            }
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        match self.checks {
            Checks::Nothing => Ok(HandshakeSignatureValid::assertion()),
            Checks::Chain(_) | Checks::ChainAndName(_) => {
                verify_tls13_signature(message, certificate, signed, &self.algorithms)
            }
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

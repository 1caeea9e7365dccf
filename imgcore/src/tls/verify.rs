//! Who is believed to be who he says he is.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::channel::certificate;
use crate::Error;
use crate::opts::tls::Endpoint;

/// With this crate's error unless another one is named.
type Result<T, E = Error> = std::result::Result<T, E>;

/// The algorithms of every connection.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Whom one trusts.
pub(super) struct Authorities {
    roots: Arc<RootCertStore>,
    revoked: Vec<CertificateRevocationListDer<'static>>,
}

impl Authorities {
    /// Those of a file called `shown`, and what they revoked.
    pub fn new(
        certificates: Vec<CertificateDer<'static>>,
        revoked: Vec<CertificateRevocationListDer<'static>>,
        shown: &str,
    ) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates {
            roots
                .add(certificate)
                .map_err(|e| Error::invalid(format!("Unable to import {shown}: {}", of(&e))))?;
        }
        Ok(Authorities { roots: Arc::new(roots), revoked })
    }

    /// Those that the system trusts.
    ///
    /// # Errors
    /// When it trusts nobody.
    pub fn of_system() -> Result<Self> {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(found.certs);
        if added == 0 {
            return Err(Error::invalid("this system has no certificates of authorities to trust")
                .hint("install the package ca-certificates, or name a folder of certificates"));
        }
        Ok(Authorities { roots: Arc::new(roots), revoked: Vec::new() })
    }

    /// Checks servers.
    pub fn of_servers(&self) -> Result<Arc<WebPkiServerVerifier>> {
        WebPkiServerVerifier::builder_with_provider(Arc::clone(&self.roots), provider())
            .with_crls(self.revoked.clone())
            .allow_unknown_revocation_status()
            .enforce_revocation_expiration()
            .build()
            .map_err(|e| Error::invalid(format!("Unable to use the authorities: {e}")))
    }

    /// Checks clients.
    pub fn of_clients(&self) -> Result<Arc<dyn ClientCertVerifier>> {
        WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), provider())
            .with_crls(self.revoked.clone())
            .allow_unknown_revocation_status()
            .enforce_revocation_expiration()
            .build()
            .map_err(|e| Error::invalid(format!("Unable to use the authorities: {e}")))
    }

    /// Tries our own certificate out, as the other side will.
    ///
    /// # Errors
    /// What the other side would say.
    pub fn try_out(
        &self,
        own: &[CertificateDer<'static>],
        endpoint: Endpoint,
    ) -> Result<(), String> {
        let Some((first, others)) = own.split_first() else { return Ok(()) };
        let now = UnixTime::now();
        let tried = match endpoint {
            Endpoint::Server => ParsedCertificate::try_from(first).and_then(|parsed| {
                let algorithms = provider().signature_verification_algorithms.all;
                verify_server_cert_signed_by_trust_anchor(
                    &parsed,
                    &self.roots,
                    others,
                    now,
                    algorithms,
                )
            }),
            Endpoint::Client => self
                .of_clients()
                .map_err(|e| e.message().to_owned())?
                .verify_client_cert(first, others, now)
                .map(drop),
        };
        tried.map_err(|e| of(&e))
    }
}

fn of(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(why) => certificate(why),
        other => other.to_string(),
    }
}

/// Takes any server for the one that was meant: `verify-peer=off`. That the server has the key of the certificate
/// that it shows is checked all the same.
#[derive(Debug)]
pub(super) struct AnyServer(pub Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _own: &CertificateDer<'_>,
        _others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

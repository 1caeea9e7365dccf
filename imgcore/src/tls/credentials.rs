//! Credentials, loaded and tried out.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, ServerConfig};

use super::pem::Folder;
use super::verify::{AnyServer, Authorities, provider};
use crate::opts::tls::{Endpoint, SanityCheck, TlsDef, VerifyPeer};
use crate::{Error, Result};

/// What a side of a connection has to show, and whom it believes. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// For connecting.
    Client {
        /// Certificates and checks.
        config: Arc<ClientConfig>,
        /// Whether the server is checked, and has to prove a name.
        verify: VerifyPeer,
    },
    /// For being connected to.
    Server(Arc<ServerConfig>),
}

/// A client's credentials, and the name that the server has to prove.
#[derive(Clone, Debug)]
pub struct Dialer {
    /// Certificates and checks.
    pub config: Arc<ClientConfig>,
    /// The server's name.
    pub name: ServerName<'static>,
}

impl Credentials {
    /// Reads the files of an object; `password` decrypts the key.
    ///
    /// # Errors
    /// Files that are missing or make no sense, a key of another certificate, and (with `sanity-check`) a
    /// certificate that the other side would refuse.
    pub fn load(def: &TlsDef, password: Option<&[u8]>) -> Result<Self> {
        let folder = Folder(&def.dir);
        let authorities = Authorities::new(
            folder.needed_certificates("ca-cert.pem")?,
            folder.revoked("ca-crl.pem")?,
            &folder.path("ca-cert.pem").to_string_lossy(),
        )?;
        let file = format!("{}-cert.pem", def.endpoint.name());
        let key_file = format!("{}-key.pem", def.endpoint.name());
        let checked = |own: Vec<CertificateDer<'static>>| {
            if def.sanity == SanityCheck::No {
                return Ok(own);
            }
            authorities.try_out(&own, def.endpoint).map(|()| own).map_err(|why| {
                Error::invalid(format!(
                    "Our own certificate {} failed validation against {}: {why}",
                    folder.path(&file).display(),
                    folder.path("ca-cert.pem").display()
                ))
                .hint("sanity-check=off leaves that to the other side")
            })
        };
        let bad = |e: rustls::Error| {
            let path = folder.path(&key_file);
            Error::invalid(format!("Unable to use {}: {e}", path.display()))
        };
        if def.endpoint == Endpoint::Server {
            let own = checked(folder.needed_certificates(&file)?)?;
            let key = folder.needed_key(&key_file, password)?;
            let config = ServerConfig::builder_with_provider(provider())
                .with_safe_default_protocol_versions()
                .map_err(bad)?;
            let config = match def.verify {
                VerifyPeer::Yes => config.with_client_cert_verifier(authorities.of_clients()?),
                VerifyPeer::No => config.with_no_client_auth(),
            };
            let mut config = config.with_single_cert(own, key).map_err(bad)?;
            // Sessions of hours need no short cut to the next one, and no state that it would rest upon.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            return Ok(Credentials::Server(Arc::new(config)));
        }
        // A client has both or neither.
        let (own, key) = (folder.certificates(&file)?, folder.key(&key_file, password)?);
        let identity = match (own, key) {
            (Some(own), Some(key)) => Some((checked(own)?, key)),
            (None, None) => None,
            (Some(_), None) => return Err(folder.missing(&key_file)),
            (None, Some(_)) => return Err(folder.missing(&file)),
        };
        client(Some(&authorities), def.verify, |config| match identity {
            Some((own, key)) => config.with_client_auth_cert(own, key).map_err(bad),
            None => Ok(config.with_no_client_auth()),
        })
    }

    /// A client without a certificate of its own, who believes the authorities that the system trusts.
    ///
    /// # Errors
    /// When the system trusts nobody, and the server is to be checked.
    pub fn of_system(verify: VerifyPeer) -> Result<Self> {
        let authorities = match verify {
            VerifyPeer::Yes => Some(Authorities::of_system()?),
            VerifyPeer::No => None,
        };
        client(authorities.as_ref(), verify, |config| Ok(config.with_no_client_auth()))
    }

    /// The credentials of a client who connects to `host` (which he calls so, or by the address), or to nobody in
    /// particular (a socket of this host).
    ///
    /// # Errors
    /// Credentials of a server; no name for a server that has to prove one; a name that is none.
    pub fn dialer(&self, host: Option<&str>) -> Result<Dialer> {
        let Credentials::Client { config, verify } = self else {
            return Err(Error::invalid("Expected TLS credentials for a client endpoint"));
        };
        let host = match (host, verify) {
            (Some(host), _) => host,
            // It is compared with nothing.
            (None, VerifyPeer::No) => "localhost",
            (None, VerifyPeer::Yes) => {
                return Err(Error::invalid("No hostname for certificate validation")
                    .hint("name the host of the server's certificate with tls-hostname=NAME"));
            }
        };
        let name = ServerName::try_from(host.to_owned()).map_err(|_| {
            Error::invalid(format!("'{host}' is no host name that a certificate could have"))
        })?;
        Ok(Dialer { config: Arc::clone(config), name })
    }

    /// The credentials of a server.
    ///
    /// # Errors
    /// Credentials of a client.
    pub fn server(&self) -> Result<Arc<ServerConfig>> {
        match self {
            Credentials::Server(config) => Ok(Arc::clone(config)),
            Credentials::Client { .. } => {
                Err(Error::invalid("Expected TLS credentials for a server endpoint"))
            }
        }
    }
}

type NoIdentity = rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>;

fn client(
    authorities: Option<&Authorities>,
    verify: VerifyPeer,
    identity: impl FnOnce(NoIdentity) -> Result<ClientConfig>,
) -> Result<Credentials> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::invalid(e.to_string()))?;
    let config = match (verify, authorities) {
        (VerifyPeer::Yes, Some(authorities)) => {
            config.with_webpki_verifier(authorities.of_servers()?)
        }
        (VerifyPeer::Yes, None) => return Err(Error::invalid("there is no authority to trust")),
        (VerifyPeer::No, _) => {
            config.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer(provider())))
        }
    };
    let mut config = identity(config)?;
    config.resumption = Resumption::disabled();
    Ok(Credentials::Client { config: Arc::new(config), verify })
}

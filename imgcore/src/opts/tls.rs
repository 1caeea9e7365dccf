//! `--object tls-creds-x509,id=ID,dir=FOLDER[,endpoint=client|server][,verify-peer=on|off]...`: certificates and
//! keys for connections over TLS.
//!
//! Names, defaults and the names of the files in the folder are those of QEMU (its manual, "TLS setup for network
//! services").

use super::OptError;
use super::tree::Flat;
use super::value;

/// Which side of a connection proves its identity with the credentials.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Endpoint {
    /// Who connects.
    #[default]
    Client,
    /// Who is connected to.
    Server,
}

impl Endpoint {
    /// QEMU's name.
    pub fn name(self) -> &'static str {
        match self {
            Endpoint::Client => "client",
            Endpoint::Server => "server",
        }
    }
}

/// Whether the other side has to prove who it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VerifyPeer {
    /// By a certificate of the authority in `ca-cert.pem`; a server then lets in only clients that have one.
    #[default]
    Yes,
    /// Not at all. A client that does not check the server talks to whoever sits on the way.
    No,
}

impl VerifyPeer {
    fn of(yes: bool) -> Self {
        if yes { VerifyPeer::Yes } else { VerifyPeer::No }
    }
}

/// Whether our own certificate is tried out when the credentials are loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SanityCheck {
    /// One that the other side would refuse (expired, for another purpose, of another authority) is an error at once.
    #[default]
    Yes,
    /// The other side will tell.
    No,
}

/// Credentials, not yet loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsDef {
    /// What exports and images call them.
    pub id: String,
    /// Folder of `ca-cert.pem`, `server-cert.pem`, `server-key.pem`, `client-cert.pem`, `client-key.pem`, `ca-crl.pem`.
    pub dir: String,
    /// The side that they are for.
    pub endpoint: Endpoint,
    /// Whether the other side is checked.
    pub verify: VerifyPeer,
    /// Whether our own certificate is.
    pub sanity: SanityCheck,
    /// Identifier of the secret that decrypts the key.
    pub password: Option<String>,
}

impl TlsDef {
    /// From the rest of an object's options; `id` was taken.
    ///
    /// # Errors
    /// Values that make no sense, no `dir`, and `priority`, which has no counterpart here.
    pub fn take(id: String, flat: &mut Flat) -> Result<Self, OptError> {
        let endpoint = match flat.take_text("endpoint").as_deref() {
            None | Some("client") => Endpoint::Client,
            Some("server") => Endpoint::Server,
            Some(other) => return Err(OptError::not_accepted("endpoint", other)),
        };
        let mut switch =
            |name: &str| flat.take_text(name).map_or(Ok(true), |text| value::boolean(name, &text));
        let verify = VerifyPeer::of(switch("verify-peer")?);
        let sanity = if switch("sanity-check")? { SanityCheck::Yes } else { SanityCheck::No };
        if flat.take_text("priority").is_some() {
            return Err(OptError::new("'priority' of TLS credentials is not supported").hint(
                "leave it out: TLS 1.3 and 1.2 are spoken, with forward secrecy and authenticated \
                 encryption only",
            ));
        }
        let password = flat.take_text("passwordid");
        let dir = flat.take_text("dir").filter(|dir| !dir.is_empty());
        let dir = dir.ok_or_else(|| OptError::new("Missing 'dir' property value"))?;
        Ok(TlsDef { id, dir, endpoint, verify, sanity, password })
    }
}

/// What is said of the kinds of credentials that do not exist here.
pub(super) fn refused(kind: &str) -> Option<OptError> {
    let why = match kind {
        "tls-creds-psk" => "pre-shared keys are not supported: use certificates (tls-creds-x509)",
        "tls-creds-anon" => {
            "TLS without any identity protects from nobody on the way: use certificates \
             (tls-creds-x509)"
        }
        _ => return None,
    };
    Some(OptError::new(format!("Objects of type '{kind}' are not supported")).hint(why))
}

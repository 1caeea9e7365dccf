//! TLS for protocols that begin in plain text and change over (NBD's `STARTTLS`): credentials, and the encrypted
//! channel itself. The protocol is that of the crate `rustls`: TLS 1.3 (RFC 8446) and 1.2 (RFC 5246) with forward
//! secrecy and authenticated encryption.
//!
//! * [`Credentials`]: what `--object tls-creds-x509` says, loaded: certificates of X.509 (RFC 5280) and their keys from
//!   the files that QEMU's manual names.
//! * [`Dialer`]: the credentials of a client together with the name that the server has to prove.
//! * [`Channel`]: one connection after its handshake; one thread reads while others write.
//!
//! # What is checked
//!
//! Certificates of the other side: the chain up to an authority of `ca-cert.pem`, times of validity, purpose, revocation
//! by `ca-crl.pem` where there is one (a list past its next update revokes everything, so that a forgotten list is
//! noticed), and a server's name among its *subject alternative names* (the common name is not looked at: RFC 9525). The
//! authority itself is trusted because the user named it; its own times are not looked at (RFC 5280, 6.1).
//!
//! A handshake begins with the next byte on the wire: whoever reads the plain text before it reads not one byte more than
//! its messages have. Text that an attacker puts between them is then part of the handshake, and breaks it.

mod channel;
mod credentials;
mod pem;
mod verify;

pub use channel::{Channel, words};
pub use credentials::{Credentials, Dialer};

//! One connection, encrypted.
//!
//! rustls keeps one state for both directions. It is locked only while bytes are encrypted or decrypted, never while a
//! socket is waited for, so that a thread that waits for data keeps nobody from writing.
//!
//! Locks: `incoming` or `outgoing` first, `session` inside of it; `incoming` before `outgoing`, and that one only if
//! it is free.

use std::io::{self, IoSlice, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use rustls::pki_types::ServerName;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, Connection, ServerConfig,
    ServerConnection,
};

/// Encrypted bytes that are read from the socket at once.
const READ: usize = 64 << 10;
/// Encrypted bytes that are written to the socket at once, about.
const WRITE: usize = 256 << 10;

/// Encrypted bytes that came and were not looked at yet.
struct Incoming {
    buf: Box<[u8]>,
    start: usize,
    end: usize,
}

/// An encrypted connection after its handshake. The socket is not part of it: every call is given it.
pub struct Channel {
    session: Mutex<Connection>,
    incoming: Mutex<Incoming>,
    /// Encrypted bytes on their way to the socket; whoever has the lock keeps their order.
    outgoing: Mutex<Vec<u8>>,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let session = self.session();
        f.debug_struct("Channel")
            .field("version", &session.protocol_version())
            .field("suite", &session.negotiated_cipher_suite())
            .finish_non_exhaustive()
    }
}

impl Channel {
    /// The client's handshake. `socket` fails when its time is up.
    ///
    /// # Errors
    /// Those of the socket, and what the sides do not like of each other ([`words`] tells).
    pub fn client(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        socket: impl Read + Write,
    ) -> io::Result<Self> {
        let session = ClientConnection::new(config, name).map_err(io::Error::other)?;
        Channel::shake_hands(session.into(), socket)
    }

    /// The server's handshake. `socket` fails when its time is up.
    ///
    /// # Errors
    /// As [`Channel::client`].
    pub fn server(config: Arc<ServerConfig>, socket: impl Read + Write) -> io::Result<Self> {
        let session = ServerConnection::new(config).map_err(io::Error::other)?;
        Channel::shake_hands(session.into(), socket)
    }

    fn shake_hands(mut session: Connection, mut socket: impl Read + Write) -> io::Result<Self> {
        while session.is_handshaking() {
            session.complete_io(&mut socket)?;
        }
        session.set_buffer_limit(Some(WRITE));
        let incoming = Incoming { buf: vec![0; READ].into_boxed_slice(), start: 0, end: 0 };
        Ok(Channel {
            session: Mutex::new(session),
            incoming: Mutex::new(incoming),
            outgoing: Mutex::default(),
        })
    }

    fn session(&self) -> MutexGuard<'_, Connection> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads decrypted bytes; 0 when the other side has said that no more will come.
    ///
    /// # Errors
    /// Those of the socket; bytes that were tampered with; an end without a farewell (`UnexpectedEof`).
    pub fn read(&self, mut socket: impl Read + Write, buf: &mut [u8]) -> io::Result<usize> {
        let mut incoming = self.incoming.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(n) = self.decrypt(&mut incoming, &mut socket, buf)? {
                return Ok(n);
            }
            let n = socket.read(&mut incoming.buf)?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            (incoming.start, incoming.end) = (0, n);
        }
    }

    /// What came already; `None` when it is not enough.
    fn decrypt(
        &self,
        incoming: &mut Incoming,
        socket: &mut impl Write,
        buf: &mut [u8],
    ) -> io::Result<Option<usize>> {
        let mut session = self.session();
        loop {
            match session.reader().read(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                result => return result.map(Some),
            }
            let mut rest = &incoming.buf[incoming.start..incoming.end];
            if rest.is_empty() {
                return Ok(None);
            }
            incoming.start += session.read_tls(&mut rest)?;
            if let Err(error) = session.process_new_packets() {
                drop(session);
                self.send_alert(socket);
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
    }

    /// Tells the other side why this one gives up, if nobody is writing.
    fn send_alert(&self, socket: &mut impl Write) {
        match self.outgoing.try_lock() {
            Ok(mut outgoing) => {
                // The connection ends anyway.
                let _ = self.drain(&mut outgoing, socket);
            }
            Err(TryLockError::WouldBlock | TryLockError::Poisoned(_)) => {}
        }
    }

    /// Writes what the session has to say.
    fn drain(&self, outgoing: &mut Vec<u8>, socket: &mut impl Write) -> io::Result<()> {
        {
            let mut session = self.session();
            while session.wants_write() {
                session.write_tls(&mut *outgoing)?;
            }
        }
        let written = socket.write_all(outgoing);
        outgoing.clear();
        written
    }

    /// Encrypts and writes two pieces as one message.
    ///
    /// # Errors
    /// Those of the socket; the connection is of no use then.
    pub fn send(&self, mut socket: impl Write, head: &[u8], body: &[u8]) -> io::Result<()> {
        let mut outgoing = self.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut head, mut body) = (head, body);
        while !head.is_empty() || !body.is_empty() {
            let n = self
                .session()
                .writer()
                .write_vectored(&[IoSlice::new(head), IoSlice::new(body)])?;
            if n == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            let of_head = n.min(head.len());
            (head, body) = (&head[of_head..], &body[n - of_head..]);
            self.drain(&mut outgoing, &mut socket)?;
        }
        Ok(())
    }

    /// Says that nothing more will come, so that the other side can tell the end from a cut.
    pub fn farewell(&self, mut socket: impl Write) {
        let mut outgoing = self.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        self.session().send_close_notify();
        // Whoever has gone already needs no farewell.
        let _ = self.drain(&mut outgoing, &mut socket);
    }
}

/// What went wrong, if it was TLS, in words that name what the user can change.
pub fn words(error: &io::Error) -> Option<String> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(match error {
        rustls::Error::InvalidCertificate(why) => certificate(why),
        rustls::Error::NoCertificatesPresented => {
            "the other side has sent no certificate".to_owned()
        }
        rustls::Error::InvalidMessage(_) => {
            "the other side does not speak TLS, or somebody between has put text of his own in"
                .to_owned()
        }
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateRequired => {
                "the other side wants a certificate, and these credentials have none".to_owned()
            }
            AlertDescription::UnknownCA => {
                "the other side does not know the authority that signed our certificate".to_owned()
            }
            AlertDescription::CertificateExpired => {
                "the other side finds our certificate expired".to_owned()
            }
            AlertDescription::CertificateRevoked => {
                "the other side finds our certificate revoked".to_owned()
            }
            AlertDescription::BadCertificate | AlertDescription::CertificateUnknown => {
                "the other side does not accept our certificate".to_owned()
            }
            AlertDescription::HandshakeFailure | AlertDescription::ProtocolVersion => {
                "the sides have no version and cipher in common, or the other side wants a certificate"
                    .to_owned()
            }
            other => format!("the other side ended it with the alert {other:?}"),
        },
        other => other.to_string(),
    })
}

/// What is wrong with the other side's certificate, or one above it.
pub(super) fn certificate(why: &CertificateError) -> String {
    use CertificateError as C;
    match why {
        C::Expired | C::ExpiredContext { .. } => "the certificate has expired".to_owned(),
        C::NotValidYet | C::NotValidYetContext { .. } => {
            "the certificate is not valid yet".to_owned()
        }
        C::Revoked => "the certificate has been revoked".to_owned(),
        C::UnknownIssuer => {
            "the certificate is not signed by an authority that is trusted".to_owned()
        }
        C::NotValidForName | C::NotValidForNameContext { .. } => {
            format!("the certificate is that of another host: {why}")
        }
        C::ExpiredRevocationList | C::ExpiredRevocationListContext { .. } => {
            "the list of revoked certificates (ca-crl.pem) is out of date".to_owned()
        }
        C::InvalidPurpose | C::InvalidPurposeContext { .. } => {
            "the certificate is for another purpose (see its extended key usage)".to_owned()
        }
        other => format!("the certificate is no good: {other}"),
    }
}

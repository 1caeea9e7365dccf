//! Connecting, checking the host's key, proving who the user is (RFC 4252, 4253).

use std::borrow::Cow;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use russh::Preferred;
use russh::client::{self, AuthResult, Config, Handle};
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::ssh_key::Algorithm;
use russh::keys::{HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate};
use sha2::Digest;

use super::known_hosts::KnownHost;
use super::user;
use crate::opts::ssh::{HashKind, HostKeyCheck, SshTarget, hex};
use crate::{Error, ErrorKind, Result};

/// How long one address of a host may take to answer.
const CONNECT: Duration = Duration::from_secs(20);
/// How long all of it may take. An agent may ask its user to touch a key.
pub(super) const LOGIN: Duration = Duration::from_secs(90);
/// A silent host is asked whether it is there; after three unanswered questions it is not.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Bytes that a host may send before it is told to go on: enough for fast and far ones.
const WINDOW: u32 = 8 << 20;

/// What is asked of us while a session runs.
pub(super) struct Client {
    target: SshTarget,
    known: KnownHost,
    /// Why the host's key was not taken.
    refused: Arc<Mutex<Option<Error>>>,
}

impl client::Handler for Client {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        shown: &PublicKeyOrCertificate,
    ) -> std::result::Result<bool, Self::Error> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = shown else { return Ok(false) };
        match check_key(&self.target, &self.known, key) {
            Ok(()) => Ok(true),
            Err(e) => {
                *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
                Ok(false)
            }
        }
    }
}

/// How people see a key.
fn fingerprint(key: &PublicKey) -> String {
    format!("{} {}", key.algorithm().as_str(), key.fingerprint(HashAlg::Sha256))
}

fn check_key(target: &SshTarget, known: &KnownHost, key: &PublicKey) -> Result<()> {
    match &target.check {
        HostKeyCheck::Nothing => Ok(()),
        HostKeyCheck::KnownHosts => known.check(key, &target.known_name(), &fingerprint(key)),
        HostKeyCheck::Hash { kind, hash } => {
            let blob = key.to_bytes().map_err(|e| Error::corrupt(e.to_string()))?;
            let found = match kind {
                HashKind::Md5 => md5::compute(&blob).0.to_vec(),
                HashKind::Sha1 => sha1::Sha1::digest(&blob).to_vec(),
                HashKind::Sha256 => sha2::Sha256::digest(&blob).to_vec(),
            };
            if found == *hash {
                return Ok(());
            }
            let (kind, found) = (kind.name(), hex(&found));
            Err(Error::invalid(format!(
                "remote host key fingerprint '{kind}:{found}' does not match host_key_check \
                 '{kind}:{}'",
                hex(hash)
            ))
            .hint(format!("its key is {}", fingerprint(key))))
        }
    }
}

/// Keys of hosts in the order in which they are wished for: those that can be checked first.
fn preferred(known: &KnownHost) -> Preferred {
    let all = Preferred::DEFAULT.key.iter();
    // Signatures with SHA-1 are not taken, as by OpenSSH since 8.8.
    let mut keys: Vec<Algorithm> =
        all.filter(|key| !matches!(key, Algorithm::Rsa { hash: None })).cloned().collect();
    keys.sort_by_key(|key| !known.has(key));
    Preferred { key: Cow::Owned(keys), ..Preferred::DEFAULT }
}

/// A socket to the host.
pub(super) fn connect(target: &SshTarget) -> Result<TcpStream> {
    let place = format!("{}:{}", target.host, target.port);
    let failed =
        |e: &std::io::Error| Error::io(e).context(format!("Failed to connect to '{place}'"));
    let all = (target.host.as_str(), target.port).to_socket_addrs().map_err(|e| failed(&e))?;
    let mut last = std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
    for address in all {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(stream) => {
                // Requests are small and wait for answers.
                let ready = stream.set_nodelay(true).and_then(|()| stream.set_nonblocking(true));
                return ready.map(|()| stream).map_err(|e| failed(&e));
            }
            Err(e) => last = e,
        }
    }
    Err(failed(&last))
}

/// Whether the host could be spoken with, in words of its errors.
fn broken(error: &russh::Error) -> Error {
    let hint = match error {
        russh::Error::NoCommonAlgo { .. } => {
            "the host offers only algorithms that are too old or unknown here"
        }
        russh::Error::HUP | russh::Error::Disconnect => {
            "the host closed the connection; its log may tell why (too many keys in the agent?)"
        }
        _ => return Error::new(ErrorKind::Io(libc::EIO), error.to_string()),
    };
    Error::new(ErrorKind::Io(libc::EIO), error.to_string()).hint(hint)
}

/// A session on a connected socket, its user logged in. Runs inside a runtime.
pub(super) async fn login(target: &SshTarget, socket: TcpStream) -> Result<Handle<Client>> {
    let known = match target.check {
        HostKeyCheck::KnownHosts => KnownHost::find(&user::known_hosts(), &target.known_name())?,
        _ => KnownHost::default(),
    };
    let config = Config {
        preferred: preferred(&known),
        window_size: WINDOW,
        keepalive_interval: Some(KEEPALIVE),
        nodelay: true,
        ..Config::default()
    };
    let refused = Arc::new(Mutex::new(None));
    let client = Client { target: target.clone(), known, refused: Arc::clone(&refused) };
    let socket = tokio::net::TcpStream::from_std(socket).map_err(|e| Error::io(&e))?;
    let session = client::connect_stream(Arc::new(config), socket, client).await;
    let mut session = session.map_err(|e| {
        let refused = refused.lock().unwrap_or_else(PoisonError::into_inner).take();
        refused.unwrap_or_else(|| {
            broken(&e).context(format!("Could not begin an ssh session with '{}'", target.host))
        })
    })?;
    authenticate(&mut session, target).await?;
    Ok(session)
}

/// What was tried to log in.
#[derive(Default)]
struct Tried {
    offered: Vec<PublicKey>,
    /// Things that kept keys from being offered.
    notes: Vec<String>,
}

/// Proves who the user is: by nothing (RFC 4252, 5.2), by the keys of the agent, by those in the user's files.
async fn authenticate(session: &mut Handle<Client>, target: &SshTarget) -> Result<()> {
    let name = target.user.clone().or_else(user::name).ok_or_else(|| {
        Error::invalid("the name of the user on this host is not known")
            .hint("say who logs in: ssh://USER@HOST/PATH")
    })?;
    let failed = |e: russh::Error| {
        broken(&e).context(format!("Could not log in to '{}' as '{name}'", target.host))
    };
    if session.authenticate_none(&name).await.map_err(failed)?.success() {
        return Ok(());
    }
    let mut tried = Tried::default();
    if let Some(socket) = user::agent()
        && by_agent(session, &name, socket, &mut tried).await.map_err(failed)?
    {
        return Ok(());
    }
    for file in user::keys() {
        let Some(key) = key_of(&file, &mut tried) else { continue };
        if tried.offered.iter().any(|k| k.key_data() == key.public_key().key_data()) {
            continue;
        }
        tried.offered.push(key.public_key().clone());
        let Some(hash) = signature_hash(session, &key.algorithm()).await.map_err(failed)? else {
            tried.notes.push(format!("'{}' is of a kind that the host refuses", file.display()));
            continue;
        };
        let key = PrivateKeyWithHashAlg::new(Arc::new(key), hash);
        if session.authenticate_publickey(&name, key).await.map_err(failed)?.success() {
            return Ok(());
        }
    }
    let mut hint = match tried.offered.len() {
        0 => "no key was found in the agent (SSH_AUTH_SOCK) or in ~/.ssh".to_owned(),
        n => format!("{n} keys of the agent and of ~/.ssh were refused"),
    };
    for note in &tried.notes {
        hint.push_str("; ");
        hint.push_str(note);
    }
    Err(Error::new(
        ErrorKind::Io(libc::EACCES),
        format!(
            "failed to authenticate to '{}' as '{name}' using publickey authentication",
            target.host
        ),
    )
    .hint(hint))
}

/// With what hash a key of this kind signs; `None`: only with one that is too weak.
async fn signature_hash(
    session: &Handle<Client>,
    algorithm: &Algorithm,
) -> std::result::Result<Option<Option<HashAlg>>, russh::Error> {
    if !matches!(algorithm, Algorithm::Rsa { .. }) {
        return Ok(Some(None));
    }
    Ok(match session.best_supported_rsa_hash().await? {
        // A host that does not say takes this one, or none.
        None => Some(Some(HashAlg::Sha256)),
        Some(None) => None,
        Some(hash) => Some(hash),
    })
}

/// Offers the keys of the agent. Whether one was taken.
async fn by_agent(
    session: &mut Handle<Client>,
    name: &str,
    socket: PathBuf,
    tried: &mut Tried,
) -> std::result::Result<bool, russh::Error> {
    let listed = match AgentClient::connect_uds(&socket).await {
        Ok(mut agent) => agent.request_identities().await.map(|all| (agent, all)),
        Err(e) => Err(e),
    };
    let (mut agent, all) = match listed {
        Ok(listed) => listed,
        Err(e) => {
            tried.notes.push(format!("the agent at '{}' did not answer: {e}", socket.display()));
            return Ok(false);
        }
    };
    for identity in all {
        let algorithm = match &identity {
            AgentIdentity::PublicKey { key, .. } => key.algorithm(),
            AgentIdentity::Certificate { certificate, .. } => certificate.public_key().algorithm(),
        };
        let Some(hash) = signature_hash(session, &algorithm).await? else { continue };
        let answer = match identity {
            AgentIdentity::PublicKey { key, .. } => {
                tried.offered.push(key.clone());
                session.authenticate_publickey_with(name, key, hash, &mut agent).await
            }
            AgentIdentity::Certificate { certificate, .. } => {
                session.authenticate_certificate_with(name, certificate, hash, &mut agent).await
            }
        };
        match answer {
            Ok(AuthResult::Success) => return Ok(true),
            Ok(AuthResult::Failure { .. }) => {}
            // A key that the agent will not use, or a host that has gone: the next one tells.
            Err(e) => tried.notes.push(format!("the agent did not sign: {e}")),
        }
        if session.is_closed() {
            return Err(russh::Error::Disconnect);
        }
    }
    Ok(false)
}

/// The key in a file, where there is one that can be used.
fn key_of(file: &PathBuf, tried: &mut Tried) -> Option<PrivateKey> {
    match russh::keys::load_secret_key(file, None) {
        Ok(key) => return Some(key),
        Err(russh::keys::Error::KeyIsEncrypted) => {
            // Offered already, where the agent has it.
            let public = PathBuf::from(format!("{}.pub", file.display()));
            let public = russh::keys::load_public_key(public).ok();
            let has = |k: &PublicKey| tried.offered.iter().any(|o| o.key_data() == k.key_data());
            if !public.is_some_and(|k| has(&k)) {
                tried.notes.push(format!(
                    "'{}' has a passphrase: give it to the agent (ssh-add)",
                    file.display()
                ));
            }
        }
        Err(russh::keys::Error::IO(e)) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => tried.notes.push(format!("'{}' cannot be used: {e}", file.display())),
    }
    None
}

//! Requests in flight on one connection, told apart by their numbers. One thread carries all of them: it owns the
//! runtime in which the ssh session lives, sends what is queued, and hands every reply to whoever waits for it.
//!
//! Nothing is believed: a packet is not longer than [`MAX_PACKET`], a reply has the number of a request that waits. What
//! breaks these rules ends the session, because nothing after it can be trusted; every waiting and every later request
//! then fails with the reason.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use russh::client::{Handle, Msg};
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Disconnect};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::login::{self, Client, LOGIN};
use super::wire::{self, Extensions, INIT, MAX_PACKET, Packet, Reply, VERSION};
use crate::opts::ssh::SshTarget;
use crate::{Error, ErrorKind, Result};

/// A host that does not answer a request for so long is taken for dead.
const SILENCE: Duration = Duration::from_secs(300);
/// For saying goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

/// Who waits for replies.
#[derive(Default)]
struct Waiting {
    replies: HashMap<u32, SyncSender<Reply>>,
    next: u32,
    broken: Option<String>,
}

/// What the thread and the requests share.
#[derive(Default)]
struct Shared(Mutex<Waiting>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing comes any more: all that wait hear it.
    fn fail(&self, reason: String) {
        let mut waiting = self.lock();
        waiting.broken.get_or_insert(reason);
        waiting.replies.clear();
    }

    /// Hands a packet to whoever waits for it. `Err`: nobody does.
    fn deliver(&self, packet: &[u8]) -> std::result::Result<(), String> {
        let (number, reply) =
            wire::reply(packet).ok_or_else(|| "the server broke the protocol".to_owned())?;
        let sender = self.lock().replies.remove(&number);
        let sender = sender.ok_or_else(|| "the server answered what nobody asked".to_owned())?;
        // Whoever asked may have given up.
        let _ = sender.try_send(reply);
        Ok(())
    }
}

/// A session of SFTP with a host.
pub(super) struct Session {
    shared: Arc<Shared>,
    sender: Option<UnboundedSender<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
    extensions: Extensions,
    name: String,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A request that was sent.
#[derive(Debug)]
pub(super) struct Pending<'a> {
    session: &'a Session,
    number: u32,
    receiver: Receiver<Reply>,
}

impl Pending<'_> {
    /// Waits for the reply.
    pub fn wait(self) -> Result<Reply> {
        match self.receiver.recv_timeout(SILENCE) {
            Ok(reply) => Ok(reply),
            Err(RecvTimeoutError::Timeout) => {
                let text = format!("the server did not answer for {} seconds", SILENCE.as_secs());
                self.session.shared.fail(text);
                Err(self.session.broken())
            }
            Err(RecvTimeoutError::Disconnected) => Err(self.session.broken()),
        }
    }
}

impl Drop for Pending<'_> {
    /// One that nobody waits for any more is still answered: its number stays taken until then.
    fn drop(&mut self) {
        let mut waiting = self.session.shared.lock();
        if let Some(sender) = waiting.replies.get_mut(&self.number) {
            *sender = sync_channel(1).0;
        }
    }
}

impl Session {
    /// Connects, logs in and starts SFTP.
    ///
    /// # Errors
    /// When the host cannot be reached, is not the right one, refuses the user, or has no SFTP.
    pub fn open(target: &SshTarget) -> Result<Self> {
        let socket = login::connect(target)?;
        let shared = Arc::new(Shared::default());
        let (sender, queue) = unbounded_channel();
        let (ready, begun) = sync_channel(1);
        let (of_thread, to) = (Arc::clone(&shared), target.clone());
        let thread = std::thread::Builder::new().name("ssh".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(e) => return drop(ready.send(Err(Error::io(&e)))),
            };
            runtime.block_on(async {
                let begin = tokio::time::timeout(LOGIN, begin(&to, socket)).await;
                let late = || {
                    let text =
                        format!("the server did not answer within {} seconds", LOGIN.as_secs());
                    Err(Error::new(ErrorKind::Io(libc::ETIMEDOUT), text))
                };
                match begin.unwrap_or_else(|_| late()) {
                    Err(e) => drop(ready.send(Err(e))),
                    Ok(begun) => {
                        if ready.send(Ok(begun.extensions)).is_ok() {
                            carry(begun, queue, &of_thread).await;
                        }
                    }
                }
            });
            // A resolver or an agent that never answers keeps nobody here.
            runtime.shutdown_background();
            of_thread.fail("the session has ended".to_owned());
        });
        let thread = thread
            .map_err(|e| Error::io(&e).context("Could not start a thread for an ssh session"))?;
        let extensions = begun.recv().unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Io(libc::EIO), "the ssh session ended before it began"))
        })?;
        let name = target.known_name();
        Ok(Session { shared, sender: Some(sender), thread: Some(thread), extensions, name })
    }

    /// What the server can do besides.
    pub fn extensions(&self) -> Extensions {
        self.extensions
    }

    fn broken(&self) -> Error {
        let reason = self.shared.lock().broken.clone();
        let reason = reason.unwrap_or_else(|| "it was closed".to_owned());
        Error::new(
            ErrorKind::Io(libc::EIO),
            format!("the ssh connection to '{}' broke: {reason}", self.name),
        )
    }

    /// Sends a request without waiting for its reply.
    pub fn start(&self, packet: Packet) -> Result<Pending<'_>> {
        let (reply, receiver) = sync_channel(1);
        let number = {
            let mut waiting = self.shared.lock();
            if waiting.broken.is_some() {
                drop(waiting);
                return Err(self.broken());
            }
            let mut number = waiting.next;
            while waiting.replies.contains_key(&number) {
                number = number.wrapping_add(1);
            }
            waiting.next = number.wrapping_add(1);
            waiting.replies.insert(number, reply);
            number
        };
        let pending = Pending { session: self, number, receiver };
        let sent = self.sender.as_ref().map(|s| s.send(packet.finish(Some(number))));
        if !matches!(sent, Some(Ok(()))) {
            return Err(self.broken());
        }
        Ok(pending)
    }

    /// Sends a request and waits for its reply.
    pub fn ask(&self, packet: Packet) -> Result<Reply> {
        self.start(packet)?.wait()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // The end of the queue tells the thread to say goodbye.
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            // It panicked: nobody waits for it.
            let _ = thread.join();
        }
    }
}

/// A session that SFTP was started in.
struct Begun {
    session: Handle<Client>,
    reader: ChannelReadHalf,
    writer: ChannelWriteHalf<Msg>,
    /// Bytes that came behind the first packet.
    rest: Vec<u8>,
    extensions: Extensions,
}

fn protocol(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::Io(libc::EPROTO), text)
}

async fn begin(target: &SshTarget, socket: std::net::TcpStream) -> Result<Begun> {
    let session = login::login(target, socket).await?;
    let no_sftp = |e: russh::Error| {
        protocol(e.to_string()).context(format!("failed to initialize sftp on '{}'", target.host))
    };
    let channel: Channel<Msg> = session.channel_open_session().await.map_err(no_sftp)?;
    channel.request_subsystem(true, "sftp").await.map_err(no_sftp)?;
    let first = Packet::new(INIT).u32(VERSION).finish(None);
    channel.data_bytes(first).await.map_err(no_sftp)?;
    let (mut reader, writer) = channel.split();
    let mut rest = Vec::new();
    loop {
        if let Some(packet) = whole(&mut rest).map_err(protocol)? {
            let (version, extensions) = wire::version(&packet).ok_or_else(|| {
                protocol("the server does not speak SFTP")
                    .hint("does its user's shell print something when it starts?")
            })?;
            if version < VERSION {
                return Err(protocol(format!(
                    "the server speaks version {version} of SFTP, {VERSION} is needed"
                )));
            }
            return Ok(Begun { session, reader, writer, rest, extensions });
        }
        match reader.wait().await {
            Some(ChannelMsg::Data { data }) => rest.extend_from_slice(&data),
            Some(ChannelMsg::Failure) => {
                return Err(Error::unsupported("the server has no SFTP subsystem").hint(
                    "its administrator switches it on with 'Subsystem sftp internal-sftp' in sshd_config",
                ));
            }
            Some(ChannelMsg::Eof | ChannelMsg::Close) | None => {
                return Err(protocol("the server ended the session before SFTP began"));
            }
            Some(_) => {}
        }
    }
}

/// The first packet of what came, without its length, if all of it is there.
fn whole(bytes: &mut Vec<u8>) -> std::result::Result<Option<Vec<u8>>, String> {
    let Some(head) = bytes.first_chunk::<4>() else { return Ok(None) };
    let len = usize::try_from(u32::from_be_bytes(*head)).unwrap_or(usize::MAX);
    if len > MAX_PACKET {
        return Err(format!("the server sent a packet of {len} bytes"));
    }
    if bytes.len() < 4 + len {
        return Ok(None);
    }
    let rest = bytes.split_off(4 + len);
    let mut packet = std::mem::replace(bytes, rest);
    packet.drain(..4);
    Ok(Some(packet))
}

/// Carries requests and replies until the queue ends or the connection breaks.
async fn carry(begun: Begun, mut queue: UnboundedReceiver<Vec<u8>>, shared: &Arc<Shared>) {
    let Begun { session, reader, writer, rest, .. } = begun;
    let of_reader = Arc::clone(shared);
    let replies = tokio::spawn(async move {
        let reason = deliver(reader, rest, &of_reader).await;
        of_reader.fail(reason);
    });
    while let Some(packet) = queue.recv().await {
        // A server that takes nothing more must not keep us for ever.
        match tokio::time::timeout(SILENCE, writer.data_bytes(packet)).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => {
                shared.fail(e.to_string());
                break;
            }
            Err(_) => {
                shared.fail("the server takes no more requests".to_owned());
                break;
            }
        }
    }
    let goodbye = async {
        // A host that has gone cannot be told.
        let _ = writer.close().await;
        let _ = session.disconnect(Disconnect::ByApplication, "", "").await;
    };
    let _ = tokio::time::timeout(GOODBYE, goodbye).await;
    replies.abort();
}

/// Hands replies on; says why there are no more.
async fn deliver(mut reader: ChannelReadHalf, mut bytes: Vec<u8>, shared: &Shared) -> String {
    loop {
        loop {
            match whole(&mut bytes) {
                Ok(Some(packet)) => {
                    if let Err(reason) = shared.deliver(&packet) {
                        return reason;
                    }
                }
                Ok(None) => break,
                Err(reason) => return reason,
            }
        }
        match reader.wait().await {
            Some(ChannelMsg::Data { data }) => bytes.extend_from_slice(&data),
            Some(ChannelMsg::Eof | ChannelMsg::Close) | None => {
                return "the server closed it".to_owned();
            }
            Some(_) => {}
        }
    }
}

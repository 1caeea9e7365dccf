//! Negotiation with a server (`doc/proto.md`, "Handshake phase"): newstyle with all its options, newstyle
//! without them, and oldstyle.
//!
//! All of it must be over within [`PATIENCE`]; no answer may be longer than [`MAX_REPLY`], and one
//! option gets at most [`MAX_REPLIES`] of them.

use std::io;
use std::time::{Duration, Instant};

use super::stream::{Patient, Stream, why};
use crate::nbd::*;
use crate::num::{len_u64, small};
use crate::opts::nbd::{NbdTarget, NbdTls};
use crate::opts::secret::Secrets;
use crate::opts::tls::{Endpoint, SanityCheck, TlsDef};
use crate::tls::{self, Credentials, Dialer};
use crate::{Error, ErrorKind, Result};

/// How long connecting and negotiating may take together.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest answer to an option; the protocol's strings have 4096 bytes.
const MAX_REPLY: u32 = 16 << 10;
/// Most answers to one option.
const MAX_REPLIES: usize = 64;

/// What was agreed upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Export {
    /// Bytes.
    pub size: u64,
    /// Transmission flags.
    pub flags: u16,
    /// Every request is a multiple of this; a power of two.
    pub min_block: u32,
    /// What the server likes best.
    pub preferred_block: u32,
    /// Longest request, a multiple of `min_block`.
    pub max_block: u32,
    /// Replies come in chunks.
    pub structured: bool,
    /// The number of `base:allocation` in status replies.
    pub allocation: Option<u32>,
}

impl Export {
    /// Whether the server has a transmission flag.
    pub fn has(&self, flag: u16) -> bool {
        self.flags & (flag | HAS_FLAGS) == flag | HAS_FLAGS
    }
}

/// An export, and how the connection to it is made safe.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub target: NbdTarget,
    /// `None`: in plain text. `Some`: over TLS, or not at all.
    pub tls: Option<Dialer>,
}

impl Peer {
    /// The export of `target`, with the credentials that it names.
    pub fn new(target: &NbdTarget, secrets: &Secrets) -> Result<Self> {
        let host = target.host_name();
        let tls = match &target.tls {
            None => None,
            Some(NbdTls::Object(id)) => Some(secrets.credentials(id)?.dialer(host)?),
            Some(NbdTls::Uri { dir: None, verify }) => {
                Some(Credentials::of_system(*verify)?.dialer(host)?)
            }
            Some(NbdTls::Uri { dir: Some(dir), verify }) => {
                let def = TlsDef {
                    id: String::new(),
                    dir: dir.clone(),
                    endpoint: Endpoint::Client,
                    verify: *verify,
                    sanity: SanityCheck::Yes,
                    password: None,
                };
                Some(Credentials::load(&def, None)?.dialer(host)?)
            }
        };
        Ok(Peer { target: target.clone(), tls })
    }
}

/// Connects to a server and agrees with it upon an export.
pub(super) fn connect(peer: &Peer) -> Result<(Stream, Export)> {
    let target = &peer.target;
    let deadline = Instant::now() + PATIENCE;
    let stream = Stream::connect(target, PATIENCE)?;
    let from = Patient { stream: &stream, deadline };
    let export = Talk { from, target, tls: peer.tls.as_ref() }
        .negotiate()
        .and_then(Export::checked)
        .map_err(|e| if e.kind() == ErrorKind::NotFound { e } else { e.at_path(target.uri()) })?;
    stream.set_timeouts(None, None).map_err(|e| Error::io(&e))?;
    Ok((stream, export))
}

/// One negotiation.
struct Talk<'a> {
    from: Patient<'a>,
    target: &'a NbdTarget,
    tls: Option<&'a Dialer>,
}

/// How the server answered an option.
enum Answer {
    Done,
    Refused { code: u32, text: String },
}

impl Talk<'_> {
    fn broken(&self, error: &io::Error) -> Error {
        let text =
            |why: String| format!("NBD negotiation with '{}' failed: {why}", self.target.address());
        let errno = ErrorKind::Io(error.raw_os_error().unwrap_or(libc::EIO));
        if !self.from.stream.is_encrypted() {
            return Error::new(errno, text(why(error)));
        }
        // In TLS 1.3 the client is done before the server has looked at the client's certificate: what the server
        // thinks of it comes afterwards, and may lie unread behind a socket that takes nothing more.
        let closed =
            matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset);
        let last = closed.then(|| self.from.bytes::<1>().err()).flatten();
        match last.as_ref().filter(|last| tls::words(last).is_some()) {
            Some(last) => Error::new(errno, text(why(last))),
            None => Error::new(errno, text(why(error))).hint(
                "TLS itself came about; the server may not have liked our certificate, or have \
                 missed one: it knows more",
            ),
        }
    }

    fn bytes<const N: usize>(&self) -> Result<[u8; N]> {
        self.from.bytes().map_err(|e| self.broken(&e))
    }

    fn u16(&self) -> Result<u16> {
        self.bytes().map(u16::from_be_bytes)
    }

    fn u32(&self) -> Result<u32> {
        self.bytes().map(u32::from_be_bytes)
    }

    fn u64(&self) -> Result<u64> {
        self.bytes().map(u64::from_be_bytes)
    }

    fn send(&self, head: &[u8], body: &[u8]) -> Result<()> {
        self.from.stream.send(head, body).map_err(|e| self.broken(&e))
    }

    fn wrong(&self, what: impl std::fmt::Display) -> Error {
        Error::corrupt(format!("the NBD server '{}' {what}", self.target.address()))
    }

    fn negotiate(&self) -> Result<Export> {
        if self.u64()? != INIT_MAGIC {
            return Err(self.wrong("does not speak NBD (no NBDMAGIC)"));
        }
        let mut export = Export {
            size: 0,
            flags: 0,
            min_block: 1,
            preferred_block: 0,
            max_block: DEFAULT_MAX_BLOCK,
            structured: false,
            allocation: None,
        };
        match self.u64()? {
            OPTION_MAGIC => {}
            OLDSTYLE_MAGIC if self.tls.is_some() => return Err(self.no_tls("it is too old", "")),
            OLDSTYLE_MAGIC => {
                if !self.target.export.is_empty() {
                    return Err(Error::new(
                        ErrorKind::NotFound,
                        "Server does not support non-empty export names",
                    ));
                }
                export.size = self.u64()?;
                // The upper half is the handshake's.
                export.flags = u16::try_from(self.u32()? & 0xffff).unwrap_or(0);
                self.bytes::<124>()?;
                return Ok(export);
            }
            other => return Err(self.wrong(format!("begins with unknown words ({other:#x})"))),
        }
        let server = self.u16()?;
        let client = server & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
        self.send(&u32::from(client).to_be_bytes(), &[])?;
        if let Some(dialer) = self.tls {
            // Before anything else: what is agreed upon in plain text is worth nothing.
            if server & FLAG_FIXED_NEWSTYLE == 0 {
                return Err(self.no_tls("it is too old", ""));
            }
            self.start_tls(dialer)?;
        }
        if server & FLAG_FIXED_NEWSTYLE != 0 {
            let reply = self.option(OPT_STRUCTURED_REPLY, &[], |_, _| Ok(()))?;
            export.structured = matches!(reply, Answer::Done);
            self.refuse_tls(&reply)?;
            if export.structured {
                self.choose_allocation(&mut export)?;
            }
            if self.go(&mut export)? {
                return Ok(export);
            }
        }
        // An old server: it hangs up when it does not have the export.
        self.send(&option_head(OPT_EXPORT_NAME, self.target.export.len())?, self.name())?;
        export.size = self.u64()?;
        export.flags = self.u16()?;
        if client & FLAG_NO_ZEROES == 0 {
            self.bytes::<124>()?;
        }
        Ok(export)
    }

    fn name(&self) -> &[u8] {
        self.target.export.as_bytes()
    }

    /// The export's name as options have it: length, bytes.
    fn counted_name(&self) -> Result<Vec<u8>> {
        let len = u32::try_from(self.name().len()).map_err(|_| Error::errno(libc::EINVAL))?;
        Ok([&len.to_be_bytes()[..], self.name()].concat())
    }

    /// Changes over to TLS. There is no way back to plain text: a server that will not is an error.
    fn start_tls(&self, dialer: &Dialer) -> Result<()> {
        let unexpected =
            |kind, _: &[u8]| Err(self.wrong(format!("answers a request for TLS with {kind}")));
        match self.option(OPT_STARTTLS, &[], unexpected)? {
            Answer::Done => {}
            Answer::Refused { code: REP_ERR_POLICY, text } => {
                return Err(self.no_tls("it is forbidden by its configuration", &text));
            }
            Answer::Refused { code: REP_ERR_UNSUP, text } => {
                return Err(self.no_tls("it does not know it", &text));
            }
            Answer::Refused { code, text } => {
                return Err(self.no_tls(&format!("for the reason {code:#x}"), &text));
            }
        }
        self.from.stream.start_tls_as_client(dialer, self.from.deadline).map_err(|e| {
            let text = format!("TLS with '{}' failed: {}", self.target.address(), why(&e));
            Error::new(ErrorKind::Io(e.raw_os_error().unwrap_or(libc::EPROTO)), text)
        })
    }

    fn no_tls(&self, why: &str, text: &str) -> Error {
        let error = Error::unsupported(format!(
            "the NBD server '{}' refuses TLS: {why}",
            self.target.address()
        ));
        if text.is_empty() { error } else { error.hint(format!("server reported: {text}")) }
    }

    fn refuse_tls(&self, answer: &Answer) -> Result<()> {
        match answer {
            Answer::Refused { code: REP_ERR_TLS_REQD, .. } if self.tls.is_none() => {
                Err(Error::unsupported(format!(
                    "the NBD server '{}' insists on TLS",
                    self.target.address()
                ))
                .hint(
                    "give credentials: --object tls-creds-x509,id=ID,dir=FOLDER and --image-opts \
                     driver=nbd,...,tls-creds=ID, or nbds://HOST/NAME?tls-certificates=FOLDER",
                ))
            }
            _ => Ok(()),
        }
    }

    fn choose_allocation(&self, export: &mut Export) -> Result<()> {
        let mut data = self.counted_name()?;
        data.extend_from_slice(&1u32.to_be_bytes());
        let query = BASE_ALLOCATION.as_bytes();
        data.extend_from_slice(&u32::try_from(query.len()).unwrap_or(0).to_be_bytes());
        data.extend_from_slice(query);
        let answer = self.option(OPT_SET_META_CONTEXT, &data, |kind, reply| {
            if kind != REP_META_CONTEXT {
                return Err(self.wrong(format!("answers a choice of contexts with {kind}")));
            }
            let (id, name) =
                reply.split_first_chunk::<4>().ok_or_else(|| self.wrong("sends short contexts"))?;
            if name == query {
                export.allocation = Some(u32::from_be_bytes(*id));
            }
            Ok(())
        })?;
        if !matches!(answer, Answer::Done) {
            export.allocation = None;
        }
        Ok(())
    }

    /// `OPT_GO`; `false` when the server is too old for it.
    fn go(&self, export: &mut Export) -> Result<bool> {
        let mut data = self.counted_name()?;
        data.extend_from_slice(&1u16.to_be_bytes());
        data.extend_from_slice(&INFO_BLOCK_SIZE.to_be_bytes());
        let mut described = false;
        let answer = self.option(OPT_GO, &data, |kind, reply| {
            let short = || self.wrong("sends short information about the export");
            if kind != REP_INFO {
                return Err(self.wrong(format!("answers a request for an export with {kind}")));
            }
            let (what, reply) = reply.split_first_chunk::<2>().ok_or_else(short)?;
            match u16::from_be_bytes(*what) {
                INFO_EXPORT => {
                    let (size, rest) = reply.split_first_chunk::<8>().ok_or_else(short)?;
                    let (flags, _) = rest.split_first_chunk::<2>().ok_or_else(short)?;
                    export.size = u64::from_be_bytes(*size);
                    export.flags = u16::from_be_bytes(*flags);
                    described = true;
                }
                INFO_BLOCK_SIZE => {
                    let mut numbers =
                        reply.chunks_exact(4).map(|c| c.try_into().map_or(0, u32::from_be_bytes));
                    let mut next = || numbers.next().ok_or_else(short);
                    export.min_block = next()?;
                    export.preferred_block = next()?;
                    export.max_block = next()?;
                }
                _ => {}
            }
            Ok(())
        })?;
        self.refuse_tls(&answer)?;
        match answer {
            Answer::Done if described => Ok(true),
            Answer::Done => Err(self.wrong("does not tell the size of the export")),
            Answer::Refused { code: REP_ERR_UNSUP, .. } => Ok(false),
            Answer::Refused { code: REP_ERR_UNKNOWN, text } => {
                let error = Error::new(ErrorKind::NotFound, "Requested export not available");
                Err(if text.is_empty() {
                    error.hint(format!("the server has no export '{}'", self.target.export))
                } else {
                    error.hint(format!("server reported: {text}"))
                })
            }
            Answer::Refused { code, text } => {
                let why = match code {
                    REP_ERR_POLICY => "forbidden by its configuration",
                    REP_ERR_INVALID => "it finds the request malformed",
                    REP_ERR_SHUTDOWN => "it is shutting down",
                    REP_ERR_BLOCK_SIZE_REQD => "it insists on block sizes",
                    REP_ERR_TOO_BIG => "it finds the request too large",
                    _ => "for a reason that is not in the protocol",
                };
                let error = self.wrong(format!("refuses export '{}': {why}", self.target.export));
                Err(if text.is_empty() {
                    error
                } else {
                    error.hint(format!("server reported: {text}"))
                })
            }
        }
    }

    /// Sends an option and reads answers until the last one; `each` gets those before.
    fn option(
        &self,
        option: u32,
        data: &[u8],
        mut each: impl FnMut(u32, &[u8]) -> Result<()>,
    ) -> Result<Answer> {
        self.send(&option_head(option, data.len())?, data)?;
        for _ in 0..MAX_REPLIES {
            if self.u64()? != OPTION_REPLY_MAGIC {
                return Err(self.wrong("answers an option without its magic number"));
            }
            let (about, kind, len) = (self.u32()?, self.u32()?, self.u32()?);
            if about != option {
                return Err(self.wrong(format!("answers option {about} instead of {option}")));
            }
            if len > MAX_REPLY {
                return Err(self.wrong(format!(
                    "answers option {option} with {len} bytes; at most {MAX_REPLY} are taken"
                )));
            }
            let mut reply = vec![0; small(len.into())];
            self.from.fill(&mut reply).map_err(|e| self.broken(&e))?;
            match kind {
                REP_ACK => return Ok(Answer::Done),
                code if code & REP_ERROR != 0 => {
                    return Ok(Answer::Refused { code, text: printable(&reply) });
                }
                kind => each(kind, &reply)?,
            }
        }
        Err(self.wrong(format!("answers option {option} without end")))
    }
}

impl Export {
    /// Checks what a server says about an export.
    fn checked(mut self) -> Result<Export> {
        let min = self.min_block;
        if i64::try_from(self.size).is_err() {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("the NBD export has {} bytes, more than a file can have", self.size),
            ));
        }
        if !min.is_power_of_two() || min > 64 << 10 {
            return Err(Error::corrupt(format!(
                "the NBD server wants requests in units of {min} bytes, which is no power of two up to \
                 65536"
            )));
        }
        if self.max_block < min {
            return Err(Error::corrupt(format!(
                "the NBD server wants requests of at least {min} and at most {} bytes",
                self.max_block
            )));
        }
        if !self.size.is_multiple_of(min.into()) {
            return Err(Error::unsupported(format!(
                "the NBD export has {} bytes, which is no multiple of the {min} bytes that it wants \
                 requests in; its last bytes cannot be reached",
                self.size
            )));
        }
        self.max_block = self.max_block.min(DEFAULT_MAX_BLOCK) / min * min;
        Ok(self)
    }
}

fn option_head(option: u32, len: usize) -> Result<[u8; 16]> {
    let len = u32::try_from(len_u64(len)).map_err(|_| Error::errno(libc::EINVAL))?;
    let mut head = [0; 16];
    head[..8].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    head[8..12].copy_from_slice(&option.to_be_bytes());
    head[12..].copy_from_slice(&len.to_be_bytes());
    Ok(head)
}

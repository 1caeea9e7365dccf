//! The handshake from the server's side (`doc/proto.md`, "Handshake phase", fixed newstyle).

use std::io;
use std::sync::Arc;
use std::time::Instant;

use rustls::ServerConfig;

use super::Export;
use super::context::Context;
use crate::format::ZeroSpace;
use crate::nbd::*;
use crate::num::small;
use crate::storage::nbd::stream::{Patient, Stream};

/// Longest data of an option: a name and several queries.
const MAX_OPTION: u32 = 64 << 10;
/// Options of one client.
const MAX_OPTIONS: usize = 256;
/// What a request should be a multiple of, to be fast.
const PREFERRED_BLOCK: u32 = 4096;

/// What a client has agreed to.
#[derive(Clone, Debug, Default)]
pub(super) struct Agreed {
    pub structured: bool,
    pub contexts: Vec<Context>,
}

struct Talk<'a> {
    export: &'a Export<'a>,
    from: Patient<'a>,
    agreed: Agreed,
    no_zeroes: bool,
}

/// Whether the negotiation goes on.
enum Next {
    Option,
    Transmission,
    End,
}

/// Negotiates; `None` when the client did not want the export after all.
pub(super) fn negotiate(export: &Export<'_>, stream: &Stream) -> io::Result<Option<Agreed>> {
    let deadline = Instant::now() + export.options.handshake_limit;
    let from = Patient { stream, deadline };
    stream.set_timeouts(None, Some(export.options.handshake_limit))?;
    let mut hello = INIT_MAGIC.to_be_bytes().to_vec();
    hello.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    hello.extend_from_slice(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
    stream.send(&hello, &[])?;
    let flags = u32::from_be_bytes(from.bytes()?);
    if flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let no_zeroes = flags & u32::from(FLAG_NO_ZEROES) != 0;
    let mut talk = Talk { export, from, agreed: Agreed::default(), no_zeroes };
    for _ in 0..MAX_OPTIONS {
        match talk.option()? {
            Next::Option => {}
            Next::Transmission => return Ok(Some(talk.agreed)),
            Next::End => return Ok(None),
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// The first `n` bytes of what is left of an option.
fn take<'a>(data: &mut &'a [u8], n: u32) -> Option<&'a [u8]> {
    let (head, rest) = data.split_at_checked(small(n.into()))?;
    *data = rest;
    Some(head)
}

fn take_u16(data: &mut &[u8]) -> Option<u16> {
    take(data, 2)?.try_into().ok().map(u16::from_be_bytes)
}

fn take_u32(data: &mut &[u8]) -> Option<u32> {
    take(data, 4)?.try_into().ok().map(u32::from_be_bytes)
}

fn take_text<'a>(data: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = take_u32(data).filter(|n| *n <= MAX_STRING)?;
    take(data, len)
}

impl Talk<'_> {
    fn option(&mut self) -> io::Result<Next> {
        let magic = u64::from_be_bytes(self.from.bytes()?);
        let option = u32::from_be_bytes(self.from.bytes()?);
        let len = u32::from_be_bytes(self.from.bytes()?);
        if magic != OPTION_MAGIC || len > MAX_OPTION {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut data = vec![0; small(len.into())];
        self.from.fill(&mut data)?;
        let encrypted = self.from.stream.is_encrypted();
        let plain = self.export.options.tls.is_some() && !encrypted;
        match option {
            OPT_ABORT => {
                self.reply(option, REP_ACK, b"")?;
                return Ok(Next::End);
            }
            OPT_STARTTLS if !data.is_empty() => {
                self.reply(option, REP_ERR_INVALID, b"this option has no data")?;
            }
            OPT_STARTTLS if encrypted => {
                self.reply(option, REP_ERR_INVALID, b"TLS is spoken already")?;
            }
            OPT_STARTTLS => match &self.export.options.tls {
                None => self.reply(option, REP_ERR_POLICY, b"TLS not configured")?,
                Some(credentials) => self.start_tls(credentials)?,
            },
            // This option has no way to say no.
            OPT_EXPORT_NAME if plain => return Ok(Next::End),
            _ if plain => self.reply(option, REP_ERR_TLS_REQD, b"TLS comes first (STARTTLS)")?,
            OPT_EXPORT_NAME => return self.export_name(&data),
            OPT_LIST if data.is_empty() => {
                let name = self.export.options.name.as_bytes();
                let len = u32::try_from(name.len()).unwrap_or(0);
                let mut entry = [&len.to_be_bytes()[..], name].concat();
                entry.extend_from_slice(self.export.options.description.as_bytes());
                self.reply(option, REP_SERVER, &entry)?;
                self.reply(option, REP_ACK, b"")?;
            }
            OPT_STRUCTURED_REPLY if data.is_empty() => {
                self.agreed.structured = true;
                self.reply(option, REP_ACK, b"")?;
            }
            OPT_LIST | OPT_STRUCTURED_REPLY => {
                self.reply(option, REP_ERR_INVALID, b"this option has no data")?;
            }
            OPT_INFO | OPT_GO => return self.go(option, &data),
            OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => self.contexts(option, &data)?,
            _ => self.reply(option, REP_ERR_UNSUP, b"")?,
        }
        Ok(Next::Option)
    }

    /// Changes over to TLS. What was agreed upon before was agreed upon with whoever sits on the way: it is forgotten.
    fn start_tls(&mut self, credentials: &Arc<ServerConfig>) -> io::Result<()> {
        self.reply(OPT_STARTTLS, REP_ACK, b"")?;
        self.agreed = Agreed::default();
        self.from.stream.start_tls_as_server(credentials, self.from.deadline)
    }

    fn reply(&self, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
        let mut head = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
        for number in [option, kind, u32::try_from(data.len()).unwrap_or(0)] {
            head.extend_from_slice(&number.to_be_bytes());
        }
        self.from.stream.send(&head, data)
    }

    fn unknown(&self, option: u32, name: &[u8]) -> io::Result<()> {
        let text = format!("export '{}' not present", printable(name));
        self.reply(option, REP_ERR_UNKNOWN, text.as_bytes())
    }

    fn size_and_flags(&self) -> Vec<u8> {
        let mut flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA;
        // A client must not wait for connections that nobody will take.
        if self.export.options.shared != 1 {
            flags |= CAN_MULTI_CONN;
        }
        let node = self.export.node;
        flags |= if node.writable() { SEND_TRIM | SEND_WRITE_ZEROES } else { READ_ONLY };
        if node.writable() && node.zeroes_quickly(0, node.virtual_size(), ZeroSpace::Unmap) {
            flags |= SEND_FAST_ZERO;
        }
        if self.agreed.structured {
            flags |= SEND_DF;
        }
        [&self.export.node.virtual_size().to_be_bytes()[..], &flags.to_be_bytes()].concat()
    }

    fn export_name(&mut self, name: &[u8]) -> io::Result<Next> {
        if name != self.export.options.name.as_bytes() {
            // This option has no way to say no.
            return Ok(Next::End);
        }
        let zeroes = if self.no_zeroes { &[][..] } else { &[0; 124][..] };
        self.from.stream.send(&self.size_and_flags(), zeroes)?;
        Ok(Next::Transmission)
    }

    fn go(&mut self, option: u32, data: &[u8]) -> io::Result<Next> {
        let mut left = data;
        let parsed = take_text(&mut left).zip(take_u16(&mut left));
        let Some((name, count)) = parsed.filter(|p| left.len() == 2 * usize::from(p.1)) else {
            self.reply(option, REP_ERR_INVALID, b"malformed request for an export")?;
            return Ok(Next::Option);
        };
        if name != self.export.options.name.as_bytes() {
            self.unknown(option, name)?;
            return Ok(Next::Option);
        }
        let wanted: Vec<u16> = (0..count).filter_map(|_| take_u16(&mut left)).collect();
        let info = |kind: u16, data: &[u8]| {
            self.reply(option, REP_INFO, &[&kind.to_be_bytes()[..], data].concat())
        };
        if wanted.contains(&INFO_NAME) {
            info(INFO_NAME, name)?;
        }
        let description = self.export.options.description.as_bytes();
        if wanted.contains(&INFO_DESCRIPTION) && !description.is_empty() {
            info(INFO_DESCRIPTION, description)?;
        }
        let sizes = [1, PREFERRED_BLOCK, DEFAULT_MAX_BLOCK].map(u32::to_be_bytes).concat();
        info(INFO_BLOCK_SIZE, &sizes)?;
        info(INFO_EXPORT, &self.size_and_flags())?;
        self.reply(option, REP_ACK, b"")?;
        Ok(if option == OPT_GO { Next::Transmission } else { Next::Option })
    }

    fn contexts(&mut self, option: u32, data: &[u8]) -> io::Result<()> {
        let listing = option == OPT_LIST_META_CONTEXT;
        if !listing {
            self.agreed.contexts.clear();
            if !self.agreed.structured {
                return self.reply(option, REP_ERR_INVALID, b"structured replies come first");
            }
        }
        let mut left = data;
        let head = take_text(&mut left).zip(take_u32(&mut left));
        let Some((name, count)) = head else {
            return self.reply(option, REP_ERR_INVALID, b"malformed choice of contexts");
        };
        if name != self.export.options.name.as_bytes() {
            return self.unknown(option, name);
        }
        let mut chosen = Vec::new();
        if listing && count == 0 {
            chosen.extend(self.export.contexts.all());
        }
        for _ in 0..count {
            // A count that is too large ends here too.
            let Some(query) = take_text(&mut left) else {
                return self.reply(option, REP_ERR_INVALID, b"malformed query");
            };
            for context in self.export.contexts.matching(query, listing) {
                if !chosen.contains(&context) {
                    chosen.push(context);
                }
            }
        }
        if !left.is_empty() {
            return self.reply(option, REP_ERR_INVALID, b"malformed choice of contexts");
        }
        for (context, name) in &chosen {
            let id = if listing { 0 } else { context.id() };
            let reply = [&id.to_be_bytes()[..], name.as_bytes()].concat();
            self.reply(option, REP_META_CONTEXT, &reply)?;
        }
        if !listing {
            self.agreed.contexts = chosen.iter().map(|c| c.0).collect();
        }
        self.reply(option, REP_ACK, b"")
    }
}

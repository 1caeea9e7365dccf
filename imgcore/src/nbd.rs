//! Numbers of the NBD protocol, shared by the client ([`crate::storage::nbd`]) and the server
//! (`ops::serve`).
//!
//! Specification: `doc/proto.md` of the NetworkBlockDevice/nbd project; names are its own without the
//! prefix `NBD_`. All integers on the wire are big-endian.

/// `NBDMAGIC`, first bytes of every server.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`: newstyle negotiation, and the beginning of each option of the client.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// What servers from before 2011 send instead.
pub const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
/// Begins each answer to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Begins each request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Begins a simple reply.
pub const SIMPLE_MAGIC: u32 = 0x6744_6698;
/// Begins each chunk of a structured reply.
pub const STRUCTURED_MAGIC: u32 = 0x668e_33ef;

/// Handshake flag: options may be refused one by one.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1;
/// Handshake flag: no 124 zero bytes after `OPT_EXPORT_NAME`.
pub const FLAG_NO_ZEROES: u16 = 2;

/// Option: this export, at once, with no way to refuse but to hang up.
pub const OPT_EXPORT_NAME: u32 = 1;
/// Option: end the session.
pub const OPT_ABORT: u32 = 2;
/// Option: list the exports.
pub const OPT_LIST: u32 = 3;
/// Option: encrypt.
pub const OPT_STARTTLS: u32 = 5;
/// Option: tell about an export.
pub const OPT_INFO: u32 = 6;
/// Option: tell about an export and begin.
pub const OPT_GO: u32 = 7;
/// Option: structured replies.
pub const OPT_STRUCTURED_REPLY: u32 = 8;
/// Option: list metadata contexts.
pub const OPT_LIST_META_CONTEXT: u32 = 9;
/// Option: choose metadata contexts.
pub const OPT_SET_META_CONTEXT: u32 = 10;

/// Option reply: done.
pub const REP_ACK: u32 = 1;
/// Option reply: one export.
pub const REP_SERVER: u32 = 2;
/// Option reply: one fact about an export.
pub const REP_INFO: u32 = 3;
/// Option reply: one metadata context.
pub const REP_META_CONTEXT: u32 = 4;
/// Option replies with this bit are refusals.
pub const REP_ERROR: u32 = 1 << 31;
/// Refusal: unknown option.
pub const REP_ERR_UNSUP: u32 = REP_ERROR | 1;
/// Refusal: forbidden by the server's configuration.
pub const REP_ERR_POLICY: u32 = REP_ERROR | 2;
/// Refusal: malformed.
pub const REP_ERR_INVALID: u32 = REP_ERROR | 3;
/// Refusal: TLS first.
pub const REP_ERR_TLS_REQD: u32 = REP_ERROR | 5;
/// Refusal: no such export.
pub const REP_ERR_UNKNOWN: u32 = REP_ERROR | 6;
/// Refusal: the server is about to end.
pub const REP_ERR_SHUTDOWN: u32 = REP_ERROR | 7;
/// Refusal: the client must ask for block sizes.
pub const REP_ERR_BLOCK_SIZE_REQD: u32 = REP_ERROR | 8;
/// Refusal: too much.
pub const REP_ERR_TOO_BIG: u32 = REP_ERROR | 9;

/// Information: size and transmission flags.
pub const INFO_EXPORT: u16 = 0;
/// Information: the export's canonical name.
pub const INFO_NAME: u16 = 1;
/// Information: a description for people.
pub const INFO_DESCRIPTION: u16 = 2;
/// Information: smallest, preferred and largest request.
pub const INFO_BLOCK_SIZE: u16 = 3;

/// Transmission flag: the flags are meant.
pub const HAS_FLAGS: u16 = 1;
/// Transmission flag: no writing.
pub const READ_ONLY: u16 = 1 << 1;
/// Transmission flag: `CMD_FLUSH` is understood.
pub const SEND_FLUSH: u16 = 1 << 2;
/// Transmission flag: `CMD_FLAG_FUA` is understood.
pub const SEND_FUA: u16 = 1 << 3;
/// Transmission flag: `CMD_TRIM` is understood.
pub const SEND_TRIM: u16 = 1 << 5;
/// Transmission flag: `CMD_WRITE_ZEROES` is understood.
pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
/// Transmission flag: `CMD_FLAG_DF` is understood.
pub const SEND_DF: u16 = 1 << 7;
/// Transmission flag: a flush on one connection covers writes on all others.
pub const CAN_MULTI_CONN: u16 = 1 << 8;
/// Transmission flag: `CMD_CACHE` is understood.
pub const SEND_CACHE: u16 = 1 << 10;
/// Transmission flag: `CMD_FLAG_FAST_ZERO` is understood.
pub const SEND_FAST_ZERO: u16 = 1 << 11;

/// Request: read.
pub const CMD_READ: u16 = 0;
/// Request: write.
pub const CMD_WRITE: u16 = 1;
/// Request: end the session; not answered.
pub const CMD_DISC: u16 = 2;
/// Request: make everything written durable.
pub const CMD_FLUSH: u16 = 3;
/// Request: give space back.
pub const CMD_TRIM: u16 = 4;
/// Request: read ahead.
pub const CMD_CACHE: u16 = 5;
/// Request: write zeroes.
pub const CMD_WRITE_ZEROES: u16 = 6;
/// Request: what a range is made of.
pub const CMD_BLOCK_STATUS: u16 = 7;

/// Request flag: durable when answered.
pub const CMD_FLAG_FUA: u16 = 1;
/// Request flag: zeroes, but keep the space.
pub const CMD_FLAG_NO_HOLE: u16 = 1 << 1;
/// Request flag: the answer in one piece.
pub const CMD_FLAG_DF: u16 = 1 << 2;
/// Request flag: one extent will do.
pub const CMD_FLAG_REQ_ONE: u16 = 1 << 3;
/// Request flag: zeroes only where that is faster than writing.
pub const CMD_FLAG_FAST_ZERO: u16 = 1 << 4;

/// Chunk flag: the last one of a reply.
pub const REPLY_FLAG_DONE: u16 = 1;
/// Chunk: nothing.
pub const REPLY_NONE: u16 = 0;
/// Chunk: bytes at an offset.
pub const REPLY_OFFSET_DATA: u16 = 1;
/// Chunk: zeroes at an offset.
pub const REPLY_OFFSET_HOLE: u16 = 2;
/// Chunk: extents of a metadata context.
pub const REPLY_BLOCK_STATUS: u16 = 5;
/// Chunks with this bit are errors.
pub const REPLY_ERROR_BIT: u16 = 1 << 15;
/// Chunk: the request failed.
pub const REPLY_ERROR: u16 = REPLY_ERROR_BIT | 1;

/// The context that says what is stored and what is zero.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// `base:allocation`: nothing is stored.
pub const STATE_HOLE: u32 = 1;
/// `base:allocation`: reads as zeroes.
pub const STATE_ZERO: u32 = 2;

/// Longest string of the protocol (names, descriptions).
pub const MAX_STRING: u32 = 4096;
/// Largest request where the server says nothing else.
pub const DEFAULT_MAX_BLOCK: u32 = 32 << 20;
/// The registered TCP port.
pub const DEFAULT_PORT: u16 = 10809;

/// The errno for an error number of the wire; numbers that the protocol does not have are `EINVAL`.
pub fn errno_of(wire: u32) -> i32 {
    match wire {
        1 => libc::EPERM,
        5 => libc::EIO,
        12 => libc::ENOMEM,
        28 => libc::ENOSPC,
        75 => libc::EOVERFLOW,
        95 => libc::EOPNOTSUPP,
        108 => libc::ESHUTDOWN,
        _ => libc::EINVAL,
    }
}

/// The error number of the wire for an errno; what the protocol has no number for is `EIO`, or the
/// nearest that it has.
pub fn wire_errno(errno: i32) -> u32 {
    match errno {
        libc::EPERM | libc::EROFS | libc::EACCES => 1,
        libc::ENOMEM => 12,
        libc::EINVAL => 22,
        libc::ENOSPC | libc::EDQUOT | libc::EFBIG => 28,
        libc::EOVERFLOW => 75,
        libc::EOPNOTSUPP => 95,
        libc::ESHUTDOWN => 108,
        _ => 5,
    }
}

/// Text of the other side, fit for a terminal: at most 300 characters, none of them controls.
pub fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4096)]);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}

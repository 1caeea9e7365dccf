//! NBD exports as storages: the client's side of the protocol (`doc/proto.md` of the
//! NetworkBlockDevice/nbd project).
//!
//! * `stream`: the socket.
//! * `handshake`: agreeing upon an export, by fixed newstyle (`GO`, block sizes, structured replies,
//!   `base:allocation`) or what an older server has of it.
//! * `connection`: requests of many threads in flight on one socket, replies checked and matched.
//! * [`NbdStorage`]: reads, writes, zeroes, discards and status of any alignment in terms of these.
//!
//! A server is hostile: lengths are bounded, replies must fit their requests, negotiation has a
//! deadline, and a server that falls silent for five minutes is given up. A connection that breaks
//! fails the requests on it with the reason, unless `reconnect-delay` allows new ones; a request that
//! is sent again has the same effect as one sent once. What a server promised to have written and lost
//! before a flush when it restarted is lost, as it would be on a disk.
//!
//! A server that says that its connections see the same bytes (`CAN_MULTI_CONN`) is read on up to three more of them once
//! sixteen reads were asked for. They are a help and nothing more: one that breaks is forgotten, one that is refused is
//! not missed, and whatever changes the export goes over the first connection.
//!
//! With credentials the whole session is encrypted ([`crate::tls`]): `STARTTLS` is the first option, nothing is agreed
//! upon before, not a byte is read ahead of the handshake, and there is no way back to plain text.
//!
//! Not supported: extended headers.

mod client;
mod connection;
mod handshake;
mod status;
pub(crate) mod stream;

pub use client::NbdStorage;

/// Names of the threads that serve a connection begin with this.
pub const THREADS: &str = "nbd-";

#[cfg(test)]
mod tests;

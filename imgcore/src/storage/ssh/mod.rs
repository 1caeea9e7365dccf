//! A file on a host that is reached by ssh, read and written by SFTP (version 3, draft-ietf-secsh-filexfer-02,
//! with OpenSSH's extensions `fsync@openssh.com`, `limits@openssh.com` and `posix-rename@openssh.com`).
//!
//! * `user`: the files and the agent that tell who the user is and which hosts he knows.
//! * `known_hosts`: whether a host's key is the one that was seen before (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT").
//! * `login`: connecting, checking the host's key, proving who the user is.
//! * `wire`: requests and replies of SFTP as bytes.
//! * `session`: requests in flight, told apart by their numbers; one thread carries all of them.
//! * [`SshStorage`]: reads and writes of any size as many requests at a time.
//!
//! # Which code speaks ssh
//!
//! `russh`, because it is written in Rust, upheld, and under Apache-2.0: a server's bytes are parsed without
//! unsafe code of ours or C's. `ssh2` would bring libssh2 and OpenSSL in C. Its price is about a hundred crates (`tokio`,
//! the elliptic curves and RSA, some of them release candidates), and so it is behind the feature `ssh`. Keys on curves
//! of Ed25519 are best: RSA signatures of crate `rsa` take a time that depends on the key (RUSTSEC-2023-0071); keys in
//! an agent are not touched by this. SFTP itself is small, and is done here: requests of many threads in flight at a
//! time, replies of bounded size.
//!
//! # What is relied on
//!
//! The host proves itself before anything else is said. After that it is still not trusted: packets are bounded, a
//! reply must be of a request that waits and of its kind, no more bytes are taken than were asked for, and a server
//! that stays silent is given up. A file that is read must stay what it is: every read also asks for size and time
//! of change, behind the bytes ("requests relating to the same file" are processed in order, section 6.1 of the
//! draft), and when they differ from those at opening, reading fails. SFTP tells times in seconds: a change within the
//! second of opening that keeps the size is not seen. A connection that breaks is an error.
//!
//! There are no locks between hosts. What is written is on the server's disk after `flush`; a server that cannot do
//! that is only written to with the cache mode `unsafe`.
//!
//! The program tells what its environment says of the user's name, his home and his agent ([`user::tell`]).
//! `ssh_config` is not read.

mod known_hosts;
mod login;
mod session;
mod store;
pub mod user;
mod wire;

pub use store::{Existing, OnDisk, SshStorage};

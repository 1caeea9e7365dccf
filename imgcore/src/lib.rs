//! Disk images: where their bytes live, what they mean, how they stack, and whole jobs over them.
//!
//! Five floors, each using only those below it:
//!
//! * [`storage`]: files, block devices, memory; locks; sparse-file calls.
//! * [`format`](mod@format): one folder a format; maps guest bytes to storage bytes and never copies them.
//! * [`graph`]: [`graph::Node`], one image in a chain: the only place that reads, writes, copies on
//!   write and looks below into backing files; and the policy of what may be opened.
//! * [`guest`]: what the guest keeps on its disk (partitions, volumes, file systems), read from its own
//!   metadata.
//! * [`ops`]: whole jobs such as convert, compare, commit, rebase, check, with progress through a
//!   callback.
//!
//! [`crypto`] holds ciphers and key derivation: bytes in, bytes out.
//!
//! [`throttle`] makes requests of any number of storages wait for common limits.
//!
//! [`tls`] encrypts connections that begin in plain text.
//!
//! [`opts`] holds QEMU's option languages (sizes, key=value lists, `json:` names) as pure functions.
//!
//! The library never prints, exits, or reads arguments or the environment. Bytes read from an image
//! are hostile: they are checked before use, bounded in memory and time, and answered by an
//! [`Error`] that names file and offset.

pub mod crypto;
pub mod error;
pub mod format;
pub mod graph;
pub mod guest;
#[cfg(any(test, feature = "testing"))]
pub mod hostile;
pub mod nbd;
pub mod num;
pub mod ops;
pub mod opts;
pub mod storage;
pub mod throttle;
pub mod tls;

pub use error::{Error, ErrorKind, Result};

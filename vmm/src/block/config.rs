//! One disk as plain data.

use imgcore::graph::open::OpenRequest;
use imgcore::opts::secret::SecretDef;

use super::remote::Confined;
use super::throttle::Limits;

/// Whether the image may be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WriteAccess {
    /// It is opened for writing; failing that is an error.
    #[default]
    ReadWrite,
    /// It is opened for reading; the guest sees a write-protected disk.
    ReadOnly,
    /// For writing, or for reading where writing is not allowed (`auto-read-only=on`).
    Auto,
}

/// Where writes go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Persistence {
    /// Into the image.
    #[default]
    Permanent,
    /// Into an overlay that ends with the machine (`snapshot=on`, `-snapshot`).
    Temporary,
}

/// Whether the guest's disk has a cache that it must flush.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WriteCache {
    /// Writes are durable after a flush (`cache.writeback=on`).
    #[default]
    Writeback,
    /// Every write is durable when it is complete (`cache=writethrough`, `directsync`).
    Writethrough,
}

/// What becomes of a request that fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// The guest sees the error.
    #[default]
    Report,
    /// The guest is told that all is well.
    Ignore,
    /// The machine stops; the request is done again when it goes on.
    Stop,
    /// `Stop` when there is no space left, otherwise `Report`.
    StopWhenFull,
}

/// How requests reach the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Aio {
    /// Nothing was said: in batches through io_uring where measuring found that to be better and the host
    /// has it, which is for raw images with `O_DIRECT` (twice the random writes of threads with sixteen at a
    /// time, about four fifths of them with one); by threads otherwise.
    #[default]
    Auto,
    /// By threads that wait for them.
    Threads,
    /// In batches through io_uring (`aio=io_uring`); a host that has none is an error.
    Ring,
    /// The same (`aio=native`), with `O_DIRECT`; on a host that has no io_uring by threads, with a warning.
    Native,
}

/// Limits shared by the disks of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Throttling {
    /// Name of the group; disks with the same one share its limits.
    pub group: String,
    /// The limits; those of the group's last member count.
    pub limits: Limits,
}

/// A disk image and how it is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drive {
    /// Its name (`id=` or `node-name=`).
    pub id: String,
    /// The image with everything said about opening it.
    pub image: OpenRequest,
    /// Whether it may be written.
    pub access: WriteAccess,
    /// Where writes go.
    pub persistence: Persistence,
    /// Whether the guest has to flush.
    pub write_cache: WriteCache,
    /// When writing fails (`werror=`).
    pub write_error: OnError,
    /// When reading fails (`rerror=`).
    pub read_error: OnError,
    /// Limits.
    pub throttling: Option<Throttling>,
    /// How requests reach the host.
    pub aio: Aio,
    /// Serial number.
    pub serial: String,
    /// Passphrases that the image's options may name (`-object secret`).
    pub secrets: Vec<SecretDef>,
    /// Whether the process is confined once it is open.
    pub confined: Confined,
}

impl Drive {
    /// Whether discard requests reach the image.
    pub fn discards(&self) -> bool {
        self.image.discard == Some(imgcore::graph::open::Discard::Unmap)
    }
}

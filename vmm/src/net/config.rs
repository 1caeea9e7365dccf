//! One network back end as plain data.

use std::path::PathBuf;

/// The script that takes tap interfaces down unless another is named. When it does not exist there is
/// nothing to take down.
pub const DOWNSCRIPT: &str = "/etc/qemu-ifdown";

/// Where the interface comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TapSource {
    /// It is made, or attached to when it exists. The kernel chooses a name when it is empty.
    Name(String),
    /// Open descriptors (`fd=`, `fds=`), one a queue.
    Descriptors(Vec<i32>),
    /// It is made and joined to a bridge.
    Bridge {
        /// Name of the bridge.
        bridge: String,
        /// The program that does it for users without the right to (`helper=`).
        helper: Option<PathBuf>,
    },
}

impl Default for TapSource {
    fn default() -> Self {
        TapSource::Name(String::new())
    }
}

/// Whether the kernel moves frames by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Vhost {
    /// Threads of ours do.
    #[default]
    Off,
    /// `/dev/vhost-net`, or these open descriptors of it, one a queue.
    On(Vec<i32>),
}

/// Whether frames carry an offload header to and from the interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VnetHeader {
    /// They do.
    #[default]
    On,
    /// They do not: no offloads.
    Off,
}

/// A tap interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TapConfig {
    /// Name of the back end, for people.
    pub name: String,
    /// Where it comes from.
    pub source: TapSource,
    /// Pairs of queues, at least 1.
    pub queues: u16,
    /// Offload header.
    pub vnet_header: VnetHeader,
    /// Who moves frames.
    pub vhost: Vhost,
    /// Run with the interface's name when it is there.
    pub script: Option<PathBuf>,
    /// Run with the interface's name when the machine ends.
    pub downscript: Option<PathBuf>,
    /// Bytes that may wait to be sent.
    pub sndbuf: Option<i32>,
}

//! What this host can do for KVM guests, and how to make it so.
//!
//! * [`host`]: [`Host`](host::Host) reads `/proc`, `/sys`, `/etc` and `/dev` below a root folder; facts that no
//!   file holds (does a vCPU run, may this user open a device) come from a [`Probe`](host::Probe).
//! * [`check`]: 64 checks, each a plain function of the host and of what is [`wanted`] of it.
//! * [`report`]: findings as text, JSON or JUnit.
//! * [`change`]: plans, journal, undo; [`net`]: bridges and NAT; [`scripts`]: qemu-ifup and its like.
//! * [`memory`], [`cpu`]: the sums and drawings people make before they place guests.
//!
//! Invariants: nothing here prints, exits, or reads arguments or the environment; checks start no program and
//! change nothing; a hostile tree (endless files, symbolic links out of the root, nonsense numbers) costs a
//! finding of unknown state, never a panic.

pub mod change;
pub mod check;
pub mod cpu;
pub mod error;
mod hex;
pub mod host;
pub mod memory;
pub mod net;
pub mod report;
pub mod scripts;
pub mod units;
pub mod wanted;

pub use error::{Error, Result};

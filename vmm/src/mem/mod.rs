//! Guest memory: what it is made of, where it lies, which node it belongs to.
//!
//! * [`config`]: plain data, as a command line describes it.
//! * [`layout`]: the hole below 4 GiB, and the fixed addresses in it.
//! * [`backend`]: turning plain data into mappings.
//!
//! Guest memory changes under the monitor's feet. It is read and written by volatile copies through
//! `vm_memory`; no `&[u8]` or `&mut [u8]` over it is ever formed.

pub mod backend;
pub mod config;
pub mod discard;
pub mod layout;

pub use backend::build;
pub use config::{Backend, MemoryConfig, Node};

/// All of a guest's memory.
pub type Memory = vm_memory::GuestMemoryMmap<()>;
/// One contiguous piece of it.
pub type Region = vm_memory::GuestRegionMmap<()>;

//! What the guest sees of its processors.
//!
//! * [`topology`]: sockets, cores, threads, and the APIC numbers that follow.
//! * [`features`]: names of CPUID bits.
//! * [`models`]: named sets of them.
//! * [`cpuid`]: the leaves of one vCPU, from a model, the host's abilities and the topology.

pub mod cpuid;
pub mod features;
pub mod models;
pub mod topology;

pub use cpuid::{CpuConfig, Template, build};
pub use topology::Topology;

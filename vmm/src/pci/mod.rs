//! PCI.
//!
//! * [`routing`]: which interrupt pin of a slot goes to which input of the I/O APIC.

pub mod routing;

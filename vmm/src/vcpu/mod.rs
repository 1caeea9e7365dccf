//! The threads that run guest code.
//!
//! Each vCPU has one thread, named as QEMU names it (`CPU 0/KVM`), which alone owns the [`Vcpu`].
//! What all of them should do ([`Wish`]) stands in one place behind one mutex; a thread looks at it
//! whenever it is out of guest mode. Whoever changes the wish kicks all vCPUs, and may wait until each
//! has reported that it complies.
//!
//! ```text
//!            run                pause
//!   Paused ------> Running ------------> Paused          any ---stop---> Stopped (thread ends)
//! ```
//!
//! While paused a thread carries out jobs (set registers, read registers) that others send it.
//!
//! Lock order: the wish's mutex is never held while guest code runs, a device is called or a job is
//! carried out.

mod control;
mod run;

pub use control::{Control, Wish};
pub use run::{Buses, EffectSink, Ended, Group, Job, VcpuSettings};

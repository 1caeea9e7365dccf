//! The benchmark: `rimg` and the installed `qemu-img` on the same jobs, one after the other.
//!
//! * [`input`] makes the images: a file system full of real files, holes, allocated zeroes.
//! * [`jobs`] says what is run, on what, and how the result is verified.
//! * [`measure`] runs the pairs.
//! * [`table`] prints ratios.
//!
//! Walls of a shared machine wander; what is quoted is the median over rounds of the ratio within one
//! round, where both programs ran within seconds of each other.

pub mod input;
pub mod jobs;
pub mod measure;
pub mod table;

//! QEMU's option languages as pure functions: sizes, `key=value` lists, `json:` names, image
//! specifications, secrets, snapshot parameters, and the sizes people read.
//!
//! Nothing here opens a file. What may have to be read (a secret's file) is read through a
//! function the caller passes in.
//!
//! The languages differ in small ways that scripts rely on, so there is one function for each place
//! a number may stand: [`size::size_argument`] for a size on the command line, [`value::size`] for
//! one inside `-o`, [`value::number`] for a plain number inside `-o`.

pub mod creation;
pub mod error;
pub mod filename;
pub mod human;
pub mod json;
pub mod list;
pub mod secret;
pub mod size;
pub mod snapshot;
pub mod spec;
pub mod tables;
pub mod tree;
pub mod value;

pub use error::OptError;
pub use spec::ImageSpec;

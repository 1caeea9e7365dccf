//! QEMU's option languages as pure functions: sizes, `key=value` lists, `json:` names, image
//! specifications, secrets, snapshot parameters, and the sizes people read.
//!
//! Nothing here opens a file. What may have to be read (a secret's file) is read through a
//! function the caller passes in.
//!
//! The languages differ in small ways that scripts rely on, so there is one function for each place
//! a number may stand: [`size::size_argument`] for a size on the command line, [`value::size`] for
//! one inside `-o`, [`value::number`] for a plain number inside `-o`.

pub mod error;
pub mod fat;
pub mod filename;
pub mod filter;
mod given;
pub mod http;
pub mod human;
pub mod json;
pub mod list;
pub mod nbd;
pub mod null;
pub mod object;
pub mod rbd;
pub mod remote;
pub mod secret;
pub mod size;
pub mod spec;
pub mod ssh;
pub mod throttle;
pub mod tls;
pub mod tree;
pub mod value;

pub use error::OptError;
pub use spec::ImageSpec;

/// The value of a size option; see [`value::size`].
pub fn size_option(name: &str, text: &str) -> crate::Result<u64> {
    Ok(value::size(name, text)?)
}

/// The value of a number option; see [`value::number`].
pub fn number_option(name: &str, text: &str) -> crate::Result<u64> {
    Ok(value::number(name, text)?)
}

/// The value of a boolean option; see [`value::boolean`].
pub fn bool_option(name: &str, text: &str) -> crate::Result<bool> {
    Ok(value::boolean(name, text)?)
}

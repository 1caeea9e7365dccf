//! What commands print: pure functions from reports to text. The human forms and the JSON are
//! qemu-img's, byte for byte, where qemu-img has them.

pub mod check;
pub mod info;
pub mod inspect;
pub mod json;
pub mod map;
pub mod shown_name;
pub mod snapshots;

use std::io::Write;

/// Human text or JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// For people.
    #[default]
    Human,
    /// For programs.
    Json,
}

/// Prints to stdout. A reader that has gone away is no error: there is nobody left to tell.
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}

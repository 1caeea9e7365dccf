//! Images in a chain, and what may be opened.
//!
//! [`Node`] is one image together with the one below it. It is the only place that reads, writes,
//! copies on write and fills up with zeroes. [`open`](mod@open) turns names into nodes under an
//! [`open::Policy`].

mod attach;
pub mod create;
pub mod gate;
pub mod node;
pub mod open;
mod open_request;
pub mod output;
pub mod output_space;
pub mod pin;
pub mod range_lock;
mod remote;
pub mod runs;
mod status;
pub mod temporary;
mod write;

pub use node::Node;
pub use status::{Status, StatusKind};

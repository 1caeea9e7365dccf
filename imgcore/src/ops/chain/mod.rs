//! `chain`: the files below an image, what is wrong with them, and changing how they hang together.
//!
//! * [`look`] walks down as far as it gets: a file that is missing, damaged or not allowed ends the walk with
//!   the reason, instead of failing it.
//! * [`relocate`] changes the names that the images hold, nothing else.
//! * [`flatten`] takes links out of the chain by copying what they hold into the image above them.

mod flatten;
mod look;
mod relocate;
mod tree;

pub use flatten::{FlattenOptions, FlattenReport, flatten};
pub use look::{ChainLink, ChainOptions, LinkState, look};
pub use relocate::{RelocateOptions, Renamed, Rule, Style, relocate};
pub use tree::{Branch, tree};

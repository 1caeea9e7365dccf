//! From names to nodes.

use std::sync::Arc;

use super::Node;
pub use super::gate::{Policy, Trust};
pub use super::open_request::{
    BackingChoice, Depth, DetectZeroes, Discard, OpenOptions, OpenRequest, Purpose, Sharing,
};
use crate::{Error, Result};

/// Opens an image and what lies below it.
pub fn open(_request: &OpenRequest, _options: &OpenOptions) -> Result<Arc<Node>> {
    Err(Error::unsupported("not yet"))
}

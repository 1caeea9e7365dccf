//! Findings as text, JSON and JUnit XML. Pure functions from findings to a string.

mod human;
mod json;
mod junit;

pub use human::{Colour, Detail, human};
pub use json::{SCHEMA_VERSION, json};
pub use junit::junit;

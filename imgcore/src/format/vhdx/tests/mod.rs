//! Tests of the format.

mod chain;
mod hostile;
mod log;
mod model;

//! Where bytes live.

pub mod culprit;
pub mod lock;

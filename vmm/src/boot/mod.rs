//! What has to lie in memory and registers for the first instruction of a guest.
//!
//! * [`registers`]: processor states to start in.

pub mod registers;

//! Whole jobs over images.

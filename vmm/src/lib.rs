//! Not started yet: see the README for what exists today.

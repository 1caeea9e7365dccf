//! Files read from file systems that the real tools made, compared with what was put in.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_possible_truncation)]

mod btrfs;
mod ext;
mod fat;
mod hostile;
mod iso;
mod kernel;
mod maker;
mod ntfs;
mod xfs;

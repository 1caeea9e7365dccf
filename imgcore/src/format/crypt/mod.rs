//! Encryption that several formats have: LUKS headers (`luks`, qcow2) and the legacy AES of qcow and qcow2
//! ([`legacy`]).
//!
//! Specification: "LUKS1 On-Disk Format Specification" 1.2.3 and "LUKS2 On-Disk Format Specification"
//! 1.1.4 (cryptsetup project). A header works on a storage that begins with it; where the encrypted disk
//! is, is the format's business.
//!
//! * [`luks1`]: the header of version 1; [`keyslots`]: unlocking, setting and erasing key slots;
//!   [`options`]: what `create` may choose; [`amend`]: what `amend` may change.
//! * [`luks2`]: reading version 2 (its areas, JSON, key slots with PBKDF2 and Argon2).
//!
//! # Order of writes
//!
//! A key slot is set by writing its key material, then the header that marks it active; it is erased by
//! writing the header that marks it inactive, then overwriting its key material; with a barrier
//! between. A crash leaves a slot as it was, or unused. The header is longer than a sector: its second
//! sector (which holds the rest of slot 6, and slot 7) is written before the first, with a barrier.

pub mod amend;
pub mod keyslots;
mod layout;
pub mod legacy;
pub mod luks1;
pub mod luks2;
pub mod options;

pub use amend::AMEND_OPTIONS;
pub use luks1::Luks1;
pub use options::Choices;

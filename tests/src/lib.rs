//! End-to-end tests of the built programs, and the benchmark.
//!
//! * [`process`] runs one program under limits and says what it cost.
//! * [`tools`] finds the programs: ours (`RIMG`, or built on the spot) and the reference tools.
//! * [`scenario`], [`run`], [`normal`], [`images`] and [`deliberate`] are the differential suite:
//!   the same command lines given to both programs, everything a script can see compared.
//! * [`corpus`] and [`content`] are images made by other products, and their known content;
//!   [`roundtrip`] converts them there and back, [`hostile`] is for those that must be refused.
//! * [`daemon`] are servers of a test.
//! * [`installed`] puts disks with installed systems together, [`guest`] disks with file systems in use.
//! * [`arrows`] and [`licences`] read the sources: who may use whom, and on what terms.
//! * [`bench`] measures the two programs against each other, [`vmbench`] `rkvm` beside QEMU.
//!
//! The crate is for tests; it prints.

pub mod arrows;
pub mod bench;
pub mod content;
pub mod corpus;
pub mod daemon;
pub mod deliberate;
pub mod field;
pub mod guest;
pub mod hostile;
pub mod images;
pub mod installed;
pub mod licences;
pub mod normal;
pub mod process;
pub mod roundtrip;
pub mod run;
pub mod scenario;
pub mod source;
pub mod tools;
pub mod vmbench;

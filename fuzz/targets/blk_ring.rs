//! A driver of the fuzzer's choice against virtio-blk over a qcow2 overlay, through io_uring.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm::virtio::hostile::{Victim, drive};

fuzz_target!(|input: &[u8]| drive(Victim::BlkRing, input));

//! Clients of the fuzzer's choice at the human monitor and at QMP.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| vmm::control::hostile::drive(input));

//! Changed disks of the family Disk; see `imgcore::hostile::guest`.
#![no_main]

use std::sync::{Arc, LazyLock};

use imgcore::hostile::guest::{Family, Sample, drive, samples};
use libfuzzer_sys::fuzz_target;

static SAMPLES: LazyLock<Vec<Arc<Sample>>> = LazyLock::new(|| samples(Family::Disk));

fuzz_target!(|input: &[u8]| drive(&SAMPLES, input));

//! Changed disks of the family Ntfs; see `imgcore::guest::hostile`.
#![no_main]

use std::sync::{Arc, LazyLock};

use imgcore::guest::hostile::{Family, Sample, drive, samples};
use libfuzzer_sys::fuzz_target;

static SAMPLES: LazyLock<Vec<Arc<Sample>>> = LazyLock::new(|| samples(Family::Ntfs));

fuzz_target!(|input: &[u8]| drive(&SAMPLES, input));

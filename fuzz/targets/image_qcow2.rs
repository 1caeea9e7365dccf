//! Changed images of the format qcow2; see `imgcore::hostile`.
#![no_main]

use std::sync::LazyLock;

use imgcore::hostile::{Base, bases, drive};
use libfuzzer_sys::fuzz_target;

static BASES: LazyLock<Vec<Base>> = LazyLock::new(|| bases(driver()));

fn driver() -> &'static dyn imgcore::format::Driver {
    imgcore::format::driver("qcow2").expect("a driver of the library")
}

fuzz_target!(|input: &[u8]| drive(driver(), &BASES, input));

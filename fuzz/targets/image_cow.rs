//! Changed images of the format cow; see `imgcore::hostile`.
#![no_main]

use std::sync::LazyLock;

use imgcore::hostile::{Base, drive};
use libfuzzer_sys::fuzz_target;

static BASES: LazyLock<Vec<Base>> = LazyLock::new(Vec::new);

fuzz_target!(|input: &[u8]| {
    let driver = imgcore::format::driver("cow").expect("a driver of the library");
    drive(driver, &BASES, input);
});

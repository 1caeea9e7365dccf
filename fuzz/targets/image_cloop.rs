//! Changed images of the format cloop, made by other products (`testdata/`); see `imgcore::hostile`.
#![no_main]

use std::sync::LazyLock;

use imgcore::hostile::{Base, drive};
use libfuzzer_sys::fuzz_target;

static BASES: LazyLock<Vec<Base>> =
    LazyLock::new(|| vec![Base::new(include_bytes!("../../testdata/p12m-64k.cloop").to_vec())]);

fuzz_target!(|input: &[u8]| {
    let driver = imgcore::format::driver("cloop").expect("a driver of the library");
    drive(driver, &BASES, input);
});

//! Changed images of the format dmg, made by other products (`testdata/`); see `imgcore::hostile`.
#![no_main]

use std::sync::LazyLock;

use imgcore::hostile::{Base, drive};
use libfuzzer_sys::fuzz_target;

static BASES: LazyLock<Vec<Base>> = LazyLock::new(|| {
    vec![
        Base::new(include_bytes!("../../testdata/hdiutil-apfs-udbz-10M.dmg").to_vec()),
        Base::new(include_bytes!("../../testdata/hdiutil-apfs-ulfo-10M.dmg").to_vec()),
        Base::new(include_bytes!("../../testdata/hdiutil-hfsplus-udzo-4M.dmg").to_vec()),
        Base::new(include_bytes!("../../testdata/hdiutil-hfsplus-ulmo-4M.dmg").to_vec()),
        Base::new(include_bytes!("../../testdata/hdiutil-nodeudif-udco-5M.dmg").to_vec()),
    ]
});

fuzz_target!(|input: &[u8]| {
    let driver = imgcore::format::driver("dmg").expect("a driver of the library");
    drive(driver, &BASES, input);
});

//! Command lines of the fuzzer's choice: arguments are separated by line feeds.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let words: Vec<&str> = text.split('\n').collect();
    // Refused or understood: both are fine. Parsing opens no files.
    let _ = vmm::cmdline::parse(&words);
});

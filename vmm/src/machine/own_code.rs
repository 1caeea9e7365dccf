//! Memory of the monitor itself, given back once the guest runs.

#![allow(unsafe_code)]

use std::ptr::addr_of;

unsafe extern "C" {
    // Set by the linker: the program's first byte in memory, and the one after its code.
    static __executable_start: u8;
    static etext: u8;
}

/// Unmaps the pages of the program's own code and constants.
///
/// Most of them were only needed to read the command line, open disks and build the machine, and would count as this
/// process's memory for as long as the guest runs. Nothing is lost: the pages are those of the program's file, and the
/// ones that are needed again are mapped again from the page cache by the fault that finds them missing.
pub(super) fn give_back() {
    let page = 4096;
    let start = addr_of!(__executable_start) as usize & !(page - 1);
    let end = (addr_of!(etext) as usize).next_multiple_of(page);
    let Some(len) = end.checked_sub(start) else { return };
    // SAFETY: the range holds only private, never written mappings of the program's file (segments that are written
    // come after the code), so that dropped pages come back with the same bytes.
    // It is advice: a failure changes nothing, and gaps between the segments make it fail after all else is done.
    let _ = unsafe { libc::madvise(start as *mut libc::c_void, len, libc::MADV_DONTNEED) };
}

#[cfg(test)]
mod tests {
    /// KiB of this program's file that are mapped executable and resident.
    fn resident_code() -> usize {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let own = std::env::current_exe().unwrap().display().to_string();
        let mut counts = false;
        let mut sum = 0;
        for line in smaps.lines() {
            if line.split(' ').nth(1).is_some_and(|word| word.len() == 4) {
                counts = line.contains(" r-xp ") && line.ends_with(&own);
            } else if let Some(rest) = line.strip_prefix("Rss:").filter(|_| counts) {
                sum += rest.trim().trim_end_matches(" kB").parse::<usize>().unwrap();
            }
        }
        sum
    }

    #[test]
    fn code_comes_back_when_it_is_needed() {
        let before = resident_code();
        super::give_back();
        let after = resident_code();
        assert!(before > 0 && after > 0 && after <= before, "{before} KiB, then {after} KiB");
        // All of this is code that has to come back.
        let text = format!("{:?}", (0..100).map(f64::from).map(f64::sqrt).collect::<Vec<_>>());
        assert!(text.contains("9.9498"), "{text}");
    }
}

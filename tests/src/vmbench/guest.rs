//! In the guest: reads of a disk, without the guest's page cache, one at a time.

use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Instant;

const PAGE: usize = 4096;
const MEBIBYTE: usize = 1 << 20;
const RANDOM_READS: u32 = 2000;

/// Reads 4 KiB at random places, then all of the disk in steps of 1 MiB; prints `FIGURE name value` lines.
///
/// # Errors
/// A sentence when the disk cannot be read.
pub fn run(disk: &str) -> Result<(), String> {
    let said = |e: std::io::Error| format!("{disk}: {e}");
    let mut file =
        OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(disk).map_err(said)?;
    let len = file.seek(SeekFrom::End(0)).map_err(said)?;
    // O_DIRECT wants an aligned buffer: the aligned part of a larger one.
    let mut memory = vec![0u8; MEBIBYTE + PAGE];
    let skip = memory.as_ptr().align_offset(PAGE);
    let buffer = &mut memory[skip..skip + MEBIBYTE];
    let mut x = 88_172_645_463_325_252u64;
    let began = Instant::now();
    for _ in 0..RANDOM_READS {
        // Marsaglia's xorshift: the same places every time.
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        let at = x % (len / PAGE as u64) * PAGE as u64;
        file.read_exact_at(&mut buffer[..PAGE], at).map_err(said)?;
    }
    println!("FIGURE random {:.0}", f64::from(RANDOM_READS) / began.elapsed().as_secs_f64());
    let began = Instant::now();
    let mut megabytes = 0.0;
    for at in (0..len).step_by(MEBIBYTE) {
        file.read_exact_at(buffer, at).map_err(said)?;
        megabytes += MEBIBYTE as f64 / 1e6;
    }
    println!("FIGURE sequential {:.0}", megabytes / began.elapsed().as_secs_f64());
    Ok(())
}

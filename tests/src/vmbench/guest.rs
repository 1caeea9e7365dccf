//! In the guest: reads and writes of a disk, without the guest's page cache, one at a time.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Instant;

const PAGE: usize = 4096;
const MEBIBYTE: usize = 1 << 20;
const RANDOM: u32 = 2000;
/// Lines that [`run`] prints.
pub const FIGURES: usize = 4;

#[derive(Clone, Copy)]
enum Way {
    Read,
    Write,
}

impl Way {
    const BOTH: [(Way, &str); 2] = [(Way::Read, ""), (Way::Write, "-write")];

    fn go(self, file: &File, buffer: &mut [u8], at: u64) -> std::io::Result<()> {
        match self {
            Way::Read => file.read_exact_at(buffer, at),
            Way::Write => file.write_all_at(buffer, at),
        }
    }
}

/// Reads and writes that the disk has completed, as the kernel counts them.
fn requests(disk: &str) -> String {
    let name = disk.rsplit('/').next().unwrap_or(disk);
    let stat = std::fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.split_whitespace().collect();
    format!("{} reads, {} writes", fields.first().unwrap_or(&"?"), fields.get(4).unwrap_or(&"?"))
}

/// Moves 4 KiB at random places, then all of the disk in steps of 1 MiB, first reading, then writing; prints
/// `FIGURE name value` lines.
///
/// # Errors
/// A sentence when the disk cannot be read or written.
pub fn run(disk: &str) -> Result<(), String> {
    let said = |e: std::io::Error| format!("{disk}: {e}");
    let mut how = OpenOptions::new();
    how.read(true).write(true).custom_flags(libc::O_DIRECT);
    let mut file = how.open(disk).map_err(said)?;
    let len = file.seek(SeekFrom::End(0)).map_err(said)?;
    // O_DIRECT wants an aligned buffer: the aligned part of a larger one.
    let mut memory = vec![0x5au8; MEBIBYTE + PAGE];
    let skip = memory.as_ptr().align_offset(PAGE);
    let buffer = &mut memory[skip..skip + MEBIBYTE];
    for (way, name) in Way::BOTH {
        let mut x = 88_172_645_463_325_252u64;
        let began = Instant::now();
        for _ in 0..RANDOM {
            // Marsaglia's xorshift: the same places every time.
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            let at = x % (len / PAGE as u64) * PAGE as u64;
            way.go(&file, &mut buffer[..PAGE], at).map_err(said)?;
        }
        let rate = f64::from(RANDOM) / began.elapsed().as_secs_f64();
        println!("FIGURE random{name} {rate:.0}");
        let began = Instant::now();
        let mut megabytes = 0.0;
        for at in (0..len).step_by(MEBIBYTE) {
            way.go(&file, buffer, at).map_err(said)?;
            megabytes += MEBIBYTE as f64 / 1e6;
        }
        println!("FIGURE sequential{name} {:.0}", megabytes / began.elapsed().as_secs_f64());
        // How the guest's kernel cut them, which depends on where its pages lie.
        println!("NOTE requests so far: {}", requests(disk));
    }
    Ok(())
}

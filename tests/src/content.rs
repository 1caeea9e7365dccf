//! The bytes of raw files: their hash, and whether two are the same, without reading holes twice.

use nix::unistd::{Whence, lseek};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

const CHUNK: usize = 256 << 10;

/// SHA-256 of a file, in hexadecimal.
///
/// # Errors
/// When it cannot be read.
pub fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path).map_err(|e| named(path, &e))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Offset of the first difference of two files, or none. A longer file differs at the shorter one's end.
///
/// # Errors
/// When one cannot be read.
pub fn first_difference(left: &Path, right: &Path) -> io::Result<Option<u64>> {
    let open = |path: &Path| File::open(path).map_err(|e| named(path, &e));
    let (a, b) = (open(left)?, open(right)?);
    let (a_size, b_size) = (a.metadata()?.len(), b.metadata()?.len());
    let size = a_size.min(b_size);
    let (mut x, mut y) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut at = 0;
    loop {
        // Where both are holes both are zero.
        at = next_data(&a, at, size).min(next_data(&b, at, size));
        if at >= size {
            return Ok((a_size != b_size).then_some(size));
        }
        let left_over = usize::try_from(size - at).unwrap_or(CHUNK);
        let n = CHUNK.min(left_over);
        a.read_exact_at(&mut x[..n], at)?;
        b.read_exact_at(&mut y[..n], at)?;
        if x[..n] != y[..n] {
            let first = x[..n].iter().zip(&y[..n]).take_while(|(p, q)| p == q).count();
            return Ok(Some(at + u64::try_from(first).unwrap_or(0)));
        }
        at += u64::try_from(n).unwrap_or(u64::MAX);
    }
}

/// Start of the first data at or behind `at`; `end` when there are none.
fn next_data(file: &File, at: u64, end: u64) -> u64 {
    let Ok(from) = i64::try_from(at) else { return end };
    match lseek(file, from, Whence::SeekData) {
        Ok(found) => u64::try_from(found).unwrap_or(at).min(end),
        Err(nix::errno::Errno::ENXIO) => end,
        // No holes known on this file system: all is data.
        Err(_) => at,
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_first_difference_across_holes() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        for path in [&a, &b] {
            File::create(path).unwrap().set_len(8 << 20).unwrap();
        }
        assert_eq!(first_difference(&a, &b).unwrap(), None);
        let file = std::fs::OpenOptions::new().write(true).open(&b).unwrap();
        file.write_all_at(&[0; 4096], 1 << 20).unwrap();
        assert_eq!(first_difference(&a, &b).unwrap(), None);
        file.write_all_at(&[7], (5 << 20) + 3).unwrap();
        assert_eq!(first_difference(&a, &b).unwrap(), Some((5 << 20) + 3));
        file.set_len(9 << 20).unwrap();
        assert_eq!(first_difference(&a, &a).unwrap(), None);
    }

    #[test]
    fn hashes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, "abc").unwrap();
        let hash = sha256(&path).unwrap();
        assert!(hash.starts_with("ba7816bf8f01cfea414140de5dae2223"));
    }
}

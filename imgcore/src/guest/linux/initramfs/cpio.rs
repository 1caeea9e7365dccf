//! One cpio archive in the `newc` form: headers of 110 hexadecimal characters.

use std::io::{Error, ErrorKind, Read, Result};

const HEADER: usize = 110;
/// Linux's `PATH_MAX`.
const MAX_NAME: usize = 4096;
/// Content that is handed out.
const MAX_KEPT: u64 = 1 << 20;
/// Files of one archive: each costs a header, so time is bounded by size already; this bounds names.
const MAX_FILES: u64 = 1_000_000;

/// Gives each name to `take`, and the content of those for which it says `true`. Ends after the trailer.
pub(super) fn read(
    stream: &mut dyn Read,
    take: &mut dyn FnMut(&str, Option<&[u8]>) -> bool,
) -> Result<()> {
    for _ in 0..MAX_FILES {
        let mut header = [0; HEADER];
        stream.read_exact(&mut header)?;
        if !header.starts_with(b"070701") && !header.starts_with(b"070702") {
            return Err(bad("an entry of the archive has no header"));
        }
        // c_mode, c_filesize and c_namesize; each field has eight digits.
        let (mode, size) = (number(&header, 1)?, number(&header, 6)?);
        let name_len = usize::try_from(number(&header, 11)?).unwrap_or(usize::MAX);
        if name_len == 0 || name_len > MAX_NAME {
            return Err(bad("an entry of the archive has a name of an impossible length"));
        }
        let mut name = vec![0; name_len];
        stream.read_exact(&mut name)?;
        skip(stream, padding(HEADER + name_len))?;
        let end = name.iter().position(|b| *b == 0).unwrap_or(name_len);
        let name = String::from_utf8_lossy(&name[..end]);
        if name == "TRAILER!!!" {
            return Ok(());
        }
        let regular = mode & 0xf000 == 0x8000;
        let wanted = take(&name, None) && regular;
        if wanted && size <= MAX_KEPT {
            let mut content = vec![0; usize::try_from(size).unwrap_or(0)];
            stream.read_exact(&mut content)?;
            take(&name, Some(&content));
        } else {
            skip(stream, size)?;
        }
        skip(stream, (4 - size % 4) % 4)?;
    }
    Err(bad("the archive has no end"))
}

fn padding(len: usize) -> u64 {
    ((4 - len % 4) % 4) as u64
}

fn number(header: &[u8; HEADER], field: usize) -> Result<u64> {
    let digits = &header[6 + 8 * field..14 + 8 * field];
    let text = std::str::from_utf8(digits).map_err(|_| bad("a header has no number"))?;
    u64::from_str_radix(text, 16).map_err(|_| bad("a header has no number"))
}

fn skip(stream: &mut dyn Read, len: u64) -> Result<()> {
    let n = std::io::copy(&mut stream.take(len), &mut std::io::sink())?;
    if n == len { Ok(()) } else { Err(Error::new(ErrorKind::UnexpectedEof, "it is cut off")) }
}

fn bad(text: &str) -> Error {
    Error::new(ErrorKind::InvalidData, text)
}

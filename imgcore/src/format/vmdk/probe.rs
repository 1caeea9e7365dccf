//! Recognising the format by its first bytes, with QEMU's scores.

use super::layout::{MAGIC_COWD, MAGIC_KDMV};

/// 100 for an extent's magic number or a text that begins like a descriptor, 0 otherwise.
pub(super) fn probe(head: &[u8]) -> u32 {
    let Some(&magic) = head.first_chunk::<4>() else { return 0 };
    let magic = u32::from_le_bytes(magic);
    if magic == MAGIC_COWD || magic == MAGIC_KDMV || is_descriptor(head) { 100 } else { 0 }
}

/// The first line that is neither blank nor a comment must say `version=1` (or 2, or 3).
fn is_descriptor(head: &[u8]) -> bool {
    for line in head.split_inclusive(|&b| b == b'\n') {
        if line.first() == Some(&b'#') {
            if line.last() != Some(&b'\n') {
                return false;
            }
            continue;
        }
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        if text.iter().all(|&b| b == b' ') {
            continue;
        }
        let ended = line.last() == Some(&b'\n');
        return ended && matches!(text, b"version=1" | b"version=2" | b"version=3");
    }
    false
}

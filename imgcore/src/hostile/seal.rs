//! Checksums made right again after bytes were changed, so that a fuzzer gets past them.

/// Seals what the format seals.
pub(super) fn seal(format: &str, bytes: &mut [u8]) {
    match format {
        "vpc" => vpc(bytes),
        "vhdx" => vhdx(bytes),
        _ => (),
    }
}

/// The footer at the end, its copy in front, and the dynamic header (Virtual Hard Disk Image Format
/// Specification 1.0): the complement of the sum of all bytes but the field.
fn vpc(bytes: &mut [u8]) {
    let len = bytes.len();
    if len < 512 {
        return;
    }
    ones_complement(&mut bytes[len - 512..], 64);
    if len >= 512 + 1024 + 512 {
        ones_complement(&mut bytes[..512], 64);
        ones_complement(&mut bytes[512..512 + 1024], 36);
    }
}

fn ones_complement(bytes: &mut [u8], field: usize) {
    bytes[field..field + 4].fill(0);
    let sum: u32 = bytes.iter().map(|&b| u32::from(b)).sum();
    bytes[field..field + 4].copy_from_slice(&(!sum).to_be_bytes());
}

/// Both headers and both region tables (\[MS-VHDX\] 2.2): CRC-32C with the field zero.
fn vhdx(bytes: &mut [u8]) {
    const KIB: usize = 1 << 10;
    for (at, len) in
        [(64 * KIB, 4 * KIB), (128 * KIB, 4 * KIB), (192 * KIB, 64 * KIB), (256 * KIB, 64 * KIB)]
    {
        if let Some(part) = bytes.get_mut(at..at + len) {
            part[4..8].fill(0);
            let crc = crc32c::crc32c(part);
            part[4..8].copy_from_slice(&crc.to_le_bytes());
        }
    }
}

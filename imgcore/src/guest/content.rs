//! What a volume holds, by signature.
//!
//! [`probe`] gives everything whose signature is there: a volume that was formatted twice can have two, and
//! whoever means to change something must not guess. The places are those of each format's own
//! description, as `libblkid` looks for them, too.

use super::parts::lvm;
use super::volume::Volume;
use crate::Result;
use crate::num::{len_u64, round_down};

/// A kind of content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Content {
    /// ext2, ext3, ext4.
    Ext,
    /// XFS.
    Xfs,
    /// btrfs.
    Btrfs,
    /// NTFS.
    Ntfs,
    /// FAT12, FAT16, FAT32.
    Fat,
    /// exFAT.
    ExFat,
    /// ReFS.
    Refs,
    /// Linux swap space.
    Swap,
    /// Linux swap space in which a hibernated system is stored.
    Hibernation,
    /// LVM2 physical volume.
    LvmPhysical,
    /// LUKS 1 or 2.
    Luks,
    /// BitLocker.
    BitLocker,
    /// Member of a Linux MD array.
    MdMember,
    /// ISO 9660.
    Iso9660,
    /// UDF.
    Udf,
    /// SquashFS.
    Squashfs,
    /// EROFS.
    Erofs,
    /// F2FS.
    F2fs,
    /// JFS.
    Jfs,
    /// ReiserFS.
    ReiserFs,
    /// HFS+ or HFSX.
    HfsPlus,
    /// APFS.
    Apfs,
    /// Member of a ZFS pool.
    Zfs,
    /// VMware VMFS.
    Vmfs,
    /// FreeBSD UFS.
    Ufs,
    /// bcache.
    Bcache,
}

impl Content {
    /// A short name as tools print it.
    pub fn name(self) -> &'static str {
        match self {
            Content::Ext => "ext",
            Content::Xfs => "xfs",
            Content::Btrfs => "btrfs",
            Content::Ntfs => "ntfs",
            Content::Fat => "fat",
            Content::ExFat => "exfat",
            Content::Refs => "refs",
            Content::Swap => "swap",
            Content::Hibernation => "hibernation",
            Content::LvmPhysical => "lvm2",
            Content::Luks => "luks",
            Content::BitLocker => "bitlocker",
            Content::MdMember => "linux_raid",
            Content::Iso9660 => "iso9660",
            Content::Udf => "udf",
            Content::Squashfs => "squashfs",
            Content::Erofs => "erofs",
            Content::F2fs => "f2fs",
            Content::Jfs => "jfs",
            Content::ReiserFs => "reiserfs",
            Content::HfsPlus => "hfsplus",
            Content::Apfs => "apfs",
            Content::Zfs => "zfs",
            Content::Vmfs => "vmfs",
            Content::Ufs => "ufs",
            Content::Bcache => "bcache",
        }
    }

    /// A phrase with an article.
    pub fn describe(self) -> &'static str {
        match self {
            Content::Ext => "an ext2, ext3 or ext4 file system",
            Content::Xfs => "an XFS file system",
            Content::Btrfs => "a btrfs file system",
            Content::Ntfs => "an NTFS file system",
            Content::Fat => "a FAT file system",
            Content::ExFat => "an exFAT file system",
            Content::Refs => "a ReFS file system",
            Content::Swap => "a Linux swap space",
            Content::Hibernation => "a hibernated Linux system",
            Content::LvmPhysical => "an LVM physical volume",
            Content::Luks => "a LUKS volume",
            Content::BitLocker => "a BitLocker volume",
            Content::MdMember => "a member of a Linux RAID array",
            Content::Iso9660 => "an ISO 9660 file system",
            Content::Udf => "a UDF file system",
            Content::Squashfs => "a SquashFS file system",
            Content::Erofs => "an EROFS file system",
            Content::F2fs => "an F2FS file system",
            Content::Jfs => "a JFS file system",
            Content::ReiserFs => "a ReiserFS file system",
            Content::HfsPlus => "an HFS+ file system",
            Content::Apfs => "an APFS container",
            Content::Zfs => "a member of a ZFS pool",
            Content::Vmfs => "a VMFS volume",
            Content::Ufs => "a UFS file system",
            Content::Bcache => "a bcache device",
        }
    }
}

/// Signatures at one place: offset, bytes, content.
const SIGNATURES: &[(u64, &[u8], Content)] = &[
    (1024 + 56, &[0x53, 0xef], Content::Ext),
    (0, b"XFSB", Content::Xfs),
    (0x1_0040, b"_BHRfS_M", Content::Btrfs),
    (3, b"NTFS    ", Content::Ntfs),
    (3, b"EXFAT   ", Content::ExFat),
    (3, b"ReFS\0\0\0\0", Content::Refs),
    (3, b"-FVE-FS-", Content::BitLocker),
    (0, b"LUKS\xba\xbe", Content::Luks),
    (0x8001, b"CD001", Content::Iso9660),
    (0x8801, b"NSR0", Content::Udf),
    (0x9001, b"NSR0", Content::Udf),
    (0, b"hsqs", Content::Squashfs),
    (1024, &[0xe2, 0xe1, 0xf5, 0xe0], Content::Erofs),
    (1024, &[0x10, 0x20, 0xf5, 0xf2], Content::F2fs),
    (0x8000, b"JFS1", Content::Jfs),
    (0x1_0034, b"ReIsEr", Content::ReiserFs),
    (1024, b"H+\0\x04", Content::HfsPlus),
    (1024, b"HX\0\x05", Content::HfsPlus),
    (32, b"NXSB", Content::Apfs),
    (0x10_0000, &[0x0d, 0xd0, 0x01, 0xc0], Content::Vmfs),
    (0x10_0000, &[0x5e, 0xf1, 0xab, 0x2f], Content::Vmfs),
    // Superblocks of UFS1 at 8 KiB and UFS2 at 64 KiB; the magic is at 0x55c.
    (0x2000 + 0x55c, &[0x54, 0x19, 0x01, 0x00], Content::Ufs),
    (0x1_0000 + 0x55c, &[0x19, 0x01, 0x54, 0x19], Content::Ufs),
    (4096, &MD_MAGIC, Content::MdMember),
    (0, &MD_MAGIC, Content::MdMember),
    (4096 + 24, &BCACHE_MAGIC, Content::Bcache),
];

const MD_MAGIC: [u8; 4] = [0xfc, 0x4e, 0x2b, 0xa9];
const BCACHE_MAGIC: [u8; 16] = [
    0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81,
];
/// Sizes of memory pages in the systems that write swap spaces: the signature ends the first page.
pub(crate) const PAGE_SIZES: [u64; 5] = [4096, 8192, 16384, 32768, 65536];
/// What stands in the place of a swap signature while a system is hibernated.
const HIBERNATED: [&[u8]; 5] =
    [b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001", b"\xed\xc3\x02\xe9\x98\x56\xe5\x0c"];

/// Everything whose signature is found, without repetition.
///
/// # Errors
/// When the volume cannot be read.
pub fn probe(volume: &Volume) -> Result<Vec<Content>> {
    let mut found = Vec::new();
    let mut add = |content: Content| {
        if !found.contains(&content) {
            found.push(content);
        }
    };
    for (at, magic, content) in SIGNATURES {
        if starts_with(volume, *at, magic)? {
            add(*content);
        }
    }
    if lvm::is_physical(volume)? {
        add(Content::LvmPhysical);
    }
    if is_fat(volume)? {
        add(Content::Fat);
    }
    for page in PAGE_SIZES {
        let at = page - 10;
        if starts_with(volume, at, b"SWAPSPACE2")? || starts_with(volume, at, b"SWAP-SPACE")? {
            add(Content::Swap);
        }
        for magic in HIBERNATED {
            if starts_with(volume, at, magic)? {
                add(Content::Hibernation);
            }
        }
    }
    if md_at_end(volume)? {
        add(Content::MdMember);
    }
    if is_zfs(volume)? {
        add(Content::Zfs);
    }
    Ok(found)
}

/// Whether these bytes are there.
fn starts_with(volume: &Volume, at: u64, magic: &[u8]) -> Result<bool> {
    if at.checked_add(len_u64(magic.len())).is_none_or(|end| end > volume.len()) {
        return Ok(false);
    }
    Ok(volume.read(at, len_u64(magic.len()))? == magic)
}

/// A boot sector with a sound BIOS parameter block (Microsoft, *FAT: General Overview of On-Disk Format*).
fn is_fat(volume: &Volume) -> Result<bool> {
    if volume.len() < 512 {
        return Ok(false);
    }
    let b = volume.read(0, 512)?;
    let [jump, oem, sector_lo, sector_hi, cluster, reserved_lo, reserved_hi, fats, media] =
        [0, 3, 11, 12, 13, 14, 15, 16, 21].map(|i| b.get(i).copied().unwrap_or(0));
    let sector = u16::from_le_bytes([sector_lo, sector_hi]);
    Ok(b.ends_with(&[0x55, 0xaa])
        && matches!(jump, 0xeb | 0xe9)
        && (oem != 0 || fats != 0)
        && matches!(sector, 512 | 1024 | 2048 | 4096)
        && cluster.is_power_of_two()
        && (reserved_lo, reserved_hi) != (0, 0)
        && matches!(fats, 1 | 2)
        && media >= 0xf0)
}

/// MD superblocks of versions 0.90 (64 KiB before the end, at a multiple of it) and 1.0 (8 KiB before the
/// end, at a multiple of 4 KiB).
fn md_at_end(volume: &Volume) -> Result<bool> {
    let len = volume.len();
    let old = round_down(len, 65536).checked_sub(65536);
    let new = len.checked_sub(8192).map(|at| round_down(at, 4096));
    for at in [old, new].into_iter().flatten() {
        if starts_with(volume, at, &MD_MAGIC)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// An uberblock in the first label of a ZFS pool's member, either byte order.
fn is_zfs(volume: &Volume) -> Result<bool> {
    const LABEL: u64 = 256 << 10;
    if volume.len() < LABEL {
        return Ok(false);
    }
    let ring = volume.read(LABEL / 2, LABEL / 2)?;
    let magic: [[u8; 8]; 2] =
        [[0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0xba, 0xb1, 0x0c]];
    Ok(ring.chunks_exact(1024).any(|block| magic.iter().any(|m| block.starts_with(m))))
}

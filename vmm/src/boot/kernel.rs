//! Kernels, initial ramdisks and command lines: from files into guest memory.
//!
//! Headers are hostile: every length is checked against the file and the guest's memory before anything is copied.

use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress};

use super::source::Source;
use super::{CMDLINE, CMDLINE_MAX};
use crate::mem::{Memory, layout};
use crate::num::{get_le, index, len_u64};
use crate::{Error, Result};

/// What to boot, as plain data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelConfig {
    /// The kernel: bzImage or ELF.
    pub kernel: PathBuf,
    /// Initial ramdisks, one after the other.
    pub initrds: Vec<PathBuf>,
    /// Command line.
    pub append: String,
}

/// How a loaded kernel wants to be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Linux' 64-bit entry.
    Linux64,
    /// Linux' 32-bit entry (old kernels).
    Linux32,
    /// The entry of the PVH note.
    Pvh,
}

/// A kernel in guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// How to enter it.
    pub protocol: Protocol,
    /// First instruction.
    pub entry: u64,
    /// Linux' setup header (from offset 0x1f1 of the file on), for bzImages.
    pub setup_header: Vec<u8>,
    /// Highest address of an initial ramdisk's last byte.
    pub initrd_max: u64,
    /// First address behind the kernel, with the memory it needs to unpack itself.
    pub end: u64,
}

/// Initial ramdisks in guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Initrd {
    /// Where.
    pub address: u64,
    /// Bytes.
    pub len: u64,
}

/// A kernel and its ramdisks, open.
pub struct Files {
    kernel: Source,
    initrds: Vec<Source>,
}

impl Files {
    /// Opens them.
    ///
    /// # Errors
    /// Names the one that cannot be opened or is no file.
    pub fn open(kernel: &Path, initrds: &[PathBuf]) -> Result<Self> {
        let kernel = Source::open(kernel, "kernel")?;
        let initrds = initrds.iter().map(|path| Source::open(path, "initrd"));
        Ok(Files { kernel, initrds: initrds.collect::<Result<_>>()? })
    }

    /// Loads the kernel.
    ///
    /// # Errors
    /// When it is none that can be started here, or does not fit.
    pub fn load_kernel(&mut self, memory: &Memory) -> Result<Loaded> {
        load(memory, &mut self.kernel)
    }

    /// Puts the ramdisks one after the other (each at a multiple of four, as the kernel's unpacker wants
    /// archives) as high as possible, so that an unpacking kernel is not in the way.
    ///
    /// # Errors
    /// When they do not fit.
    pub fn load_initrds(&mut self, memory: &Memory, size: u64, kernel: &Loaded) -> Result<Initrd> {
        load_initrds(memory, size, kernel, &mut self.initrds)
    }
}

fn load(memory: &Memory, source: &mut Source) -> Result<Loaded> {
    if source.len < 64 {
        return Err(source.corrupt(0, "too short to be a kernel"));
    }
    let magic = source.bytes(0, 4)?;
    if magic == b"\x7fELF" {
        return elf(memory, source);
    }
    if source.len > 0x300 && source.bytes(0x202, 4)? == b"HdrS" {
        return bzimage(memory, source);
    }
    Err(Error::unsupported(format!("'{}' is neither a bzImage nor an ELF kernel", source.path))
        .at_path(&source.path)
        .hint("Linux builds arch/x86/boot/bzImage and vmlinux; compressed ELF files must be unpacked first"))
}

/// The Linux/x86 boot protocol, Documentation/arch/x86/boot.rst.
fn bzimage(memory: &Memory, source: &mut Source) -> Result<Loaded> {
    // The header's length is in its jump instruction at 0x200.
    let jump = source.bytes(0x201, 1)?;
    let header_end = (0x202 + usize::from(jump[0])).clamp(0x206, 0x290);
    let header = source.bytes(0x1f1, header_end - 0x1f1)?;
    let field = |offset: usize, len: usize| {
        let at = offset - 0x1f1;
        header.get(at..at + len).map_or(0, get_le)
    };
    let version = field(0x206, 2);
    if version < 0x200 || field(0x211, 1) & 1 == 0 {
        return Err(Error::unsupported(format!(
            "'{}' is a zImage; boot protocol {}.{:02} is too old",
            source.path,
            version >> 8,
            version & 0xff
        ))
        .at_path(&source.path)
        .hint("Build it as bzImage"));
    }
    let sectors = match field(0x1f1, 1) {
        0 => 4,
        n => n,
    };
    let start = (sectors + 1) * 512;
    let len = source
        .len
        .checked_sub(start)
        .filter(|l| *l > 0)
        .ok_or_else(|| source.corrupt(0x1f1, "ends within its setup code"))?;
    let to = field(0x214, 4);
    let to = if to == 0 { 0x10_0000 } else { to };
    let unpacked = if version >= 0x20a { field(0x260, 4) } else { len.saturating_mul(4) };
    source.load(memory, start, len, to)?;
    let wide = version >= 0x20c && field(0x236, 2) & 1 != 0;
    let (protocol, entry) =
        if wide { (Protocol::Linux64, to + 0x200) } else { (Protocol::Linux32, to) };
    let initrd_max = if version >= 0x203 { field(0x22c, 4) } else { 0x37ff_ffff };
    Ok(Loaded { protocol, entry, setup_header: header, initrd_max, end: to + unpacked.max(len) })
}

/// ELF: loads all PT_LOAD segments at their physical addresses; the PVH note gives the entry.
fn elf(memory: &Memory, source: &mut Source) -> Result<Loaded> {
    let ident = source.bytes(0, 64)?;
    let wide = match ident[4] {
        1 => false,
        2 => true,
        _ => return Err(source.corrupt(4, "unknown ELF class")),
    };
    if ident[5] != 1 {
        return Err(source.corrupt(5, "big-endian ELF"));
    }
    let (machine, phoff, phentsize, phnum) = if wide {
        (
            get_le(&ident[18..20]),
            get_le(&ident[32..40]),
            get_le(&ident[54..56]),
            get_le(&ident[56..58]),
        )
    } else {
        (
            get_le(&ident[18..20]),
            get_le(&ident[28..32]),
            get_le(&ident[42..44]),
            get_le(&ident[44..46]),
        )
    };
    if machine != 62 && machine != 3 {
        return Err(Error::unsupported(format!(
            "'{}' is for another processor (ELF machine {machine})",
            source.path
        ))
        .at_path(&source.path));
    }
    let least = if wide { 56 } else { 32 };
    if phentsize < least || phnum == 0 {
        return Err(source.corrupt(42, "no program headers"));
    }
    let mut end = 0;
    let mut pvh = None;
    for i in 0..phnum {
        let at = phoff
            .checked_add(i * phentsize)
            .ok_or_else(|| source.corrupt(32, "program headers beyond the end"))?;
        let h = source.bytes(at, index(least))?;
        let (kind, offset, physical, file_len, memory_len) = if wide {
            (
                get_le(&h[0..4]),
                get_le(&h[8..16]),
                get_le(&h[24..32]),
                get_le(&h[32..40]),
                get_le(&h[40..48]),
            )
        } else {
            (
                get_le(&h[0..4]),
                get_le(&h[4..8]),
                get_le(&h[12..16]),
                get_le(&h[16..20]),
                get_le(&h[20..24]),
            )
        };
        match kind {
            // PT_LOAD
            1 if file_len > 0 => {
                source.load(memory, offset, file_len, physical)?;
                end = end.max(physical.saturating_add(memory_len));
            }
            // PT_NOTE
            4 if pvh.is_none() && file_len <= 1 << 20 => {
                pvh = pvh_entry(&source.bytes(offset, index(file_len))?);
            }
            _ => {}
        }
    }
    let entry = pvh.ok_or_else(|| {
        Error::unsupported(format!("'{}' has no PVH note (XEN_ELFNOTE_PHYS32_ENTRY)", source.path))
            .at_path(&source.path)
            .hint("Build Linux with CONFIG_PVH=y, or boot its bzImage")
    })?;
    Ok(Loaded {
        protocol: Protocol::Pvh,
        entry,
        setup_header: Vec::new(),
        initrd_max: u64::from(u32::MAX),
        end,
    })
}

/// Name "Xen", type 18.
fn pvh_entry(notes: &[u8]) -> Option<u64> {
    let mut rest = notes;
    while rest.len() >= 12 {
        let word = |i: usize| index(get_le(&rest[4 * i..4 * i + 4]));
        let (name_len, desc_len, kind) = (word(0), word(1), word(2));
        let padded = |n: usize| n.checked_next_multiple_of(4);
        let desc_at = 12usize.checked_add(padded(name_len)?)?;
        let next = desc_at.checked_add(padded(desc_len)?)?;
        let name = rest.get(12..12usize.checked_add(name_len)?)?;
        let desc = rest.get(desc_at..desc_at.checked_add(desc_len)?)?;
        if kind == 18 && name.starts_with(b"Xen") && (desc_len == 4 || desc_len == 8) {
            return Some(get_le(desc));
        }
        rest = rest.get(next..)?;
    }
    None
}

fn load_initrds(
    memory: &Memory,
    size: u64,
    kernel: &Loaded,
    sources: &mut [Source],
) -> Result<Initrd> {
    let add = |total, source: &Source| crate::num::align_up(total, 4).saturating_add(source.len);
    let total = sources.iter().fold(0, add);
    if total == 0 {
        return Ok(Initrd::default());
    }
    let low_end = size.min(layout::LOW_END);
    let top = low_end.min(kernel.initrd_max.saturating_add(1));
    let address = top.checked_sub(total).map(|a| a & !0xfff).filter(|a| *a >= kernel.end);
    let address = address.ok_or_else(|| {
        Error::invalid(format!(
            "initrd of {} KiB does not fit between the kernel's end at {:#x} and {top:#x}",
            total.div_ceil(1024),
            kernel.end
        ))
        .hint("Give the guest more memory (-m)")
    })?;
    let mut at = address;
    for source in sources {
        at = crate::num::align_up(at, 4);
        let len = source.len;
        source.load(memory, 0, len, at)?;
        at += len;
    }
    Ok(Initrd { address, len: total })
}

/// Writes the command line with its final zero; returns its length without.
pub fn write_cmdline(memory: &Memory, text: &str) -> Result<usize> {
    if text.len() >= CMDLINE_MAX || text.contains('\0') {
        return Err(Error::invalid(format!(
            "kernel command line of {} bytes: at most {} and no zero byte are possible",
            text.len(),
            CMDLINE_MAX - 1
        )));
    }
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    put(memory, CMDLINE, &bytes)?;
    Ok(text.len())
}

/// Writes a table to guest memory.
pub(super) fn put(memory: &Memory, at: u64, bytes: &[u8]) -> Result<()> {
    memory.write_slice(bytes, GuestAddress(at)).map_err(|e| {
        Error::invalid(format!(
            "{} bytes at {at:#x} are outside guest memory: {e}",
            len_u64(bytes.len())
        ))
        .hint("Give the guest more memory (-m)")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{Backend, MemoryConfig, build};

    fn memory() -> Memory {
        build(&MemoryConfig::simple(8 << 20, Backend::default())).unwrap()
    }

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let f = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(f.path(), bytes).unwrap();
        f
    }

    /// A bzImage with one setup sector and `payload`.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut b = vec![0; 1024];
        b[0x1f1] = 1;
        b[0x200] = 0xeb;
        b[0x201] = 0x6a;
        b[0x202..0x206].copy_from_slice(b"HdrS");
        b[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        b[0x211] = 1;
        b[0x214..0x218].copy_from_slice(&0x10_0000u32.to_le_bytes());
        b[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
        b[0x236] = 1;
        b[0x260..0x264].copy_from_slice(&0x20_0000u32.to_le_bytes());
        b.extend_from_slice(payload);
        b
    }

    fn elf_image(notes: &[u8], physical: u64) -> Vec<u8> {
        let mut b = vec![0; 64 + 2 * 56];
        b[..6].copy_from_slice(b"\x7fELF\x02\x01");
        b[18] = 62;
        b[32] = 64;
        b[54] = 56;
        b[56] = 2;
        let data = b.len() as u64;
        let header = |kind: u32, offset: u64, len: u64| {
            let mut h = vec![0; 56];
            h[..4].copy_from_slice(&kind.to_le_bytes());
            h[8..16].copy_from_slice(&offset.to_le_bytes());
            h[24..32].copy_from_slice(&physical.to_le_bytes());
            h[32..40].copy_from_slice(&len.to_le_bytes());
            h[40..48].copy_from_slice(&(len * 2).to_le_bytes());
            h
        };
        let load = header(1, data, 4);
        let note = header(4, data + 4, notes.len() as u64);
        b[64..120].copy_from_slice(&load);
        b[120..176].copy_from_slice(&note);
        b.extend_from_slice(b"code");
        b.extend_from_slice(notes);
        b
    }

    fn note(entry: u32) -> Vec<u8> {
        let mut n = Vec::new();
        for w in [4u32, 4, 18] {
            n.extend_from_slice(&w.to_le_bytes());
        }
        n.extend_from_slice(b"Xen\0");
        n.extend_from_slice(&entry.to_le_bytes());
        n
    }

    fn load_file(memory: &Memory, path: &Path) -> Result<Loaded> {
        Files::open(path, &[])?.load_kernel(memory)
    }

    #[test]
    fn bzimage_is_loaded_and_entered_in_64_bit_mode() {
        let m = memory();
        let k = load_file(&m, file(&image(b"payload")).path()).unwrap();
        assert_eq!((k.protocol, k.entry, k.end), (Protocol::Linux64, 0x10_0200, 0x30_0000));
        let mut b = [0; 7];
        m.read_slice(&mut b, GuestAddress(0x10_0000)).unwrap();
        assert_eq!(&b, b"payload");
        let mut old = image(b"payload");
        old[0x206..0x208].copy_from_slice(&0x204u16.to_le_bytes());
        assert_eq!(load_file(&m, file(&old).path()).unwrap().protocol, Protocol::Linux32);
    }

    #[test]
    fn elf_with_note_is_entered_there() {
        let m = memory();
        let mut notes = vec![1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, b'x', 0, 0, 0];
        notes.extend(note(0x12_3456));
        let k = load_file(&m, file(&elf_image(&notes, 0x20_0000)).path()).unwrap();
        assert_eq!((k.protocol, k.entry, k.end), (Protocol::Pvh, 0x12_3456, 0x20_0008));
        let none = load_file(&m, file(&elf_image(&[], 0x20_0000)).path()).unwrap_err();
        assert!(none.to_string().contains("PVH note"), "{none}");
        let far = load_file(&m, file(&elf_image(&note(1), 1 << 40)).path()).unwrap_err();
        assert!(far.to_string().contains("does not fit"), "{far}");
    }

    #[test]
    fn hostile_files_are_refused() {
        let m = memory();
        let good = elf_image(&note(1), 0x20_0000);
        for cut in [0, 3, 63, 64, 100, 150, 177, good.len() - 1] {
            assert!(load_file(&m, file(&good[..cut]).path()).is_err(), "{cut}");
        }
        let mut b = image(b"");
        assert!(load_file(&m, file(&b).path()).is_err());
        b[0x1f1] = 255;
        assert!(load_file(&m, file(&b).path()).is_err());
        for i in 0..good.len() {
            let mut bad = good.clone();
            bad[i] = 0xff;
            let _ = load_file(&m, file(&bad).path());
        }
        assert_eq!(pvh_entry(&[0xff; 64]), None);
        assert!(
            load_file(&m, Path::new("/nonexistent"))
                .unwrap_err()
                .to_string()
                .contains("/nonexistent")
        );
    }

    #[test]
    fn several_initrds_lie_high_and_aligned() {
        let m = memory();
        let kernel = load_file(&m, file(&image(b"payload")).path()).unwrap();
        let (a, b) = (file(b"first"), file(b"second"));
        let open = |f: &tempfile::NamedTempFile| Source::open(f.path(), "initrd").unwrap();
        let i = load_initrds(&m, 8 << 20, &kernel, &mut [open(&a), open(&b)]).unwrap();
        assert_eq!(i, Initrd { address: (8 << 20) - 4096, len: 14 });
        let mut all = [0; 14];
        m.read_slice(&mut all, GuestAddress(i.address)).unwrap();
        assert_eq!(&all, b"first\0\0\0second");
        let big = file(&vec![0; 6 << 20]);
        let e = load_initrds(&m, 8 << 20, &kernel, &mut [open(&big)]).unwrap_err();
        assert!(e.to_string().contains("does not fit"), "{e}");
        assert_eq!(load_initrds(&m, 8 << 20, &kernel, &mut []).unwrap(), Initrd::default());
        assert!(write_cmdline(&m, &"x".repeat(CMDLINE_MAX)).is_err());
    }
}

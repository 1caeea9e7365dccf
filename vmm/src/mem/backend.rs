//! Turning plain data into mappings.

#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MmapAdvise, madvise};
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress};

use super::config::{Backend, MemoryConfig, PAGE, Sharing, Source};
use super::layout::{self, Piece};
use super::{Memory, Region};
use crate::num::{align_up, index};
use crate::{Error, Result};

/// Makes all of a guest's memory.
///
/// # Errors
/// Names the backend and says what to do when the host has not enough memory or huge pages.
pub fn build(config: &MemoryConfig) -> Result<Memory> {
    let mut regions = Vec::new();
    let mut before = 0;
    for node in config.nodes.iter().filter(|n| n.size > 0) {
        let file = open_source(&node.backend, node.size)?;
        for piece in layout::place(before, node.size) {
            regions.push(map(&node.backend, file.as_ref(), piece)?);
        }
        before += node.size;
    }
    Memory::from_regions(regions)
        .map_err(|e| Error::invalid(format!("guest memory cannot be laid out: {e}")))
}

/// A file with the size of its pages.
struct Backing {
    file: File,
    page: u64,
}

fn open_source(backend: &Backend, size: u64) -> Result<Option<Backing>> {
    match &backend.source {
        Source::Anonymous if backend.sharing == Sharing::Private => Ok(None),
        Source::Anonymous => memfd(size, None).map(Some),
        Source::Memfd { huge_page } => memfd(size, *huge_page).map(Some),
        Source::File(path) => open_file(path, size, backend).map(Some),
    }
}

fn memfd(size: u64, huge: Option<u64>) -> Result<Backing> {
    let mut flags = MFdFlags::MFD_CLOEXEC;
    if let Some(bytes) = huge {
        if !bytes.is_power_of_two() {
            return Err(Error::invalid(format!("{bytes} is no size of a huge page")));
        }
        // memfd_create(2): log2 of the size in bits 26 to 31.
        let shift = i32::try_from(bytes.trailing_zeros()).unwrap_or(0);
        let bits = u32::from_ne_bytes((shift << 26).to_ne_bytes());
        flags |= MFdFlags::MFD_HUGETLB | MFdFlags::from_bits_retain(bits);
    }
    let fd = memfd_create(c"guest-memory", flags).map_err(|e| {
        let error = Error::from(e).context("cannot create a memory file");
        match huge {
            Some(b) => error.hint(format!("Does the host have huge pages of {} KiB?", b >> 10)),
            None => error,
        }
    })?;
    let page = huge.unwrap_or(PAGE);
    let file = File::from(fd);
    file.set_len(align_up(size, page))
        .map_err(|e| Error::io(&e).context("cannot size the memory file"))?;
    Ok(Backing { file, page })
}

/// `-mem-path`: a folder gets an unnamed file, a file or device is used as it is (and made when absent).
fn open_file(path: &Path, size: u64, backend: &Backend) -> Result<Backing> {
    let shown = path.display().to_string();
    let says = |e: std::io::Error, what: &str| {
        Error::io(&e).context(format!("{what} for guest memory '{}'", backend.id)).at_path(&shown)
    };
    let file = if path.is_dir() {
        unnamed_file(path).map_err(|e| {
            says(e, "cannot create a file").hint(format!(
                "{shown} must be writable; for huge pages mount it: mount -t hugetlbfs none {shown}"
            ))
        })?
    } else {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        options.open(path).map_err(|e| says(e, "cannot open a file"))?
    };
    let fs = fstatfs(&file).map_err(|e| Error::from(e).at_path(&shown))?;
    let page = if fs.filesystem_type() == HUGETLBFS_MAGIC {
        u64::try_from(fs.block_size()).unwrap_or(PAGE).max(PAGE)
    } else {
        PAGE
    };
    if !size.is_multiple_of(page) {
        return Err(Error::invalid(format!(
            "memory size {size} is no multiple of the page size {page} of {shown}"
        ))
        .hint(format!("Use -m {}M", align_up(size, page) >> 20)));
    }
    let meta = file.metadata().map_err(|e| says(e, "cannot look at the file"))?;
    if meta.file_type().is_file() && meta.len() < size {
        file.set_len(size).map_err(|e| says(e, "cannot size the file"))?;
    } else if !meta.file_type().is_file() && !meta.file_type().is_char_device() {
        return Err(Error::invalid(
            "guest memory must lie in a file, a folder or a character device",
        )
        .at_path(&shown));
    }
    Ok(Backing { file, page })
}

fn unnamed_file(folder: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    match options.clone().custom_flags(libc::O_TMPFILE).open(folder) {
        // Older kernels have no O_TMPFILE on hugetlbfs.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {
            let name = folder.join(format!(".guest-memory-{}", std::process::id()));
            let file = options.create_new(true).open(&name)?;
            std::fs::remove_file(&name)?;
            Ok(file)
        }
        other => other,
    }
}

fn map(backend: &Backend, file: Option<&Backing>, piece: Piece) -> Result<Region> {
    let page = file.map_or(PAGE, |f| f.page);
    let mut flags = match (file, backend.sharing) {
        (Some(_), Sharing::Shared) | (None, Sharing::Shared) => libc::MAP_SHARED,
        // A memory file that nobody else can name need not be copied on write.
        (Some(_), Sharing::Private) if matches!(backend.source, Source::Memfd { .. }) => {
            libc::MAP_SHARED
        }
        _ => libc::MAP_PRIVATE,
    };
    if page == PAGE {
        // Guests get more memory than they use; the host's overcommit policy is for its own programs.
        flags |= libc::MAP_NORESERVE;
    }
    // The mapping of huge pages must be whole pages even where the hole cuts one in two.
    let len = index(align_up(piece.len, page));
    let mut builder =
        MmapRegionBuilder::new(len).with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
    match file {
        Some(f) => {
            let copy = f.file.try_clone().map_err(|e| Error::io(&e))?;
            builder = builder.with_file_offset(FileOffset::new(copy, piece.offset));
        }
        None => flags |= libc::MAP_ANONYMOUS,
    }
    let mapping = builder.with_mmap_flags(flags).build().map_err(|e| {
        Error::errno(libc::ENOMEM)
            .context(format!(
                "cannot map {} MiB for guest memory '{}' ({e})",
                piece.len >> 20,
                backend.id
            ))
            .hint(memory_hint(page, piece.len))
    })?;
    advise(backend, mapping.as_ptr(), len, page, piece.len)?;
    Region::new(mapping, GuestAddress(piece.guest))
        .ok_or_else(|| Error::invalid(format!("guest memory at {:#x} does not fit", piece.guest)))
}

fn advise(backend: &Backend, at: *mut u8, len: usize, page: u64, wanted: u64) -> Result<()> {
    let Some(address) = std::ptr::NonNull::new(at.cast()) else { return Ok(()) };
    let say = |advice: MmapAdvise| {
        // SAFETY: the range is a fresh mapping of exactly `len` bytes that nobody else uses yet; none
        // of the advices used here takes contents away.
        unsafe { madvise(address, len, advice) }
    };
    // These three are wishes: a kernel built without them says EINVAL.
    if page == PAGE {
        let _ = say(MmapAdvise::MADV_HUGEPAGE);
        if backend.merge {
            let _ = say(MmapAdvise::MADV_MERGEABLE);
        }
    }
    if !backend.dump {
        let _ = say(MmapAdvise::MADV_DONTDUMP);
    }
    // Children (network scripts) must neither share nor copy the guest's memory.
    let _ = say(MmapAdvise::MADV_DONTFORK);
    if backend.prealloc {
        populate(address.cast(), len, page).map_err(|e| {
            Error::from(e)
                .context(format!(
                    "cannot allocate {} MiB for guest memory '{}'",
                    wanted >> 20,
                    backend.id
                ))
                .hint(memory_hint(page, wanted))
        })?;
    }
    Ok(())
}

/// Touches every page. Without the kernel's help (before 5.14) a page of a file that shrinks would be
/// a fatal signal, hence the refusal there.
fn populate(at: std::ptr::NonNull<u8>, len: usize, page: u64) -> std::result::Result<(), Errno> {
    /// madvise(2), since Linux 5.14; not yet in nix.
    const MADV_POPULATE_WRITE: libc::c_int = 23;
    // SAFETY: a fresh mapping of `len` bytes; populating changes no contents.
    let rc = unsafe { libc::madvise(at.as_ptr().cast(), len, MADV_POPULATE_WRITE) };
    match Errno::result(rc) {
        Err(Errno::EINVAL) if page == PAGE => {
            for offset in (0..len).step_by(index(page)) {
                // SAFETY: inside the mapping; nobody else uses it yet, and storing the byte that is
                // there changes nothing but makes the page exist.
                unsafe {
                    let p = at.as_ptr().add(offset);
                    p.write_volatile(p.read_volatile());
                }
            }
            Ok(())
        }
        other => other.map(|_| ()),
    }
}

fn memory_hint(page: u64, wanted: u64) -> String {
    if page == PAGE {
        return format!(
            "Free memory on the host, or give the guest less than {} MiB (-m)",
            wanted >> 20
        );
    }
    let kib = page >> 10;
    format!(
        "{} huge pages of {kib} KiB are needed: echo N > \
         /sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages, then see free_hugepages there",
        wanted.div_ceil(page)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::config::Node;
    use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

    fn with(source: Source) -> MemoryConfig {
        MemoryConfig::simple(4 << 20, Backend { source, prealloc: true, ..Backend::default() })
    }

    #[test]
    fn each_source_makes_memory() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ram");
        for source in [
            Source::Anonymous,
            Source::Memfd { huge_page: None },
            Source::File(folder.path().to_owned()),
            Source::File(file.clone()),
        ] {
            let m = build(&with(source)).unwrap();
            m.write_obj(0x1234_5678_u32, GuestAddress(0x10_0000)).unwrap();
            assert_eq!(m.read_obj::<u32>(GuestAddress(0x10_0000)).unwrap(), 0x1234_5678);
            assert!(m.write_obj(0_u8, GuestAddress(4 << 20)).is_err());
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "unnamed file has a name");
        assert_eq!(file.metadata().unwrap().len(), 4 << 20);
    }

    #[test]
    fn a_shared_file_has_what_the_guest_stored() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ram");
        let backend = Backend {
            source: Source::File(file.clone()),
            sharing: Sharing::Shared,
            ..Backend::default()
        };
        let m = build(&MemoryConfig::simple(1 << 20, backend)).unwrap();
        m.write_slice(b"hello", GuestAddress(100)).unwrap();
        assert_eq!(&std::fs::read(&file).unwrap()[100..105], b"hello");
    }

    #[test]
    fn nodes_follow_each_other_around_the_hole() {
        let node = |size| Node { size, ..Node::default() };
        let config =
            MemoryConfig { nodes: vec![node(2 << 30), node(2 << 30)], ..MemoryConfig::default() };
        let m = build(&config).unwrap();
        let all: Vec<_> = m.iter().map(|r| (r.start_addr().0, r.len())).collect();
        assert_eq!(all, [(0, 2 << 30), (2 << 30, 1 << 30), (4 << 30, 1 << 30)]);
    }

    #[test]
    fn too_few_huge_pages_are_explained() {
        let e = build(&with(Source::Memfd { huge_page: Some(1 << 30) }));
        if let Err(e) = e {
            assert!(e.report().contains("memory"), "{}", e.report());
        }
        let missing = build(&with(Source::File("/nonexistent/folder/x".into()))).unwrap_err();
        assert!(missing.report().contains("pc.ram"), "{}", missing.report());
    }
}

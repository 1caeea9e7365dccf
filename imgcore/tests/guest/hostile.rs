//! Damaged and made-up file systems: whatever the bytes, an answer in bounded time, never a panic.

use std::sync::Arc;

use imgcore::guest::files::{
    self, About, Budget, Entry, FileId, FileKind, FileSystem, FsKind, Stat, Tree,
};
use imgcore::guest::windows::hive::Hive;
use imgcore::guest::{GuestDisk, Volume};
use imgcore::storage::MemoryStorage;
use proptest::prelude::*;

use crate::maker::{Wish, blank, run, tool, tree};

/// Reads whatever is there.
pub fn look(image: Vec<u8>) {
    // Small, so that a loop ends soon in a test.
    let budget = Budget::new(48 << 20);
    let disk = GuestDisk::from_storage(Arc::new(MemoryStorage::new("image", image))).unwrap();
    let Ok(Some(fs)) = files::open(&Volume::whole(&disk), &budget) else { return };
    let tree = Tree::new(&*fs);
    for path in tree.below("", 4, 300) {
        let _ = tree.read(&format!("/{path}"), 1 << 20);
    }
    let _ = tree.text("/etc/os-release", 1 << 16);
    let _ = tree.find("/folder-link/up");
    let _ = tree.find("/loop");
}

/// A name, an image, and the places in it that hold structures.
type Sample = (&'static str, Vec<u8>, Vec<usize>);

/// One small image of each kind.
fn images() -> &'static [Sample] {
    static MADE: std::sync::OnceLock<Vec<Sample>> = std::sync::OnceLock::new();
    MADE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let host = dir.path().join("tree");
        tree(&host, Wish { links: true, sparse: 0, many: 60, large: 300_000, letters: true });
        let text = host.to_string_lossy().into_owned();
        let mut all = Vec::new();
        let mut add = |name: &'static str, image: &str| {
            let bytes = std::fs::read(image).unwrap();
            let places = interesting(&bytes);
            all.push((name, bytes, places));
        };
        if let Some(mke2fs) = tool("mke2fs") {
            for (name, args) in [
                ("ext2", &["-t", "ext2", "-b", "1024"] as &[&str]),
                // Without checksums, so that damage is not only found by them.
                ("ext4", &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,inline_data"]),
            ] {
                let image = blank(dir.path(), name, 4 << 20);
                let mut args = args.to_vec();
                args.extend(["-q", "-F", "-d", &text, &image]);
                run(&mke2fs, &args);
                add(name, &image);
            }
        }
        if let (Some(mkfs), Some(mcopy)) = (tool("mkfs.vfat"), tool("mcopy")) {
            let image = blank(dir.path(), "fat", 4 << 20);
            run(&mkfs, &[&image]);
            let etc = host.join("etc").to_string_lossy().into_owned();
            let many = host.join("many").to_string_lossy().into_owned();
            run(&mcopy, &["-s", "-Q", "-i", &image, &etc, &many, "::/"]);
            add("fat", &image);
        }
        let host = host.to_string_lossy().into_owned();
        if let Some(maker) = tool("genisoimage") {
            let image = dir.path().join("iso").to_string_lossy().into_owned();
            run(&maker, &["-quiet", "-R", "-J", "-joliet-long", "-o", &image, &host]);
            add("iso", &image);
        }
        if let Some(mkfs) = tool("mkfs.btrfs") {
            let image = blank(dir.path(), "btrfs", 24 << 20);
            run(&mkfs, &["-q", "-M", "-n", "4096", "--rootdir", &host, &image]);
            add("btrfs", &image);
        }
        let small = Wish { links: true, many: 60, large: 300_000, ..Wish::default() };
        let folder = dir.path().join("for-xfs");
        std::fs::create_dir(&folder).unwrap();
        let args = ["--unsupported", "-b", "size=1024"];
        if let Some(image) = crate::xfs::made(&folder, small, 32 << 20, &args) {
            add("xfs", &image);
        }
        let folder = dir.path().join("for-ntfs");
        std::fs::create_dir(&folder).unwrap();
        if let Some(image) = crate::ntfs::made(&folder, small, 8 << 20, &["-C"]) {
            add("ntfs", &image);
        }
        all
    })
}

/// Places that hold structures rather than data, so that damage is felt.
fn interesting(image: &[u8]) -> Vec<usize> {
    let used = |c: &[u8]| c.iter().any(|b| *b != 0) && c.iter().filter(|b| **b == 0).count() > 64;
    let blocks = image.chunks(512).enumerate().filter(|(_, c)| used(c));
    blocks.map(|(i, _)| i * 512).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn damage_is_survived(
        which in any::<prop::sample::Index>(),
        hits in prop::collection::vec((any::<prop::sample::Index>(), 0usize..512, any::<u8>(), 1usize..5), 1..40),
    ) {
        let all = images();
        if !all.is_empty() {
            let (_, image, places) = which.get(all);
            let mut image = image.clone();
            for (place, offset, value, len) in hits {
                let at = place.get(places) + offset;
                for byte in image.iter_mut().skip(at).take(len) {
                    *byte = value;
                }
            }
            look(image);
        }
    }
}

/// A file system of one file, for the hive that is read through it.
struct One(Vec<u8>, About);

impl FileSystem for One {
    fn about(&self) -> &About {
        &self.1
    }

    fn root(&self) -> FileId {
        FileId(0, 0)
    }

    fn list(&self, _: FileId, _: usize) -> imgcore::Result<Vec<Entry>> {
        Ok(Vec::new())
    }

    fn stat(&self, _: FileId) -> imgcore::Result<Stat> {
        Ok(Stat { kind: FileKind::File, size: self.0.len() as u64 })
    }

    fn read(&self, _: FileId, at: u64, buf: &mut [u8]) -> imgcore::Result<usize> {
        let from = usize::try_from(at).unwrap_or(usize::MAX).min(self.0.len());
        let n = buf.len().min(self.0.len() - from);
        buf[..n].copy_from_slice(&self.0[from..from + n]);
        Ok(n)
    }
}

fn hive(bytes: Vec<u8>) -> Option<(u32, String)> {
    let about = About {
        kind: FsKind::Fat12,
        label: None,
        uuid: None,
        size: 0,
        used: None,
        notes: Vec::new(),
    };
    let fs = One(bytes, about);
    let hive = Hive::open(&fs, FileId(0, 0)).ok()?;
    let current = hive.number("Select", "Current");
    let services = r"ControlSet001\Services\viostor";
    let path = hive.text(services, "ImagePath");
    let key = hive.key(services).ok().flatten();
    if let Some(key) = key {
        let _ = hive.value(&key, "Owners");
    }
    Some((current?, path?))
}

const HIVE: &[u8] = include_bytes!("../../../testdata/sample.hive");

#[test]
fn the_sound_hive_is_read() {
    assert_eq!(hive(HIVE.to_vec()), Some((1, r"System32\drivers\viostor.sys".to_owned())));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn damaged_hives_are_survived(
        hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..60),
    ) {
        let mut bytes = HIVE.to_vec();
        for (place, value) in hits {
            let at = place.index(bytes.len());
            bytes[at] = value;
        }
        hive(bytes);
    }
}

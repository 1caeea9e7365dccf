//! Damaged and made-up file systems: whatever the bytes, an answer in bounded time, never a panic.

use std::sync::Arc;

use imgcore::guest::files::{self, Budget, Tree};
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

/// One small image of each kind.
fn images() -> &'static [(&'static str, Vec<u8>)] {
    static MADE: std::sync::OnceLock<Vec<(&str, Vec<u8>)>> = std::sync::OnceLock::new();
    MADE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let host = dir.path().join("tree");
        tree(&host, Wish { links: true, sparse: 0, many: 60, large: 300_000, letters: true });
        let text = host.to_string_lossy().into_owned();
        let mut all = Vec::new();
        let mut add = |name: &'static str, image: &str| {
            all.push((name, std::fs::read(image).unwrap()));
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
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]
    #[test]
    fn damage_is_survived(
        which in any::<prop::sample::Index>(),
        hits in prop::collection::vec((any::<prop::sample::Index>(), 0usize..512, any::<u8>(), 1usize..5), 1..40),
    ) {
        let all = images();
        if !all.is_empty() {
            let mut image = which.get(all).1.clone();
            let places = interesting(&image);
            for (place, offset, value, len) in hits {
                let at = place.get(&places) + offset;
                for byte in image.iter_mut().skip(at).take(len) {
                    *byte = value;
                }
            }
            look(image);
        }
    }
}

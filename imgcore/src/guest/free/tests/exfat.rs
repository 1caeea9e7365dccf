//! exFAT with files in it. No tool here writes any without a mount, so they are put there by the specification
//! (Microsoft, *exFAT file system specification*), and the tools say whether that was right.

use super::*;

/// Files put into an exFAT volume as the specification says: clusters in the bitmap, chains in the table (4.1)
/// unless the file is one run (`NoFatChain`, 6.3.4.2), an entry set with its checksum (6.3.3).
struct ExFatMaker {
    bytes: Vec<u8>,
    heap: usize,
    cluster: usize,
    table: usize,
    bitmap: usize,
    root: usize,
}

impl ExFatMaker {
    fn new(bytes: Vec<u8>) -> Self {
        let le32 = |at: usize| {
            let raw: [u8; 4] = bytes[at..at + 4].try_into().unwrap();
            usize::try_from(u32::from_le_bytes(raw)).unwrap()
        };
        let sector = 1usize << bytes[108];
        let cluster = sector << bytes[109];
        let heap = le32(88) * sector;
        let at = |n: usize| heap + (n - 2) * cluster;
        let (table, root) = (le32(80) * sector, at(le32(96)));
        let entry = (root..).step_by(32).find(|e| bytes[*e] == 0x81).unwrap();
        let bitmap = at(le32(entry + 20));
        ExFatMaker { heap, cluster, table, bitmap, root, bytes }
    }

    fn mark(&mut self, cluster: usize, used: bool) {
        let byte = &mut self.bytes[self.bitmap + (cluster - 2) / 8];
        let bit = 1 << ((cluster - 2) % 8);
        *byte = if used { *byte | bit } else { *byte & !bit };
    }

    /// Adds a file in these clusters. Where its entry set is.
    fn add(&mut self, name: &str, clusters: &[usize], data: &[u8]) -> usize {
        for (piece, &cluster) in data.chunks(self.cluster).zip(clusters) {
            let at = self.heap + (cluster - 2) * self.cluster;
            self.bytes[at..at + piece.len()].copy_from_slice(piece);
            self.mark(cluster, true);
        }
        let in_one_run = clusters.windows(2).all(|w| w[1] == w[0] + 1);
        if !in_one_run {
            let next = clusters.iter().skip(1).map(|&n| u32::try_from(n).unwrap());
            for (&cluster, next) in clusters.iter().zip(next.chain([u32::MAX])) {
                let at = self.table + cluster * 4;
                self.bytes[at..at + 4].copy_from_slice(&next.to_le_bytes());
            }
        }
        let units: Vec<u16> = name.encode_utf16().collect();
        let names = units.len().div_ceil(15);
        let mut set = vec![0; 32 * (2 + names)];
        set[0] = 0x85;
        set[1] = u8::try_from(1 + names).unwrap();
        set[4] = 0x20;
        // Times: 2020-01-01.
        for at in [8, 12, 16] {
            set[at..at + 4].copy_from_slice(&0x5021_0000u32.to_le_bytes());
        }
        let hash = units.iter().flat_map(|u| {
            let upper = u8::try_from(*u).unwrap().to_ascii_uppercase();
            u16::from(upper).to_le_bytes()
        });
        let hash = hash.fold(0u16, |h, b| h.rotate_right(1).wrapping_add(u16::from(b)));
        let len = u64::try_from(data.len()).unwrap();
        set[32] = 0xc0;
        set[33] = if in_one_run { 3 } else { 1 };
        set[35] = u8::try_from(units.len()).unwrap();
        set[36..38].copy_from_slice(&hash.to_le_bytes());
        set[40..48].copy_from_slice(&len.to_le_bytes());
        set[52..56].copy_from_slice(&u32::try_from(clusters[0]).unwrap().to_le_bytes());
        set[56..64].copy_from_slice(&len.to_le_bytes());
        for (i, part) in units.chunks(15).enumerate() {
            let at = 64 + 32 * i;
            set[at] = 0xc1;
            for (j, unit) in part.iter().enumerate() {
                set[at + 2 + 2 * j..at + 4 + 2 * j].copy_from_slice(&unit.to_le_bytes());
            }
        }
        let sum = set.iter().enumerate().filter(|(i, _)| !matches!(i, 2 | 3));
        let sum = sum.fold(0u16, |s, (_, b)| s.rotate_right(1).wrapping_add(u16::from(*b)));
        set[2..4].copy_from_slice(&sum.to_le_bytes());
        let end = (self.root..).step_by(32).find(|e| self.bytes[*e] == 0).unwrap();
        self.bytes[end..end + set.len()].copy_from_slice(&set);
        end
    }

    /// Removes a file: its entries are no longer in use, its clusters free; its chain may stay.
    fn remove(&mut self, set: usize, clusters: &[usize]) {
        let entries = 1 + usize::from(self.bytes[set + 1]);
        for i in 0..entries {
            self.bytes[set + 32 * i] &= 0x7f;
        }
        clusters.iter().for_each(|c| self.mark(*c, false));
    }
}

#[test]
fn exfat_with_files_and_without() {
    let sandbox = Sandbox::new();
    sandbox.blank("x", 64 * MIB);
    if sandbox.tool("mkfs.exfat", &["-c", "4K", "x"], "").is_none() {
        return;
    }
    let (_, empty) = poison(&sandbox, "x");
    sandbox.blank("x", 64 * MIB);
    sandbox.tool("mkfs.exfat", &["-c", "4K", "x"], "");
    let mut maker = ExFatMaker::new(sandbox.get("x"));
    let data = |n: usize, seed: usize| -> Vec<u8> {
        (0..n).map(|i| u8::try_from((i * 31 + i / 4096 + seed) % 251).unwrap()).collect()
    };
    // One run, a chain of single clusters, a long name, one far behind; then two of them go.
    let run: Vec<usize> = (100..150).collect();
    let chain: Vec<usize> = (200..400).step_by(3).rev().collect();
    let far: Vec<usize> = (15_000..15_003).collect();
    let files = [
        ("run", run, data(50 * 4096 - 7, 1)),
        ("chain", chain.clone(), data(chain.len() * 4096, 2)),
        ("a name of more than fifteen letters.txt", vec![777], data(5, 3)),
        ("gone in one run", (160..190).collect(), data(30 * 4096, 4)),
        ("gone in a chain", (401..499).step_by(2).collect(), data(49 * 4096, 5)),
        ("far", far, data(3 * 4096, 6)),
    ];
    let mut used = 0;
    let sets: Vec<usize> = files.iter().map(|(n, c, d)| maker.add(n, c, d)).collect();
    for ((name, clusters, _), set) in files.iter().zip(sets) {
        if name.starts_with("gone") {
            maker.remove(set, clusters);
        } else {
            used += u64::try_from(clusters.len()).unwrap() * 4096;
        }
    }
    sandbox.put("x", &maker.bytes);
    // The maker is right, as the tools see it.
    sandbox.tool("fsck.exfat", &["-n", "x"], "");
    let (kind, free) = poison(&sandbox, "x");
    assert_eq!((kind, free), ("exFAT", empty - used));
    if let Some(text) = sandbox.tool("dump.exfat", &["x"], "") {
        let line = text.lines().find(|l| l.contains("Free Clusters")).unwrap();
        let theirs: String = line.chars().filter(char::is_ascii_digit).collect();
        assert_eq!(theirs.parse::<u64>().unwrap() * 4096, free, "{text}");
    }
    sandbox.tool("fsck.exfat", &["-n", "x"], "");
    let poisoned = ExFatMaker::new(sandbox.get("x"));
    for (name, clusters, data) in files.iter().filter(|(n, _, _)| !n.starts_with("gone")) {
        for (piece, cluster) in data.chunks(4096).zip(clusters) {
            let at = poisoned.heap + (cluster - 2) * 4096;
            assert!(poisoned.bytes[at..at + piece.len()] == *piece, "{name}");
        }
    }
}

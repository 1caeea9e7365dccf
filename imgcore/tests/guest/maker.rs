//! A folder with everything that file systems store in different ways, the tools that pack it, and the
//! comparison.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use imgcore::guest::files::{self, Budget, FileId, FileKind, FileSystem, Tree, read_whole};
use imgcore::guest::{GuestDisk, Volume};
use imgcore::storage::{FileOptions, FileStorage};

/// Opens the file system in a file.
pub fn open(image: &Path) -> Box<dyn FileSystem> {
    let file = FileStorage::open(image, FileOptions::default()).unwrap();
    let disk = GuestDisk::from_storage(Arc::new(file)).unwrap();
    files::open(&Volume::whole(&disk), &Budget::default()).unwrap().expect("no file system found")
}

/// Where a tool is; a test without it says so and ends.
pub fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    places.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let found = places.into_iter().map(|p| p.join(name)).find(|f| f.is_file());
    if found.is_none() {
        eprintln!("SKIPPED file systems made by {name}: it is not installed");
    }
    found
}

/// Runs a tool and demands success.
pub fn run(tool: &Path, args: &[&str]) -> String {
    let out = Command::new(tool).args(args).env("MTOOLS_SKIP_CHECK", "1").output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        out.status.success(),
        "{} {args:?}: {text}{}",
        tool.display(),
        String::from_utf8_lossy(&out.stderr)
    );
    text
}

/// An empty image.
pub fn blank(dir: &Path, name: &str, size: u64) -> String {
    let path = dir.join(name);
    fs::File::create(&path).unwrap().set_len(size).unwrap();
    path.to_string_lossy().into_owned()
}

/// Bytes that differ at every place.
pub fn pattern(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

/// What the tree may hold.
#[derive(Clone, Copy, Default)]
pub struct Wish {
    /// Symbolic links.
    pub links: bool,
    /// A file with holes, as large as this.
    pub sparse: u64,
    /// Names in one folder.
    pub many: usize,
    /// Bytes of a large file.
    pub large: usize,
    /// Names with other letters.
    pub letters: bool,
}

/// Makes the tree.
pub fn tree(at: &Path, wish: Wish) {
    let file = |name: &str, data: &[u8]| {
        let path = at.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, data).unwrap();
    };
    file("empty", b"");
    file("tiny", b"hello\n");
    file("etc/os-release", b"ID=test\n");
    file("etc/a-hundred", &pattern(100, 1));
    file("etc/a-block", &pattern(4096, 2));
    file("etc/odd", &pattern(70_001, 3));
    file("a/b/c/d/e/f/g/h/deep", &pattern(513, 4));
    file("large.bin", &pattern(wish.large, 5));
    file("compressible.txt", "the same words again and again\n".repeat(20_000).as_bytes());
    file(&format!("{}.long", "n".repeat(200)), b"long name");
    if wish.letters {
        file("Grüße/äöü ß.txt", b"letters");
    }
    for i in 0..wish.many {
        file(&format!("many/file-number-{i:05}.dat"), format!("{i}").as_bytes());
    }
    if wish.sparse > 0 {
        let f = fs::File::create(at.join("sparse")).unwrap();
        f.set_len(wish.sparse).unwrap();
        for i in 0..200u64 {
            let data = pattern(5000, 100 + i as u32);
            f.write_all_at(&data, i * (wish.sparse / 201)).unwrap();
        }
        // mke2fs leaves out a hole at the end of a file when it may keep data in inodes.
        f.write_all_at(b"end", wish.sparse - 3).unwrap();
    }
    if wish.links {
        use std::os::unix::fs::symlink;
        symlink("tiny", at.join("short-link")).unwrap();
        symlink("/etc/os-release", at.join("absolute")).unwrap();
        symlink("../../etc/odd", at.join("a/b/up")).unwrap();
        symlink("a/b", at.join("folder-link")).unwrap();
        symlink(format!("{}tiny", "./".repeat(100)), at.join("long-link")).unwrap();
        symlink("loop", at.join("loop")).unwrap();
        symlink("nowhere", at.join("dangling")).unwrap();
    }
}

/// Compares every file of the folder with that of the file system, and the other way round.
pub fn same(fs: &dyn FileSystem, host: &Path) {
    compare(fs, fs.root(), host);
    let tree = Tree::new(fs);
    assert_eq!(tree.read("/etc/../tiny", 100).unwrap().unwrap(), b"hello\n");
    assert!(tree.read("/large.bin", 100).is_err(), "a limit must hold");
    assert_eq!(tree.read("/no/such/file", 100).unwrap(), None);
    assert_eq!(tree.read("/tiny/x", 100).unwrap(), None);
    assert!(tree.below("", 10, 10_000).iter().any(|p| p == "a/b/c/d/e/f/g/h/deep"));
    if host.join("absolute").is_symlink() {
        assert_eq!(tree.text("/absolute", 100).unwrap(), "ID=test\n");
        assert_eq!(tree.text("/long-link", 100).unwrap(), "hello\n");
        let odd = tree.read("/folder-link/up", 1 << 20).unwrap().unwrap();
        assert_eq!(odd, pattern(70_001, 3));
        assert!(tree.read("/loop", 100).is_err());
        assert!(!tree.exists("/dangling"));
        assert!(tree.exists("/folder-link/c/d/../d/e"));
    }
    // In the middle of a file.
    let large = tree.find("/large.bin").unwrap().unwrap();
    let data = std::fs::read(host.join("large.bin")).unwrap();
    for (at, len) in [(1, 10), (4095, 2), (data.len() / 2, 9000), (data.len() - 3, 10)] {
        let mut buf = vec![0; len];
        let n = fs.read(large.id, at as u64, &mut buf).unwrap();
        assert_eq!(buf[..n], data[at..(at + len).min(data.len())], "{at} {len}");
    }
}

fn compare(fs: &dyn FileSystem, folder: FileId, host: &Path) {
    let mut there: Vec<String> = fs::read_dir(host)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    let mut entries = fs.list(folder, 100_000).unwrap();
    // What the tools add: for fsck, for Windows, for folders too deep for a disc.
    let added = |n: &str| matches!(n, "lost+found" | "rr_moved") || n.starts_with('$');
    entries.retain(|e| !added(&e.name));
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    there.sort();
    let names: Vec<&String> = entries.iter().map(|e| &e.name).collect();
    assert_eq!(names, there.iter().collect::<Vec<_>>(), "{}", host.display());
    for entry in &entries {
        let path = host.join(&entry.name);
        assert_eq!(fs.lookup(folder, &entry.name).unwrap(), Some(entry.id), "{}", path.display());
        let stat = fs.stat(entry.id).unwrap();
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            assert_eq!(stat.kind, FileKind::Folder, "{}", path.display());
            compare(fs, entry.id, &path);
        } else if meta.is_symlink() {
            assert_eq!(stat.kind, FileKind::Link, "{}", path.display());
            let target = fs::read_link(&path).unwrap();
            assert_eq!(fs.link(entry.id).unwrap(), target.to_string_lossy());
        } else {
            assert_eq!(stat.kind, FileKind::File, "{}", path.display());
            assert_eq!(stat.size, meta.len(), "{}", path.display());
            let data = read_whole(fs, entry.id, 1 << 30).unwrap();
            assert!(data == fs::read(&path).unwrap(), "{} differs", path.display());
        }
    }
    assert_eq!(fs.lookup(folder, "certainly-not-here").unwrap(), None);
}

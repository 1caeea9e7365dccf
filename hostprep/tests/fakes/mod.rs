//! Fake trees before and after: what tests of changes compare.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Everything below a folder that is not our own state: mode, owner, contents, link targets.
pub fn snapshot(root: &Path) -> Snapshot {
    fn walk(root: &Path, folder: &Path, out: &mut Snapshot) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            if name == "var/lib/rhostprep" || name.starts_with("sys/module/.") {
                continue;
            }
            let meta = path.symlink_metadata().unwrap();
            let kernel = name.starts_with("proc/") || name.starts_with("sys/") || name == "net";
            let (bytes, time) = if meta.is_dir() {
                (Vec::new(), 0)
            } else if meta.is_symlink() {
                (std::fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes(), 0)
            } else {
                // Kernel files have no times worth keeping.
                (std::fs::read(&path).unwrap(), if kernel { 0 } else { meta.mtime_nsec() })
            };
            out.insert(name, (meta.mode(), meta.uid(), meta.gid(), bytes, time));
            if meta.is_dir() {
                walk(root, &path, out);
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(root, root, &mut out);
    out
}

/// Path below the root to mode, owner, group, contents and time.
pub type Snapshot = BTreeMap<String, (u32, u32, u32, Vec<u8>, i64)>;

/// Says which files differ.
#[track_caller]
pub fn same(now: &Snapshot, before: &Snapshot, what: &str) {
    let mut wrong = Vec::new();
    let names: std::collections::BTreeSet<&String> = now.keys().chain(before.keys()).collect();
    for name in names {
        if now.get(name) != before.get(name) {
            let show = |side: &Snapshot| {
                side.get(name).map(|(mode, uid, gid, bytes, time)| {
                    format!("{mode:o} {uid} {gid} {time} {:?}", String::from_utf8_lossy(bytes))
                })
            };
            wrong.push(format!("{name}: {:?} was {:?}", show(now), show(before)));
        }
    }
    assert!(wrong.is_empty(), "{what}: {}", wrong.join("\n"));
}

//! Images of other products, where the corpus is at hand: content hashes as its manifest tells.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Dir;
use crate::format::{Access, CheckReport, Repair, Unwatched};

fn corpus() -> Option<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found = here
        .ancestors()
        .flat_map(|a| [a.join("shared/corpus"), a.join("../shared/corpus")])
        .find(|p| p.join("MANIFEST.tsv").is_file());
    if found.is_none() {
        eprintln!("SKIPPED: no shared/corpus above {}", here.display());
    }
    found
}

/// SHA-256 through the system's tool: the crate needs none for itself.
fn sha256(mut feed: impl FnMut(&mut std::process::ChildStdin)) -> Option<String> {
    let mut child = Command::new("sha256sum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .ok()?;
    let mut input = child.stdin.take().unwrap();
    feed(&mut input);
    drop(input);
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    child.wait().unwrap();
    Some(text.split(' ').next().unwrap().to_owned())
}

/// Copies the folder of an image, unpacking what is packed.
fn unpack(image: &Path, into: &Dir) {
    let folder = image.parent().unwrap();
    let whole = image.parent().and_then(Path::file_name).is_some_and(|n| n != "vmdk");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !path.is_file() || (!whole && path != *image) {
            continue;
        }
        match name.strip_suffix(".xz") {
            Some(plain) => {
                let out = Command::new("xz").arg("-dc").arg(&path).output().unwrap();
                into.put(plain, &out.stdout);
            }
            None => {
                std::fs::copy(&path, into.file(&name)).unwrap();
            }
        }
    }
}

#[test]
fn contents() {
    use std::io::Write;
    let Some(corpus) = corpus() else { return };
    let manifest = std::fs::read_to_string(corpus.join("MANIFEST.tsv")).unwrap();
    let mut read = 0;
    for row in manifest.lines() {
        let columns: Vec<&str> = row.split('\t').collect();
        let [path, "vmdk", subformat, _, size, _, _, hash, ..] = columns[..] else { continue };
        if hash.is_empty() || subformat.contains("extra file") {
            continue;
        }
        if size.parse::<u64>().unwrap() > 2 << 30 {
            eprintln!("SKIPPED: hashing {size} bytes of {path} (the corpus suite does)");
            continue;
        }
        let dir = Dir::new();
        unpack(&corpus.join(path), &dir);
        let name = path.rsplit('/').next().unwrap();
        let node = dir.named(name.strip_suffix(".xz").unwrap_or(name)).node(Access::Read);
        assert_eq!(node.virtual_size().to_string(), size, "{path}");
        let report = node.image().check(Repair::Nothing, &Unwatched).unwrap().unwrap();
        assert_eq!(report, CheckReport::default(), "{path}");
        let found = sha256(|out| {
            let mut at = 0;
            let mut buf = vec![0; 1 << 20];
            while at < node.virtual_size() {
                let n = usize::try_from((node.virtual_size() - at).min(1 << 20)).unwrap();
                node.read(at, &mut buf[..n]).unwrap();
                out.write_all(&buf[..n]).unwrap();
                at += n as u64;
            }
        });
        let Some(found) = found else {
            eprintln!("SKIPPED: no sha256sum");
            return;
        };
        assert_eq!(found, hash, "{path}");
        read += 1;
    }
    assert!(read >= 11, "only {read} images");
}

#[test]
fn refusals() {
    let Some(corpus) = corpus() else { return };
    let words = [
        ("vmdk/desc-fullDevice-frogos.vmdk", "Unsupported image type 'fullDevice'"),
        ("malicious/qemu-afl9-old.vmdk", "L1 size too big"),
        ("malicious/own/vmdk-grain-0.vmdk", "L1 entry size is invalid"),
        ("malicious/own/vmdk-gtes-0.vmdk", "L1 entry size is invalid"),
        ("malicious/own/vmdk-gd_offset-beyond.vmdk", "Grain directory"),
        ("malicious/own/vmdk-version-9.vmdk", "Unsupported VMDK version 9"),
        ("malicious/own/vmdk-extent-size-negative.vmdk", "Invalid extent line: RW -5 FLAT \"x\" 0"),
        ("malicious/own/vmdk-extent-offset-overflow.vmdk", "Invalid extent line"),
        ("malicious/own/vmdk-parent-self.vmdk", "Unsupported image type 'monolithicSparse'"),
        ("malicious/own/vmdk-desc-empty.vmdk", "invalid VMDK image descriptor"),
    ];
    for (path, expected) in words {
        let full = corpus.join(path);
        let dir = Dir::at(full.parent().unwrap());
        let e = dir.named(full.file_name().unwrap().to_str().unwrap()).refused();
        assert!(e.message().starts_with(expected), "{path}: {e:?}");
        assert!(e.path().is_some() || !e.hints().is_empty(), "{path}: {e:?}");
    }
}

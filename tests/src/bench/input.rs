//! The benchmark's images, made anew for each run from the files of this machine.
//!
//! `m.raw`: an ext4 file system, two and a half times the size asked for, filled with real files from
//! `/usr` up to that size; the rest is holes, but for a tenth of the size in zeroes that are allocated.
//! `t.raw`: the same made a sixth as large, for the slow codecs. All other images are made from these
//! by the reference tool, so that neither program is measured on its own work.

use crate::process::must;
use crate::tools::find;
use nix::unistd::{Whence, lseek};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Places that hold many files of many kinds on every distribution.
const SOURCES: &[&str] = &["/usr/bin", "/usr/lib", "/usr/share", "/usr/include", "/usr/sbin"];

/// Guest size of the images whose tables are large.
pub const HUGE: &str = "1T";

/// Makes `name` (raw) in `dir` with about `payload` bytes of files.
///
/// # Errors
/// A sentence naming the missing tool or the file.
pub fn file_system(dir: &Path, name: &str, payload: u64) -> Result<(), String> {
    let mkfs = find("mkfs.ext4").ok_or("no mkfs.ext4 here: apt-get install e2fsprogs")?;
    let staging = dir.join(format!("{name}.files"));
    let result = gather(&staging, payload).and_then(|got| {
        if got < payload / 2 {
            return Err(format!("only {got} bytes of files found below {}", SOURCES.join(", ")));
        }
        let target = dir.join(name);
        let size = (payload / 2 * 5).next_multiple_of(1 << 20);
        File::create(&target)
            .and_then(|file| file.set_len(size))
            .map_err(|e| format!("{}: {e}", target.display()))?;
        let tree = staging.to_string_lossy();
        must(&mkfs, dir, &["-q", "-F", "-E", "root_owner=0:0", "-d", &tree, name])?;
        allocate_zeroes(&target, payload / 10).map_err(|e| format!("{}: {e}", target.display()))
    });
    let _ = fs::remove_dir_all(&staging);
    result
}

/// Copies files below [`SOURCES`] into `to` until there are `payload` bytes; says how many there are.
fn gather(to: &Path, payload: u64) -> Result<u64, String> {
    // Each source gives its share first, so that programs, text and data all take part; what is
    // missing then comes from whichever has more.
    let share = payload / u64::try_from(SOURCES.len()).unwrap_or(1);
    let mut total = 0;
    for source in SOURCES {
        total += gather_from(Path::new(source), to, share.min(payload - total.min(payload)))?;
    }
    for source in SOURCES {
        total += gather_from(Path::new(source), to, payload - total.min(payload))?;
    }
    Ok(total)
}

/// Copies regular files below `dir`, in an order that is the same each time, until there are `wanted`
/// bytes; files already copied are passed over. No list is kept: what this process holds in memory
/// shows in the peak of every program it starts.
fn gather_from(dir: &Path, to: &Path, wanted: u64) -> Result<u64, String> {
    let mut entries: Vec<_> = fs::read_dir(dir).into_iter().flatten().flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    let mut had = 0;
    for entry in entries {
        if had >= wanted {
            break;
        }
        had += match entry.file_type() {
            Ok(kind) if kind.is_dir() => gather_from(&entry.path(), to, wanted - had)?,
            Ok(kind) if kind.is_file() => copy_into(to, &entry.path())?,
            _ => 0,
        };
    }
    Ok(had)
}

/// Copies one file; one that may not be read, or is there already, counts as nothing.
fn copy_into(to: &Path, file: &Path) -> Result<u64, String> {
    const LARGEST: u64 = 32 << 20;
    let size = fs::metadata(file).map_or(0, |metadata| metadata.len());
    if size == 0 || size > LARGEST {
        return Ok(0);
    }
    let target = to.join(file.strip_prefix("/").unwrap_or(file));
    if target.exists() {
        return Ok(0);
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).map_err(|e| format!("{}: {e}", parent.display()))?;
    }
    match fs::copy(file, &target) {
        Ok(bytes) => Ok(bytes),
        Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {
            Err(format!("{}: {error}", target.display()))
        }
        Err(_) => Ok(0),
    }
}

/// Writes `amount` zeroes into holes of `path`, in pieces of at most 8 MiB spread over its second half.
fn allocate_zeroes(path: &Path, amount: u64) -> std::io::Result<()> {
    const PIECE: u64 = 8 << 20;
    let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
    let size = file.metadata()?.len();
    let zeroes = vec![0; 1 << 20];
    let (mut at, mut left) = (size / 2, amount);
    while left > 0 && at < size {
        let from = i64::try_from(at).map_err(std::io::Error::other)?;
        let hole =
            lseek(&file, from, Whence::SeekHole).map_or(size, |n| u64::try_from(n).unwrap_or(size));
        let start = i64::try_from(hole).map_err(std::io::Error::other)?;
        let end = lseek(&file, start, Whence::SeekData)
            .map_or(size, |n| u64::try_from(n).unwrap_or(size));
        let piece = left.min(PIECE).min(end.saturating_sub(hole));
        let mut done = 0;
        while done < piece {
            let n = (piece - done).min(1 << 20);
            let slice = &zeroes[..usize::try_from(n).unwrap_or(zeroes.len())];
            file.write_all_at(slice, hole + done)?;
            done += n;
        }
        left -= piece;
        at = hole + piece + 2 * PIECE;
    }
    Ok(())
}

/// Makes one derived image by the reference tool; which ones there are is this table.
///
/// # Errors
/// A sentence with the tool's own words.
pub fn derive(img: &Path, dir: &Path, name: &str, payload: u64) -> Result<(), String> {
    if dir.join(name).exists() {
        return Ok(());
    }
    let run = |words: &str| must(img, dir, &words.split(' ').collect::<Vec<_>>()).map(drop);
    let from = |source: &str, words: &str| {
        derive(img, dir, source, payload)?;
        run(&format!("convert -f raw {words} {source} {name}"))
    };
    match name {
        "m.raw" => file_system(dir, name, payload),
        "t.raw" => file_system(dir, name, (payload / 6).max(16 << 20)),
        "m2.raw" => from("m.raw", "-O raw"),
        "m.qcow2" => from("m.raw", "-O qcow2"),
        "m.vmdk" => from("m.raw", "-O vmdk"),
        "m.vdi" => from("m.raw", "-O vdi"),
        "m.vhd" => from("m.raw", "-O vpc -o force_size=on"),
        "m.vhdx" => from("m.raw", "-O vhdx"),
        "m.qcow" => from("m.raw", "-O qcow"),
        "m.qed" => from("m.raw", "-O qed"),
        "m.hdd" => from("m.raw", "-O parallels"),
        "m.luks" => from(
            "m.raw",
            "--object secret,id=s,data=benchmark -O luks -o key-secret=s,iter-time=10",
        ),
        "m-luks.qcow2" => from(
            "m.raw",
            "--object secret,id=s,data=benchmark -O qcow2 -o \
             encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
        ),
        "t-zlib.qcow2" => from("t.raw", "-c -m 16 -W -O qcow2"),
        "t-zstd.qcow2" => from("t.raw", "-c -O qcow2 -o compression_type=zstd"),
        "t-stream.vmdk" => from("t.raw", "-O vmdk -o subformat=streamOptimized"),
        "huge.qcow2" => run(&format!("create -q -f qcow2 -o preallocation=metadata {name} {HUGE}")),
        "huge-snap.qcow2" => {
            derive(img, dir, "huge.qcow2", payload)?;
            copy(dir, "huge.qcow2", name)?;
            run(&format!("snapshot -c one {name}"))
        }
        "empty.raw" => {
            derive(img, dir, "t.raw", payload)?;
            let size = fs::metadata(dir.join("t.raw")).map_err(|e| e.to_string())?.len();
            let file = File::create(dir.join(name)).map_err(|e| e.to_string())?;
            file.set_len(size).map_err(|e| e.to_string())
        }
        "under.qcow2" => {
            derive(img, dir, "empty.raw", payload)?;
            run(&format!("convert -f raw -O qcow2 empty.raw {name}"))
        }
        "top.qcow2" => {
            derive(img, dir, "t.raw", payload)?;
            derive(img, dir, "under.qcow2", payload)?;
            run(&format!("convert -f raw -O qcow2 t.raw {name}"))?;
            run(&format!("rebase -u -f qcow2 -b work-under.qcow2 -F qcow2 {name}"))
        }
        "overlay.qcow2" => {
            derive(img, dir, "t.raw", payload)?;
            derive(img, dir, "empty.raw", payload)?;
            run(&format!("create -q -f qcow2 -b t.raw -F raw {name}"))
        }
        _ => Err(format!("no recipe for {name}")),
    }
}

/// A fresh copy of a file that a job changes.
///
/// # Errors
/// A sentence with the tool's own words.
pub fn copy(dir: &Path, from: &str, to: &str) -> Result<(), String> {
    let cp = find("cp").ok_or("no cp here")?;
    must(&cp, dir, &["--sparse=always", from, to]).map(drop)
}

//! Disks as guests leave them: partitions with file systems and files, made with the file systems' own tools,
//! and a look at all of it afterwards with the same tools.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::tools;

const MIB: u64 = 1 << 20;

/// One partition of [`make`].
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// Its number.
    pub number: u32,
    /// `ext4`, `xfs`, `vfat`, `ntfs`, `swap`, `noise`.
    pub kind: &'static str,
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

/// The partitions of [`make`], which lie one after the other from 1 MiB on.
pub const PARTS: [Part; 6] = [
    Part { number: 1, kind: "vfat", start: MIB, len: 40 * MIB },
    Part { number: 2, kind: "ext4", start: 41 * MIB, len: 64 * MIB },
    Part { number: 3, kind: "xfs", start: 105 * MIB, len: 320 * MIB },
    Part { number: 4, kind: "swap", start: 425 * MIB, len: 16 * MIB },
    Part { number: 5, kind: "noise", start: 441 * MIB, len: 8 * MIB },
    Part { number: 6, kind: "ntfs", start: 449 * MIB, len: 64 * MIB },
];
/// The disk's size: the partitions, and a MiB on each side.
pub const SIZE: u64 = 514 * MIB;
/// Files in each file system; the one that is deleted again, and those that stay.
const DELETED: &str = "f1";
const STAY: [&str; 3] = ["f0", "f2", "f3"];

/// Runs a tool in `dir`; what it printed.
///
/// # Errors
/// A sentence when it is not installed or fails.
pub fn tool(dir: &Path, name: &str, args: &[&str], input: &str) -> Result<String, String> {
    let program = tools::find(name).ok_or_else(|| format!("{name} is not installed"))?;
    let mut child = Command::new(program)
        .args(args)
        .current_dir(dir)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("{name}: {e}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that reads nothing may be gone.
        let _ = stdin.write_all(input.as_bytes());
    }
    let done = child.wait_with_output().map_err(|e| format!("{name}: {e}"))?;
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    if done.status.success() {
        return Ok(text);
    }
    Err(format!("{name} {args:?}: {}{text}{}", done.status, String::from_utf8_lossy(&done.stderr)))
}

/// Whether all tools are there; says `SKIPPED` otherwise.
#[must_use]
pub fn have_tools(what: &str) -> bool {
    let needed = [
        "sfdisk",
        "mkfs.vfat",
        "mcopy",
        "mkfs.ext4",
        "debugfs",
        "e2fsck",
        "mkfs.xfs",
        "xfs_db",
        "xfs_repair",
        "mkswap",
        "mkntfs",
        "ntfscp",
        "ntfscat",
        "ntfsresize",
        "fsck.vfat",
    ];
    let missing: Vec<&str> = needed.into_iter().filter(|t| tools::find(t).is_none()).collect();
    if missing.is_empty() {
        return true;
    }
    tools::skip(what, &format!("{} not installed", missing.join(", ")));
    false
}

/// Bytes that do not compress and differ by `seed`.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// The bytes of a file.
fn file(name: &str) -> Vec<u8> {
    let seed = u64::from(*name.as_bytes().last().unwrap_or(&b'0'));
    noise(
        if name == DELETED { 9_000_000 } else { 300_000 * usize::try_from(seed - 47).unwrap_or(1) },
        seed,
    )
}

/// Makes `dir/name`: a GPT with [`PARTS`], stale bytes all over the free space of every file system.
///
/// # Errors
/// A sentence when a tool fails.
pub fn make(dir: &Path, name: &str) -> Result<(), String> {
    let io = |e: std::io::Error| format!("{name}: {e}");
    let disk = File::create(dir.join(name)).map_err(io)?;
    disk.set_len(SIZE).map_err(io)?;
    let mut script = String::from("label: gpt\n");
    for part in PARTS {
        script.push_str(&format!("start={}, size={}\n", part.start / 512, part.len / 512));
    }
    tool(dir, "sfdisk", &["-q", name], &script)?;
    let files = dir.join("files");
    std::fs::create_dir_all(&files).map_err(io)?;
    for file_name in STAY.iter().chain([&DELETED]) {
        std::fs::write(files.join(file_name), file(file_name)).map_err(io)?;
    }
    for part in PARTS {
        let bytes = volume(dir, part)?;
        disk.write_all_at(&bytes, part.start).map_err(io)?;
    }
    Ok(())
}

/// One volume with its files.
fn volume(dir: &Path, part: Part) -> Result<Vec<u8>, String> {
    let io = |e: std::io::Error| format!("{}: {e}", part.kind);
    let path = dir.join("volume");
    let len = usize::try_from(part.len).map_err(|e| e.to_string())?;
    let stale = matches!(part.kind, "swap" | "noise");
    std::fs::write(&path, if stale { noise(len, 7) } else { Vec::new() }).map_err(io)?;
    OpenOptions::new().write(true).open(&path).and_then(|f| f.set_len(part.len)).map_err(io)?;
    let v = "volume";
    match part.kind {
        "vfat" => {
            tool(dir, "mkfs.vfat", &["-F", "32", "-s", "1", v], "")?;
            for name in [DELETED].iter().chain(&STAY) {
                tool(dir, "mcopy", &["-i", v, &format!("files/{name}"), &format!("::{name}")], "")?;
            }
            tool(dir, "mdel", &["-i", v, &format!("::{DELETED}")], "")?;
        }
        "ext4" => {
            tool(dir, "mkfs.ext4", &["-q", "-d", "files", v], "")?;
            tool(dir, "debugfs", &["-w", "-R", &format!("rm {DELETED}"), v], "")?;
        }
        "xfs" => {
            let mut proto = String::from("/\n0 0\nd--755 0 0\n");
            for name in STAY {
                proto.push_str(&format!("{name} ---644 0 0 files/{name}\n"));
            }
            std::fs::write(dir.join("proto"), proto + "$\n").map_err(io)?;
            tool(dir, "mkfs.xfs", &["-q", "-p", "proto", v], "")?;
            // What a deleted file leaves: rubbish in the middle of the largest free extent.
            let file = OpenOptions::new().write(true).open(&path).map_err(io)?;
            file.write_all_at(&noise(9_000_000, 3), part.len - 24 * MIB).map_err(io)?;
        }
        "swap" => {
            tool(dir, "mkswap", &[v], "")?;
        }
        "ntfs" => {
            tool(dir, "mkntfs", &["-q", "-F", "-Q", v], "")?;
            for name in STAY {
                tool(dir, "ntfscp", &["-q", v, &format!("files/{name}"), name], "")?;
            }
            let file = OpenOptions::new().write(true).open(&path).map_err(io)?;
            file.write_all_at(&noise(9_000_000, 4), part.len - 12 * MIB).map_err(io)?;
        }
        _ => {}
    }
    std::fs::read(&path).map_err(io)
}

/// Checks all file systems of the raw disk `dir/name` and compares all files.
///
/// # Errors
/// What is wrong.
pub fn check(dir: &Path, name: &str) -> Result<(), String> {
    let disk = File::open(dir.join(name)).map_err(|e| format!("{name}: {e}"))?;
    for part in PARTS {
        let mut bytes = vec![0; usize::try_from(part.len).map_err(|e| e.to_string())?];
        disk.read_exact_at(&mut bytes, part.start).map_err(|e| format!("{name}: {e}"))?;
        std::fs::write(dir.join("volume"), &bytes).map_err(|e| e.to_string())?;
        check_volume(dir, part, &bytes)?;
    }
    Ok(())
}

fn check_volume(dir: &Path, part: Part, bytes: &[u8]) -> Result<(), String> {
    let v = "volume";
    match part.kind {
        "vfat" => tool(dir, "fsck.vfat", &["-n", v], "")?,
        "ext4" => tool(dir, "e2fsck", &["-fn", v], "")?,
        "xfs" => tool(dir, "xfs_repair", &["-n", "-f", v], "")?,
        "ntfs" => tool(dir, "ntfsresize", &["--check", "-f", v], "")?,
        "swap" => {
            let ok = bytes.get(4086..4096) == Some(b"SWAPSPACE2");
            return if ok { Ok(()) } else { Err("the swap header is gone".to_owned()) };
        }
        _ => {
            let same = bytes == noise(bytes.len(), 7);
            return if same { Ok(()) } else { Err("an unknown partition was touched".to_owned()) };
        }
    };
    for name in STAY {
        let out = dir.join("out");
        let _ = std::fs::remove_file(&out);
        let found = match part.kind {
            "vfat" => {
                tool(dir, "mcopy", &["-n", "-o", "-i", v, &format!("::{name}"), "out"], "")?;
                std::fs::read(&out).map_err(|e| e.to_string())?
            }
            "ext4" => {
                tool(dir, "debugfs", &["-R", &format!("dump {name} out"), v], "")?;
                std::fs::read(&out).map_err(|e| e.to_string())?
            }
            "xfs" => xfs_file(dir, name, bytes)?,
            _ => {
                let program = tools::find("ntfscat").ok_or("ntfscat is not installed")?;
                let done = Command::new(program).args([v, name]).current_dir(dir).output();
                done.map_err(|e| e.to_string())?.stdout
            }
        };
        if found != file(name) {
            return Err(format!("{name} on {} differs", part.kind));
        }
    }
    Ok(())
}

/// A file of an XFS with blocks of 4 KiB, by the extents that xfs_db tells.
fn xfs_file(dir: &Path, name: &str, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let text = tool(
        dir,
        "xfs_db",
        &[
            "-r",
            "-c",
            &format!("path /{name}"),
            "-c",
            "bmap",
            "-c",
            "sb 0",
            "-c",
            "p agblocks",
            "volume",
        ],
        "",
    )?;
    let numbers = |line: &str| -> Vec<u64> {
        line.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
    };
    let ag_blocks = text
        .lines()
        .find(|l| l.starts_with("agblocks"))
        .and_then(|l| numbers(l).first().copied())
        .ok_or_else(|| format!("xfs_db: {text}"))?;
    let mut all = Vec::new();
    // `data offset 0 startblock 24 (0/24) count 74 flag 0`
    for line in text.lines().filter(|l| l.starts_with("data offset")) {
        let [_, _, ag, block, count, ..] = numbers(line)[..] else {
            return Err(format!("xfs_db: {line}"));
        };
        let start = (ag * ag_blocks + block) * 4096;
        let range = usize::try_from(start).ok().zip(usize::try_from(start + count * 4096).ok());
        let part = range.and_then(|(a, b)| bytes.get(a..b)).ok_or("an extent outside")?;
        all.extend_from_slice(part);
    }
    all.truncate(file(name).len());
    Ok(all)
}

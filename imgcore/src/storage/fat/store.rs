//! The disk.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};

use super::layout::{self, Disk, Piece, What};
use super::tree::{self, Entry, Stamp};
use crate::num::{len_u64, round_down, round_up, small};
use crate::opts::fat::FatTarget;
use crate::storage::{FileOptions, HostExtent, HostKind, Limits, Preallocation, Storage, ZeroMode};
use crate::{Error, ErrorKind, Result};

/// Files that stay open.
const OPEN: usize = 32;
/// Bytes of a table that are made at a time.
const TABLE_PART: u64 = 64 << 10;

/// A folder as a FAT disk.
#[derive(Debug)]
pub struct FatStorage {
    name: String,
    identity: String,
    tree: Vec<Entry>,
    disk: Disk,
    /// The last files that were read, the latest last.
    open: Mutex<Vec<(usize, Arc<File>)>>,
}

impl FatStorage {
    /// Looks at the folder and plans the disk.
    ///
    /// # Errors
    /// When the folder cannot be read, holds what a FAT cannot hold, or is asked for for writing.
    pub fn open(target: &FatTarget, options: FileOptions) -> Result<Self> {
        if options.writable {
            return Err(Error::new(
                ErrorKind::ReadOnly,
                "a folder cannot be written through a FAT",
            ));
        }
        let tree = tree::scan(Path::new(&target.dir))?;
        let disk = layout::plan(&tree, target)?;
        let mut sum = Sha256::new();
        for entry in &tree {
            sum.update(entry.name.as_bytes());
            sum.update([0]);
            sum.update(format!("{} {:?}", entry.parent, entry.stamp).as_bytes());
        }
        let identity = sum.finalize().iter().map(|b| format!("{b:02x}")).collect();
        let name = target.shown().name();
        Ok(FatStorage { name, identity, tree, disk, open: Mutex::default() })
    }

    fn file(&self, number: usize) -> Result<Arc<File>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = open.iter().position(|(n, _)| *n == number) {
            let found = open.remove(at);
            let file = Arc::clone(&found.1);
            open.push(found);
            return Ok(file);
        }
        let file = Arc::new(File::open(&self.tree[number].path)?);
        if open.len() >= OPEN {
            open.remove(0);
        }
        open.push((number, Arc::clone(&file)));
        Ok(file)
    }

    fn read_file(&self, number: usize, offset: u64, buf: &mut [u8]) -> Result<()> {
        let entry = &self.tree[number];
        let shown = entry.path.to_string_lossy();
        let changed = || {
            Error::corrupt(format!("'{shown}' has changed since the folder was opened"))
                .at_path(shown.as_ref())
                .at_offset(offset)
        };
        let file = self
            .file(number)
            .map_err(|e| e.context(format!("Could not read '{shown}'")).at_path(shown.as_ref()))?;
        let same = || file.metadata().is_ok_and(|m| Stamp::of(&m) == entry.stamp);
        if !same() {
            return Err(changed());
        }
        match file.read_exact_at(buf, offset) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Err(changed()),
            Err(e) => return Err(Error::io(&e).at_path(shown.as_ref()).at_offset(offset)),
        }
        // A writer that came in between would have changed the times.
        if same() { Ok(()) } else { Err(changed()) }
    }

    fn read_piece(&self, piece: &Piece, skip: u64, buf: &mut [u8]) -> Result<()> {
        match &piece.what {
            What::Bytes(bytes) => {
                let from = small(skip);
                buf.copy_from_slice(&bytes[from..from + buf.len()]);
            }
            What::File(number) => self.read_file(*number, skip, buf)?,
            What::Table => {
                let mut done = 0;
                while done < buf.len() {
                    let at = skip + len_u64(done);
                    let first = round_down(at, 4);
                    let end = (at + len_u64(buf.len() - done)).min(first + TABLE_PART);
                    let mut part = Vec::new();
                    layout::table_32(
                        &self.disk.ends,
                        first / 4,
                        &mut part,
                        (round_up(end, 4) - first) / 4,
                    );
                    let have = &part[small(at - first)..small(end - first)];
                    buf[done..done + have.len()].copy_from_slice(have);
                    done += have.len();
                }
            }
        }
        Ok(())
    }

    fn refuse(&self) -> Error {
        Error::new(ErrorKind::ReadOnly, "a folder cannot be written through a FAT")
            .at_path(&self.name)
    }
}

impl Storage for FatStorage {
    fn name(&self) -> &str {
        &self.name
    }

    fn protocol(&self) -> Option<&'static str> {
        Some("vvfat")
    }

    fn identity(&self) -> Option<String> {
        Some(self.identity.clone())
    }

    fn len(&self) -> Result<u64> {
        Ok(self.disk.len)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        buf.fill(0);
        let end = offset.saturating_add(len_u64(buf.len()));
        let first = layout::piece_at(&self.disk.pieces, offset);
        for piece in self.disk.pieces[first..].iter().take_while(|p| p.start < end) {
            let from = piece.start.max(offset);
            let to = (piece.start + piece.len).min(end);
            let part = &mut buf[layout::bytes_of(from - offset)..layout::bytes_of(to - offset)];
            self.read_piece(piece, from - piece.start, part)?;
        }
        Ok(())
    }

    fn write_at(&self, _offset: u64, _buf: &[u8]) -> Result<()> {
        Err(self.refuse())
    }

    fn write_zeroes(&self, _offset: u64, _len: u64, _mode: ZeroMode) -> Result<()> {
        Err(self.refuse())
    }

    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        Err(self.refuse())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn set_len(&self, _len: u64, _how: Preallocation) -> Result<()> {
        Err(self.refuse())
    }

    fn status(&self, offset: u64, len: u64) -> Result<HostExtent> {
        let pieces = &self.disk.pieces;
        let unit = |n: u64| round_up(n, 4096);
        let at = layout::piece_at(pieces, offset);
        let Some(piece) = pieces.get(at) else {
            // Ends of files fill their pages.
            let last = pieces.last().map_or(0, |p| unit(p.start + p.len));
            let tail = last.saturating_sub(offset).min(len);
            return Ok(if tail > 0 {
                HostExtent { kind: HostKind::Data, len: tail }
            } else {
                HostExtent { kind: HostKind::Hole, len }
            });
        };
        let before = at.checked_sub(1).map_or(0, |n| unit(pieces[n].start + pieces[n].len));
        if piece.start > offset && before <= offset {
            let gap = round_down(piece.start, 4096).saturating_sub(offset);
            if gap > 0 {
                return Ok(HostExtent { kind: HostKind::Hole, len: gap.min(len) });
            }
        }
        // Pieces that touch are one.
        let mut end = unit(piece.start + piece.len);
        for next in &pieces[at + 1..] {
            if next.start > end || end - offset >= len {
                break;
            }
            end = unit(next.start + next.len);
        }
        Ok(HostExtent { kind: HostKind::Data, len: (end - offset).min(len) })
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: 1,
            discard_alignment: 4096,
            opt_transfer: 0,
            block_device: false,
        }
    }

    fn read_only(&self) -> bool {
        true
    }
}

//! The copying itself: threads that take chunks, read and scan (or encode) them side by side, take
//! turns in guest order to reserve places, and write side by side again.
//!
//! The target is used without a [`Node`]'s locks where that is possible: chunks do not overlap, begin
//! at allocation units, and nobody else has the target open.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::Scope;

use super::super::Job;
use super::super::parallel::{Failure, Turns, lock};
use super::super::rate::Rate;
use super::super::source::Origin;
use super::feed::{Chunk, Feed, Part, Rules, Span, Status, Work};
use super::options::{Offload, OnReadError};
use super::place::{Places, Write};
use super::resume::Checkpoints;
use super::scan::{Sparse, push};
use super::workers::Workers;
use crate::Result;
use crate::format::{Encoded, Encoder, Level, ZeroSpace, check_cancelled};
use crate::graph::Node;
use crate::num::{len_u64, round_down, round_up, small};
use crate::storage::zero::is_zero;
use crate::storage::{AlignedBuf, CopyKind};

const SECTOR: usize = 512;
/// Bytes read at a time.
const PIECE: u64 = 256 << 10;
/// Bytes written between two calls that start the disk working on them.
const WRITEBACK: u64 = 16 << 20;

/// Everything that the threads share.
pub(super) struct Copy<'a> {
    pub spans: &'a [Span<'a>],
    pub feed: Mutex<Feed<'a>>,
    pub target: &'a Node,
    pub rules: Rules,
    pub sparse: Sparse,
    /// Unit of allocation: that of the rules, or a part of it where the target has subclusters.
    pub step: u64,
    /// Unit of encoded writing, if the output is compressed.
    pub encode: Option<(u64, Level)>,
    /// How many threads there are.
    pub workers: Workers,
    pub on_read_error: OnReadError,
    pub offload: Offload,
    /// Still worth trying.
    pub offload_works: AtomicBool,
    pub rate: Rate,
    pub job: Job<'a>,
    pub turns: Turns,
    /// Makes it possible to go on after an interruption.
    pub checkpoints: Option<&'a Checkpoints<'a>>,
    /// Held while writing where the kernel lets one thread at a time write a file anyway: waiting here
    /// costs nothing, waiting for the inode's lock is spinning.
    pub one_writer: Option<Mutex<()>>,
    /// The output will be waited for: the disk should work while we do.
    pub early_writeback: bool,
    pub failure: Failure,
    pub counters: Counters,
    /// A source or the target is encrypted.
    pub encrypted: bool,
}

/// What was done so far, in bytes.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub read: AtomicU64,
    pub stored: AtomicU64,
    pub offloaded: AtomicU64,
    pub done: AtomicU64,
}

/// What one thread works in, reused for every chunk.
struct Bench {
    buf: AlignedBuf,
    /// Runs of data, by the rule for zeroes; offsets in the chunk.
    data: Vec<(usize, usize)>,
    /// The same, rounded to units.
    units: Vec<(usize, usize)>,
    /// Units to be made zero.
    zeroes: Vec<(usize, usize)>,
    /// Units of zero bytes that would have been written as data (`detect-zeroes`).
    detected: Vec<(usize, usize)>,
    encoder: Option<Box<dyn Encoder>>,
    encoded: Vec<Vec<u8>>,
    places: Places,
}

impl Copy<'_> {
    /// Copies everything. The outcome, what was done, and how many threads it took in the end.
    pub fn run(self) -> (Result<()>, Counters, usize) {
        std::thread::scope(|scope| {
            for _ in 1..self.workers.running() {
                scope.spawn(|| self.work(scope));
            }
            self.work(scope);
        });
        (self.failure.into_result(), self.counters, self.workers.running())
    }

    fn work<'s>(&'s self, scope: &'s Scope<'s, '_>) {
        let chunk = small(self.rules.chunk);
        // The last unit of the disk may reach beyond its end.
        let room = chunk + small(self.rules.unit);
        let mut bench = Bench {
            buf: AlignedBuf::new(room),
            data: Vec::new(),
            units: Vec::new(),
            zeroes: Vec::new(),
            detected: Vec::new(),
            encoder: self.encode.and_then(|(_, level)| self.target.image().encoder(level)),
            encoded: Vec::new(),
            places: Places::default(),
        };
        while !self.failure.happened() {
            let gate =
                self.checkpoints.map(|c| c.gate.read().unwrap_or_else(PoisonError::into_inner));
            let (next, ticket, position) = {
                let mut feed = lock(&self.feed);
                let ticket = feed.next_ticket();
                (feed.next(), ticket, feed.position())
            };
            let result = match next {
                Ok(None) => return,
                Ok(Some(chunk)) => check_cancelled(self.job.watcher)
                    .and_then(|()| self.do_chunk(&chunk, &mut bench, scope)),
                Err(e) => Err(e),
            };
            if let Err(e) = result {
                self.failure.report(ticket, e);
                self.turns.stop();
                return;
            }
            self.turns.pass(ticket);
            drop(gate);
            if let Err(e) = self.checkpoint() {
                self.failure.report(ticket, e);
                self.turns.stop();
                return;
            }
            let done = self.counters.done.fetch_max(position, Ordering::Relaxed).max(position);
            self.job.watcher.progress(done, self.rules.total);
        }
    }

    /// Waits for the chunks that others work on, and secures everything so far, if it is time for that.
    fn checkpoint(&self) -> Result<()> {
        let Some(checkpoints) = self.checkpoints.filter(|c| c.due()) else { return Ok(()) };
        let _alone = checkpoints.gate.write().unwrap_or_else(PoisonError::into_inner);
        if self.failure.happened() {
            // Not everything before the feed's position was done.
            return Ok(());
        }
        checkpoints.secure(self.target, lock(&self.feed).position())
    }

    fn do_chunk<'s>(
        &'s self,
        chunk: &Chunk,
        bench: &mut Bench,
        scope: &'s Scope<'s, '_>,
    ) -> Result<()> {
        match &chunk.work {
            Work::Zero => {
                if self.turns.wait(chunk.ticket) {
                    self.zero(chunk.at, chunk.len)
                } else {
                    Ok(())
                }
            }
            Work::Copy(parts) => {
                if self.encode.is_some() {
                    self.fill(chunk, parts, bench)?;
                    return self.copy_encoded(chunk, bench);
                }
                if self.copy_offloaded(chunk, parts, bench)? {
                    return Ok(());
                }
                let started = self.workers.before_read();
                self.fill(chunk, parts, bench)?;
                // Decoding and deciphering are work for all processors.
                let decoded =
                    parts.iter().any(|p| p.run.origin == Origin::Encoded) || self.encrypted;
                for _ in 0..self.workers.after_read(&started, chunk.len, decoded) {
                    scope.spawn(|| self.work(scope));
                }
                self.copy_plain(chunk, parts, bench)
            }
        }
    }

    fn zero(&self, at: u64, len: u64) -> Result<()> {
        self.target.write_zeroes(at, len, ZeroSpace::Unmap).map_err(|e| write_error(at, e))
    }

    /// Reads a chunk into the buffer; what is not data becomes zero, and so does what lies between the
    /// end of the disk and the end of its last unit.
    fn fill(&self, chunk: &Chunk, parts: &[Part], bench: &mut Bench) -> Result<()> {
        let mixed = self.rules.has_backing && parts.iter().any(|p| p.status != Status::Backing);
        let Bench { buf, data, .. } = bench;
        let buf = buf.bytes();
        let mut read = 0;
        data.clear();
        for part in parts {
            let start = small(part.at - chunk.at);
            let area = &mut buf[start..start + small(part.len)];
            match part.status {
                Status::Zero => {
                    area.fill(0);
                    // Known zeroes stay zeroes, however short.
                    if self.rules.dense {
                        self.look(area, part.at, start, data);
                    }
                }
                Status::Backing if self.encode.is_none() => match self.target.backing() {
                    Some(below) if mixed => {
                        read_within(below, part.at, area).map_err(|e| read_error(part.at, e))?;
                    }
                    _ => area.fill(0),
                },
                Status::Backing | Status::Data => {
                    let mut done = 0;
                    while done < area.len() {
                        let len = self.piece(part.at + len_u64(done)).min(area.len() - done);
                        let piece = &mut area[done..done + len];
                        let part = part.inside(len_u64(done), len_u64(len));
                        self.read(&part, piece)?;
                        if part.status == Status::Data {
                            self.look(piece, part.at, start + done, data);
                        }
                        done += len;
                    }
                    read += part.len;
                }
            }
        }
        let len = small(chunk.len);
        let padded = small(round_up(chunk.at + chunk.len, self.rules.unit) - chunk.at);
        let end = padded.min(buf.len()).max(len);
        buf[len..end].fill(0);
        self.counters.read.fetch_add(read, Ordering::Relaxed);
        Ok(())
    }

    /// Bytes to read at `at` before they are looked at, while they are in the second-level cache. Aligned
    /// blocks stay whole; where runs of zeroes are longer than those, nothing is cut.
    fn piece(&self, at: u64) -> usize {
        let Sparse { min, align } = self.sparse;
        if min == 0 || min == align { small(round_up(at + PIECE, align) - at) } else { usize::MAX }
    }

    /// Appends what is data by the rule for zeroes. What will be encoded is looked at by units.
    fn look(&self, bytes: &[u8], at: u64, start: usize, data: &mut Vec<(usize, usize)>) {
        if self.encode.is_none() {
            self.sparse.data_runs(bytes, at, start, data);
        }
    }

    fn read(&self, part: &Part, area: &mut [u8]) -> Result<()> {
        let walk = &self.spans[part.source].walk;
        let own_end = self.spans[part.source].own_end;
        // The last sector of a disk that is not a multiple of it reads as zeroes beyond its end.
        let have = small(own_end.saturating_sub(part.local)).min(area.len());
        let (inside, beyond) = area.split_at_mut(have);
        beyond.fill(0);
        match walk.read(&part.run, part.found, part.local, inside) {
            Ok(()) => Ok(()),
            Err(e) if self.on_read_error == OnReadError::Stop => Err(read_error(part.at, e)),
            Err(_) => {
                self.salvage(part, inside);
                Ok(())
            }
        }
    }

    /// Reads sector by sector and leaves zeroes where that fails.
    fn salvage(&self, part: &Part, area: &mut [u8]) {
        let walk = &self.spans[part.source].walk;
        for (i, sector) in area.chunks_mut(SECTOR).enumerate() {
            let skip = len_u64(i * SECTOR);
            let outcome = walk.image(0).map_or(Ok(()), |top| top.read(part.local + skip, sector));
            if let Err(e) = outcome {
                sector.fill(0);
                self.job.watcher.note(&format!(
                    "warning: error while reading offset {}: {}",
                    part.at + skip,
                    e.report()
                ));
            }
        }
    }

    /// Rounds what was found to be data to units, in `bench.units` and `bench.zeroes`.
    fn scan(&self, chunk: &Chunk, parts: &[Part], bench: &mut Bench) {
        let Bench { buf, data, units, zeroes, .. } = bench;
        units.clear();
        zeroes.clear();
        let buf = buf.bytes();
        let mut known: Vec<(usize, usize)> = Vec::new();
        for part in parts.iter().filter(|p| p.status != Status::Backing) {
            let (start, len) = (small(part.at - chunk.at), small(part.len));
            push(&mut known, start, len);
        }
        let unit = small(self.step);
        let plain = known.len() == 1 && known[0] == (0, small(chunk.len));
        if plain && self.rules.zero_init {
            // Nothing but data to be rounded to units.
            for &(start, len) in data.iter() {
                push_units(units, start, len, unit);
            }
            return;
        }
        let mut start = 0;
        while start < small(chunk.len) {
            let end = (start + unit).min(small(chunk.len));
            let inside = |runs: &[(usize, usize)]| {
                let mut covered = 0;
                for &(s, l) in runs {
                    covered += (s + l).min(end).saturating_sub(s.max(start));
                }
                covered
            };
            let known_bytes = inside(&known);
            let is_data = inside(data) > 0
                || (known_bytes > 0 && known_bytes < end - start && !is_zero(&buf[start..end]));
            if is_data {
                push(units, start, unit);
            } else if known_bytes > 0 && !self.rules.zero_init {
                push(zeroes, start, end - start);
            }
            start = end;
        }
    }

    /// Moves the units that hold nothing but zero bytes from `bench.units` to `bench.detected`.
    fn detect_zeroes(&self, chunk: &Chunk, bench: &mut Bench) {
        let Bench { buf, units, detected, .. } = bench;
        detected.clear();
        let (buf, unit) = (buf.bytes(), small(self.step));
        let mut left = Vec::with_capacity(units.len());
        for &(run, len) in units.iter() {
            let run_end = (run + len).min(small(chunk.len));
            for start in (run..run_end).step_by(unit.max(SECTOR)) {
                let end = (start + unit.max(SECTOR)).min(run_end);
                let zero = is_zero(&buf[start..end]);
                push(if zero { &mut *detected } else { &mut left }, start, end - start);
            }
        }
        *units = left;
    }

    fn copy_plain(&self, chunk: &Chunk, parts: &[Part], bench: &mut Bench) -> Result<()> {
        self.scan(chunk, parts, bench);
        let detected = self.target.detected_zeroes();
        if detected.is_some() {
            self.detect_zeroes(chunk, bench);
        }
        let zero_runs = !(bench.zeroes.is_empty() && bench.detected.is_empty());
        if bench.units.is_empty() && !zero_runs {
            return Ok(());
        }
        let image = self.target.image();
        if image.granularity().allocation > 1 || zero_runs {
            if !self.turns.wait(chunk.ticket) {
                return Ok(());
            }
            let zeroed = bench
                .zeroes
                .iter()
                .try_for_each(|&(start, len)| self.zero(chunk.at + len_u64(start), len_u64(len)));
            zeroed?;
            for &(start, len) in &bench.detected {
                let at = chunk.at + len_u64(start);
                let space = detected.unwrap_or(ZeroSpace::Keep);
                let zeroed = self.target.write_zeroes(at, len_u64(len), space);
                zeroed.map_err(|e| write_error(at, e))?;
            }
        }
        if self.step < self.rules.unit && self.rules.unit == image.granularity().allocation {
            return self.copy_subclusters(chunk, bench);
        }
        let Bench { places, units, data, .. } = &mut *bench;
        // What stands where the source has short zeroes must go, unless it is zeroes too.
        let data = if self.rules.overwrite { &*units } else { &*data };
        places
            .reserve(image, chunk.at, self.rules.total, units, data)
            .map_err(|e| write_error(chunk.at, e))?;
        self.turns.pass(chunk.ticket);
        let buf = bench.buf.bytes();
        let writer = self.one_writer.as_ref().map(lock);
        let written = bench.places.write_all(image, chunk.at, |storage, write: &Write| {
            let bytes = &buf[write.from..write.from + write.len];
            self.rate.pass(len_u64(write.len), &|| self.stopping());
            storage.expect_write(write.offset, len_u64(write.len));
            storage.write_at(write.offset, bytes)
        });
        drop(writer);
        self.stored(bench.places.bytes());
        written.map_err(|(at, e)| write_error(at, e))
    }

    /// Stores the runs of a chunk one after the other, all in its turn: two runs may lie in one
    /// cluster, and the second must see where the first one put it.
    fn copy_subclusters(&self, chunk: &Chunk, bench: &mut Bench) -> Result<()> {
        let Bench { units, buf, .. } = bench;
        let buf = buf.bytes();
        for &(start, len) in units.iter() {
            let at = chunk.at + len_u64(start);
            let len = len.min(small(self.rules.total - at));
            self.rate.pass(len_u64(len), &|| self.stopping());
            self.target.write(at, &buf[start..start + len]).map_err(|e| write_error(at, e))?;
            self.counters.stored.fetch_add(len_u64(len), Ordering::Relaxed);
        }
        Ok(())
    }

    /// Counts bytes stored, and now and then lets the disk begin with them.
    fn stored(&self, bytes: u64) {
        let before = self.counters.stored.fetch_add(bytes, Ordering::Relaxed);
        if self.early_writeback && before / WRITEBACK != (before + bytes) / WRITEBACK {
            for storage in self.target.image().storages() {
                storage.begin_writeback();
            }
        }
    }

    fn stopping(&self) -> bool {
        self.failure.happened() || self.job.watcher.cancelled()
    }

    /// Copies a chunk that is one plain run in a file without looking at it. `false`: not possible.
    fn copy_offloaded(&self, chunk: &Chunk, parts: &[Part], bench: &mut Bench) -> Result<bool> {
        let kind = match self.offload {
            Offload::Never => return Ok(false),
            Offload::Share => CopyKind::Reflink,
            Offload::CopyRange => CopyKind::Kernel,
        };
        let [part] = parts else { return Ok(false) };
        let Origin::Plain(id, offset) = part.run.origin else {
            return Ok(false);
        };
        if part.status != Status::Data || !self.offload_works.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let from = offset.0 + (part.local - part.found);
        let whole = chunk.len.is_multiple_of(self.rules.unit) && from.is_multiple_of(SECTOR as u64);
        let aligned = kind == CopyKind::Kernel
            || (from.is_multiple_of(4096) && chunk.len.is_multiple_of(4096));
        let Some(node) = self.spans[part.source].walk.image(part.run.link) else {
            return Ok(false);
        };
        let source = node.image().storage(id);
        let inside = source.len()? >= from + chunk.len;
        if !(whole && aligned && inside && source.as_file().is_some()) {
            return Ok(false);
        }
        let image = self.target.image();
        if image.storage(crate::format::StorageId(0)).as_file().is_none() {
            return Ok(false);
        }
        if image.granularity().allocation > 1 && !self.turns.wait(chunk.ticket) {
            return Ok(true);
        }
        let all = [(0, small(chunk.len))];
        bench
            .places
            .reserve(image, chunk.at, self.rules.total, &all, &all)
            .map_err(|e| write_error(chunk.at, e))?;
        self.turns.pass(chunk.ticket);
        let buf = bench.buf.bytes();
        let mut offloaded = 0;
        let written = bench.places.write_all(image, chunk.at, |storage, write: &Write| {
            let start = from + len_u64(write.from);
            let len = len_u64(write.len);
            self.rate.pass(len, &|| self.stopping());
            if self.offload_works.load(Ordering::Relaxed) {
                if storage.copy_from(&**source, start, write.offset, len, kind)? {
                    offloaded += len;
                    return Ok(());
                }
                // This pair of files cannot; no need to ask again.
                self.offload_works.store(false, Ordering::Relaxed);
            }
            let area = &mut buf[write.from..write.from + write.len];
            source.read_at(start, area)?;
            storage.write_at(write.offset, area)
        });
        self.counters.offloaded.fetch_add(offloaded, Ordering::Relaxed);
        self.stored(bench.places.bytes());
        written.map_err(|(at, e)| write_error(at, e))?;
        Ok(true)
    }

    /// Encodes the units of a chunk that are not zero, and stores them.
    fn copy_encoded(&self, chunk: &Chunk, bench: &mut Bench) -> Result<()> {
        let Some((unit_len, _)) = self.encode else { return Ok(()) };
        let unit = small(unit_len);
        let Bench { buf, encoder, encoded, places, .. } = bench;
        let Some(encoder) = encoder else { return Ok(()) };
        let buf = buf.bytes();
        let count = small(chunk.len).div_ceil(unit);
        let mut found: Vec<(usize, bool)> = Vec::with_capacity(count);
        encoded.resize_with(encoded.len().max(count), Vec::new);
        let mut zeroes = Vec::new();
        for i in 0..count {
            let at = chunk.at + len_u64(i * unit);
            let bytes = &buf[i * unit..(i + 1) * unit];
            if !self.rules.dense && is_zero(bytes) {
                if !self.rules.zero_init {
                    zeroes.push(at);
                }
                continue;
            }
            let outcome = encoder
                .encode(crate::num::GuestOffset(at), bytes, &mut encoded[i])
                .map_err(|e| write_error(at, e))?;
            found.push((i, outcome == Encoded::Done));
        }
        if found.is_empty() && zeroes.is_empty() {
            return Ok(());
        }
        if !self.turns.wait(chunk.ticket) {
            return Ok(());
        }
        for at in zeroes {
            self.zero(at, unit_len.min(self.rules.total - at))?;
        }
        let image = self.target.image();
        places.clear();
        for &(i, packed) in &found {
            let at = chunk.at + len_u64(i * unit);
            let place = if packed {
                places.reserve_encoded(image, at, i, len_u64(encoded[i].len()))
            } else {
                places.reserve_unit(image, chunk.at, i * unit, unit)
            };
            place.map_err(|e| write_error(at, e))?;
        }
        self.turns.pass(chunk.ticket);
        let writer = self.one_writer.as_ref().map(lock);
        let written = places.write_all(image, chunk.at, |storage, write: &Write| {
            let bytes = match write.encoded {
                Some(i) => &encoded[i][..],
                None => &buf[write.from..write.from + write.len],
            };
            self.rate.pass(len_u64(bytes.len()), &|| self.stopping());
            storage.write_at(write.offset, bytes)
        });
        drop(writer);
        self.stored(places.bytes());
        written.map_err(|(at, e)| write_error(at, e))
    }
}

/// Appends the units that a run touches.
fn push_units(units: &mut Vec<(usize, usize)>, start: usize, len: usize, unit: usize) {
    let first = small(round_down(len_u64(start), len_u64(unit)));
    let end = small(round_up(len_u64(start + len), len_u64(unit)));
    match units.last_mut() {
        Some((s, l)) if *s + *l >= first => *l = (end - *s).max(*l),
        _ => units.push((first, end - first)),
    }
}

/// Reads what lies inside the disk; zeroes beyond.
fn read_within(node: &Node, at: u64, area: &mut [u8]) -> Result<()> {
    let have = small(node.virtual_size().saturating_sub(at)).min(area.len());
    let (inside, beyond) = area.split_at_mut(have);
    beyond.fill(0);
    if inside.is_empty() { Ok(()) } else { node.read(at, inside) }
}

fn read_error(at: u64, error: crate::Error) -> crate::Error {
    error.context(format!("error while reading at byte {at}")).at_offset(at)
}

fn write_error(at: u64, error: crate::Error) -> crate::Error {
    error.context(format!("error while writing at byte {at}")).at_offset(at)
}

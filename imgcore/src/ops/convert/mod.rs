//! `convert`: one or several images into one, in any format.
//!
//! * [`feed`] cuts the sources into chunks; ranges that need nothing cost nothing.
//! * [`copy`] runs the threads: read, scan or encode, take turns to reserve places, write;
//!   [`workers`] says how many.
//! * [`scan`] has qemu-img's rules of what counts as zero, [`place`] the target's side.
//!
//! The output is the same bytes for any number of threads, because chunks are cut without looking at
//! the threads and places are reserved in guest order. Memory: one chunk per thread (2 MiB, or one
//! unit of the target if that is larger); where it is encoded, 256 KiB and the encoded form.
//!
//! A new target is written under a temporary name and appears when it is whole and on disk
//! ([`crate::graph::output`]); an existing one (`-n`) is written in place.

mod bitmaps;
mod copy;
mod feed;
mod options;
mod place;
mod resume;
mod scan;
mod share;
mod space;
mod verify;
mod workers;

use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

pub use options::{
    Bitmaps, Compress, ConvertOptions, ConvertReport, Durability, Offload, OnReadError, Overwrite,
    Resume, Target, Verify,
};

use super::create::{find_driver, key_options, parse_options, set_size, set_text};
use super::parallel::{Failure, Turns, default_threads};
use super::rate::Rate;
use super::{Job, sparsify};
use crate::format::{
    Access, BackingRef, BitmapInfo, CreateOptions, Driver, Granularity, Level, check_cancelled,
};
use crate::graph::Node;
use crate::graph::create::{NewImage, create};
use crate::graph::gate::{combine, folder_of};
use crate::graph::open::{OpenOptions, OpenRequest, Purpose, Sharing, open};
use crate::graph::output::{Output, Place};
use crate::storage::{CacheMode, HostKind};
use crate::{Error, Result};
use copy::{Copy, Counters};
use feed::{Feed, Rules, Span};
use resume::{Begun, Checkpoints, Fingerprint};
use scan::Sparse;
use workers::{Limits, Workers};

/// Bytes a thread encodes at a time: source and target side stay in the second-level cache.
const CHUNK: u64 = 256 << 10;
/// The same where nothing is encoded: the kernel copies long writes into large folios, which costs
/// it less than the second-level cache saves us.
const PLAIN_CHUNK: u64 = 2 << 20;
/// The same for unusual sparse sizes: as large as qemu-img's, whose results depend on it.
const LARGE_CHUNK: u64 = 2 << 20;
/// Most threads; more do not help and cost memory.
const MAX_THREADS: usize = 64;
/// Requests that a disk is given at the same time, as many as qemu-img gives it.
const WAITING_THREADS: usize = 8;

/// Converts.
pub fn convert(options: &ConvertOptions, job: &Job<'_>) -> Result<ConvertReport> {
    check_wishes(options)?;
    let mut sources = open_sources(options, job)?;
    if let Some(selection) = &options.sparsify {
        for source in &mut sources {
            *source = sparsify::masked(source, selection, job)?;
        }
    }
    let total = feed::spans(&sources, false)?.last().map_or(0, |s| s.start + s.len);
    let chosen = match options.bitmaps {
        Bitmaps::Ignore => Vec::new(),
        how => bitmaps::choose(sources[0].image(), how, job)?,
    };
    match &options.target {
        Target::New { filename, driver, options: given } => {
            let new = new_target(options, &sources, filename, driver, given, total)?;
            into_new(options, job, &sources, &new, &chosen)
        }
        Target::Existing { request, is_zero } => {
            let how = OpenOptions {
                cache: options.target_cache,
                policy: job.policy.clone(),
                secrets: job.secrets.clone(),
                ..OpenOptions::default()
            }
            .writable();
            let target = open(request, &how)?;
            if target.virtual_size() < total {
                return Err(Error::invalid("output file is smaller than input file"));
            }
            bitmaps::require(options.bitmaps, target.image())?;
            let begin = Begin {
                state: if *is_zero { Fresh::Zero } else { Fresh::Old },
                has_backing: options.backing.is_some(),
                at: 0,
                checkpoints: None,
            };
            let report = fill(options, job, &sources, &target, &begin)?;
            bitmaps_over(&chosen, &sources, &target)?;
            target.close()?;
            if options.verify == Verify::No {
                return Ok(report);
            }
            target.image().storages().iter().try_for_each(|s| s.flush())?;
            target.image().storages().iter().for_each(|s| s.forget_cached());
            drop(target);
            let how = OpenOptions {
                cache: options.target_cache,
                policy: job.policy.clone(),
                secrets: job.secrets.clone(),
                ..source_options()
            };
            let target = open(request, &how)?;
            verified(job, &sources, &target, report)
        }
    }
}

/// Bytes that are made zero before somebody may want to stop.
const EMPTIED_AT_ONCE: u64 = 1 << 30;

/// What the target shows where nothing was written yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fresh {
    /// Created just now.
    New,
    /// The user says it is zero.
    Zero,
    /// Anything.
    Old,
}

/// Where and how the copy begins.
struct Begin<'a> {
    state: Fresh,
    has_backing: bool,
    at: u64,
    checkpoints: Option<&'a Checkpoints<'a>>,
}

fn check_wishes(options: &ConvertOptions) -> Result<()> {
    if options.sources.is_empty() {
        return Err(Error::invalid("Must specify image file name"));
    }
    if options.sources.len() > 1 {
        if options.bitmaps != Bitmaps::Ignore {
            return Err(Error::invalid("Copying bitmaps only possible with single source"));
        }
        if options.backing.is_some() {
            return Err(several_with_backing());
        }
    }
    check_sparsify(options)?;
    if options.offload == Offload::CopyRange && options.compress != Compress::No {
        return Err(Error::invalid("Cannot enable copy offloading when -c is used"));
    }
    if options.resume != Resume::No {
        if !matches!(options.target, Target::New { .. }) {
            return Err(Error::invalid("Only a target that is created can be resumed"));
        }
        if options.bitmaps != Bitmaps::Ignore {
            return Err(Error::invalid("A conversion with bitmaps cannot be resumed"));
        }
    }
    if options.verify == Verify::Yes && options.on_read_error == OnReadError::Salvage {
        return Err(Error::invalid("What is salvaged cannot be verified"));
    }
    Ok(())
}

/// What is free is known of one whole disk, and becomes zero in a target that shows nothing from below.
fn check_sparsify(options: &ConvertOptions) -> Result<()> {
    let refuse = |text: &str| Err(Error::invalid(text));
    if options.sparsify.is_none() {
        return Ok(());
    }
    if options.sources.len() > 1 {
        return refuse("Only a single source can be sparsified");
    }
    if options.backing.is_some() {
        return refuse("A target with a backing file cannot be sparsified");
    }
    if options.bitmaps != Bitmaps::Ignore {
        return refuse("Bitmaps cannot be copied while sparsifying");
    }
    if options.resume != Resume::No {
        return refuse("A sparsifying conversion cannot be resumed");
    }
    if options.sparse_size == 0 {
        return refuse("Sparsifying and allocating everything (-S 0) contradict each other");
    }
    Ok(())
}

fn several_with_backing() -> Error {
    Error::invalid(
        "Having a backing file for the target makes no sense when concatenating multiple input \
         images",
    )
}

fn open_sources(options: &ConvertOptions, job: &Job<'_>) -> Result<Vec<Arc<Node>>> {
    let one = |image: &super::ImageArg| {
        let mut how = image.options(job);
        how.purpose = Purpose::Source;
        how.snapshot.clone_from(&options.snapshot);
        if options.on_read_error == OnReadError::Salvage
            && how.cache == CacheMode::Writeback
            && is_block_device(&image.request.filename)
        {
            // The page cache reads a device in large pieces and gives up a whole one for a bad sector.
            how.cache = CacheMode::None;
        }
        image.open(job, &how)
    };
    options.sources.iter().map(one).collect()
}

fn is_block_device(name: &str) -> bool {
    std::fs::metadata(name).is_ok_and(|m| m.file_type().is_block_device())
}

/// A target to be created, all wishes checked.
struct NewTarget {
    driver: &'static dyn Driver,
    place: Place,
    path: String,
    shown: String,
    options: CreateOptions,
    size: u64,
    backing: Option<BackingRef>,
}

fn new_target(
    options: &ConvertOptions,
    sources: &[Arc<Node>],
    shown: &str,
    driver: &str,
    given: &[(String, String)],
    size: u64,
) -> Result<NewTarget> {
    let driver = find_driver(driver)?;
    let name = driver.name();
    let place = Place::parse(shown, "written").map_err(|e| e.context(shown.to_owned()))?;
    let path = place.name();
    let mut create = parse_options(driver, given)?;
    set_size(&mut create, size);
    for (option, value) in
        [("backing_file", &options.backing), ("backing_fmt", &options.backing_format)]
    {
        if let Some(value) = value
            && !set_text(driver, &mut create, option, value)
        {
            let what =
                if option == "backing_file" { "Backing file" } else { "Backing file format" };
            return Err(Error::invalid(format!("{what} not supported for file format '{name}'")));
        }
    }
    let backing = create.text("backing_file").map(|file| BackingRef {
        name: file.to_owned(),
        format: create.text("backing_fmt").map(str::to_owned),
    });
    if let Some(backing) = &backing {
        if !place.is_here() {
            return Err(Error::unsupported(
                "An image with a backing file can only be made on this host",
            ));
        }
        if sources.len() > 1 {
            return Err(several_with_backing());
        }
        if backing.format.is_none() {
            return Err(Error::invalid("Use of backing file requires explicit backing format"));
        }
    }
    let encrypted = create.get("encryption").is_some() || create.get("encrypt.format").is_some();
    if options.compress != Compress::No && encrypted {
        return Err(Error::invalid("Compression and encryption not supported at the same time"));
    }
    let preallocated = !matches!(create.text("preallocation"), None | Some("off"));
    if options.compress != Compress::No && preallocated {
        return Err(Error::invalid("Compression and preallocation not supported at the same time"));
    }
    if options.bitmaps != Bitmaps::Ignore && !matches!(name, "qcow2") {
        return Err(bitmaps::no_bitmaps(name));
    }
    Ok(NewTarget { driver, place, path, shown: shown.to_owned(), options: create, size, backing })
}

/// Creates the target under a temporary name, fills it, and gives it its name.
fn into_new(
    options: &ConvertOptions,
    job: &Job<'_>,
    sources: &[Arc<Node>],
    new: &NewTarget,
    chosen: &[BitmapInfo],
) -> Result<ConvertReport> {
    let driver = new.driver;
    let converting =
        |e: Error| e.context(format!("{}: error while converting {}", new.shown, driver.name()));
    let print = match options.resume {
        Resume::No => None,
        Resume::Every(interval) => Some((Fingerprint::new(options, sources, new), interval)),
    };
    let begun = print.as_ref().map(|(print, _)| resume::find(options, new, print)).transpose()?;
    let (output, at) = match begun.flatten() {
        Some(Begun { output, position }) => (output.with_secrets(job.secrets), Some(position)),
        None => {
            let output = Output::at(&new.place, options.target_cache, options.overwrite)
                .with_secrets(job.secrets);
            // How much room there is elsewhere, writing will tell.
            if new.place.is_here() {
                space::check(options, &new.shown, &output.folder(), sources, job)?;
            }
            (output, None)
        }
    };
    // The backing file is the user's word; it is only looked at here for what the format records.
    let mut policy = job.policy.clone();
    let mut lower = None;
    if let Some(backing) = &new.backing {
        let full = combine(&new.path, &backing.name);
        policy = policy.allow_file(Path::new(&full));
        let how = OpenOptions {
            sharing: options.sharing,
            policy: policy.clone(),
            secrets: job.secrets.clone(),
            ..source_options()
        };
        let opened = OpenRequest::parse(&full, backing.format.as_deref())
            .and_then(|request| open(&request, &how));
        lower = Some(opened.map_err(|e| {
            e.context("Could not open backing file")
                .context(format!("Could not open '{}'", new.shown))
        })?);
    }
    let mut resolved = new.options.clone();
    driver.resolve_options(&mut resolved, new.size).map_err(converting)?;
    let image = NewImage {
        driver,
        size: new.size,
        options: &resolved,
        backing: new.backing.clone(),
        backing_image: lower.as_ref().map(|n| n.image()),
    };
    if at.is_none() {
        create(&image, &output).map_err(converting)?;
    }
    let how = OpenOptions {
        cache: options.target_cache,
        sharing: Sharing::Locked,
        // A target that may be gone on with keeps its metadata in order.
        purpose: if print.is_some() { Purpose::Data } else { Purpose::Scratch },
        policy,
        secrets: job.secrets.clone(),
        ..OpenOptions::default()
    }
    .writable();
    let keys = key_options(&resolved);
    let target = output.open_image(driver, &how, &keys)?;
    bitmaps::require(options.bitmaps, target.image())?;
    let checkpoints = match print {
        None => None,
        Some((print, interval)) => {
            resume::require(&output, target.image())?;
            if let Some(at) = at {
                resume::prepare(sources, &target, at, job)?;
            }
            Some(Checkpoints::new(&output, &new.path, interval, print))
        }
    };
    let begin = Begin {
        state: Fresh::New,
        has_backing: new.backing.is_some(),
        at: at.unwrap_or(0),
        checkpoints: checkpoints.as_ref(),
    };
    let mut report = fill(options, job, sources, &target, &begin)?;
    drop(checkpoints);
    bitmaps_over(chosen, sources, &target)?;
    target.close()?;
    drop(target);
    if options.verify == Verify::Yes {
        if options.durability == Durability::Synced {
            output.sync()?;
        }
        let how = OpenOptions { access: Access::Read, purpose: Purpose::Source, ..how };
        let target = output.open_image(driver, &how, &keys)?;
        report = verified(job, sources, &target, report)?;
    }
    output.commit(options.durability)?;
    if options.resume != Resume::No {
        resume::finished(&new.path);
    }
    Ok(report)
}

/// Compares what was written with the sources.
fn verified(
    job: &Job<'_>,
    sources: &[Arc<Node>],
    target: &Node,
    report: ConvertReport,
) -> Result<ConvertReport> {
    job.watcher.phase("verifying");
    verify::compare(sources, target, 0..report.virtual_size, job)?;
    Ok(ConvertReport { verified: true, ..report })
}

fn source_options() -> OpenOptions {
    OpenOptions { purpose: Purpose::Source, ..OpenOptions::default() }
}

fn bitmaps_over(chosen: &[BitmapInfo], sources: &[Arc<Node>], target: &Node) -> Result<()> {
    if chosen.is_empty() {
        return Ok(());
    }
    bitmaps::copy(chosen, sources[0].image(), target.image())
}

/// Writes the sources into an open target.
fn fill(
    options: &ConvertOptions,
    job: &Job<'_>,
    sources: &[Arc<Node>],
    target: &Node,
    begin: &Begin<'_>,
) -> Result<ConvertReport> {
    let has_backing = begin.has_backing;
    let spans = feed::spans(sources, has_backing)?;
    let total = spans.last().map_or(0, |s| s.start + s.len);
    let granularity = target.image().granularity();
    let encode = encode_unit(options, target, &granularity)?;
    let storage = target.image().storage(crate::format::StorageId(0));
    let sparse = Sparse::new(options.sparse_size, u64::from(storage.limits().request_alignment));
    let zero_init = zero_init(options, target, begin.state, has_backing)
        || (begin.at == 0
            && begin.state == Fresh::Old
            && !has_backing
            && options.sparse_size > 0
            && emptied(target, total, job)?);
    let (unit, chunk) = chunk_size(&granularity, sparse, encode);
    let rules = Rules {
        total,
        dense: options.sparse_size == 0,
        zero_init,
        has_backing,
        backing_end: target.backing().map_or(u64::MAX, |b| b.virtual_size()),
        unit,
        chunk,
        overwrite: !zero_init || begin.at > 0,
    };
    let chunks = usize::try_from(total.div_ceil(chunk)).unwrap_or(usize::MAX);
    let cores = default_threads();
    let limits = match options.threads {
        0 if encode.is_some() => Limits::exactly(cores),
        0 => Limits { start: 1, computing: cores, waiting: cores.max(WAITING_THREADS) },
        n => Limits::exactly(n),
    };
    let workers = Workers::new(limits.at_most(chunks.clamp(1, MAX_THREADS)));
    let (result, counters, threads) =
        copy_with(options, job, &spans, target, (rules, sparse, encode), workers, begin);
    result?;
    let value = |c: &std::sync::atomic::AtomicU64| c.load(Ordering::Relaxed);
    job.watcher.progress(total, total);
    Ok(ConvertReport {
        virtual_size: total,
        bytes_read: value(&counters.read),
        bytes_stored: value(&counters.stored),
        bytes_offloaded: value(&counters.offloaded),
        threads,
        resumed_at: begin.at,
        verified: false,
    })
}

fn copy_with(
    options: &ConvertOptions,
    job: &Job<'_>,
    spans: &[Span<'_>],
    target: &Node,
    (rules, sparse, encode): (Rules, Sparse, Option<(u64, Level)>),
    workers: Workers,
    begin: &Begin<'_>,
) -> (Result<()>, Counters, usize) {
    let lenient = options.on_read_error == OnReadError::Salvage;
    let granularity = target.image().granularity();
    let step = match granularity.zero {
        // Subclusters: allocated one by one.
        Some(zero) if encode.is_none() && zero > 1 && zero < granularity.allocation => {
            zero.max(sparse.align.min(rules.unit))
        }
        _ => rules.unit,
    };
    Copy {
        spans,
        step,
        feed: Mutex::new(Feed::new(spans, rules, begin.at, lenient)),
        target,
        rules,
        sparse,
        encode,
        workers,
        on_read_error: options.on_read_error,
        offload: options.offload,
        offload_works: AtomicBool::new(offload_works(options, spans, target)),
        rate: Rate::new(options.rate),
        job: *job,
        turns: Turns::default(),
        checkpoints: begin.checkpoints,
        early_writeback: options.durability == Durability::Synced,
        one_writer: writes_one_by_one(target).then(Mutex::default),
        failure: Failure::default(),
        counters: Counters::default(),
        encrypted: target.image().encrypts()
            || spans.iter().any(|s| s.walk.images().any(|n| n.image().encrypts())),
    }
    .run()
}

/// Buffered writes to a regular file exclude each other in the kernel.
fn writes_one_by_one(target: &Node) -> bool {
    if target.image().encrypts() {
        // That is done by many; the encrypting storage takes the turns itself.
        return false;
    }
    target.image().storages().iter().all(|storage| {
        let limits = storage.limits();
        storage.as_file().is_some() && !limits.block_device && limits.request_alignment == 1
    })
}

/// Whether it is worth trying to copy without buffers.
fn offload_works(options: &ConvertOptions, spans: &[Span<'_>], target: &Node) -> bool {
    let folder = Path::new(target.name());
    match options.offload {
        Offload::Never => false,
        Offload::CopyRange => true,
        // A shared block is not looked at.
        Offload::Share if target.detected_zeroes().is_some() => false,
        Offload::Share => spans
            .iter()
            .all(|s| s.walk.image(0).is_some_and(|n| share::can_share(n, folder_of(folder)))),
    }
}

/// The unit and level of encoding, if the output is compressed: because the user wishes it or because
/// the target takes nothing else.
fn encode_unit(
    options: &ConvertOptions,
    target: &Node,
    granularity: &Granularity,
) -> Result<Option<(u64, Level)>> {
    let level = match options.compress {
        Compress::Yes(level) => level,
        Compress::No if granularity.append_only => Level::Default,
        Compress::No => return Ok(None),
    };
    match granularity.encode {
        Some(unit) => Ok(Some((unit, level))),
        // QEMU's words for one without grains.
        None if may_compress(target) && granularity.allocation <= 1 => {
            Err(Error::unsupported("invalid cluster size"))
        }
        None if may_compress(target) => Ok(None),
        None => Err(Error::unsupported("Compression not supported for this file format")),
    }
}

/// Whether the format has compressed images, of which `target` is none.
pub(super) fn may_compress(target: &Node) -> bool {
    crate::format::driver(target.image().format_name()).is_some_and(Driver::may_compress)
}

/// Whether what is not written reads as zero. An existing target is zeroed range by range where the
/// source is zero: what lies beyond the source's end is not ours.
fn zero_init(options: &ConvertOptions, target: &Node, state: Fresh, has_backing: bool) -> bool {
    match state {
        Fresh::Zero => true,
        Fresh::New => options.sparse_size > 0 && !has_backing && target.image().zero_init(),
        Fresh::Old => false,
    }
}

/// Makes the first `total` bytes of an old raw target zero where its storage says that this is quick (an NBD export may):
/// then only data are written, and zeroes between them ask nobody. `false`: it did not, and parts may be zero.
fn emptied(target: &Node, total: u64, job: &Job<'_>) -> Result<bool> {
    if target.image().format_name() != "raw" || target.backing().is_some() || !target.may_unmap() {
        return Ok(false);
    }
    let storage = target.image().storage(crate::format::StorageId(0));
    let mut at = 0;
    while at < total {
        check_cancelled(job.watcher)?;
        let extent = storage.status(at, (total - at).min(EMPTIED_AT_ONCE))?;
        if extent.kind == HostKind::Data && !storage.zero_quickly(at, extent.len)? {
            return Ok(false);
        }
        at += extent.len;
    }
    Ok(total > 0)
}

/// The unit in which the copy decides, and the chunk.
fn chunk_size(
    granularity: &Granularity,
    sparse: Sparse,
    encode: Option<(u64, Level)>,
) -> (u64, u64) {
    let unit = match (encode, granularity.allocation) {
        (Some((unit, _)), _) => unit,
        (None, 0 | 1) => sparse.align.min(CHUNK),
        (None, allocation) => allocation,
    };
    let usual = sparse.min == 0 || (sparse.min == sparse.align && sparse.align <= CHUNK);
    let chunk = match (usual, encode) {
        (true, Some(_)) => CHUNK,
        (true, None) => PLAIN_CHUNK,
        (false, _) => LARGE_CHUNK,
    };
    (unit, chunk.max(unit))
}

//! `--resume`: going on with a conversion that was interrupted.
//!
//! While it works, a resumable conversion stops now and then between two chunks, brings the target to
//! disk, and only then writes into a journal beside it how far it is: everything below that offset is
//! stored and stays stored, whatever happens later. The target is opened as an image in use, not as
//! scratch, so its metadata is written in the order that its format keeps safe; after a power failure
//! space may be leaked beyond the journal's offset, and is given back before the copy goes on.
//!
//! The journal also says what was being made of what. A run that goes on refuses when the wishes or the
//! source have changed: files are known by device, inode, length and time of change, those of web servers by address,
//! length, `ETag` and `Last-Modified`, and samples of what was copied are compared. The journal is `NAME.part.json`; it is replaced by renaming, and removed when the
//! image has got its name.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::super::Job;
use super::super::parallel::lock;
use super::options::ConvertOptions;
use super::{NewTarget, verify};
use crate::format::{Image, Repair, Unwatched};
use crate::graph::Node;
use crate::graph::output::{Output, Resumed};
use crate::{Error, ErrorKind, Result};

/// Changes when an older journal must not be followed.
const VERSION: u32 = 1;
/// Largest journal that is read.
const MAX_JOURNAL: u64 = 1 << 20;
/// Pieces of what was copied that are compared before going on, and their size.
const SAMPLES: u64 = 64;
const SAMPLE: u64 = 64 << 10;

/// One file of a source as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct FilePrint {
    name: String,
    format: String,
    virtual_size: u64,
    /// Device, inode, length, seconds and nanoseconds of the last change; none for what is not a file.
    file: Option<(u64, u64, u64, i64, i64)>,
    /// What a server tells of its file.
    #[serde(default)]
    content: Option<String>,
}

impl FilePrint {
    /// The same, whatever it is called now.
    fn is(&self, then: &Self) -> bool {
        let name = self.file.is_some() || self.name == then.name;
        let all = |p: &Self| (p.format.clone(), p.virtual_size, p.file, p.content.clone());
        name && all(self) == all(then)
    }
}

/// What is being made of what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Fingerprint {
    version: u32,
    sources: Vec<FilePrint>,
    /// Everything else, as text.
    wishes: Vec<String>,
}

impl Fingerprint {
    /// Of the sources as they are open now.
    pub fn new(options: &ConvertOptions, sources: &[Arc<Node>], new: &NewTarget) -> Self {
        let mut files = Vec::new();
        for link in sources.iter().flat_map(|node| node.chain()) {
            let image = link.image();
            for storage in image.storages() {
                files.push(FilePrint {
                    name: storage.name().to_owned(),
                    format: image.format_name().to_owned(),
                    virtual_size: image.virtual_size(),
                    file: storage
                        .as_file()
                        .and_then(|f| f.metadata().ok())
                        .map(|m| (m.dev(), m.ino(), m.len(), m.mtime(), m.mtime_nsec())),
                    content: storage.identity(),
                });
            }
        }
        let super::Target::New { options: given, .. } = &options.target else {
            return Fingerprint { version: VERSION, sources: files, wishes: Vec::new() };
        };
        let mut wishes = vec![
            format!("format {}", new.driver.name()),
            format!("size {}", new.size),
            format!("backing {:?}", new.backing),
            format!("sparse {}", options.sparse_size),
            format!("compress {:?}", options.compress),
            format!("snapshot {:?}", options.snapshot),
            format!("read errors {:?}", options.on_read_error),
        ];
        wishes.extend(given.iter().map(|(name, value)| format!("option {name}={value}")));
        Fingerprint { version: VERSION, sources: files, wishes }
    }

    /// Refuses to go on with what was begun with `before`.
    fn require(&self, before: &Self, journal: &Path) -> Result<()> {
        let again = || format!("to begin anew: rm '{}'", journal.display());
        let refuse = |what: String| Err(Error::invalid(what).hint(again()));
        if before.version != VERSION {
            return refuse(
                "The conversion was begun by another version of this program".to_owned(),
            );
        }
        if before.wishes != self.wishes {
            let other = before.wishes.iter().find(|w| !self.wishes.contains(w));
            let other = other.or_else(|| self.wishes.iter().find(|w| !before.wishes.contains(w)));
            let other = other.map_or("options", String::as_str);
            return refuse(format!("The conversion was begun with other options ({other})"));
        }
        let other = self.sources.iter().zip(&before.sources).find(|(now, then)| !now.is(then));
        if other.is_some() || before.sources.len() != self.sources.len() {
            let name = other.map_or("the source", |(now, _)| now.name.as_str());
            return refuse(format!("'{name}' has changed since the conversion was begun"));
        }
        Ok(())
    }
}

/// How far it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Journal {
    fingerprint: Fingerprint,
    /// Files of the target besides the image itself, as the image names them.
    files: Vec<String>,
    /// Guest bytes below this offset are on disk.
    position: u64,
}

impl Journal {
    /// `None` where there is none.
    fn load(path: &Path) -> Result<Option<Self>> {
        let failed = |e: Error| e.context(format!("Could not read '{}'", path.display()));
        let meta = match std::fs::metadata(path) {
            Ok(meta) => meta,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(Error::io(&e))),
        };
        let bad = |why: String| {
            failed(Error::new(ErrorKind::Corrupt, why).hint("remove it to begin anew"))
        };
        if meta.len() > MAX_JOURNAL {
            return Err(bad("it is no journal of a conversion".to_owned()));
        }
        let text = std::fs::read(path).map_err(|e| failed(Error::io(&e)))?;
        serde_json::from_slice(&text).map(Some).map_err(|e| bad(e.to_string()))
    }

    fn store(&self, path: &Path) -> Result<()> {
        let new = path.with_extension("json.new");
        let text = serde_json::to_vec(self).map_err(|e| Error::invalid(e.to_string()))?;
        let write = || {
            let mut file = std::fs::File::create(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            std::fs::rename(&new, path)
        };
        write().map_err(|e| Error::io(&e).context(format!("Could not write '{}'", path.display())))
    }
}

/// A target that a run before this one began.
pub(super) struct Begun {
    pub output: Output,
    pub position: u64,
}

/// Finds what an interrupted run left of the same conversion.
///
/// # Errors
/// When it was another conversion, or the source has changed.
pub(super) fn find(
    options: &ConvertOptions,
    new: &NewTarget,
    print: &Fingerprint,
) -> Result<Option<Begun>> {
    let path = Output::journal_of(&new.path);
    let Some(journal) = Journal::load(&path)? else { return Ok(None) };
    let files = std::iter::once(None).chain(journal.files.iter().map(|f| Some(f.as_str())));
    let resumed = Output::resume(&new.path, options.target_cache, options.overwrite, files)?;
    let Resumed::Parts(output) = resumed else {
        // Its image was finished, or removed: what is left says nothing.
        return Ok(None);
    };
    print.require(&journal.fingerprint, &path)?;
    if journal.position > new.size {
        return Err(Error::new(ErrorKind::Corrupt, "it does not fit the image")
            .context(format!("Could not read '{}'", path.display())));
    }
    Ok(Some(Begun { output, position: journal.position }))
}

/// Refuses targets that cannot be gone on with.
pub(super) fn require(output: &Output, target: &dyn Image) -> Result<()> {
    if output.in_place() {
        return Err(Error::unsupported("A target that is written in place cannot be resumed")
            .hint("--resume needs a file in a folder that takes new files"));
    }
    if target.granularity().append_only {
        return Err(Error::unsupported(
            "This format is written from front to back and cannot be resumed",
        ));
    }
    Ok(())
}

/// Gives leaked space back, and compares samples of what was copied with the sources.
pub(super) fn prepare(
    sources: &[Arc<Node>],
    target: &Node,
    position: u64,
    job: &Job<'_>,
) -> Result<()> {
    if let Some(report) = target.image().check(Repair::Leaks, &Unwatched) {
        let report = report.map_err(|e| e.context("the unfinished image is damaged"))?;
        if report.corruptions > 0 || report.check_errors > 0 {
            return Err(Error::new(ErrorKind::Corrupt, "the unfinished image is damaged")
                .hint("remove it to begin anew"));
        }
    }
    let quiet = Job { watcher: &Quiet(job.watcher), ..*job };
    let mut seed = position | 1;
    for i in 0..SAMPLES {
        // The last one is what was copied last.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let last = position.saturating_sub(SAMPLE);
        let at = if i == 0 { last } else { (seed >> 11) % (last + 1) };
        let range = at..(at + SAMPLE).min(position);
        verify::compare(sources, target, range, &quiet).map_err(|e| {
            if e.kind() != ErrorKind::Corrupt {
                return e;
            }
            let text = "what was copied before the interruption is not what the source has now";
            Error::new(ErrorKind::Corrupt, text)
                .at_offset(e.offset().unwrap_or(at))
                .hint("remove the unfinished image to begin anew")
        })?;
    }
    Ok(())
}

/// Only passes on that the job is to stop.
struct Quiet<'a>(&'a dyn crate::format::Watcher);

impl crate::format::Watcher for Quiet<'_> {
    fn cancelled(&self) -> bool {
        self.0.cancelled()
    }
}

/// Secures what was copied, now and then.
pub(super) struct Checkpoints<'a> {
    output: &'a Output,
    path: PathBuf,
    every: Duration,
    last: Mutex<Instant>,
    journal: Mutex<Journal>,
    /// Held for reading by whoever works on a chunk.
    pub gate: RwLock<()>,
}

impl<'a> Checkpoints<'a> {
    pub fn new(output: &'a Output, path: &str, every: Duration, fingerprint: Fingerprint) -> Self {
        let journal = Journal { fingerprint, files: output.references(), position: 0 };
        Checkpoints {
            output,
            path: Output::journal_of(path),
            every,
            last: Mutex::new(Instant::now()),
            journal: Mutex::new(journal),
            gate: RwLock::default(),
        }
    }

    /// Whether it is time; at most one thread hears that it is.
    pub fn due(&self) -> bool {
        let mut last = lock(&self.last);
        let due = last.elapsed() >= self.every;
        if due {
            *last = Instant::now();
        }
        due
    }

    /// Everything below `position` was written: brings it to disk and says so.
    pub fn secure(&self, target: &Node, position: u64) -> Result<()> {
        target.image().flush()?;
        let mut journal = lock(&self.journal);
        journal.position = position;
        journal.store(&self.path)?;
        self.output.keep();
        *lock(&self.last) = Instant::now();
        Ok(())
    }
}

/// The image has its name: without a part, what is left says nothing.
pub(super) fn finished(path: &str) {
    let _ = std::fs::remove_file(Output::journal_of(path));
}

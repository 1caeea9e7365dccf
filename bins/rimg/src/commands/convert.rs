//! `convert`

use std::path::Path;
use std::time::Duration;

use imgcore::format::{Level, SnapshotSelector};
use imgcore::graph::gate::{combine, folder_of};
use imgcore::graph::open::OpenRequest;
use imgcore::ops::convert::{
    self, Bitmaps, Compress, ConvertOptions, Durability, Offload, OnReadError, Resume, Target,
    Verify,
};
use imgcore::ops::sparsify::Selection;
use imgcore::ops::{selector, stream};
use imgcore::opts::OptError;
use imgcore::opts::filename::{self, Filename};
use imgcore::opts::list::Accumulated;
use imgcore::opts::size;
use imgcore::storage::CacheMode;

use super::{format_help, pairs};
use crate::args::getopt::{Given, Parser};
use crate::common::{Common, cache_mode, temporary_folder};
use crate::failure::Failure;
use crate::output::Output;
use crate::progress::Mode;
use crate::session::Session;
use crate::stdout::{self, Staged};

const MAX_SPARSE: u64 = 16 << 20;
/// Seconds between two checkpoints of a resumable conversion.
const CHECKPOINT: u64 = 5;

/// What the options say, before they are checked against each other.
#[derive(Default)]
struct Wish {
    source_cache: Option<String>,
    target_cache: Option<String>,
    target_format: Option<String>,
    target_image_opts: bool,
    options: Accumulated,
    snapshot: Option<SnapshotSelector>,
    backing: Option<String>,
    backing_format: Option<String>,
    sparse_size: Option<u64>,
    rate: u64,
    threads: usize,
    bitmaps: bool,
    skip_broken: bool,
    salvage: bool,
    no_create: bool,
    target_is_zero: bool,
    compress: bool,
    copy_range: bool,
    encrypt: bool,
    compat6: bool,
    verify: bool,
    sparsify: bool,
    resume: bool,
    checkpoint: Option<u64>,
}

/// Runs it.
pub fn run(session: &Session, parser: Parser) -> Result<u8, Failure> {
    let mut parser = if session.as_qemu_img { parser } else { parser.with_progress_argument() };
    let mut common = Common::new(session, parser.command);
    let mut wish = Wish::default();
    while let Some(given) = parser.next_option()? {
        wish.take(given, &mut common)?;
    }
    let mut names = parser.positionals();
    wish.check(&common)?;
    let target = if names.len() > 1 { names.pop() } else { None };
    if wish.options.asks_for_help() {
        let format = wish.target_format.as_deref().unwrap_or("raw");
        format_help::creation(format, target.as_deref())?;
        return Ok(0);
    }
    let Some(target) = target else {
        return Err(Failure::new("Must specify image file name"));
    };
    let source_cache =
        cache_mode("source cache", wish.source_cache.as_deref().unwrap_or("writeback"))?;
    if names.len() > 1 && wish.snapshot.is_some() {
        return Err(Failure::new("No support for concatenating multiple snapshot"));
    }
    for name in wish.backing.iter().chain(&names) {
        common.names(name);
    }
    let to_stdout = target == "-" && !session.as_qemu_img && !wish.no_create;
    let staged = if to_stdout { Some(stage(&mut common, &wish)?) } else { None };
    let target = staged.as_ref().map_or(target, Staged::image);
    let folder = folder_of(Path::new(&target));
    common.spool_folder = folder.is_dir().then(|| folder.to_path_buf());
    if let Some(folder) = &common.spool_folder {
        common.will_fill(folder);
    }
    for name in &names {
        common.will_read(name);
    }
    wish.announce(&target, &common);
    let format = common.format.clone();
    let mut sources = Vec::with_capacity(names.len());
    for name in &names {
        sources.push(common.source(name, format.as_deref(), source_cache)?);
    }
    if wish.resume && common.has_streams() {
        return Err(Failure::new("A stream cannot be gone on with"));
    }
    if staged.is_some() && wish.is_plain_raw() && sources.len() == 1 {
        let reporter = common.reporter();
        let mut out = std::io::stdout().lock();
        common.run(&reporter, |job| stream::export(&sources[0], &mut out, job))?;
        return Ok(0);
    }
    let mut options = ConvertOptions::new(sources, wish.target(&target, &common)?);
    wish.fill(&mut options, common.session.as_qemu_img)?;
    options.sharing = common.sharing();
    options.overwrite = common.overwriting();
    if options.resume != Resume::No {
        common.interrupted = "Interrupted; the same command goes on where it was";
    }
    let reporter = common.reporter();
    let report = common.run(&reporter, |job| convert::convert(&options, job))?;
    if let Some(staged) = staged {
        staged.send()?;
        return Ok(0);
    }
    let verified = if report.verified { "The copy was read again and is the same.\n" } else { "" };
    common.report(verified, || serde_json::to_value(report).unwrap_or_default());
    Ok(0)
}

/// Prepares for an image that goes to standard output.
fn stage(common: &mut Common<'_>, wish: &Wish) -> Result<Staged, Failure> {
    stdout::check()?;
    if common.output == Output::Json {
        return Err(Failure::new("Standard output takes the image, so it cannot take JSON"));
    }
    if wish.resume {
        return Err(Failure::new("A stream cannot be gone on with"));
    }
    // Percentages would go there, too.
    if common.progress == Mode::On {
        common.progress = Mode::Off;
    }
    // The folder made there must be removed in the end, which is a change of the one that it lies in.
    common.will_fill(&temporary_folder());
    Staged::new(&temporary_folder())
}

/// A snapshot that cannot be understood is complained about twice, as qemu-img does.
pub fn bad_snapshot(error: OptError, text: &str) -> Failure {
    Failure::from(error).and(format!("Failed in parsing snapshot param '{text}'"))
}

impl Wish {
    fn take(&mut self, given: Given, common: &mut Common<'_>) -> Result<(), Failure> {
        let value = given.value;
        match given.id {
            "source-format" => common.format = Some(value),
            "source-cache" => self.source_cache = Some(value),
            "output-format" => self.target_format = Some(value),
            "output-cache" => self.target_cache = Some(value),
            "target-image-opts" => self.target_image_opts = true,
            "options" => self.options.add(&value)?,
            "snapshot" => {
                let parsed = selector::parse(&value).map_err(|e| bad_snapshot(e, &value))?;
                self.snapshot = Some(parsed);
            }
            "backing" => self.backing = Some(value),
            "backing-format" => self.backing_format = Some(value),
            "sparse-size" => self.sparse_size = Some(sparse_size(&value)?),
            "rate" => self.rate = size::size_argument("rate limit", &value)?,
            "parallel" => {
                let n = size::argument("number of coroutines", &value, 1, 16)?;
                self.threads = usize::try_from(n).unwrap_or(1);
            }
            "bitmaps" => self.bitmaps = true,
            "skip-broken-bitmaps" => self.skip_broken = true,
            "salvage" => self.salvage = true,
            "no-create" => self.no_create = true,
            "target-is-zero" => self.target_is_zero = true,
            "compress" => self.compress = true,
            "copy-range-offloading" => self.copy_range = true,
            // Writes are in no particular order anyway.
            "oob-writes" => {}
            "encrypt" => self.encrypt = true,
            "compat6" => self.compat6 = true,
            "verify" => self.verify = true,
            "sparsify" => self.sparsify = true,
            "resume" => self.resume = true,
            "checkpoint" => {
                self.checkpoint = Some(size::argument("checkpoint", &value, 0, 86_400)?);
            }
            id => common.take(Given { id, value })?,
        }
        Ok(())
    }

    /// Nothing but the bytes of the disk is wanted.
    fn is_plain_raw(&self) -> bool {
        let raw = self.target_format.as_deref().is_none_or(|f| f == "raw");
        let changed =
            self.options.given() || self.compress || self.salvage || self.verify || self.rate > 0;
        let changed = changed || self.sparsify;
        raw && !changed && self.snapshot.is_none() && self.backing.is_none()
    }

    /// Which options go together.
    fn check(&self, common: &Common<'_>) -> Result<(), Failure> {
        let refuse = |text: &str| Err(Failure::new(text));
        if self.no_create && self.options.given() {
            return refuse("-o has no effect when skipping image creation");
        }
        if self.target_is_zero && !self.no_create {
            return refuse("--target-is-zero requires use of -n flag");
        }
        if self.checkpoint.is_some() && !self.resume {
            return refuse("--checkpoint requires --resume");
        }
        if self.target_image_opts && !self.no_create {
            return refuse("--target-image-opts requires use of -n flag");
        }
        common.check_exclusive()?;
        if self.target_image_opts && self.target_format.is_some() {
            return refuse("--image-opts and --format are mutually exclusive");
        }
        if self.skip_broken && !self.bitmaps {
            return refuse("Use of --skip-broken-bitmaps requires --bitmaps");
        }
        if self.copy_range {
            if self.compress {
                return refuse("Cannot enable copy offloading when -c is used");
            }
            if self.sparse_size.is_some() {
                return refuse("Cannot enable copy offloading when -S is used");
            }
            if self.salvage {
                return refuse("Cannot use copy offloading in salvaging mode");
            }
        }
        Ok(())
    }

    /// Says what will be written.
    fn announce(&self, target: &str, common: &Common<'_>) {
        if self.target_image_opts {
            return common.will_change(target);
        }
        common.will_write(target);
        common.will_write_beside(target, &pairs(&self.options));
        if let Some(backing) = &self.backing {
            common.will_read_file(&combine(target, backing));
        }
    }

    fn target(&self, name: &str, common: &Common<'_>) -> Result<Target, Failure> {
        if !self.no_create {
            let mut options = pairs(&self.options);
            for (asked, option) in [(self.encrypt, "encryption"), (self.compat6, "compat6")] {
                if asked {
                    options.push((option.to_owned(), "on".to_owned()));
                }
            }
            common.warn_of_aes(&options);
            let driver = self.target_format.clone().unwrap_or_else(|| "raw".to_owned());
            // An export is there already; all that can be created in it is nothing but its bytes.
            if let Ok(Filename::Protocol { driver: "nbd", .. }) = filename::parse(name)
                && driver == "raw"
                && options.is_empty()
            {
                let request = OpenRequest::parse(name, Some("raw"))?;
                return Ok(Target::Existing { request, is_zero: false });
            }
            return Ok(Target::New { filename: name.to_owned(), driver, options });
        }
        let request = if self.target_image_opts {
            common.specification(name)?
        } else {
            let format = self.target_format.as_deref().unwrap_or("raw");
            OpenRequest::parse(name, Some(format))?
        };
        Ok(Target::Existing { request, is_zero: self.target_is_zero })
    }

    fn fill(self, options: &mut ConvertOptions, as_qemu_img: bool) -> Result<(), Failure> {
        options.target_cache = match self.target_cache.as_deref() {
            None => CacheMode::Unsafe,
            Some(text) => cache_mode("cache", text)?,
        };
        // The copy is on disk before it gets its name, unless qemu-img's promise (none) was asked for.
        let unsafe_wanted = self.target_cache.is_some() || as_qemu_img;
        if options.target_cache == CacheMode::Unsafe && unsafe_wanted {
            options.durability = Durability::Fast;
        }
        options.snapshot = self.snapshot;
        options.backing = self.backing;
        options.backing_format = self.backing_format;
        options.sparse_size = self.sparse_size.unwrap_or(options.sparse_size);
        options.rate = self.rate;
        options.threads = self.threads;
        if self.compress {
            options.compress = Compress::Yes(Level::default());
        }
        options.bitmaps = match (self.bitmaps, self.skip_broken) {
            (false, _) => Bitmaps::Ignore,
            (true, false) => Bitmaps::Copy,
            (true, true) => Bitmaps::SkipBroken,
        };
        if self.salvage {
            options.on_read_error = OnReadError::Salvage;
        }
        if self.verify {
            options.verify = Verify::Yes;
        }
        if self.sparsify {
            options.sparsify = Some(Selection::default());
        }
        if self.resume {
            let seconds = self.checkpoint.unwrap_or(CHECKPOINT);
            options.resume = Resume::Every(Duration::from_secs(seconds));
            // What is secured must be on disk.
            if options.target_cache == CacheMode::Unsafe {
                options.target_cache = CacheMode::Writeback;
            }
        }
        if self.copy_range {
            options.offload = Offload::CopyRange;
        }
        Ok(())
    }
}

fn sparse_size(text: &str) -> Result<u64, Failure> {
    let n = size::argument("buffer size for sparse output", text, 0, u64::MAX)?;
    if n > MAX_SPARSE || !n.is_multiple_of(512) {
        return Err(Failure::new(format!(
            "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to \
             {MAX_SPARSE}. Select 0 to disable sparse detection (fully allocates output)."
        )));
    }
    Ok(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_sizes() {
        assert_eq!(sparse_size("0").unwrap(), 0);
        assert_eq!(sparse_size("4k").unwrap(), 4096);
        assert!(sparse_size("513").unwrap_err().message().contains("Valid sizes"));
        assert_eq!(
            sparse_size("x").unwrap_err().message(),
            "Invalid buffer size for sparse output specified: 'x'."
        );
    }
}

//! One image through every conversion: to raw with the known hash, to every writable format and back.

use crate::content::{first_difference, sha256};
use crate::corpus::{Corpus, Row};
use crate::process::{Invocation, Outcome};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Every writable target: name of the file, format, `-o` options.
pub const TARGETS: &[(&str, &str, &str)] = &[
    ("to.qcow2", "qcow2", ""),
    ("to.qcow", "qcow", ""),
    ("to.qed", "qed", ""),
    ("to.hdd", "parallels", ""),
    ("to-mono.vmdk", "vmdk", "subformat=monolithicSparse"),
    ("to-flat.vmdk", "vmdk", "subformat=monolithicFlat"),
    ("to-2gb.vmdk", "vmdk", "subformat=twoGbMaxExtentSparse"),
    ("to-2gbflat.vmdk", "vmdk", "subformat=twoGbMaxExtentFlat"),
    ("to-stream.vmdk", "vmdk", "subformat=streamOptimized"),
    ("to.vdi", "vdi", ""),
    ("to-static.vdi", "vdi", "static=on"),
    ("to.vhd", "vpc", "force_size=on"),
    ("to-fixed.vhd", "vpc", "force_size=on,subformat=fixed"),
    ("to.vhdx", "vhdx", "block_size=1M"),
    ("to-fixed.vhdx", "vhdx", "subformat=fixed"),
];

/// Disks larger than this do not become every subformat.
const LARGE: u64 = 2 << 30;
/// Options of the subformats that they do not become.
const LARGE_SKIPS: &[&str] = &["fixed", "static", "Flat", "twoGb", "stream"];

/// The programs of a round trip.
#[derive(Debug, Clone)]
pub struct Programs {
    /// Ours.
    pub rimg: PathBuf,
    /// `qemu-img` as the judge, where it is installed.
    pub judge: Option<PathBuf>,
}

/// Takes one image through all conversions in the empty directory `dir`; complaints come back.
///
/// # Errors
/// A sentence when the image cannot be laid out.
pub fn round_trip(
    programs: &Programs,
    corpus: &Corpus,
    row: &Row,
    dir: &Path,
) -> Result<Vec<String>, String> {
    let image = corpus.unpack(row, dir)?;
    if sha256(&image).map_err(|e| e.to_string())? != row.sha256_file {
        return Err(format!("{}: not the file of the manifest", row.path));
    }
    let format = row.driver().unwrap_or("raw");
    let trip = Trip { programs, dir, complaints: Vec::new() };
    Ok(trip.run(row, format, opened(row)))
}

/// The same for a disk so large that its bytes are not written out: digests are compared, and only targets
/// that take no space for zeroes.
///
/// # Errors
/// A sentence when the image cannot be laid out.
pub fn digest_trip(
    programs: &Programs,
    corpus: &Corpus,
    row: &Row,
    dir: &Path,
) -> Result<Vec<String>, String> {
    corpus.unpack(row, dir)?;
    let format = row.driver().unwrap_or("raw");
    let mut trip = Trip { programs, dir, complaints: Vec::new() };
    let name = opened(row);
    let all = trip.ours(&["digest", "--sha256", "-f", format, name]);
    if all.is_none_or(|said| !said.out().contains(&row.sha256_content)) {
        trip.complain(format!("the digest is not {}", row.sha256_content));
    }
    let digest = |trip: &mut Trip<'_>, format: &str, name: &str| {
        let said = trip.ours(&["digest", "-f", format, name])?.out();
        said.split_whitespace().next().map(str::to_owned)
    };
    let wanted = digest(&mut trip, format, name);
    for (file, to, options) in TARGETS {
        if LARGE_SKIPS.iter().any(|skip| options.contains(skip)) {
            continue;
        }
        let mut convert = vec!["convert", "-f", format, "-O", to];
        if !options.is_empty() {
            convert.extend(["-o", options]);
        }
        convert.extend([name, file]);
        if trip.ours(&convert).is_some() {
            let _ = trip.ours(&["check", "-f", to, file]);
            let back = ["convert", "-f", to, "-O", "qcow2", file, "back.qcow2"];
            for (format, name) in [(*to, *file), ("qcow2", "back.qcow2")] {
                if name == "back.qcow2" && trip.ours(&back).is_none() {
                    continue;
                }
                if digest(&mut trip, format, name) != wanted {
                    trip.complain(format!("{name} (from {file}) has another digest"));
                }
            }
        }
        trip.remove(&["to", "back"]);
    }
    Ok(trip.complaints)
}

/// The file to open: a folder of Parallels is opened by its descriptor.
fn opened(row: &Row) -> &str {
    if row.subformat.contains("DiskDescriptor.xml") { "DiskDescriptor.xml" } else { row.name() }
}

struct Trip<'a> {
    programs: &'a Programs,
    dir: &'a Path,
    complaints: Vec<String>,
}

impl Trip<'_> {
    fn run(mut self, row: &Row, format: &str, name: &str) -> Vec<String> {
        let info = self.ours(&["info", "-f", format, "--output=json", name]);
        let size = info
            .and_then(|said| serde_json::from_slice::<serde_json::Value>(&said.stdout).ok())
            .and_then(|info| info["virtual-size"].as_u64());
        if size != row.virtual_size {
            self.complain(format!("info: virtual size {size:?}, not {:?}", row.virtual_size));
        }
        if self.ours(&["convert", "-f", format, "-O", "raw", name, "all.raw"]).is_none() {
            return self.complaints;
        }
        match sha256(&self.dir.join("all.raw")) {
            Ok(hash) if hash == row.sha256_content => {}
            Ok(hash) => self.complain(format!("content {hash}, not {}", row.sha256_content)),
            Err(error) => self.complain(error.to_string()),
        }
        let large = row.virtual_size.is_some_and(|size| size > LARGE);
        for (target, target_format, options) in TARGETS {
            // Every subformat of a disk of many gigabytes would take an hour.
            if large && LARGE_SKIPS.iter().any(|skip| options.contains(skip)) {
                continue;
            }
            self.there_and_back(format, name, (target, target_format, options));
            self.remove(&["to", "back"]);
        }
        self.complaints
    }

    fn there_and_back(&mut self, format: &str, name: &str, target: (&str, &str, &str)) {
        let (file, to, options) = target;
        let mut convert = vec!["convert", "-f", format, "-O", to];
        if !options.is_empty() {
            convert.extend(["-o", options]);
        }
        convert.extend([name, file]);
        if self.ours(&convert).is_none() {
            return;
        }
        let _ = self.ours(&["check", "-f", to, file]);
        let _ = self.ours(&["compare", "-f", "raw", "-F", to, "all.raw", file]);
        // qemu-img has no check for these.
        if !matches!(to, "vpc" | "qcow") {
            self.judge(&["check", "-f", to, file]);
        }
        self.judge(&["compare", "-f", "raw", "-F", to, "all.raw", file]);
        if self.ours(&["convert", "-f", to, "-O", "raw", file, "back.raw"]).is_none() {
            return;
        }
        match first_difference(&self.dir.join("all.raw"), &self.dir.join("back.raw")) {
            Ok(None) => {}
            Ok(Some(at)) => self.complain(format!("{file} and back differs from offset {at}")),
            Err(error) => self.complain(error.to_string()),
        }
    }

    /// Runs our program; only a success comes back.
    fn ours(&mut self, args: &[&str]) -> Option<Outcome> {
        let program = self.programs.rimg.clone();
        self.must(&program, args)
    }

    fn judge(&mut self, args: &[&str]) {
        if let Some(judge) = self.programs.judge.clone() {
            let _ = self.must(&judge, args);
        }
    }

    fn must(&mut self, program: &Path, args: &[&str]) -> Option<Outcome> {
        let limit = Duration::from_secs(600);
        match Invocation::new(program, self.dir).args(args).time_limit(limit).run() {
            Ok(outcome) if outcome.success() => Some(outcome),
            Ok(outcome) => {
                let said = outcome.out() + &outcome.err();
                let who = program.file_name().unwrap_or_default().to_string_lossy();
                let line = format!("{who} {}: {}: {}", args.join(" "), outcome.end, said.trim());
                self.complain(line);
                None
            }
            Err(error) => {
                self.complain(error.to_string());
                None
            }
        }
    }

    fn complain(&mut self, what: String) {
        self.complaints.push(what);
    }

    fn remove(&self, prefixes: &[&str]) {
        for entry in std::fs::read_dir(self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if prefixes.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

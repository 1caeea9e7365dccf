//! `sparsify`: not a command of qemu-img.

use std::fmt::Write as _;

use imgcore::format::Level;
use imgcore::ops::ImageArg;
use imgcore::ops::convert::{self, Compress, ConvertOptions, Target, Verify};
use imgcore::ops::sparsify::{
    self, InPlaceOptions, Selection, SparsifyReport, SurveyOptions, Unpartitioned, VolumeReport,
    Zeroes,
};
use imgcore::opts::human;
use imgcore::opts::list::Accumulated;
use imgcore::storage::CacheMode;
use serde_json::json;

use super::{format_help, pairs};
use crate::args::getopt::Parser;
use crate::common::Common;
use crate::failure::Failure;
use crate::session::Session;

/// What the options say.
#[derive(Default)]
struct Wish {
    dry_run: bool,
    in_place: bool,
    metadata_only: bool,
    selection: Selection,
    target_format: Option<String>,
    options: Accumulated,
    compress: bool,
    verify: bool,
}

/// Runs it.
pub fn run(session: &Session, parser: Parser) -> Result<u8, Failure> {
    let mut parser = parser.with_progress_argument();
    let mut common = Common::new(session, parser.command);
    let mut wish = Wish::default();
    while let Some(given) = parser.next_option()? {
        match given.id {
            "dry-run" => wish.dry_run = true,
            "in-place" => wish.in_place = true,
            "metadata-only" => wish.metadata_only = true,
            "ignore" => wish.selection.ignore.push(given.value),
            "unpartitioned" => wish.selection.unpartitioned = Unpartitioned::Free,
            "output-format" => wish.target_format = Some(given.value),
            "options" => wish.options.add(&given.value)?,
            "compress" => wish.compress = true,
            "verify" => wish.verify = true,
            _ => common.take(given)?,
        }
    }
    let names = parser.positionals();
    if wish.options.asks_for_help() {
        let format = wish.target_format.as_deref().unwrap_or("raw");
        format_help::creation(format, None)?;
        return Ok(0);
    }
    let (source, target) = match names.as_slice() {
        [source] => (source, None),
        [source, target] => (source, Some(target.as_str())),
        _ => return Err(common.usage("Expecting an image file name, and the name of the copy")),
    };
    wish.check(&common, target)?;
    let image = common.image(source, CacheMode::Writeback)?;
    match target {
        Some(target) if !wish.dry_run => copy(&common, wish, image, target),
        None if wish.in_place && !wish.dry_run => in_place(&common, wish, image),
        _ => {
            let options = SurveyOptions { image, selection: wish.selection };
            let reporter = common.reporter();
            let report = common.run(&reporter, |job| sparsify::survey(&options, job))?;
            let mut text = table(&report);
            let _ = writeln!(text, "{} would be saved.", human::size(report.savable));
            common.report(&text, || serde_json::to_value(&report).unwrap_or_default());
            Ok(0)
        }
    }
}

impl Wish {
    fn check(&self, common: &Common<'_>, target: Option<&str>) -> Result<(), Failure> {
        let refuse = |text: &str| Err(common.usage(text));
        if self.in_place && target.is_some() {
            return refuse("--in-place makes no copy: give one file name");
        }
        if !self.in_place && !self.dry_run && target.is_none() {
            return refuse("Expecting --in-place, --dry-run, or the name of the copy");
        }
        if self.metadata_only && !self.in_place {
            return refuse("--metadata-only requires --in-place: a copy never stores zeroes");
        }
        let copying =
            self.target_format.is_some() || self.options.given() || self.compress || self.verify;
        if target.is_none() && copying {
            return refuse("-O, -o, -c and --verify are for copies");
        }
        Ok(())
    }
}

fn in_place(common: &Common<'_>, wish: Wish, image: ImageArg) -> Result<u8, Failure> {
    let zeroes = if wish.metadata_only { Zeroes::Keep } else { Zeroes::Free };
    let options = InPlaceOptions { image, selection: wish.selection, zeroes };
    let reporter = common.reporter();
    let report = common.run(&reporter, |job| sparsify::in_place(&options, job))?;
    let mut text = table(&report);
    if let Some(zeroes) = report.zeroes {
        let _ = writeln!(text, "{} of stored zeroes freed.", human::size(zeroes));
    }
    if let (Some(before), Some(after)) = (report.allocated_before, report.allocated_after) {
        let (before, after) = (human::size(before), human::size(after));
        let _ = writeln!(text, "Disk size: {before} before, {after} now.");
    }
    common.report(&text, || serde_json::to_value(&report).unwrap_or_default());
    Ok(0)
}

fn copy(common: &Common<'_>, wish: Wish, image: ImageArg, target: &str) -> Result<u8, Failure> {
    let survey = SurveyOptions { image: image.clone(), selection: wish.selection.clone() };
    let reporter = common.reporter();
    let found = common.run(&reporter, |job| sparsify::survey(&survey, job))?;
    let driver = wish.target_format.clone().unwrap_or_else(|| found.format.clone());
    let new = Target::New { filename: target.to_owned(), driver, options: pairs(&wish.options) };
    let mut options = ConvertOptions::new(vec![image], new);
    options.sparsify = Some(wish.selection);
    options.overwrite = common.overwriting();
    if wish.compress {
        options.compress = Compress::Yes(Level::default());
    }
    if wish.verify {
        options.verify = Verify::Yes;
    }
    let reporter = common.reporter();
    let report = common.run(&reporter, |job| convert::convert(&options, job))?;
    let mut text = table(&found);
    if report.verified {
        text.push_str("The copy was read again and is the same.\n");
    }
    let _ = writeln!(text, "{} are stored in the copy.", human::size(report.bytes_stored));
    common.report(&text, || json!({ "source": found, "copy": report }));
    Ok(0)
}

/// The volumes, one a line; what is skipped with the reason and the remedy below.
fn table(report: &SparsifyReport) -> String {
    let mut text = String::new();
    for warning in &report.warnings {
        let _ = writeln!(text, "Warning: {warning}");
    }
    let width = report.volumes.iter().map(|v| v.name.len()).max().unwrap_or(0).max(6);
    let _ = writeln!(
        text,
        "{:width$}  {:<8} {:>10} {:>10} {:>10}",
        "Volume", "Content", "Size", "Free", "Savable"
    );
    for volume in &report.volumes {
        line(&mut text, volume, width);
    }
    text
}

fn line(text: &mut String, v: &VolumeReport, width: usize) {
    let content = v.content.as_deref().unwrap_or("-");
    let size = human::size(v.size);
    let _ = write!(text, "{:width$}  {content:<8} {size:>10}", v.name);
    if let Some(why) = &v.skipped {
        let _ = writeln!(text, "  skipped: {why}");
        if let Some(remedy) = &v.remedy {
            let _ = writeln!(text, "{:width$}  hint: {remedy}", "");
        }
        return;
    }
    let _ = write!(text, " {:>10} {:>10}", human::size(v.free), human::size(v.savable));
    if v.shared > 0 {
        let _ = write!(text, "  ({} stay with snapshots)", human::size(v.shared));
    }
    text.push('\n');
}

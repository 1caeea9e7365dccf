//! `resize`

use std::fmt::Write as _;

use imgcore::guest::parts::grow::Choice;
use imgcore::ops::grow::{self, GrowOptions, GrowReport, Run};
use imgcore::ops::resize::{self, ResizeOptions, Shrinking, SizeChange};
use imgcore::opts::{human, value};
use imgcore::storage::{CacheMode, Preallocation};

use crate::args::getopt::Parser;
use crate::common::Common;
use crate::failure::Failure;
use crate::session::Session;

/// What the options about partitions say.
#[derive(Default)]
struct Partition {
    grow: Option<Choice>,
    only: bool,
    dry_run: bool,
}

/// Runs it.
pub fn run(session: &Session, parser: Parser) -> Result<u8, Failure> {
    let mut parser = parser.with_sizes().with_optional_argument("grow-partition");
    let mut common = Common::new(session, parser.command);
    common.changes_images();
    let mut preallocation = Preallocation::Off;
    let mut shrinking = Shrinking::Refuse;
    let mut partition = Partition::default();
    while let Some(given) = parser.next_option()? {
        match given.id {
            "preallocation" => preallocation = mode(&given.value)?,
            "shrink" => shrinking = Shrinking::Allow,
            "grow-partition" => partition.grow = Some(choice(&given.value, &common)?),
            "partition-only" => partition.only = true,
            "dry-run" => partition.dry_run = true,
            _ => common.take(given)?,
        }
    }
    let names = parser.positionals();
    if let Some(choice) = partition.grow {
        if shrinking == Shrinking::Allow {
            return Err(common.usage("--shrink and --grow-partition contradict each other"));
        }
        return grow(&common, &names, choice, preallocation, &partition);
    }
    if partition.only || partition.dry_run {
        return Err(common.usage("--partition-only and --dry-run require --grow-partition"));
    }
    let [name, size] = names.as_slice() else {
        return Err(common.usage(if names.len() < 2 {
            "Expecting image file name and size"
        } else {
            "Extra argument(s) in command line"
        }));
    };
    common.check_exclusive()?;
    let change = change(size)?;
    let image = common.image(name, CacheMode::Writeback)?;
    let options = ResizeOptions { image, change, shrinking, preallocation };
    let reporter = common.reporter();
    let report = common.run(&reporter, |job| resize::resize(&options, job))?;
    common.report("Image resized.\n", || serde_json::to_value(report).unwrap_or_default());
    Ok(0)
}

/// `--grow-partition`.
fn grow(
    common: &Common<'_>,
    names: &[String],
    choice: Choice,
    preallocation: Preallocation,
    partition: &Partition,
) -> Result<u8, Failure> {
    let (name, size) = match (names, partition.only) {
        ([name], true) => (name, None),
        ([name, size], false) => (name, Some(size)),
        (_, true) => return Err(common.usage("Expecting one image file name, and no size")),
        (_, false) => return Err(common.usage("Expecting image file name and size")),
    };
    common.check_exclusive()?;
    let change = size.map(|s| change(s)).transpose()?;
    let image = common.image(name, CacheMode::Writeback)?;
    let run = if partition.dry_run { Run::Dry } else { Run::Real };
    let options = GrowOptions { image, change, preallocation, partition: choice, run };
    let reporter = common.reporter();
    let report = common.run(&reporter, |job| grow::grow(&options, job))?;
    common.report(&grown(&report), || serde_json::to_value(&report).unwrap_or_default());
    Ok(0)
}

/// The report for people.
fn grown(report: &GrowReport) -> String {
    let mut text = String::new();
    let verb = if report.dry_run { "would grow" } else { "grown" };
    if report.new_size > report.old_size {
        let (old, new) = (human::size(report.old_size), human::size(report.new_size));
        let _ = writeln!(text, "Disk {verb} from {old} to {new}.");
    }
    for part in report.container.iter().chain([&report.partition]) {
        let (old, new) = (human::size(part.old_length), human::size(part.new_length));
        if part.new_length == part.old_length {
            let _ = writeln!(text, "Partition {} stays at {old}.", part.number);
        } else {
            let _ = writeln!(text, "Partition {} {verb} from {old} to {new}.", part.number);
        }
    }
    for note in &report.notes {
        let _ = writeln!(text, "Note: {note}.");
    }
    if report.dry_run {
        let _ = writeln!(text, "Writes, each on disk before the next:");
        for write in &report.writes {
            let _ = writeln!(text, "  {} bytes at {}: {}", write.length, write.offset, write.what);
        }
    }
    let _ = writeln!(text, "Then, in the guest (which may call its disk otherwise):");
    for step in &report.steps {
        match &step.command {
            Some(command) => {
                let _ = writeln!(text, "  {command}\n      {}", step.text);
            }
            None => {
                let _ = writeln!(text, "  {}", step.text);
            }
        }
    }
    text
}

fn choice(text: &str, common: &Common<'_>) -> Result<Choice, Failure> {
    match text.parse() {
        _ if text.is_empty() => Ok(Choice::Last),
        Ok(number) if number > 0 => Ok(Choice::Number(number)),
        _ => Err(common.usage(format!("--grow-partition expects a number, not '{text}'"))),
    }
}

fn mode(text: &str) -> Result<Preallocation, Failure> {
    Ok(match text {
        "off" => Preallocation::Off,
        "metadata" => Preallocation::Metadata,
        "falloc" => Preallocation::Falloc,
        "full" => Preallocation::Full,
        other => return Err(Failure::new(format!("Invalid preallocation mode '{other}'"))),
    })
}

fn change(text: &str) -> Result<SizeChange, Failure> {
    let parse = |t| value::size("size", t);
    Ok(match text.as_bytes().first() {
        Some(b'+') => SizeChange::Grow(parse(&text[1..])?),
        Some(b'-') => SizeChange::Shrink(parse(&text[1..])?),
        _ => SizeChange::To(parse(text)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes() {
        assert_eq!(change("1k").unwrap(), SizeChange::To(1024));
        assert_eq!(change("+1k").unwrap(), SizeChange::Grow(1024));
        assert_eq!(change("++1k").unwrap(), SizeChange::Grow(1024));
        assert_eq!(change("-1k").unwrap(), SizeChange::Shrink(1024));
        assert_eq!(change("").unwrap_err().code(), 1);
    }
}

//! `inspect`: not a command of qemu-img.

use std::io::Write;

use imgcore::Error;
use imgcore::ops::inspect::browse::{self, Listed, Place};
use imgcore::ops::inspect::{self, Outcome};
use imgcore::ops::policy::{self, Policy};
use imgcore::storage::CacheMode;

use crate::args::getopt::Parser;
use crate::common::Common;
use crate::failure::Failure;
use crate::output::{self, inspect as shown};
use crate::session::Session;

/// It boots, but not on virtio.
const OTHER_BUS: u8 = 2;
/// It does not boot, or nothing is installed.
const NOT: u8 = 3;

/// The file is not acceptable.
const REFUSED: u8 = 2;

enum Wish {
    Report,
    Policy(String),
    List(String),
    Copy(String),
}

/// Runs it. Exit codes: 0 boots on virtio, 1 trouble, 2 boots on another bus, 3 does not boot; with a policy
/// 0 acceptable, 1 trouble, 2 not acceptable.
pub fn run(session: &Session, mut parser: Parser) -> Result<u8, Failure> {
    let mut common = Common::new(session, parser.command);
    let mut wish = Wish::Report;
    let mut volume = None;
    while let Some(given) = parser.next_option()? {
        match given.id {
            "policy" => wish = Wish::Policy(given.value),
            "print-policy" => {
                output::print(policy::DOCUMENT);
                return Ok(0);
            }
            "ls" => wish = Wish::List(given.value),
            "cat" => wish = Wish::Copy(given.value),
            "volume" => volume = Some(given.value),
            _ => common.take(given)?,
        }
    }
    let name = common.one_image(parser.positionals())?;
    if volume.is_some() && !matches!(wish, Wish::List(_) | Wish::Copy(_)) {
        return Err(common.usage("--volume is for --ls and --cat"));
    }
    let image = common.image(&name, CacheMode::Writeback)?;
    let reporter = common.reporter();
    match wish {
        Wish::Report => {
            let report = common.run(&reporter, |job| inspect::inspect(&image, job))?;
            common.report(&shown::text(&report), || {
                serde_json::to_value(&report).unwrap_or_default()
            });
            Ok(match report.verdict.outcome {
                Outcome::BootsVirtio => 0,
                Outcome::BootsOther => OTHER_BUS,
                Outcome::NeedsChange | Outcome::NoSystem => NOT,
            })
        }
        Wish::Policy(file) => {
            let rules = load(&file)?;
            let report = common.run(&reporter, |job| policy::examine(&image, &rules, job))?;
            common.report(&shown::policy(&report), || {
                serde_json::to_value(&report).unwrap_or_default()
            });
            Ok(if report.accepted { 0 } else { REFUSED })
        }
        Wish::List(path) => {
            let place = Place { volume, path };
            let all = common.run(&reporter, |job| browse::list(&image, &place, job))?;
            common.report(&listing(&all), || serde_json::to_value(&all).unwrap_or_default());
            Ok(0)
        }
        Wish::Copy(path) => {
            let place = Place { volume, path };
            let mut out = std::io::BufWriter::with_capacity(1 << 20, std::io::stdout().lock());
            common.run(&reporter, |job| browse::copy(&image, &place, &mut out, job))?;
            out.flush().map_err(|e| Failure::from(Error::io(&e)))?;
            Ok(0)
        }
    }
}

/// `default`, or a document.
fn load(file: &str) -> Result<Policy, Failure> {
    if file == "default" {
        return Ok(Policy::default());
    }
    let text = std::fs::read_to_string(file)
        .map_err(|e| Error::io(&e).context(format!("Could not read the policy '{file}'")))?;
    Ok(Policy::parse(&text)?)
}

fn listing(all: &[Listed]) -> String {
    let mut text = String::new();
    for entry in all {
        let letter = match entry.kind {
            "folder" => 'd',
            "link" => 'l',
            "file" => '-',
            _ => '?',
        };
        let name: String =
            entry.name.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        text.push_str(&format!("{letter} {:>12} {name}", entry.size));
        if let Some(target) = &entry.target {
            text.push_str(&format!(" -> {target}"));
        }
        text.push('\n');
    }
    text
}

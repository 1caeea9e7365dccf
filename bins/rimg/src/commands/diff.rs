//! `diff`: not a command of qemu-img.

use std::io::Write;

use imgcore::ops::diff::{self, DiffOptions, DiffRange, DiffReport};
use imgcore::opts::human;
use imgcore::opts::size;
use imgcore::storage::CacheMode;

use crate::args::getopt::Parser;
use crate::common::Common;
use crate::failure::Failure;
use crate::output::Output;
use crate::session::Session;

const DIFFERENT: u8 = 1;
const TROUBLE: u8 = 2;

/// Runs it. Exit codes: 0 the same, 1 different, 2 trouble.
pub fn run(session: &Session, mut parser: Parser) -> Result<u8, Failure> {
    let mut common = Common::new(session, parser.command);
    let (mut first, mut second) = (None, None);
    let mut granularity = 512;
    let trouble = |f: Failure| f.with_code(TROUBLE);
    while let Some(given) = parser.next_option()? {
        match given.id {
            "a-format" => first = Some(given.value),
            "b-format" => second = Some(given.value),
            "granularity" => {
                let parsed = size::size_argument("granularity", &given.value);
                granularity = parsed.map_err(|e| trouble(e.into()))?;
                if granularity == 0 || !granularity.is_multiple_of(512) {
                    let text = "The granularity must be a multiple of 512";
                    return Err(trouble(common.usage(text)));
                }
            }
            _ => common.take(given)?,
        }
    }
    let [a, b] = <[String; 2]>::try_from(parser.positionals())
        .map_err(|_| trouble(common.usage("Expecting two image file names")))?;
    common.format.clone_from(&first);
    common.check_exclusive().map_err(trouble)?;
    common.will_read(&b);
    let mut image = |name: &str, format: Option<&str>| {
        common.source(name, format, CacheMode::Writeback).map_err(trouble)
    };
    let options = DiffOptions {
        first: image(&a, first.as_deref())?,
        second: image(&b, second.as_deref())?,
        granularity,
    };
    let reporter = common.reporter();
    let mut list = List { output: common.output, quiet: common.quiet, lines: 0 };
    // The list can be long: it is written as it is found.
    let result = common.run(&reporter, |job| diff::diff(&options, job, &mut |r| list.range(r)));
    let report = result.map_err(trouble)?;
    list.end(&report)?;
    Ok(if report.ranges == 0 { 0 } else { DIFFERENT })
}

struct List {
    output: Output,
    quiet: bool,
    lines: u64,
}

impl List {
    fn range(&mut self, range: DiffRange) -> imgcore::Result<()> {
        let mut out = std::io::stdout().lock();
        let first = self.lines == 0;
        self.lines += 1;
        let DiffRange { start, length } = range;
        match self.output {
            Output::Human if self.quiet => {}
            Output::Human => {
                if first {
                    writeln!(out, "{:<20}Length", "Offset")?;
                }
                writeln!(out, "{:<20}{:#x}", format!("{start:#x}"), length)?;
            }
            Output::Json => {
                let mark = if first { "{ \"ranges\": [\n" } else { ",\n" };
                write!(out, "{mark}  {{ \"start\": {start}, \"length\": {length} }}")?;
            }
        }
        Ok(())
    }

    fn end(&self, report: &DiffReport) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        let [a, b] = report.sizes;
        let done = match self.output {
            Output::Human if self.quiet => Ok(()),
            Output::Human if report.ranges == 0 => writeln!(out, "Images are identical."),
            Output::Human => {
                let (n, size) = (report.ranges, human::size(report.bytes));
                writeln!(out, "{n} ranges, {size} ({} bytes) differ", report.bytes)
            }
            Output::Json => {
                let mark = if self.lines == 0 { "{ \"ranges\": [" } else { "\n" };
                writeln!(
                    out,
                    "{mark}],\n  \"range-count\": {}, \"bytes\": {}, \"virtual-sizes\": [{a}, {b}] }}",
                    report.ranges, report.bytes
                )
            }
        };
        // A reader that has gone away is no error.
        done.or_else(|e| if e.kind() == std::io::ErrorKind::BrokenPipe { Ok(()) } else { Err(e) })
            .map_err(|e| Failure::from(imgcore::Error::io(&e)).with_code(TROUBLE))
    }
}

//! `compare`

use imgcore::ops::compare::{self, CompareFailure, CompareOptions, CompareOutcome, Strictness};

use crate::args::getopt::Parser;
use crate::common::{Common, cache_mode};
use crate::failure::Failure;
use crate::progress::Ending;
use crate::session::Session;

/// An image could not be opened, or an option makes no sense.
const TROUBLE: u8 = 2;

/// Runs it. Exit codes: 0 identical, 1 different, 2 not opened, 3 not mapped, 4 not read.
pub fn run(session: &Session, mut parser: Parser) -> Result<u8, Failure> {
    let mut common = Common::new(session, parser.command);
    let (mut first, mut second) = (None, None);
    let mut cache = "writeback".to_owned();
    let mut strictness = Strictness::default();
    while let Some(given) = parser.next_option()? {
        match given.id {
            "a-format" => first = Some(given.value),
            "b-format" => second = Some(given.value),
            "cache" => cache = given.value,
            "strict" => strictness = Strictness::Strict,
            _ => common.take(given)?,
        }
    }
    let [a, b] = <[String; 2]>::try_from(parser.positionals())
        .map_err(|_| common.usage("Expecting two image file names"))?;
    let trouble = |f: Failure| f.with_code(TROUBLE);
    common.format.clone_from(&first);
    common.check_exclusive().map_err(trouble)?;
    let cache = cache_mode("source cache", &cache).map_err(trouble)?;
    common.will_read(&b);
    let options = CompareOptions {
        first: common.source(&a, first.as_deref(), cache).map_err(trouble)?,
        second: common.source(&b, second.as_deref(), cache).map_err(trouble)?,
        strictness,
    };
    let reporter = common.silent_reporter();
    let result =
        common.run_unfinished(&reporter, |job| compare::compare(&options, job).map_err(failed));
    let report = result.inspect_err(|_| {
        reporter.complete(Ending::Failed);
        reporter.end();
    })?;
    // qemu-img warns when it reaches the end of the shorter one, and shows 100 % only if it reaches the
    // other's.
    let whole = report.outcome == CompareOutcome::Identical;
    if let Some(warning) = report.warning() {
        common.say(warning);
        if !whole {
            reporter.repeat();
        }
    }
    reporter.complete(if whole { Ending::Whole } else { Ending::Early });
    common.report(&(report.outcome.line() + "\n"), || {
        serde_json::to_value(report).unwrap_or_default()
    });
    // qemu-img leaves the line of its percentages only after the result.
    reporter.end();
    Ok(report.outcome.exit_code())
}

fn failed(failure: CompareFailure) -> Failure {
    Failure::from(failure.error).with_code(failure.exit_code)
}

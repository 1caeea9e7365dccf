//! `check`

use imgcore::format::Repair;
use imgcore::ops::check::{self, CheckFailure, CheckOptions};
use imgcore::storage::CacheMode;

use crate::args::getopt::Parser;
use crate::common::{Common, cache_mode};
use crate::failure::Failure;
use crate::output::check as form;
use crate::session::Session;

/// Runs it. Exit codes: 0 clean, 1 not carried out, 2 damaged, 3 leaks only, 63 not supported.
pub fn run(session: &Session, mut parser: Parser) -> Result<u8, Failure> {
    let mut common = Common::new(session, parser.command);
    let mut repair = Repair::default();
    let mut cache = "writeback".to_owned();
    while let Some(given) = parser.next_option()? {
        match given.id {
            "repair" => {
                repair = match given.value.as_str() {
                    "leaks" => Repair::Leaks,
                    "all" => Repair::All,
                    other => {
                        return Err(common.usage(format!(
                            "--repair (-r) expects 'leaks' or 'all' not '{other}'"
                        )));
                    }
                };
            }
            "cache" => cache = given.value,
            _ => common.take(given)?,
        }
    }
    let name = common.one_image(parser.positionals())?;
    common.check_exclusive()?;
    let cache: CacheMode = cache_mode("source cache", &cache)?;
    if repair != Repair::Nothing {
        common.changes_images();
    }
    let image = common.image(&name, cache)?;
    let reporter = common.reporter();
    let options = CheckOptions { image, repair };
    let outcome = common.run(&reporter, |job| check::check(&options, job).map_err(refused))?;
    common.report(&form::human(&outcome.report), || form::json(&outcome));
    Ok(outcome.exit_code)
}

fn refused(failure: CheckFailure) -> Failure {
    let code = failure.exit_code();
    match failure {
        CheckFailure::NotSupported => {
            Failure::new("This image format does not support checks").with_code(code)
        }
        CheckFailure::NotRepairable(error) | CheckFailure::Failed(error) => {
            Failure::from(error).with_code(code)
        }
    }
}

//! `commit`

use imgcore::ops::commit::{self, Afterwards, CommitOptions};
use imgcore::opts::size;
use serde_json::json;

use crate::args::getopt::Parser;
use crate::common::{Common, cache_mode};
use crate::failure::Failure;
use crate::session::Session;

/// Runs it.
pub fn run(session: &Session, mut parser: Parser) -> Result<u8, Failure> {
    let mut common = Common::new(session, parser.command);
    common.changes_images();
    let mut options = CommitOptions::default();
    let mut cache = "writeback".to_owned();
    while let Some(given) = parser.next_option()? {
        match given.id {
            "cache" => cache = given.value,
            "base" => {
                common.names(&given.value);
                options.base = Some(given.value);
                // Emptying an image whose data went further down would hide what lies between.
                options.afterwards = Afterwards::Keep;
            }
            "drop" => options.afterwards = Afterwards::Keep,
            "rate" => options.rate = size::size_argument("rate limit", &given.value)?,
            _ => common.take(given)?,
        }
    }
    let name = common.one_image(parser.positionals())?;
    common.check_exclusive()?;
    let cache = cache_mode("cache", &cache)?;
    options.image = common.image(&name, cache)?;
    let reporter = common.reporter();
    common.run(&reporter, |job| commit::commit(&options, job))?;
    common.report("Image committed.\n", || json!({ "filename": name, "committed": true }));
    Ok(0)
}

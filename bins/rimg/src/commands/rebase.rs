//! `rebase`

use imgcore::ops::rebase::{self, RebaseMode, RebaseOptions};
use serde_json::json;

use crate::args::getopt::Parser;
use crate::common::{Common, cache_mode};
use crate::failure::Failure;
use crate::session::Session;

/// Runs it.
pub fn run(session: &Session, mut parser: Parser) -> Result<u8, Failure> {
    let mut common = Common::new(session, parser.command);
    common.changes_images();
    let mut options = RebaseOptions::default();
    let mut backing = None;
    let (mut cache, mut backing_cache) = ("writeback".to_owned(), "writeback".to_owned());
    while let Some(given) = parser.next_option()? {
        match given.id {
            "cache" => cache = given.value,
            "backing" => backing = Some(given.value),
            "backing-format" => options.backing_format = Some(given.value),
            "backing-cache" => backing_cache = given.value,
            "backing-unsafe" => options.mode = RebaseMode::Unsafe,
            "compress" => options.compress = true,
            _ => common.take(given)?,
        }
    }
    let name = common.one_image(parser.positionals())?;
    if backing.is_none() && options.mode == RebaseMode::Safe {
        return Err(common.usage("Must specify backing file (-b) or use unsafe mode (-u)"));
    }
    common.check_exclusive()?;
    options.backing = backing.filter(|b| !b.is_empty());
    if let Some(file) = &options.backing {
        common.names(file);
    }
    let cache = cache_mode("cache", &cache)?;
    options.backing_cache = cache_mode("source cache", &backing_cache)?;
    options.image = common.image(&name, cache)?;
    let reporter = common.reporter();
    common.run(&reporter, |job| rebase::rebase(&options, job))?;
    common.report("", || json!({ "filename": name, "backing-filename": options.backing }));
    Ok(0)
}

//! `amend`

use imgcore::graph::open::Depth;
use imgcore::ops::amend::{self, AmendOptions, Force};
use imgcore::ops::info::{self, InfoOptions};
use imgcore::opts::list::Accumulated;
use imgcore::storage::CacheMode;
use serde_json::json;

use super::{format_help, pairs};
use crate::args::getopt::Parser;
use crate::common::{Common, cache_mode};
use crate::failure::Failure;
use crate::session::Session;

/// Runs it.
pub fn run(session: &Session, mut parser: Parser) -> Result<u8, Failure> {
    let mut common = Common::new(session, parser.command);
    common.changes_images();
    let mut list = Accumulated::default();
    let mut options = AmendOptions::default();
    let mut cache = "writeback".to_owned();
    while let Some(given) = parser.next_option()? {
        match given.id {
            "options" => list.add(&given.value)?,
            "cache" => cache = given.value,
            "force" => options.force = Force::Yes,
            _ => common.take(given)?,
        }
    }
    if !list.given() {
        return Err(common.usage("Must specify options (-o)"));
    }
    let mut names = parser.positionals();
    let name = names.pop().filter(|_| names.is_empty());
    if let (true, Some(format)) = (list.asks_for_help(), &common.format) {
        // With a format no image is needed to tell what it has.
        format_help::amendment(format)?;
        return Ok(0);
    }
    let Some(name) = name else {
        return Err(Failure::new("Expecting one image file name"));
    };
    common.check_exclusive()?;
    let cache = cache_mode("cache", &cache)?;
    if list.asks_for_help() {
        format_help::amendment(&probed(&common, &name, cache)?)?;
        return Ok(0);
    }
    options.image = common.image(&name, cache)?;
    options.options = pairs(&list);
    let reporter = common.reporter();
    common.run(&reporter, |job| amend::amend(&options, job))?;
    common.report("", || {
        let changed: serde_json::Map<_, _> =
            options.options.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
        json!({ "filename": name, "amended": changed })
    });
    Ok(0)
}

fn probed(common: &Common<'_>, name: &str, cache: CacheMode) -> Result<String, Failure> {
    let image = common.image(name, cache)?;
    let reporter = common.reporter();
    let options = InfoOptions { image, depth: Depth::Top };
    let chain = common.run(&reporter, |job| info::info(&options, job))?;
    Ok(chain.into_iter().next().map(|top| top.format).unwrap_or_default())
}

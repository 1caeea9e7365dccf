//! `info`

use imgcore::graph::open::Depth;
use imgcore::ops::info::{self, InfoOptions};

use crate::args::getopt::Parser;
use crate::common::{Common, cache_mode};
use crate::failure::Failure;
use crate::output::info as form;
use crate::output::shown_name;
use crate::session::Session;
use imgcore::opts::http::without_credentials;
use imgcore::storage::CacheMode;

/// Runs it.
pub fn run(session: &Session, mut parser: Parser) -> Result<u8, Failure> {
    let mut common = Common::new(session, parser.command);
    let mut depth = Depth::Top;
    let mut cache = CacheMode::Writeback;
    while let Some(given) = parser.next_option()? {
        match given.id {
            "backing-chain" => depth = Depth::Chain,
            "cache" => cache = cache_mode("cache", &given.value)?,
            _ => common.take(given)?,
        }
    }
    let name = common.one_image(parser.positionals())?;
    let image = common.image(&name, cache)?;
    let reporter = common.reporter();
    let mut chain = common.run(&reporter, |job| info::info(&InfoOptions { image, depth }, job))?;
    if let Some(top) = chain.first_mut().filter(|top| top.filename == without_credentials(&name)) {
        top.filename = shown_name::of(&name, common.image_opts, &top.format);
    }
    common.report(&form::human(&chain), || form::json(&chain, depth == Depth::Chain));
    Ok(0)
}

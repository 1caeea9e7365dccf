//! `bitmap`

use imgcore::ops::bitmap::{self, BitmapAction, BitmapOptions};
use imgcore::opts::size;
use imgcore::storage::CacheMode;
use serde_json::json;

use crate::args::getopt::Parser;
use crate::common::Common;
use crate::failure::Failure;
use crate::session::Session;

/// Runs it.
pub fn run(session: &Session, mut parser: Parser) -> Result<u8, Failure> {
    let mut common = Common::new(session, parser.command);
    let mut options = BitmapOptions::default();
    let (mut source, mut source_format) = (None, None);
    while let Some(given) = parser.next_option()? {
        let action = match given.id {
            "add" => BitmapAction::Add,
            "remove" => BitmapAction::Remove,
            "clear" => BitmapAction::Clear,
            "enable" => BitmapAction::Enable,
            "disable" => BitmapAction::Disable,
            "merge" => BitmapAction::Merge(given.value),
            "granularity" => {
                let max = u64::from(u32::MAX);
                options.granularity = Some(size::argument("granularity", &given.value, 0, max)?);
                continue;
            }
            "source-file" => {
                source = Some(given.value);
                continue;
            }
            "source-format" => {
                source_format = Some(given.value);
                continue;
            }
            _ => {
                common.take(given)?;
                continue;
            }
        };
        options.actions.push(action);
    }
    let has = |f: fn(&BitmapAction) -> bool| options.actions.iter().any(f);
    if options.actions.is_empty() {
        return Err(Failure::new(
            "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge",
        ));
    }
    let [name, bitmap] = <[String; 2]>::try_from(parser.positionals())
        .map_err(|_| Failure::new("Expecting filename and bitmap name"))?;
    if options.granularity.is_some() && !has(|a| *a == BitmapAction::Add) {
        return Err(Failure::new("granularity only supported with --add"));
    }
    if source_format.is_some() && source.is_none() {
        return Err(Failure::new("-F only supported with -b"));
    }
    if source.is_some() && !has(|a| matches!(a, BitmapAction::Merge(_))) {
        return Err(Failure::new("Merge bitmap source file only supported with --merge"));
    }
    options.bitmap = bitmap;
    options.image = common.image(&name, CacheMode::Writeback)?;
    if let Some(file) = source {
        let request = imgcore::graph::open::OpenRequest::parse(&file, source_format.as_deref())?;
        options.source = Some(imgcore::ops::ImageArg { request, ..Default::default() });
    }
    let reporter = common.reporter();
    common.run(&reporter, |job| bitmap::bitmap(&options, job))?;
    common.report("", || json!({ "filename": name, "bitmap": options.bitmap }));
    Ok(0)
}

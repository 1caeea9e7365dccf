//! `bitmap`

use imgcore::format::SpecificInfo;
use imgcore::graph::open::Depth;
use imgcore::ops::bitmap::{self, BitmapAction, BitmapOptions};
use imgcore::ops::info::{self, InfoOptions};
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
    common.changes_images();
    let mut options = BitmapOptions::default();
    let (mut source, mut source_format) = (None, None);
    let mut remove_all = false;
    while let Some(given) = parser.next_option()? {
        let action = match given.id {
            "add" => BitmapAction::Add,
            "remove" => BitmapAction::Remove,
            "clear" => BitmapAction::Clear,
            "enable" => BitmapAction::Enable,
            "disable" => BitmapAction::Disable,
            "merge" => BitmapAction::Merge(given.value),
            "granularity" => {
                // What is no granularity is told together with the bitmap that would have had it.
                options.granularity = Some(size::size_argument("granularity", &given.value)?);
                continue;
            }
            "remove-all" => {
                remove_all = true;
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
    if remove_all {
        return remove_every(&common, &options, parser.positionals());
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
        common.image_named(&request);
        options.source = Some(imgcore::ops::ImageArg { request, ..Default::default() });
    }
    let reporter = common.reporter();
    common.run(&reporter, |job| bitmap::bitmap(&options, job))?;
    common.report("", || json!({ "filename": name, "bitmap": options.bitmap }));
    Ok(0)
}

/// `--remove-all`: one removal for each bitmap that the image has.
fn remove_every(
    common: &Common<'_>,
    given: &BitmapOptions,
    names: Vec<String>,
) -> Result<u8, Failure> {
    if !given.actions.is_empty() {
        return Err(Failure::new("--remove-all cannot be combined with other operations"));
    }
    let name = common.one_image(names)?;
    let image = common.image(&name, CacheMode::Writeback)?;
    let reporter = common.reporter();
    let look = InfoOptions { image: image.clone(), depth: Depth::Top };
    let chain = common.run(&reporter, |job| info::info(&look, job))?;
    let bitmaps = match chain.into_iter().next().and_then(|top| top.format_specific) {
        Some(SpecificInfo::Qcow2(qcow2)) => qcow2.bitmaps.unwrap_or_default(),
        _ => Vec::new(),
    };
    let removed: Vec<String> = bitmaps.into_iter().map(|b| b.name).collect();
    for bitmap in &removed {
        let options = BitmapOptions {
            image: image.clone(),
            bitmap: bitmap.clone(),
            actions: vec![BitmapAction::Remove],
            ..BitmapOptions::default()
        };
        common.run(&reporter, |job| bitmap::bitmap(&options, job))?;
    }
    common.report("", || json!({ "filename": name, "removed": removed }));
    Ok(0)
}

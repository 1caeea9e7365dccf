//! `measure`

use imgcore::ops::measure::{self, MeasureFrom, MeasureOptions};
use imgcore::ops::selector;
use imgcore::opts::list::Accumulated;
use imgcore::opts::size;
use imgcore::storage::CacheMode;
use serde_json::json;

use super::{convert, pairs};
use crate::args::getopt::Parser;
use crate::common::Common;
use crate::failure::Failure;
use crate::session::Session;

/// Runs it.
pub fn run(session: &Session, mut parser: Parser) -> Result<u8, Failure> {
    let mut common = Common::new(session, parser.command);
    let mut options = Accumulated::default();
    let mut driver = "raw".to_owned();
    let (mut selected, mut disk_size) = (None, None);
    while let Some(given) = parser.next_option()? {
        match given.id {
            "options" => options.add(&given.value)?,
            "output-format" => driver = given.value,
            "snapshot" => {
                let parsed = selector::parse(&given.value);
                selected = Some(parsed.map_err(|e| convert::bad_snapshot(e, &given.value))?);
            }
            "size" => disk_size = Some(size::size_argument("image size", &given.value)?),
            _ => common.take(given)?,
        }
    }
    common.check_exclusive()?;
    let mut names = parser.positionals().into_iter();
    let name = names.next();
    if names.next().is_some() {
        return Err(Failure::new("At most one filename argument is allowed."));
    }
    let from = match (name, disk_size) {
        (Some(_), Some(_)) => {
            return Err(Failure::new("--size N cannot be used together with a filename."));
        }
        (Some(name), None) => {
            MeasureFrom::Image(Box::new(common.image(&name, CacheMode::Writeback)?))
        }
        (None, _) if common.image_opts || common.format.is_some() || selected.is_some() => {
            return Err(Failure::new("--image-opts, -f, and -l require a filename argument."));
        }
        (None, Some(n)) => MeasureFrom::Size(n),
        (None, None) => {
            return Err(Failure::new("Either --size N or one filename must be specified."));
        }
    };
    let wish = MeasureOptions { from, snapshot: selected, driver, options: pairs(&options) };
    let reporter = common.reporter();
    let m = common
        .run(&reporter, |job| measure::measure(&wish, job))
        .map_err(|e| e.promote(&measure::invalid_options(&wish.driver)))?;
    let mut text =
        format!("required size: {}\nfully allocated size: {}\n", m.required, m.fully_allocated);
    if let Some(bitmaps) = m.bitmaps {
        text.push_str(&format!("bitmaps size: {bitmaps}\n"));
    }
    common.report(&text, || {
        let mut value = json!({ "required": m.required, "fully-allocated": m.fully_allocated });
        if let Some(bitmaps) = m.bitmaps {
            value["bitmaps"] = bitmaps.into();
        }
        value
    });
    Ok(0)
}

//! `map`

use std::io::Write;

use imgcore::Error;
use imgcore::ops::map::{self, MapEntry, MapOptions};
use imgcore::opts::size;
use imgcore::storage::CacheMode;

use crate::args::getopt::Parser;
use crate::common::Common;
use crate::failure::Failure;
use crate::output::{Output, map as form};
use crate::session::Session;

/// Runs it.
pub fn run(session: &Session, mut parser: Parser) -> Result<u8, Failure> {
    let mut common = Common::new(session, parser.command);
    let (mut start, mut max_length) = (0, None);
    while let Some(given) = parser.next_option()? {
        match given.id {
            "start-offset" => start = size::size_argument("start offset", &given.value)?,
            "max-length" => max_length = Some(size::size_argument("max length", &given.value)?),
            _ => common.take(given)?,
        }
    }
    let name = common.one_image(parser.positionals())?;
    let image = common.image(&name, CacheMode::Writeback)?;
    let options = MapOptions { image, start, max_length };
    let reporter = common.reporter();
    // A map can be long: it is written as it is found.
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    match common.output {
        Output::Human => {
            // Not before the image is open.
            let mut heading = Some(form::heading());
            let each = &mut |e: MapEntry| {
                out.write_all(heading.take().unwrap_or_default().as_bytes())?;
                human_line(&e, &mut out)
            };
            common.run(&reporter, |job| map::map(&options, job, each))?;
            let _ = out.write_all(heading.unwrap_or_default().as_bytes());
        }
        Output::Json => {
            let mut mark = "[";
            let each = &mut |e: MapEntry| {
                write!(out, "{mark}{}", form::json(&e))?;
                mark = ",\n";
                Ok(())
            };
            common.run(&reporter, |job| map::map(&options, job, each))?;
            let _ = out.write_all(if mark == "[" { b"[]\n" } else { b"]\n" });
        }
    }
    let _ = out.flush();
    Ok(0)
}

fn human_line(entry: &MapEntry, out: &mut impl Write) -> imgcore::Result<()> {
    if let Some(line) = form::human(entry).map_err(Error::unsupported)? {
        out.write_all(line.as_bytes())?;
    }
    Ok(())
}

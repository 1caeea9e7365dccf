//! `resize`

use imgcore::ops::resize::{self, ResizeOptions, Shrinking, SizeChange};
use imgcore::opts::value;
use imgcore::storage::{CacheMode, Preallocation};

use crate::args::getopt::Parser;
use crate::common::Common;
use crate::failure::Failure;
use crate::session::Session;

/// Runs it.
pub fn run(session: &Session, parser: Parser) -> Result<u8, Failure> {
    let mut parser = parser.with_sizes();
    let mut common = Common::new(session, parser.command);
    common.changes_images();
    let mut preallocation = Preallocation::Off;
    let mut shrinking = Shrinking::Refuse;
    while let Some(given) = parser.next_option()? {
        match given.id {
            "preallocation" => preallocation = mode(&given.value)?,
            "shrink" => shrinking = Shrinking::Allow,
            _ => common.take(given)?,
        }
    }
    let names = parser.positionals();
    let [name, size] = names.as_slice() else {
        return Err(common.usage(if names.len() < 2 {
            "Expecting image file name and size"
        } else {
            "Extra argument(s) in command line"
        }));
    };
    common.check_exclusive()?;
    let change = change(size)?;
    let image = common.image(name, CacheMode::Writeback)?;
    let options = ResizeOptions { image, change, shrinking, preallocation };
    let reporter = common.reporter();
    let report = common.run(&reporter, |job| resize::resize(&options, job))?;
    common.report("Image resized.\n", || serde_json::to_value(report).unwrap_or_default());
    Ok(0)
}

fn mode(text: &str) -> Result<Preallocation, Failure> {
    Ok(match text {
        "off" => Preallocation::Off,
        "metadata" => Preallocation::Metadata,
        "falloc" => Preallocation::Falloc,
        "full" => Preallocation::Full,
        other => return Err(Failure::new(format!("Invalid preallocation mode '{other}'"))),
    })
}

fn change(text: &str) -> Result<SizeChange, Failure> {
    let parse = |t| value::size("size", t);
    Ok(match text.as_bytes().first() {
        Some(b'+') => SizeChange::Grow(parse(&text[1..])?),
        Some(b'-') => SizeChange::Shrink(parse(&text[1..])?),
        _ => SizeChange::To(parse(text)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes() {
        assert_eq!(change("1k").unwrap(), SizeChange::To(1024));
        assert_eq!(change("+1k").unwrap(), SizeChange::Grow(1024));
        assert_eq!(change("++1k").unwrap(), SizeChange::Grow(1024));
        assert_eq!(change("-1k").unwrap(), SizeChange::Shrink(1024));
        assert_eq!(change("").unwrap_err().code(), 1);
    }
}

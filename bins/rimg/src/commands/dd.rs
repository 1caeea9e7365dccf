//! `dd`

use imgcore::ops::dd::{self, DdOptions};
use imgcore::opts::size::{self, MAX_OFFSET};
use imgcore::storage::CacheMode;
use serde_json::json;

use crate::args::getopt::Parser;
use crate::common::Common;
use crate::failure::Failure;
use crate::session::Session;

const MAX_BLOCK: u64 = 0x7fff_ffff;

#[derive(Default)]
struct Operands {
    input: Option<String>,
    output: Option<String>,
    block_size: Option<u64>,
    count: Option<u64>,
    skip: u64,
}

/// Runs it.
pub fn run(session: &Session, mut parser: Parser) -> Result<u8, Failure> {
    let mut common = Common::new(session, parser.command);
    let mut driver = "raw".to_owned();
    while let Some(given) = parser.next_option()? {
        match given.id {
            "output-format" => driver = given.value,
            _ => common.take(given)?,
        }
    }
    let operands = operands(&parser.positionals())?;
    let (Some(input), Some(output)) = (operands.input, operands.output) else {
        return Err(Failure::new("Must specify both input and output files"));
    };
    common.check_exclusive()?;
    common.will_write(&output);
    let mut options = DdOptions::new(common.image(&input, CacheMode::Writeback)?, output.clone());
    options.output_driver = driver;
    options.block_size = operands.block_size.unwrap_or(options.block_size);
    options.count = operands.count;
    options.skip = operands.skip;
    options.overwrite = common.overwriting();
    let reporter = common.reporter();
    common.run(&reporter, |job| dd::dd(&options, job))?;
    common.report("", || json!({ "input": input, "output": output }));
    Ok(0)
}

fn operands(words: &[String]) -> Result<Operands, Failure> {
    let mut o = Operands::default();
    for word in words {
        let (name, text) = word.split_once('=').unwrap_or((word, ""));
        match (name, word.contains('=')) {
            ("if", true) => o.input = Some(text.to_owned()),
            ("of", true) => o.output = Some(text.to_owned()),
            ("bs", true) => o.block_size = Some(size::argument("bs", text, 1, MAX_BLOCK)?),
            ("count", true) => o.count = Some(size::argument("count", text, 0, MAX_OFFSET)?),
            ("skip", true) => o.skip = size::argument("skip", text, 0, MAX_OFFSET)?,
            _ => return Err(Failure::new(format!("unrecognized operand {name}"))),
        }
    }
    Ok(o)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(line: &str) -> String {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        operands(&words).err().map(|f| f.message().to_owned()).unwrap_or_default()
    }

    #[test]
    fn words() {
        assert_eq!(message("if=a of=b bs=1k count=3 skip=1 if=c"), "");
        assert_eq!(message("foo=x"), "unrecognized operand foo");
        assert_eq!(message("if"), "unrecognized operand if");
        assert_eq!(message("bs=0"), "Invalid bs specified. Must be between 1 and 2147483647.");
        assert_eq!(message("skip=x"), "Invalid skip specified: 'x'.");
    }
}

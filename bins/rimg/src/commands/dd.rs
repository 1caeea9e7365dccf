//! `dd`

use imgcore::ops::dd::{self, DdOptions};
use imgcore::opts::size;
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
            ("count", true) => o.count = Some(blocks("count", text)?),
            ("skip", true) => o.skip = blocks("skip", text)?,
            _ => return Err(Failure::new(format!("unrecognized operand {name}"))),
        }
    }
    Ok(o)
}

/// A number of blocks: as qemu-img 10 takes them, a whole number without a suffix, which may also be
/// hexadecimal (`0x10`) or octal (`010`).
fn blocks(name: &str, text: &str) -> Result<u64, Failure> {
    let digits = text.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b');
    let (negative, digits) = match digits.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, digits.strip_prefix('+').unwrap_or(digits)),
    };
    let hex = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X"));
    let (radix, digits) = match (hex, digits.strip_prefix('0')) {
        (Some(hex), _) => (16, hex),
        (None, Some(octal)) if !octal.is_empty() => (8, octal),
        (None, _) => (10, digits),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(Failure::new(format!("Invalid {name} specified: '{text}'.")));
    }
    let max = i64::MAX.unsigned_abs();
    match u64::from_str_radix(digits, radix) {
        Ok(n) if n <= max && (!negative || n == 0) => Ok(n),
        _ => Err(Failure::new(format!("Invalid {name} specified. Must be between 0 and {max}."))),
    }
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
        assert_eq!(message("skip=1k"), "Invalid skip specified: '1k'.");
        assert_eq!(message("count="), "Invalid count specified: ''.");
        let range = "Invalid count specified. Must be between 0 and 9223372036854775807.";
        assert_eq!(message("count=-1"), range);
        assert_eq!(message("count=9223372036854775808"), range);
    }

    #[test]
    fn numbers_of_blocks() {
        for (text, n) in [("0", 0), ("-0", 0), ("+5", 5), ("0x1F", 31), ("010", 8), (" 7", 7)] {
            assert_eq!(blocks("count", text).ok(), Some(n), "{text}");
        }
        for text in ["1.0", "08", "0x", "5 ", "-", "--5", "1e1"] {
            assert!(blocks("count", text).is_err(), "{text}");
        }
    }
}

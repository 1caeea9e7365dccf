//! `rhostprep check`.

use std::fmt::Write as _;
use std::io::IsTerminal as _;

use hostprep::Result;
use hostprep::check::{self, CHECKS};
use hostprep::host::Host;
use hostprep::report::{Colour, Detail, human, json, junit};

use super::{print, wanted};
use crate::args::{Check, Output, When};

pub fn run(host: &Host, args: &Check) -> Result<u8> {
    if args.list {
        let mut out = String::new();
        for check in CHECKS {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{:>2}  {:<22} {}", check.number, check.id, check.title);
        }
        print(&out);
        return Ok(0);
    }
    let findings = check::run(host, &wanted(&args.wanted)?, &args.only)?;
    let text = match args.output {
        Output::Human => human(&findings, colour(args.color), detail(args)),
        Output::Json => json(&findings)?,
        Output::Junit => junit(&findings),
    };
    print(&text);
    Ok(check::worst(&findings).exit_code())
}

fn colour(when: When) -> Colour {
    let on = match when {
        When::Always => true,
        When::Never => false,
        When::Auto => std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
    };
    if on { Colour::On } else { Colour::Off }
}

fn detail(args: &Check) -> Detail {
    match (args.quiet, args.verbose) {
        (true, _) => Detail::Quiet,
        (_, true) => Detail::Verbose,
        _ => Detail::Normal,
    }
}

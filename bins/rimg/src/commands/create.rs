//! `create`

use imgcore::graph::gate::combine;
use imgcore::ops::create::{self, BackingCheck, CreateImageOptions};
use imgcore::opts::list::Accumulated;
use imgcore::opts::size;
use serde_json::json;

use super::{format_help, pairs};
use crate::args::getopt::Parser;
use crate::common::Common;
use crate::failure::Failure;
use crate::output::{self, Output};
use crate::session::Session;

/// Runs it.
pub fn run(session: &Session, mut parser: Parser) -> Result<u8, Failure> {
    let mut common = Common::new(session, parser.command);
    let mut options = Accumulated::default();
    let mut wish = CreateImageOptions::default();
    let (mut encrypt, mut compat6) = (false, false);
    while let Some(given) = parser.next_option()? {
        match given.id {
            "options" => options.add(&given.value)?,
            "backing" => {
                common.names(&given.value);
                wish.backing = Some(given.value);
            }
            "backing-format" => wish.backing_format = Some(given.value),
            "backing-unsafe" => wish.backing_check = BackingCheck::Skip,
            "encrypt" => encrypt = true,
            "compat6" => compat6 = true,
            _ => common.take(given)?,
        }
    }
    let mut names = parser.positionals().into_iter();
    wish.driver = common.format.clone().unwrap_or_else(|| "raw".to_owned());
    wish.filename = match names.next() {
        name if options.asks_for_help() => {
            format_help::creation(&wish.driver, name.as_deref())?;
            return Ok(0);
        }
        Some(name) => name,
        None => return Err(common.usage("Expecting image file name")),
    };
    if let Some(text) = names.next() {
        wish.size = Some(size::size_argument("image size", &text)?);
    }
    if let Some(extra) = names.next() {
        return Err(common.usage(format!("Unexpected argument: {extra}")));
    }
    wish.options = pairs(&options);
    for (asked, name) in [(encrypt, "encryption"), (compat6, "compat6")] {
        if asked {
            wish.options.push((name.to_owned(), "on".to_owned()));
        }
    }
    for (name, file) in &wish.options {
        if name == "backing_file" || name == "data_file" {
            common.names(file);
        }
    }
    common.warn_of_aes(&wish.options);
    wish.overwrite = common.overwriting();
    common.will_write(&wish.filename);
    common.will_write_beside(&wish.filename, &wish.options);
    let backing = wish.options.iter().filter(|(name, _)| name == "backing_file");
    for file in backing.map(|(_, file)| file).chain(&wish.backing) {
        common.will_read_file(&combine(&wish.filename, file));
    }
    make(&common, wish)
}

fn make(common: &Common<'_>, wish: CreateImageOptions) -> Result<u8, Failure> {
    let filename = wish.filename.clone();
    let driver = wish.driver.clone();
    let about = |f: Failure| {
        if f.message().starts_with(&filename) || f.message().starts_with("Interrupted") {
            f
        } else {
            f.prefix(&filename)
        }
    };
    let reporter = common.reporter();
    common
        .run(&reporter, |job| -> imgcore::Result<()> {
            let plan = create::plan(wish, job)?;
            if common.output == Output::Human && !common.quiet {
                output::print(&format!("{}\n", plan.line()));
            }
            plan.run(job)
        })
        .map_err(about)?;
    if common.output == Output::Json {
        common.report("", || json!({ "filename": filename, "format": driver }));
    }
    Ok(0)
}

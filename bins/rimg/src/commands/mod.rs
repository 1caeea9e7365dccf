//! One file a command: arguments in, job, output. Checks and messages come in the order in which
//! qemu-img makes them, because the first mistake is the one reported.

mod amend;
mod bench;
mod bitmap;
mod chain;
mod check;
mod commit;
mod compare;
mod convert;
mod create;
mod dd;
mod diff;
mod digest;
mod extra;
mod format_help;
mod import;
mod info;
mod inspect;
mod map;
mod measure;
mod rebase;
mod resize;
mod serve;
mod snapshot;
mod sparsify;

use crate::args;
use crate::args::getopt::Parser;
use crate::failure::Failure;
use crate::session::Session;

/// Runs a command and gives its exit code.
pub fn run(session: &Session, name: &str, args: Vec<String>) -> Result<u8, Failure> {
    let Some(command) = args::find(name) else {
        return extra::run(session, name, &args)
            .unwrap_or_else(|| Err(Failure::usage("", format!("Command not found: {name}"))));
    };
    let parser = Parser::new(command.name, command.opts, args);
    match command.name {
        "amend" => amend::run(session, parser),
        "bench" => bench::run(session, parser),
        "bitmap" => bitmap::run(session, parser),
        "chain" => chain::run(session, parser),
        "check" => check::run(session, parser),
        "commit" => commit::run(session, parser),
        "compare" => compare::run(session, parser),
        "convert" => convert::run(session, parser),
        "create" => create::run(session, parser),
        "dd" => dd::run(session, parser),
        "diff" => diff::run(session, parser),
        "digest" => digest::run(session, parser),
        "import" => import::run(session, parser),
        "info" => info::run(session, parser),
        "inspect" => inspect::run(session, parser),
        "map" => map::run(session, parser),
        "measure" => measure::run(session, parser),
        "rebase" => rebase::run(session, parser),
        "resize" => resize::run(session, parser),
        "serve" => serve::run(session, parser),
        "snapshot" => snapshot::run(session, parser),
        "sparsify" => sparsify::run(session, parser),
        other => Err(Failure::usage("", format!("Command not found: {other}"))),
    }
}

/// Items of `-o` as the library takes them.
fn pairs(options: &imgcore::opts::list::Accumulated) -> Vec<(String, String)> {
    options.items().into_iter().map(|i| (i.key, i.value)).collect()
}

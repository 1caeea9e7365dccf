//! QEMU's command lines, as pure functions from arguments to plain data.
//!
//! * [`table`]: every option that is known, and whether it works: one table for parsing and help.
//! * [`pages`]: the help, the man page and completions made of it.
//! * [`options`]: `key=value` lists with what was not understood left over.
//! * [`builder`]: what has been said so far, and the machine that follows.
//! * [`cpu`], [`memory`], [`disk`] (with [`throttle`]), [`blockdev`], [`net`], [`device`], [`chardev`],
//!   [`process`], [`misc`]: the options themselves.
//!
//! Nothing is silently ignored: an option or parameter that does not work yet is refused by name, one
//! that changes nothing here is accepted with a warning that says so, or belongs to the few that only
//! say what is so anyway (`-enable-kvm`).

pub mod blockdev;
pub mod builder;
pub mod chardev;
pub mod cpu;
pub mod device;
pub mod disk;
pub mod memory;
pub mod misc;
pub mod net;
pub mod options;
pub mod pages;
pub mod process;
pub mod table;
pub mod throttle;

#[cfg(test)]
mod tests;

use crate::machine::MachineConfig;
use crate::{Error, Result};
use builder::Builder;
pub use process::ProcessConfig;
use table::{Action, Arg};

/// What a command line asks for.
#[derive(Debug)]
pub enum Parsed {
    /// A machine.
    Run(Box<Run>),
    /// Text for people (help, lists).
    Show(String),
}

/// A machine and what the process around it does.
#[derive(Debug)]
pub struct Run {
    /// The machine.
    pub machine: MachineConfig,
    /// The process around it.
    pub process: ProcessConfig,
    /// Lines to be shown.
    pub warnings: Vec<String>,
}

/// Parses the arguments behind the program's name.
///
/// # Errors
/// Begins with the option as it was written.
pub fn parse<S: AsRef<str>>(args: &[S]) -> Result<Parsed> {
    let mut builder = Builder::default();
    let mut rest = args.iter().map(AsRef::as_ref);
    while let Some(word) = rest.next() {
        let Some(name) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
            builder.positional(word)?;
            continue;
        };
        let option = table::find(name)?;
        let value = match option.arg {
            Arg::None => "",
            Arg::Needed(_) => rest
                .next()
                .ok_or_else(|| Error::invalid(format!("{word}: requires an argument")))?,
        };
        match option.action {
            Action::Do(act) => {
                let shown =
                    if value.is_empty() { word.to_owned() } else { format!("{word} {value}") };
                act(&mut builder, value).map_err(|e| prefixed(&shown, &e))?;
            }
            Action::Nothing => {}
            Action::Warn(why) => builder.warnings.push(format!("{word}: {why}")),
            Action::Refuse(why) => {
                return Err(Error::unsupported(format!("{word}: not supported yet")).hint(why));
            }
        }
        if let Some(text) = builder.show.take() {
            return Ok(Parsed::Show(text));
        }
    }
    builder.finish().map(|run| Parsed::Run(Box::new(run)))
}

/// The error with the option before it, its advice kept.
fn prefixed(option: &str, e: &Error) -> Error {
    let mut error = Error::new(e.kind(), format!("{option}: {}", e.report()));
    for hint in e.hints() {
        error = error.hint(hint);
    }
    error
}

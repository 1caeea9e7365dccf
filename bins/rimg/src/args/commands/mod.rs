//! The option tables of all commands.
//!
//! Names and letters are those of qemu-img 10.0; `also` holds the names of 11.1 and the letters of
//! the 1.1 days. Ours alone are `--progress=json`, `--force`, `--allow`, and `--output` where
//! qemu-img has none. The newer commands (`inspect`, `resize`, `serve`, `sparsify`) have files of their
//! own beside this folder.

mod change;
mod look;
mod make;
mod shared;

use self::change::{AMEND, BENCH, BITMAP, COMMIT, REBASE, SNAPSHOT};
use self::look::{CHAIN, CHECK, COMPARE, DIFF, DIGEST, INFO, MAP, MEASURE};
use self::make::{CONVERT, CREATE, DD, IMPORT};
pub(super) use self::shared::{
    ALLOW, CACHE_MODES, FORCE, FORMAT, HELP, IMAGE, IMAGE_OPTS, OBJECT, OUTPUT_EXACT, PROGRESS,
    QUIET, SANDBOX, SIZES, TARGETS,
};
use super::inspect::INSPECT;
use super::resize::RESIZE;
use super::serve::SERVE;
use super::sparsify::SPARSIFY;
use super::table::{Command, Opt, flag, val};

/// Every command, sorted by name.
pub const COMMANDS: &[Command] = &[
    AMEND, BENCH, BITMAP, CHAIN, CHECK, COMMIT, COMPARE, CONVERT, CREATE, DD, DIFF, DIGEST, IMPORT,
    INFO, INSPECT, MAP, MEASURE, REBASE, RESIZE, SERVE, SNAPSHOT, SPARSIFY,
];

/// Options before the command.
pub const GLOBAL: &[Opt] = &[
    HELP,
    flag(Some('V'), "version", "Print the version and exit"),
    val(Some('T'), "trace", "TRACE", "Accepted for compatibility; there is nothing to trace"),
];

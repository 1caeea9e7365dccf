//! The shape of an option table: what each command takes, from which parsing, `--help`, shell
//! completions and man pages are all made. Plain constants without dependencies, because the build
//! script reads this file too.

/// One option.
#[derive(Clone, Copy, Debug)]
pub struct Opt {
    /// What the code calls it: the long name without dashes.
    pub id: &'static str,
    /// Its letter.
    pub short: Option<char>,
    /// Older or newer letters that mean the same.
    pub also_short: &'static [char],
    /// Its long name; may be shortened as long as it is unambiguous.
    pub long: &'static str,
    /// Other long names, taken only in full: so they never make an abbreviation ambiguous that
    /// qemu-img would take.
    pub also: &'static [&'static str],
    /// The name of its argument, if it has one.
    pub arg: Option<&'static str>,
    /// What the argument may be, if that is a closed list; for completion.
    pub values: &'static [&'static str],
    /// One or two sentences.
    pub help: &'static str,
    /// The heading it stands under.
    pub heading: &'static str,
    /// Kept for old scripts, not shown.
    pub hidden: bool,
}

/// The long name of an option that has none of its own.
pub const NO_LONG: &str = "";

/// An option without an argument.
pub const fn flag(short: Option<char>, long: &'static str, help: &'static str) -> Opt {
    Opt {
        id: long,
        short,
        also_short: &[],
        long,
        also: &[],
        arg: None,
        values: &[],
        help,
        heading: "Options",
        hidden: false,
    }
}

/// An option with an argument.
pub const fn val(
    short: Option<char>,
    long: &'static str,
    arg: &'static str,
    help: &'static str,
) -> Opt {
    Opt { arg: Some(arg), ..flag(short, long, help) }
}

impl Opt {
    /// Called otherwise in the code.
    pub const fn id(self, id: &'static str) -> Opt {
        Opt { id, ..self }
    }

    /// Another main long name.
    pub const fn long(self, long: &'static str) -> Opt {
        Opt { long, ..self }
    }

    /// Further long names.
    pub const fn also(self, also: &'static [&'static str]) -> Opt {
        Opt { also, ..self }
    }

    /// Further letters.
    pub const fn also_short(self, also_short: &'static [char]) -> Opt {
        Opt { also_short, ..self }
    }

    /// A closed list of arguments.
    pub const fn values(self, values: &'static [&'static str]) -> Opt {
        Opt { values, ..self }
    }

    /// Under this heading.
    pub const fn under(self, heading: &'static str) -> Opt {
        Opt { heading, ..self }
    }

    /// Not shown.
    pub const fn hidden(self) -> Opt {
        Opt { hidden: true, ..self }
    }
}

/// A positional argument, for `--help`.
#[derive(Clone, Copy, Debug)]
pub struct Positional {
    /// As the usage line has it.
    pub name: &'static str,
    /// What it is.
    pub help: &'static str,
    /// Not needed.
    pub optional: bool,
    /// May be repeated.
    pub many: bool,
}

/// One positional argument that must be there.
pub const fn pos(name: &'static str, help: &'static str) -> Positional {
    Positional { name, help, optional: false, many: false }
}

impl Positional {
    /// Not needed.
    pub const fn optional(self) -> Positional {
        Positional { optional: true, ..self }
    }

    /// May be repeated.
    pub const fn many(self) -> Positional {
        Positional { many: true, ..self }
    }
}

/// One command.
#[derive(Clone, Copy, Debug)]
pub struct Command {
    /// Its name.
    pub name: &'static str,
    /// One line.
    pub about: &'static str,
    /// A paragraph or two: what it does, what to know.
    pub details: &'static str,
    /// Arguments.
    pub positionals: &'static [Positional],
    /// Options: the command's own, then those shared by all. Abbreviations are listed in this order.
    pub opts: &'static [Opt],
    /// Command lines and what they do.
    pub examples: &'static [(&'static str, &'static str)],
    /// Exit codes, where they say more than 0 and 1.
    pub exit_codes: &'static [(&'static str, &'static str)],
}

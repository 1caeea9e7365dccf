//! Reading a command line as the C library's `getopt_long` does, because scripts depend on it:
//! options after file names, joined letters (`-bUf raw`), attached arguments (`-fraw`, `--output=json`),
//! abbreviated long names (`--out json`), `--` to end the options. Options are handed out one by one,
//! so that the first mistake in the line is the one reported.

use super::table::Opt;
use crate::failure::Failure;

/// What may be taken for a file name although it begins with a dash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dashes {
    /// Nothing.
    AreOptions,
    /// `-512k` after the first file name (resize).
    MayBeSizes,
}

/// Whether options may follow positional arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Anywhere.
    Any,
    /// The first positional argument ends the options.
    OptionsFirst,
}

/// One option as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// Its identifier in the table.
    pub id: &'static str,
    /// Its argument; empty for options without one.
    pub value: String,
}

/// Goes through a command line.
#[derive(Debug)]
pub struct Parser {
    /// The command, for messages; empty before a command.
    pub command: &'static str,
    opts: &'static [Opt],
    args: std::vec::IntoIter<String>,
    /// Letters still to be read of a joined group.
    letters: String,
    dashes: Dashes,
    order: Order,
    ended: bool,
    optional_progress: bool,
    /// The option without argument that takes one after `=`.
    optional: Option<&'static str>,
    positionals: Vec<String>,
}

impl Parser {
    /// Over the arguments after the command's name.
    pub fn new(command: &'static str, opts: &'static [Opt], args: Vec<String>) -> Self {
        Parser {
            command,
            opts,
            args: args.into_iter(),
            letters: String::new(),
            dashes: Dashes::AreOptions,
            order: Order::Any,
            ended: false,
            optional_progress: false,
            optional: None,
            positionals: Vec::new(),
        }
    }

    /// Takes sizes with a minus for positional arguments.
    #[must_use]
    pub fn with_sizes(mut self) -> Self {
        self.dashes = Dashes::MayBeSizes;
        self
    }

    /// Stops at the first positional argument.
    #[must_use]
    pub fn options_first(mut self) -> Self {
        self.order = Order::OptionsFirst;
        self
    }

    /// Takes `json` after `--progress` for its argument.
    #[must_use]
    pub fn with_progress_argument(mut self) -> Self {
        self.optional_progress = true;
        self
    }

    /// Takes an argument after the `=` of an option that needs none.
    #[must_use]
    pub fn with_optional_argument(mut self, id: &'static str) -> Self {
        self.optional = Some(id);
        self
    }

    /// The next option; `None` after the last.
    pub fn next_option(&mut self) -> Result<Option<Given>, Failure> {
        loop {
            if !self.letters.is_empty() {
                return self.letter().map(Some);
            }
            if self.ended {
                self.positionals.extend(self.args.by_ref());
                return Ok(None);
            }
            let Some(arg) = self.args.next() else { return Ok(None) };
            if arg == "--" {
                self.ended = true;
            } else if let Some(long) = arg.strip_prefix("--") {
                return self.long(long).map(Some);
            } else if arg.len() > 1 && arg.starts_with('-') && !self.is_size(&arg) {
                arg[1..].clone_into(&mut self.letters);
            } else {
                self.positionals.push(arg);
                self.ended |= self.order == Order::OptionsFirst;
            }
        }
    }

    /// The positional arguments, once [`Parser::next_option`] has returned `None`.
    pub fn positionals(self) -> Vec<String> {
        self.positionals
    }

    fn is_size(&self, arg: &str) -> bool {
        self.dashes == Dashes::MayBeSizes
            && !self.positionals.is_empty()
            && arg[1..].starts_with(|c: char| c.is_ascii_digit())
    }

    fn letter(&mut self) -> Result<Given, Failure> {
        let Some(c) = self.letters.chars().next() else {
            return Err(self.wrong("invalid option".to_owned()));
        };
        self.letters.drain(..c.len_utf8());
        let found = self.opts.iter().find(|o| o.short == Some(c) || o.also_short.contains(&c));
        let Some(opt) = found else {
            return Err(self.wrong(format!("invalid option -- '{c}'")));
        };
        let mut value = String::new();
        if opt.arg.is_some() {
            value = std::mem::take(&mut self.letters);
            if value.is_empty() {
                value = self
                    .args
                    .next()
                    .ok_or_else(|| self.wrong(format!("option requires an argument -- '{c}'")))?;
            }
        }
        Ok(Given { id: opt.id, value })
    }

    fn long(&mut self, text: &str) -> Result<Given, Failure> {
        let (name, attached) = match text.split_once('=') {
            Some((n, v)) => (n, Some(v.to_owned())),
            None => (text, None),
        };
        let opt = self.find_long(name, text)?;
        if opt.id == "progress" && self.optional_progress {
            let value = match attached {
                Some(v) => v,
                None if self.args.as_slice().first().is_some_and(|a| a == "json") => {
                    self.args.next().unwrap_or_default()
                }
                None => String::new(),
            };
            return Ok(Given { id: opt.id, value });
        }
        let shown = if opt.long.is_empty() { name } else { opt.long };
        let value = match (opt.arg, attached) {
            (None, None) => String::new(),
            (None, Some(v)) if self.optional == Some(opt.id) => v,
            (None, Some(_)) => {
                return Err(self.wrong(format!("option '--{shown}' doesn't allow an argument")));
            }
            (Some(_), Some(v)) => v,
            (Some(_), None) => self
                .args
                .next()
                .ok_or_else(|| self.wrong(format!("option '--{shown}' requires an argument")))?,
        };
        Ok(Given { id: opt.id, value })
    }

    /// The option called `name`; messages show all of `text`, with what is attached to it.
    fn find_long(&self, name: &str, text: &str) -> Result<&'static Opt, Failure> {
        let exact = |o: &&Opt| !name.is_empty() && (o.long == name || o.also.contains(&name));
        if let Some(opt) = self.opts.iter().find(exact) {
            return Ok(opt);
        }
        let close: Vec<&'static Opt> = self
            .opts
            .iter()
            .filter(|o| !o.long.is_empty() && !o.hidden && o.long.starts_with(name))
            .collect();
        match close.as_slice() {
            [one] => Ok(one),
            [] => Err(self.wrong(format!("unrecognized option '--{text}'"))),
            several => {
                let names: Vec<String> =
                    several.iter().map(|o| format!("'--{}'", o.long)).collect();
                Err(self.wrong(format!(
                    "option '--{text}' is ambiguous; possibilities: {}",
                    names.join(" ")
                )))
            }
        }
    }

    /// A mistake that the option reader itself finds; the message names the command too.
    fn wrong(&self, message: String) -> Failure {
        Failure::option(self.command, message)
    }
}

#[cfg(test)]
#[path = "getopt_test.rs"]
mod tests;

//! A command that could not be carried out: what to print and which code to exit with.

use imgcore::opts::OptError;

use crate::session::Session;

/// What goes wrong between the command line and the result.
#[derive(Debug)]
pub struct Failure {
    kind: Kind,
    message: String,
    /// Further messages, each with the program's name.
    more: Vec<String>,
    /// Lines of advice, without it.
    hints: Vec<String>,
    code: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// `PROGRAM: message`
    Plain,
    /// `PROGRAM: message` and where to find help for this command ("" for the program's).
    Usage(&'static str),
    /// `PROGRAM COMMAND: message`, found while reading options.
    Option(&'static str),
    /// Nothing: everything has been said.
    Silent,
}

impl Failure {
    /// With exit code 1.
    pub fn new(message: impl Into<String>) -> Self {
        Failure {
            kind: Kind::Plain,
            message: message.into(),
            more: Vec::new(),
            hints: Vec::new(),
            code: 1,
        }
    }

    /// The command was used wrongly.
    pub fn usage(command: &'static str, message: impl Into<String>) -> Self {
        Failure { kind: Kind::Usage(command), ..Failure::new(message) }
    }

    /// An option was misspelt.
    pub fn option(command: &'static str, message: impl Into<String>) -> Self {
        Failure { kind: Kind::Option(command), ..Failure::new(message) }
    }

    /// Exits with a code and says nothing.
    pub fn silent(code: u8) -> Self {
        Failure { kind: Kind::Silent, ..Failure::new("") }.with_code(code)
    }

    /// With another exit code.
    #[must_use]
    pub fn with_code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// With a second message.
    #[must_use]
    pub fn and(mut self, message: impl Into<String>) -> Self {
        self.more.push(message.into());
        self
    }

    /// Makes one line of the advice, if it is there, a message of its own.
    #[must_use]
    pub fn promote(mut self, line: &str) -> Self {
        let mut found = false;
        for hint in &mut self.hints {
            let kept: Vec<&str> = hint.lines().filter(|l| *l != line).collect();
            found |= kept.len() < hint.lines().count();
            *hint = kept.join("\n");
        }
        self.hints.retain(|h| !h.is_empty());
        if found { self.and(line) } else { self }
    }

    /// With `prefix: ` before the message.
    #[must_use]
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.message = format!("{prefix}: {}", self.message);
        self
    }

    /// The message alone.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        self.code
    }

    /// All of it, as it goes to stderr.
    pub fn render(&self, session: &Session) -> String {
        let (program, called) = (&session.program, &session.called);
        let mut text = match self.kind {
            Kind::Silent => return String::new(),
            Kind::Option("") => format!("{called}: {}\n", self.message),
            Kind::Option(command) => format!("{called} {command}: {}\n", self.message),
            _ => format!("{program}: {}\n", self.message),
        };
        for hint in &self.hints {
            if hint.starts_with("warning: ") {
                text.push_str(&format!("{program}: "));
            } else if hint.starts_with(char::is_lowercase) {
                // Not QEMU's words, which begin with a capital: ours.
                text.push_str("hint: ");
            }
            text.push_str(hint);
            text.push('\n');
        }
        for message in &self.more {
            text.push_str(&format!("{program}: {message}\n"));
        }
        if let Kind::Option(command) | Kind::Usage(command) = self.kind {
            let space = if command.is_empty() { "" } else { " " };
            text.push_str(&format!("Try '{called}{space}{command} --help' for more info\n"));
        }
        text
    }
}

impl From<OptError> for Failure {
    fn from(e: OptError) -> Self {
        Failure { hints: e.hints, ..Failure::new(e.message) }
    }
}

impl From<imgcore::Error> for Failure {
    fn from(e: imgcore::Error) -> Self {
        let hints = e.hints().into_iter().map(str::to_owned).collect();
        Failure { hints, ..Failure::new(located(&e)) }
    }
}

/// The error's words, with the place in the file where they do not name it.
fn located(e: &imgcore::Error) -> String {
    let text = e.report();
    match (e.path(), e.offset()) {
        (Some(path), Some(offset)) if text.contains(path) => {
            format!("{text} (at offset {offset:#x})")
        }
        (Some(path), Some(offset)) => format!("{text} (in '{path}' at offset {offset:#x})"),
        (Some(path), None) if !text.contains(path) => format!("{text} (in '{path}')"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rendering() {
        let f = Failure::usage("info", "Expecting one image file name");
        assert_eq!(
            f.render(&Session::new("qemu-img")),
            "qemu-img: Expecting one image file name\nTry 'qemu-img info --help' for more info\n"
        );
        let f = Failure::option("info", "invalid option -- 'Z'");
        assert_eq!(
            f.render(&Session::new("/usr/bin/rimg")),
            "rimg info: invalid option -- 'Z'\nTry 'rimg info --help' for more info\n"
        );
        let f = Failure::usage("", "Not enough arguments");
        assert_eq!(
            f.render(&Session::new("qemu-img")),
            "qemu-img: Not enough arguments\nTry 'qemu-img --help' for more info\n"
        );
        let f = Failure::new("a").and("b");
        assert_eq!(f.render(&Session::new("rimg")), "rimg: a\nrimg: b\n");
        assert_eq!(Failure::silent(3).render(&Session::new("rimg")), "");
    }

    #[test]
    fn places_are_named_once() {
        let e = imgcore::Error::corrupt("bad table").at_path("x.img").at_offset(512);
        assert_eq!(located(&e), "bad table (in 'x.img' at offset 0x200)");
        let e = imgcore::Error::corrupt("x.img: bad").at_path("x.img").at_offset(512);
        assert_eq!(located(&e), "x.img: bad (at offset 0x200)");
    }
}

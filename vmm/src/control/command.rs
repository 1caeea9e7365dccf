//! What a command is: names, arguments, help, handler.

use std::fmt;

use serde_json::{Map, Value};

use super::steered::Steered;
use crate::Error;

/// A command that failed, as QMP tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// QMP's class of error.
    pub class: Class,
    /// For people.
    pub desc: String,
}

/// Classes of errors (QAPI's `QapiErrorClass`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Everything that has no class of its own.
    GenericError,
    /// No such command.
    CommandNotFound,
    /// No such device.
    DeviceNotFound,
    /// The device is there but not in use.
    DeviceNotActive,
}

impl Class {
    /// Its name in QMP.
    pub fn name(self) -> &'static str {
        match self {
            Class::GenericError => "GenericError",
            Class::CommandNotFound => "CommandNotFound",
            Class::DeviceNotFound => "DeviceNotFound",
            Class::DeviceNotActive => "DeviceNotActive",
        }
    }
}

impl Failure {
    /// Of this class.
    pub fn new(class: Class, desc: impl Into<String>) -> Self {
        Failure { class, desc: desc.into() }
    }

    /// Without a class of its own.
    pub fn generic(desc: impl Into<String>) -> Self {
        Failure::new(Class::GenericError, desc)
    }

    /// There is no such device.
    pub fn no_device(name: &str) -> Self {
        Failure::new(Class::DeviceNotFound, format!("Device '{name}' not found"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.desc)
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        let hints: String = e.hints().iter().map(|h| format!(" ({h})")).collect();
        Failure::generic(format!("{}{hints}", e.report()))
    }
}

/// What an argument is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A word.
    Text(Names),
    /// The rest of the line.
    Rest,
    /// A whole number; an expression for people.
    Int,
    /// Bytes; megabytes for people.
    Size,
    /// True or false; on or off for people.
    Bool,
    /// `/fmt`: count, format and size. For people only.
    Format,
    /// `-x`. For people only; true when given.
    Flag(char),
    /// Anything. For programs only.
    Any,
}

/// What a word names, for completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// Nothing that is known.
    Anything,
    /// A disk.
    Block,
    /// A network card or back end.
    Net,
    /// A character device.
    Chardev,
    /// A command.
    Command,
}

/// Whether an argument must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// It must.
    Required,
    /// It may be left out.
    Optional,
}

/// An argument.
#[derive(Clone, Copy, Debug)]
pub struct Arg {
    /// Its name in QMP.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Whether it must be there.
    pub need: Need,
}

/// The arguments of one call, checked against the table.
#[derive(Clone, Debug, Default)]
pub struct Args(pub Map<String, Value>);

impl Args {
    /// A text; empty when it was left out.
    pub fn text(&self, name: &str) -> &str {
        self.0.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    /// A number, as its 64 bits.
    pub fn number(&self, name: &str) -> Option<u64> {
        let value = self.0.get(name)?;
        value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned))
    }

    /// A number with its sign.
    pub fn signed(&self, name: &str) -> Option<i64> {
        self.number(name).map(u64::cast_signed)
    }

    /// A truth; false when it was left out.
    pub fn truth(&self, name: &str) -> bool {
        self.0.get(name).and_then(Value::as_bool).unwrap_or(false)
    }
}

/// What a human monitor keeps between commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// The vCPU that commands look at.
    pub cpu: usize,
    /// Format of `x`, `xp` and `print` when none is given.
    pub format: char,
    /// Bytes of a value of `x` and `xp` when none are given.
    pub size: usize,
}

impl Default for Context {
    fn default() -> Self {
        Context { cpu: 0, format: 'x', size: 4 }
    }
}

/// What a handler answers.
pub type Answer = Result<Value, Failure>;

/// What a command does.
#[derive(Clone, Copy)]
pub enum Run {
    /// JSON for programs; people get the text that is made of it.
    Both(fn(&mut dyn Steered, &Args) -> Answer, fn(&Value) -> String),
    /// For programs only.
    Machine(fn(&mut dyn Steered, &Args) -> Answer),
    /// For people only.
    Human(fn(&mut dyn Steered, &Args, &mut Context) -> Result<String, Failure>),
}

/// A command.
#[derive(Clone, Copy)]
pub struct Command {
    /// Names for people: `stop`, `s`; `info status`.
    pub hmp: &'static [&'static str],
    /// Name for programs.
    pub qmp: Option<&'static str>,
    /// Arguments, in the order in which people write them.
    pub args: &'static [Arg],
    /// The arguments as the help shows them.
    pub params: &'static str,
    /// What it does, in one line.
    pub help: &'static str,
    /// Doing it.
    pub run: Run,
}

/// Checks the arguments of a program against the table.
pub fn check(command: &Command, given: Map<String, Value>) -> Result<Args, Failure> {
    let usable = |a: &&Arg| !matches!(a.kind, Kind::Format | Kind::Flag(_));
    for arg in command.args.iter().filter(usable) {
        let Some(value) = given.get(arg.name) else {
            if arg.need == Need::Required {
                return Err(Failure::generic(format!("Parameter '{}' is missing", arg.name)));
            }
            continue;
        };
        let expected = match arg.kind {
            Kind::Text(_) | Kind::Rest if !value.is_string() => "string",
            Kind::Int | Kind::Size if !value.is_i64() && !value.is_u64() => "integer",
            Kind::Bool if !value.is_boolean() => "boolean",
            _ => continue,
        };
        return Err(Failure::generic(format!(
            "Invalid parameter type for '{}', expected: {expected}",
            arg.name
        )));
    }
    let known = |name: &str| command.args.iter().filter(usable).any(|a| a.name == name);
    if let Some(name) = given.keys().find(|k| !known(k)) {
        return Err(Failure::generic(format!("Parameter '{name}' is unexpected")));
    }
    Ok(Args(given))
}

//! One client of the monitor for programs.

use std::io;

use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use serde_json::{Map, Value, json};

use super::stream::Stream;
use crate::chardev::CharEvent;
use crate::control::command::{Answer, Args, Class, Failure, Run, check};
use crate::control::port::{Ask, Port, ask};
use crate::control::steered::Steered;
use crate::control::{COMPATIBLE, package, table};
use crate::devices::Output;

/// The monitor's side of one client.
#[derive(Debug)]
pub struct Session {
    stream: Stream,
    negotiated: bool,
    connected: bool,
    pretty: bool,
}

/// What QEMU calls its version, here: the release that clients may take us for, and who we are.
pub fn version() -> Value {
    let (major, minor, micro) = COMPATIBLE;
    json!({
        "qemu": {"major": major, "minor": minor, "micro": micro},
        "package": package(),
    })
}

impl Session {
    /// For a client that has not come yet.
    pub fn new(pretty: bool) -> Self {
        Session { stream: Stream::default(), negotiated: false, connected: false, pretty }
    }

    /// The client comes or goes.
    pub fn event(&mut self, event: CharEvent, out: &mut dyn Output) {
        match event {
            CharEvent::Opened => {
                *self = Session { connected: true, ..Session::new(self.pretty) };
                self.send(&json!({"QMP": {"version": version(), "capabilities": []}}), out);
            }
            CharEvent::Closed => *self = Session::new(self.pretty),
            CharEvent::Break | CharEvent::FocusIn | CharEvent::FocusOut => {}
        }
    }

    /// Something happened to the machine.
    pub fn tell(&mut self, event: &Value, out: &mut dyn Output) {
        if self.connected && self.negotiated {
            self.send(event, out);
        }
    }

    /// The client has sent something.
    pub fn input(&mut self, bytes: &[u8], machine: &dyn Ask, port: &Port, out: &mut dyn Output) {
        for byte in bytes {
            let Some(request) = self.stream.feed(*byte) else { continue };
            let (id, answer) = match request {
                Err(desc) => (None, Err(Failure::generic(desc))),
                Ok(value) => self.request(value, machine),
            };
            // What the command has caused is told before its answer.
            for event in port.take_events() {
                self.tell(&event, out);
            }
            let mut reply = Map::new();
            match answer {
                Ok(value) => reply.insert("return".into(), value),
                Err(e) => {
                    reply.insert("error".into(), json!({"class": e.class.name(), "desc": e.desc}))
                }
            };
            if let Some(id) = id {
                reply.insert("id".into(), id);
            }
            self.send(&Value::Object(reply), out);
        }
    }

    fn send(&self, value: &Value, out: &mut dyn Output) {
        let mut text = if self.pretty { pretty(value) } else { spaced(value) };
        text.extend_from_slice(b"\r\n");
        out.put(&text);
    }

    fn request(&mut self, value: Value, machine: &dyn Ask) -> (Option<Value>, Answer) {
        let Value::Object(mut members) = value else {
            return (None, Err(Failure::generic("QMP input must be a JSON object")));
        };
        let id = members.remove("id");
        let answer = take_apart(members).and_then(|(name, args)| {
            if name == "qmp_capabilities" {
                return self.negotiate(&args);
            }
            if !self.negotiated {
                return Err(Failure::new(
                    Class::CommandNotFound,
                    "Expecting capabilities negotiation with 'qmp_capabilities'",
                ));
            }
            let gone = || Err(Failure::generic("the machine has ended"));
            ask(machine, move |m| dispatch(&name, args, m)).unwrap_or_else(gone)
        });
        (id, answer)
    }

    fn negotiate(&mut self, args: &Map<String, Value>) -> Answer {
        if self.negotiated {
            return Err(Failure::new(
                Class::CommandNotFound,
                "Capabilities negotiation is already complete, command ignored",
            ));
        }
        for (name, value) in args {
            let list = value.as_array().filter(|_| name == "enable");
            let Some(list) = list else {
                return Err(Failure::generic(format!("Parameter '{name}' is unexpected")));
            };
            if let Some(wanted) = list.first() {
                return Err(Failure::generic(format!("Capability {wanted} not available")));
            }
        }
        self.negotiated = true;
        Ok(json!({}))
    }
}

/// Name and arguments of a request.
fn take_apart(mut members: Map<String, Value>) -> Result<(String, Map<String, Value>), Failure> {
    let execute = members.remove("execute");
    let arguments = members.remove("arguments");
    if let Some(name) = members.keys().next() {
        return Err(Failure::generic(format!("QMP input member '{name}' is unexpected")));
    }
    let name = match execute {
        Some(Value::String(name)) => name,
        Some(_) => return Err(Failure::generic("QMP input member 'execute' must be a string")),
        None => return Err(Failure::generic("QMP input lacks member 'execute'")),
    };
    match arguments {
        None => Ok((name, Map::new())),
        Some(Value::Object(args)) => Ok((name, args)),
        Some(_) => Err(Failure::generic("QMP input member 'arguments' must be an object")),
    }
}

/// Carries a command out.
pub fn dispatch(name: &str, args: Map<String, Value>, machine: &mut dyn Steered) -> Answer {
    let not_found =
        || Failure::new(Class::CommandNotFound, format!("The command {name} has not been found"));
    let command = table::machine(name).ok_or_else(not_found)?;
    let args: Args = check(command, args)?;
    match command.run {
        Run::Both(run, _) | Run::Machine(run) => run(machine, &args),
        Run::Human(_) => Err(not_found()),
    }
}

/// JSON in one line with a space behind each comma and colon, as QEMU writes it.
pub fn spaced(value: &Value) -> Vec<u8> {
    written(value, Spaced)
}

fn pretty(value: &Value) -> Vec<u8> {
    written(value, PrettyFormatter::with_indent(b"    "))
}

fn written(value: &Value, formatter: impl Formatter) -> Vec<u8> {
    let mut out = Vec::new();
    // Writing to memory cannot fail, nor can a value that consists of JSON.
    let _ = value.serialize(&mut Serializer::with_formatter(&mut out, formatter));
    out
}

struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }
    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }
    fn begin_object_value<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(b": ")
    }
}

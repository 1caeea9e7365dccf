//! A line taken apart by the table, and carried out.

use serde_json::{Map, Value};

use super::expr;
use super::registers;
use crate::control::command::{Arg, Args, Command, Context, Kind, Need, Run};
use crate::control::steered::Steered;
use crate::control::table;

/// Carries a line out. The answer ends with a line break, unless it is empty.
pub fn execute(text: &str, machine: &mut dyn Steered, context: &mut Context) -> String {
    let text = text.trim();
    if text.is_empty() {
        return String::new();
    }
    let (command, rest) = match find(text) {
        Ok(found) => found,
        Err(unknown) => return format!("unknown command: '{unknown}'\n"),
    };
    let args = match arguments(command, rest, machine, context) {
        Ok(args) => args,
        Err(e) => {
            return format!("{e}\nTry \"help {}\" for more information\n", command.hmp[0]);
        }
    };
    let result = match command.run {
        Run::Both(run, show) => run(machine, &args).map(|value| show(&value)),
        Run::Human(run) => run(machine, &args, context),
        Run::Machine(run) => run(machine, &args).map(|_| String::new()),
    };
    match result {
        Ok(text) if text.is_empty() || text.ends_with('\n') => text,
        Ok(text) => text + "\n",
        Err(e) => format!("Error: {e}\n"),
    }
}

/// The command at the beginning of a line, and what follows; or the name that nobody knows.
fn find(text: &str) -> Result<(&'static Command, &str), String> {
    let end = text.find([' ', '\t', '/']).unwrap_or(text.len());
    let (first, rest) = text.split_at(end);
    if first == "info" {
        let words = rest.trim_start();
        let end = words.find([' ', '\t']).unwrap_or(words.len());
        let (second, behind) = words.split_at(end);
        if !second.is_empty() {
            let both = format!("info {second}");
            return table::human(&both).map(|c| (c, behind)).ok_or(both);
        }
    }
    table::human(first).map(|c| (c, rest)).ok_or_else(|| first.to_owned())
}

/// Takes the arguments apart as the table says.
fn arguments(
    command: &Command,
    text: &str,
    machine: &mut dyn Steered,
    context: &mut Context,
) -> Result<Args, String> {
    let mut rest = text;
    let mut map = Map::new();
    for arg in command.args {
        if arg.kind == Kind::Any {
            continue;
        }
        rest = rest.trim_start();
        if let Kind::Flag(letter) = arg.kind {
            rest = flag(letter, arg.name, rest, &mut map);
            continue;
        }
        if let Kind::Format = arg.kind {
            rest = format(rest, context, &mut map)?;
            continue;
        }
        if rest.is_empty() && arg.need == Need::Optional {
            continue;
        }
        let (value, behind) = value(command, arg, rest, machine, context)?;
        map.insert(arg.name.into(), value);
        rest = behind;
    }
    if rest.trim().is_empty() {
        return Ok(Args(map));
    }
    // As QEMU names the command here: without "info".
    let names: Vec<&str> =
        command.hmp.iter().map(|n| n.strip_prefix("info ").unwrap_or(n)).collect();
    Err(format!("{}: extraneous characters at the end of line", names.join("|")))
}

fn flag<'a>(letter: char, name: &str, rest: &'a str, map: &mut Map<String, Value>) -> &'a str {
    let mut chars = rest.chars();
    let (dash, l, end) = (chars.next(), chars.next(), chars.next());
    if dash == Some('-') && l == Some(letter) && end.is_none_or(char::is_whitespace) {
        map.insert(name.into(), true.into());
        return rest[2..].trim_start();
    }
    rest
}

fn value<'a>(
    command: &Command,
    arg: &Arg,
    rest: &'a str,
    machine: &mut dyn Steered,
    context: &Context,
) -> Result<(Value, &'a str), String> {
    match arg.kind {
        Kind::Text(_) => {
            let (word, behind) =
                word(rest).ok_or_else(|| format!("{}: string expected", command.hmp[0]))?;
            Ok((word.into(), behind))
        }
        Kind::Rest => Ok((rest.trim_end().into(), "")),
        Kind::Bool => match word(rest) {
            Some((w, behind)) if w == "on" || w == "off" => Ok(((w == "on").into(), behind)),
            _ => Err("Expected 'on' or 'off'".into()),
        },
        Kind::Int | Kind::Size => {
            let mut cpu = None;
            let index = context.cpu;
            let mut register = |name: &str| {
                if cpu.is_none() {
                    cpu = machine.cpu_state(index).ok();
                }
                registers::by_name(cpu.as_ref()?, name)
            };
            let (number, behind) = expr::parse(rest, &mut register)?;
            // The borrow of the text is longer than that of the registers.
            let behind = &rest[rest.len() - behind.len()..];
            if arg.kind == Kind::Int {
                return Ok((number.into(), behind));
            }
            if number < 0 {
                return Err("enter a positive value".into());
            }
            let bytes = number.checked_mul(1 << 20).ok_or("the value is too large")?;
            Ok((bytes.into(), behind))
        }
        Kind::Format | Kind::Flag(_) | Kind::Any => Ok((Value::Null, rest)),
    }
}

/// A word; in quotes it may have spaces, and backslashes before special characters.
fn word(text: &str) -> Option<(String, &str)> {
    let text = text.trim_start();
    if text.is_empty() {
        return None;
    }
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(char::is_whitespace).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut word = String::new();
    let mut chars = quoted.chars();
    loop {
        match chars.next()? {
            '"' => return Some((word, chars.as_str())),
            '\\' => word.push(match chars.next()? {
                'n' => '\n',
                'r' => '\r',
                other => other,
            }),
            c => word.push(c),
        }
    }
}

/// `/fmt`: a count, a format (o d u x i c) and a size (b h w g), in any order of the letters.
fn format<'a>(
    text: &'a str,
    context: &mut Context,
    map: &mut Map<String, Value>,
) -> Result<&'a str, String> {
    let mut count: u32 = 1;
    let (mut format, mut size) = (None, None);
    let mut rest = text;
    if let Some(spec) = text.strip_prefix('/') {
        let digits = spec.find(|c: char| !c.is_ascii_digit()).unwrap_or(spec.len());
        if digits > 0 {
            count = spec[..digits].parse().unwrap_or(u32::MAX);
        }
        let end = spec.find(char::is_whitespace).unwrap_or(spec.len());
        for c in spec[digits..end].chars() {
            match c {
                'o' | 'd' | 'u' | 'x' | 'i' | 'c' => format = Some(c),
                'b' => size = Some(1),
                'h' => size = Some(2),
                'w' => size = Some(4),
                'g' | 'L' => size = Some(8),
                c => return Err(format!("invalid char in format: '{c}'")),
            }
        }
        rest = &spec[end..];
    }
    let format = format.unwrap_or(context.format);
    context.format = format;
    if format != 'i' {
        context.size = size.unwrap_or(context.size);
    }
    map.insert("count".into(), count.into());
    map.insert("format".into(), format.to_string().into());
    map.insert("size".into(), context.size.into());
    Ok(rest)
}

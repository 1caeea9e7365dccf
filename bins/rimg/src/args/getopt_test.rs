//! Behaviour and messages observed with qemu-img 10.0.2.

use super::super::find;
use super::*;

type Parsed = (Vec<(String, String)>, Vec<String>);

fn parse(command: &str, line: &str) -> Result<Parsed, String> {
    let c = find(command).unwrap();
    let args = line.split_whitespace().map(str::to_owned).collect();
    let mut p = Parser::new(c.name, c.opts, args);
    if command == "resize" {
        p = p.with_sizes();
    }
    if command == "convert" {
        p = p.with_progress_argument();
    }
    let mut given = Vec::new();
    loop {
        match p.next_option() {
            Ok(Some(g)) => given.push((g.id.to_owned(), g.value)),
            Ok(None) => return Ok((given, p.positionals())),
            Err(f) => return Err(f.message().to_owned()),
        }
    }
}

fn good(command: &str, line: &str) -> (String, String) {
    let (given, names) = parse(command, line).unwrap();
    let given: Vec<String> = given
        .into_iter()
        .map(|(id, v)| if v.is_empty() { id } else { format!("{id}={v}") })
        .collect();
    (given.join(" "), names.join(" "))
}

fn both(a: &str, b: &str) -> (String, String) {
    (a.to_owned(), b.to_owned())
}

#[test]
fn forms() {
    assert_eq!(good("info", "-fraw a"), both("format=raw", "a"));
    assert_eq!(good("info", "-f=raw a"), both("format==raw", "a"));
    assert_eq!(good("info", "a -bUf raw"), both("backing-chain force-share format=raw", "a"));
    assert_eq!(good("info", "--outp=json a"), both("output=json", "a"));
    assert_eq!(good("info", "--out json a"), both("output=json", "a"));
    assert_eq!(good("info", "--image a"), both("image-opts", "a"));
    assert_eq!(good("info", "-- -x"), both("", "-x"));
    assert_eq!(good("info", "a --"), both("", "a"));
    assert_eq!(good("info", "- a"), both("", "- a"));
    assert_eq!(good("convert", "-m4 a b"), both("parallel=4", "a b"));
    assert_eq!(good("convert", "-s x a b"), both("snapshot=x", "a b"));
    assert_eq!(good("convert", "-b x a b"), both("backing=x", "a b"));
    assert_eq!(good("convert", "-e6 a b"), both("encrypt compat6", "a b"));
    assert_eq!(good("convert", "--progress json a b"), both("progress=json", "a b"));
    assert_eq!(good("convert", "--progress a b"), both("progress", "a b"));
    assert_eq!(good("convert", "--progress=json a b"), both("progress=json", "a b"));
    assert_eq!(good("convert", "--target-cache none a b"), both("output-cache=none", "a b"));
    assert_eq!(good("create", "-b x -B raw y"), both("backing=x backing-format=raw", "y"));
    assert_eq!(
        good("dd", "if=a of=b bs=1 -O qcow2"),
        both("output-format=qcow2", "if=a of=b bs=1")
    );
}

#[test]
fn sizes_with_a_minus() {
    assert_eq!(good("resize", "a -512k -f raw"), both("format=raw", "a -512k"));
    assert_eq!(good("resize", "a -- -512k"), both("", "a -512k"));
    assert_eq!(parse("resize", "-1 -f raw").unwrap_err(), "invalid option -- '1'");
}

#[test]
fn mistakes() {
    for (command, line, message) in [
        ("info", "-Z x", "invalid option -- 'Z'"),
        ("info", "--bogus x", "unrecognized option '--bogus'"),
        ("info", "--bogus=1 x", "unrecognized option '--bogus=1'"),
        (
            "info",
            "--o=json a",
            "option '--o=json' is ambiguous; possibilities: '--output' '--object'",
        ),
        ("info", "-f", "option requires an argument -- 'f'"),
        ("info", "--object", "option '--object' requires an argument"),
        ("info", "--force-share=1 a", "option '--force-share' doesn't allow an argument"),
        ("info", "--o json a", "option '--o' is ambiguous; possibilities: '--output' '--object'"),
        (
            "convert",
            "--o",
            "option '--o' is ambiguous; possibilities: '--object' '--output-format' '--options' \
             '--output-cache' '--oob-writes'",
        ),
        ("info", "--f a", "option '--f' is ambiguous; possibilities: '--format' '--force-share'"),
        (
            "create",
            "--b x",
            "option '--b' is ambiguous; possibilities: '--backing' '--backing-format' \
             '--backing-unsafe'",
        ),
        ("create", "--o x", "option '--o' is ambiguous; possibilities: '--object' '--options'"),
        ("rebase", "--c x", "option '--c' is ambiguous; possibilities: '--cache' '--compress'"),
        ("amend", "--f", "option '--f' is ambiguous; possibilities: '--format' '--force'"),
        ("snapshot", "--f", "option '--f' is ambiguous; possibilities: '--format' '--force-share'"),
        ("dd", "--o x", "option '--o' is ambiguous; possibilities: '--object' '--output-format'"),
    ] {
        assert_eq!(parse(command, line).unwrap_err(), message, "{command} {line}");
    }
}

#[test]
fn tables_are_sound() {
    for c in super::super::commands::COMMANDS {
        for (i, o) in c.opts.iter().enumerate() {
            assert!(!o.id.is_empty(), "{} has an option without id", c.name);
            for other in &c.opts[i + 1..] {
                assert_ne!(o.id, other.id, "{}", c.name);
                assert!(o.short.is_none() || o.short != other.short, "{} {:?}", c.name, o.short);
                for s in other.also_short.iter().chain(&other.short) {
                    assert!(!o.also_short.contains(s), "{} {s}", c.name);
                }
                for l in other.also.iter().chain(std::iter::once(&other.long)) {
                    assert!(
                        l.is_empty() || (o.long != *l && !o.also.contains(l)),
                        "{} {l}",
                        c.name
                    );
                }
            }
        }
    }
}

#[test]
fn no_line_panics() {
    let words = [
        "-",
        "--",
        "-f",
        "--o",
        "--output",
        "=",
        "--é",
        "-é",
        "-fé",
        "-1",
        "--progress",
        "json",
        "",
    ];
    let mut seed = 7u32;
    for command in super::super::commands::COMMANDS {
        for _ in 0..2000 {
            let mut args = Vec::new();
            for _ in 0..5 {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let a = words[(seed >> 8) as usize % words.len()];
                let b = words[(seed >> 20) as usize % words.len()];
                args.push(format!("{a}{b}"));
            }
            let mut p =
                Parser::new(command.name, command.opts, args).with_sizes().with_progress_argument();
            while let Ok(Some(_)) = p.next_option() {}
        }
    }
}

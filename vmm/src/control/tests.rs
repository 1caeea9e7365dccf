//! Every command of both monitors, on a machine that is none. Texts are those that QEMU 7.2 printed for
//! the same machine.

use serde_json::{Value, json};

use super::command::{Context, Run};
use super::fake::{Fake, Shared};
use super::hmp::{self, help};
use super::port::Port;
use super::qmp;
use super::steered::RunState;
use super::table::TABLE;
use crate::chardev::CharEvent;
use crate::devices::Captured;

fn fake() -> Fake {
    Fake { has_balloon: true, state: RunState::Running, ..Fake::default() }
}

fn say_to(m: &mut Fake, line: &str) -> String {
    hmp::execute(line, m, &mut Context::default())
}

fn say(line: &str) -> String {
    say_to(&mut fake(), line)
}

fn ask(name: &str, args: Value) -> Result<Value, (String, String)> {
    let Value::Object(args) = args else { panic!("arguments") };
    qmp::session::dispatch(name, args, &mut fake()).map_err(|e| (e.class.name().into(), e.desc))
}

#[test]
fn lines_that_do_something() {
    for (line, done) in [
        ("stop", "stop"),
        ("s", "stop"),
        ("cont", "resume"),
        (" c ", "resume"),
        ("system_reset", "reset"),
        ("system_powerdown", "power down"),
        ("quit", "quit"),
        ("q", "quit"),
        ("nmi", "nmi"),
        ("balloon 100", "balloon 104857600"),
        ("balloon 50 + 0x32", "balloon 104857600"),
        ("balloon 99999", "balloon 134217728"),
        ("set_link net0 off", "link net0 false"),
        ("set_link \"net0\" on", "link net0 true"),
        ("commit virtio0", "commit Some(\"virtio0\")"),
        ("commit all", "commit None"),
    ] {
        let mut m = fake();
        assert_eq!(
            (say_to(&mut m, line).as_str(), m.done.as_slice()),
            ("", &[done.to_owned()][..]),
            "{line}"
        );
    }
}

#[test]
fn lines_that_are_wrong() {
    let try_help = |what: &str, command: &str| {
        format!("{what}\nTry \"help {command}\" for more information\n")
    };
    for (line, answer) in [
        ("foo", "unknown command: 'foo'\n".to_owned()),
        ("info foo", "unknown command: 'info foo'\n".into()),
        ("balloon", try_help("unexpected end of expression", "balloon")),
        ("balloon foo", try_help("invalid char 'f' in expression", "balloon")),
        ("balloon -5", try_help("enter a positive value", "balloon")),
        ("set_link", try_help("set_link: string expected", "set_link")),
        ("set_link net0 maybe", try_help("Expected 'on' or 'off'", "set_link")),
        ("set_link foo off", "Error: Device 'foo' not found\n".into()),
        ("commit foo", "Device 'foo' not found\n".into()),
        ("commit broken", "Error: 'commit' error for 'broken': no space\n".into()),
        ("stop now", try_help("stop|s: extraneous characters at the end of line", "stop")),
        (
            "info status x",
            try_help("status: extraneous characters at the end of line", "info status"),
        ),
        ("x/zz 0", try_help("invalid char in format: 'z'", "x")),
        ("p (1", try_help("')' expected", "print")),
        ("p $foo", try_help("unknown register", "print")),
        ("cpu 5", "invalid CPU index\n".into()),
        ("xp 0xfffffffffff", "00000fffffffffff: Cannot access memory\n".into()),
        ("", String::new()),
    ] {
        assert_eq!(say(line), answer, "{line}");
    }
    let mut none = Fake::default();
    assert_eq!(say_to(&mut none, "info balloon"), "Error: No balloon device has been activated\n");
    none.state = RunState::Shutdown;
    assert_eq!(say_to(&mut none, "cont"), "Error: Resetting the Virtual Machine is required\n");
}

#[test]
fn what_info_shows() {
    for (line, answer) in [
        ("info status", "VM status: running\n"),
        ("info kvm", "kvm support: enabled\n"),
        ("info cpus", "* CPU #0: thread_id=100\n  CPU #1: thread_id=101\n"),
        ("info name", "test\n"),
        ("info uuid", "00112233-4455-6677-8899-aabbccddeeff\n"),
        ("info balloon", "balloon: actual=100 free_memory=1000\n"),
        ("info chardev", "serial0: filename=pty:/dev/pts/3\n"),
        ("info mem", "PG disabled\n"),
        (
            "info network",
            "net0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56\n \\ hostnet0: index=0,type=tap,ifname=tap0\n",
        ),
        (
            "info block",
            "virtio0: e.qcow2 (qcow2)\n    Attached to:      dev0\n    Cache mode:       writeback\n    Backing file:     d.qcow2 (chain depth: 1)\n",
        ),
        (
            "info numa",
            "2 nodes\nnode 0 cpus: 0 1\nnode 0 size: 64 MB\nnode 0 plugged: 0 MB\nnode 1 cpus: 0 1\nnode 1 size: 64 MB\nnode 1 plugged: 0 MB\n",
        ),
        (
            "info pci",
            "  Bus  0, device   3, function 0:\n    Ethernet controller: PCI device 1af4:1000\n      PCI subsystem 1af4:0001\n      IRQ 11, pin A\n      BAR0: I/O at 0xc000 [0xc03f].\n      BAR4: 64 bit memory at 0xffffffffffffffff [0x00003ffe].\n      id \"net0\"\n",
        ),
        (
            "info mtree -f",
            "FlatView #0\n AS \"memory\", root: system\n Root memory region: system\n  0000000000000000-0000000007ffffff (prio 0, ram): pc.ram\n\nFlatView #1\n AS \"I/O\", root: io\n Root memory region: io\n  0000000000000070-0000000000000071 (prio 0, i/o): rtc\n\n",
        ),
    ] {
        assert_eq!(say(line), answer, "{line}");
    }
    assert!(
        say("info blockstats").starts_with("virtio0: rd_bytes=4096 wr_bytes=0 rd_operations=3 ")
    );
    assert!(say("info version").starts_with("7.2.0 (rkvm-"));
    assert!(say("info qtree").contains("dev: virtio-net-pci, id \"net0\"\n        addr = 03.0\n"));
    assert!(say("info mtree").contains("address-space: I/O\n"));
    assert!(say("info memdev").contains("memory backend: pc.ram\n"));
    assert!(say("info memory_size_summary").contains("base memory: 134217728"));
    assert!(say("info block -v virtio0").contains("virtual size: 10485760 bytes"));
    assert!(say("info block nope").contains("Device 'nope' not found"));
    let mut m = fake();
    m.state = RunState::Prelaunch;
    assert_eq!(say_to(&mut m, "info status"), "VM status: paused (prelaunch)\n");
    m.state = RunState::Paused;
    assert_eq!(say_to(&mut m, "info status"), "VM status: paused\n");
}

#[test]
fn registers_look_as_qemu_prints_them() {
    let mut m = fake();
    m.cpu.regs.rip = 0xfff0;
    m.cpu.regs.rflags = 2;
    m.cpu.regs.rdx = 0x60fb1;
    m.cpu.sregs.cr0 = 0x6000_0010;
    let cs = &mut m.cpu.sregs.cs;
    (cs.selector, cs.base, cs.limit, cs.type_, cs.s) = (0xf000, 0xffff_0000, 0xffff, 11, 1);
    let text = say_to(&mut m, "info registers");
    for line in [
        "CPU#0",
        "EAX=00000000 EBX=00000000 ECX=00000000 EDX=00060fb1",
        "EIP=0000fff0 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0",
        "CS =f000 ffff0000 0000ffff 00001b00",
        "GDT=     00000000 00000000",
        "CR0=60000010 CR2=00000000 CR3=00000000 CR4=00000000",
        "EFER=0000000000000000",
        "XMM06=0000000000000000 0000000000000000 XMM07=0000000000000000 0000000000000000",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in {text}");
    }
    m.cpu.sregs.efer = 1 << 10;
    let text = say_to(&mut m, "info registers -a");
    assert!(text.contains("CPU#1") && text.contains("RIP=000000000000fff0 RFL=00000002"), "{text}");
    assert!(say_to(&mut m, "info registers 7").contains("CPU#7 not available"));
    assert_eq!(say_to(&mut m, "p $eip"), "0xfff0\n");
}

#[test]
fn memory_and_arithmetic() {
    let mut m = fake();
    m.poke(0xffff0, &[0xea, 0x5b, 0xe0, 0, 0xf0, b'0', b'6', b'/', b'2', b'3']);
    for (line, answer) in [
        ("xp/4xw 0xffff0", "00000000000ffff0: 0x00e05bea 0x2f3630f0 0x00003332 0x00000000\n"),
        ("xp/8xb 0xffff0", "00000000000ffff0: 0xea 0x5b 0xe0 0x00 0xf0 0x30 0x36 0x2f\n"),
        ("xp /2xg 0xffff0", "00000000000ffff0: 0x2f3630f000e05bea 0x0000000000003332\n"),
        ("xp/4dh 0xffff0", "00000000000ffff0: 23530   224 12528 12086\n"),
        ("xp/4c 0xffff0", "00000000000ffff0: '\\xea' '[' '\\xe0' '\\x00'\n"),
        ("x/2ub 0xffff8", "00000000000ffff8:  50  51\n"),
        ("p 1+2*3", "0x7\n"),
        ("p/x 16", "0x10\n"),
        ("p/d 0x10", "16\n"),
        ("p/c 65", "'A'\n"),
        ("p/o 8", "010\n"),
        ("p/u -1", "18446744073709551615\n"),
        ("print/d -1", "-1\n"),
        ("sum 0 10", "00000\n"),
    ] {
        assert_eq!(say_to(&mut m, line), answer, "{line}");
    }
    assert!(say_to(&mut m, "xp/1i 0xffff0").starts_with("0x000ffff0:  ea 5b e0 00 f0"));
    // The format of one command is that of the next.
    let mut context = Context::default();
    hmp::execute("xp/4c 0", &mut m, &mut context);
    hmp::execute("p/u 1", &mut m, &mut context);
    assert_eq!(hmp::execute("p 10", &mut m, &mut context), "10\n");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dump");
    assert_eq!(say_to(&mut m, &format!("pmemsave 0xffff0 10 \"{}\"", path.display())), "");
    assert_eq!(std::fs::read(&path).unwrap()[5..], *b"06/23");
    assert_eq!(say_to(&mut m, &format!("memsave 0xffff5 5 \"{}\"", path.display())), "");
    assert_eq!(std::fs::read(&path).unwrap(), *b"06/23");
    let e = ask("pmemsave", json!({"val": 0, "size": 16, "filename": "/nonexistent/x"}));
    let desc = "Could not open '/nonexistent/x': No such file or directory";
    assert_eq!(e, Err(("GenericError".into(), desc.into())));
    assert_eq!(say("ringbuf_read r 10"), "ring\\u0001\n");
    assert_eq!(
        ask("ringbuf-read", json!({"device": "r", "size": 4, "format": "base64"})),
        Ok(json!("cmluZw=="))
    );
}

#[test]
fn help_and_completion() {
    assert_eq!(say("help stop"), "stop|s  -- stop emulation\n");
    assert_eq!(say("help foo"), "unknown command: 'foo'\n");
    assert!(say("help").starts_with("balloon target -- request VM"));
    assert!(say("info").starts_with("info balloon  -- show balloon information\n"));
    assert_eq!(say("help info"), say("info"));
    assert!(say("? info kvm").contains("show KVM"));
    let complete = |text: &str| help::complete(text, &mut fake());
    assert_eq!(complete("system_r").insert, "eset ");
    assert_eq!(complete("system_").choices, ["system_powerdown", "system_reset"]);
    assert_eq!(complete("info bl").insert, "ock");
    assert_eq!(complete("set_link ").choices, ["hostnet0", "net0"]);
    assert_eq!(complete("set_link net0 of").insert, "f ");
    assert_eq!(complete("commit v").insert, "irtio0 ");
    assert_eq!(complete("nonsense ").choices, [""; 0]);
}

#[test]
fn programs_get_the_same_from_the_same_table() {
    assert_eq!(
        ask("query-status", json!({})),
        Ok(json!({"status": "running", "singlestep": false, "running": true}))
    );
    assert_eq!(
        ask("query-uuid", json!({})).unwrap()["UUID"],
        "00112233-4455-6677-8899-aabbccddeeff"
    );
    assert_eq!(ask("query-cpus-fast", json!({})).unwrap()[1]["thread-id"], 101);
    let block = ask("query-block", json!({})).unwrap();
    assert_eq!(
        (&block[0]["inserted"]["drv"], &block[0]["inserted"]["backing_file_depth"]),
        (&json!("qcow2"), &json!(1))
    );
    assert_eq!(ask("query-blockstats", json!({})).unwrap()[0]["stats"]["rd_operations"], 3);
    assert_eq!(ask("query-balloon", json!({})).unwrap()["actual"], 100 << 20);
    assert_eq!(ask("query-pci", json!({})).unwrap()[0]["devices"][0]["regions"][1]["address"], -1);
    assert_eq!(ask("query-memory-size-summary", json!({})).unwrap()["base-memory"], 128 << 20);
    assert_eq!(
        ask("human-monitor-command", json!({"command-line": "info status"})),
        Ok(json!("VM status: running\r\n"))
    );
    for c in TABLE.iter().filter(|c| c.qmp.is_some_and(|n| n.starts_with("query-"))) {
        let name = c.qmp.unwrap();
        assert!(ask(name, json!({})).is_ok(), "{name}");
    }
    let generic = |desc: &str| Err(("GenericError".to_owned(), desc.to_owned()));
    for (name, args, answer) in [
        (
            "nope",
            json!({}),
            Err(("CommandNotFound".into(), "The command nope has not been found".into())),
        ),
        (
            "x",
            json!({}),
            Err(("CommandNotFound".into(), "The command x has not been found".into())),
        ),
        ("query-status", json!({"a": 1}), generic("Parameter 'a' is unexpected")),
        ("balloon", json!({}), generic("Parameter 'value' is missing")),
        (
            "balloon",
            json!({"value": "x"}),
            generic("Invalid parameter type for 'value', expected: integer"),
        ),
        ("balloon", json!({"value": 0}), generic("Parameter 'target' expects a size")),
        (
            "set_link",
            json!({"name": "nope", "up": false}),
            Err(("DeviceNotFound".into(), "Device 'nope' not found".into())),
        ),
        ("stop", json!({}), Ok(json!({}))),
    ] {
        assert_eq!(ask(name, args), answer, "{name}");
    }
}

#[test]
fn the_table_is_sound() {
    for (i, c) in TABLE.iter().enumerate() {
        assert!(!c.help.is_empty() && (!c.hmp.is_empty() || c.qmp.is_some()));
        for other in &TABLE[i + 1..] {
            assert!(c.qmp.is_none() || c.qmp != other.qmp, "{:?}", c.qmp);
            assert!(c.hmp.iter().all(|n| !other.hmp.contains(n)), "{:?}", c.hmp);
        }
        assert_eq!(matches!(c.run, Run::Machine(_)), c.hmp.is_empty());
    }
}

/// A conversation with QMP: what is sent in, in pieces of one byte; what comes out, line by line.
fn converse(text: &str) -> Vec<Value> {
    let (mut session, mut out) = (qmp::Session::new(false), Captured::default());
    let (machine, port) = (Shared::default(), Port::default());
    session.event(CharEvent::Opened, &mut out);
    for b in text.as_bytes() {
        session.input(&[*b], &machine, &port, &mut out);
    }
    out.text()
        .split("\r\n")
        .filter(|l| !l.is_empty())
        .map(|l| serde_json::from_str(l).unwrap())
        .collect()
}

#[test]
fn negotiation_and_errors_of_qmp() {
    let got = converse(
        r#"{"execute":"query-status","id":1}
        {"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}
        {"execute":"qmp_capabilities","id":{"a":[1]}}
        {"execute":"qmp_capabilities"}
        {"execute":"query-kvm","id":"x"}
        {"execute":3}{"foo":3}{"arguments":{}}[1,2]
        {"execute":"query-kvm","arguments":3}
        {"execute":"query-kvm","foo":1}
        {"execute": nonsense}
        }
        {'execute': 'stop'}"#,
    );
    assert_eq!(got[0]["QMP"]["version"]["qemu"]["major"], 7);
    let class = |i: usize| got[i]["error"]["class"].as_str().unwrap().to_owned();
    let desc = |i: usize| got[i]["error"]["desc"].as_str().unwrap().to_owned();
    assert_eq!((class(1).as_str(), &got[1]["id"]), ("CommandNotFound", &json!(1)));
    assert_eq!(desc(1), "Expecting capabilities negotiation with 'qmp_capabilities'");
    assert!(desc(2).contains("not available"));
    assert_eq!(got[3], json!({"return": {}, "id": {"a": [1]}}));
    assert_eq!(desc(4), "Capabilities negotiation is already complete, command ignored");
    assert_eq!(got[5], json!({"return": {"enabled": true, "present": true}, "id": "x"}));
    let rest: Vec<String> = (6..14).map(desc).collect();
    assert_eq!(
        rest,
        [
            "QMP input member 'execute' must be a string",
            "QMP input member 'foo' is unexpected",
            "QMP input lacks member 'execute'",
            "QMP input must be a JSON object",
            "QMP input member 'arguments' must be an object",
            "QMP input member 'foo' is unexpected",
            "JSON parse error, invalid keyword 'nonsense'",
            "JSON parse error, expecting value",
        ]
    );
    assert_eq!(got[14], json!({"return": {}}));
    assert_eq!(got.len(), 15);
}

#[test]
fn a_person_types() {
    let (mut session, mut out) = (hmp::Session::new(), Captured::default());
    let machine = Shared::default();
    session.event(CharEvent::Opened, &mut out);
    session.input(b"info sta\t\rinfo na\x15stop\n", &machine, &mut out);
    let text = out.text();
    assert!(text.starts_with("rkvm ") && text.contains("monitor - type 'help'"));
    assert!(text.contains("info status \r\nVM status: paused (prelaunch)\r\n(qemu) "), "{text:?}");
    assert!(text.ends_with("stop\r\n(qemu) "), "{text:?}");
    assert_eq!(machine.0.lock().unwrap().done, ["stop"]);
    // Bytes that are no text harm nobody.
    session.input(b"\xff\xfe\xc3(\r\x1b[999999999999A\x1b[\x1b\x1bO\r", &machine, &mut out);
    assert!(out.text().contains("unknown command"));
    let spaced = qmp::session::spaced(&json!({"a": [1, 2], "b": {}}));
    assert_eq!(spaced, b"{\"a\": [1, 2], \"b\": {}}");
}

/// Nonsense from a generator (xorshift), mixed with pieces of real commands, so that all of the parsers are
/// reached. Nothing may panic, and the session must still work afterwards.
#[test]
fn noise_harms_no_session() {
    let words: &[&[u8]] = &[
        b"info ",
        b"x/",
        b"4xw ",
        b"i ",
        b"$pc",
        b"(",
        b"-",
        b"balloon ",
        b"help ",
        b"\"",
        b"\\",
        b"\t",
        b"\x1b[A",
        b"\x17",
        b"\x01",
        b"{",
        b"}",
        b"[",
        b"]",
        b"'",
        b":",
        b",",
        b"execute",
        b"\n",
        b"\r",
        b"p ",
        b"/",
        b"%",
        b"0",
        b"sum ",
        b"99999999999",
        b"cpu ",
        b"commit ",
        b"\xff",
        b"\xc3",
    ];
    for seed in 1..=40u64 {
        let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut next = || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x
        };
        let mut noise = Vec::new();
        for _ in 0..400 {
            match next() % 4 {
                0 => noise.push(next().to_le_bytes()[0]),
                _ => noise.extend_from_slice(words[usize::try_from(next() % 35).unwrap()]),
            }
        }
        super::hostile::drive(&noise);
    }
}

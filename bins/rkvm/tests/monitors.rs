//! Monitors of running machines, driven by real clients.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{bench, wait_for};
use nix::sys::signal::Signal;

const GREET: &str = "{\"execute\": \"qmp_capabilities\"}\n";

#[test]
fn a_person_at_the_monitor() {
    let Some(b) = bench("the human monitor") else { return };
    let mut vm = b.start(
        "-serial file:@serial -monitor unix:@mon,server=on,wait=off -smp 2 -name test -S \
         -uuid 00112233-4455-6677-8899-aabbccddeeff -device virtio-balloon-pci",
    );
    let mut m = b.connect("mon");
    let banner = m.until("(qemu) ");
    assert!(banner.contains("monitor - type 'help' for more information"), "{banner}");
    assert_eq!(m.hmp("info status"), "VM status: paused (prelaunch)\r\n");
    assert_eq!(std::fs::read(b.path("serial")).unwrap(), b"");
    assert_eq!(m.hmp("cont"), "");
    wait_for(&b.path("serial"), |t| t == "ready\n");
    assert_eq!(m.hmp("info status"), "VM status: running\r\n");
    assert_eq!(m.hmp("info kvm"), "kvm support: enabled\r\n");
    assert_eq!(m.hmp("info name"), "test\r\n");
    assert_eq!(m.hmp("info uuid"), "00112233-4455-6677-8899-aabbccddeeff\r\n");
    // The threads are there, and are called as people expect.
    let cpus = m.hmp("info cpus");
    let threads: Vec<&str> = cpus.lines().map(|l| l.rsplit('=').next().unwrap().trim()).collect();
    assert_eq!(threads.len(), 2, "{cpus}");
    for (i, t) in threads.iter().enumerate() {
        let name = std::fs::read_to_string(format!("/proc/{}/task/{t}/comm", vm.child.id()));
        assert_eq!(name.unwrap().trim(), format!("CPU {i}/KVM"));
    }
    assert_eq!(m.hmp("stop"), "");
    assert_eq!(m.hmp("info status"), "VM status: paused\r\n");
    // The guest's code, as it was loaded: mov edx, 0x3f8.
    assert_eq!(m.hmp("xp/1xw 0x100000"), "0000000000100000: 0x0003f8ba\r\n");
    assert!(m.hmp("xp/2i 0x100000").contains("movl"), "disassembly");
    let registers = m.hmp("info registers");
    assert!(registers.contains("EIP=0010") && registers.contains("CR0="), "{registers}");
    assert!(m.hmp("p/x $eip").starts_with("0x10"));
    assert_eq!(m.hmp("info mem"), "PG disabled\r\n");
    assert!(m.hmp("info pci").contains("PCI device 1af4:1002"));
    assert!(m.hmp("info mtree").contains("pc.ram") && m.hmp("info mtree -f").contains("serial0"));
    assert!(m.hmp("info qtree").contains("virtio-balloon-pci"));
    assert_eq!(m.hmp("info balloon"), "balloon: actual=16\r\n");
    assert_eq!(m.hmp("balloon 8"), "");
    assert!(m.hmp("info chardev").contains("serial0: filename=file"));
    assert_eq!(m.hmp("system_reset"), "");
    assert_eq!(m.hmp("info status"), "VM status: paused (prelaunch)\r\n");
    assert_eq!(m.hmp("cont"), "");
    wait_for(&b.path("serial"), |t| t == "ready\nready\n");
    // Completion by Tab.
    m.send("info sta\t");
    m.until("tus ");
    m.send("\r");
    m.until("(qemu) ");
    m.send("quit\n");
    assert!(m.closed());
    assert!(vm.wait().success());
    assert!(!b.path("mon").exists());
}

#[test]
fn two_programs_and_their_events() {
    let Some(b) = bench("QMP") else { return };
    let mut vm = b.start(
        "-serial unix:@serial,server=on,wait=off -qmp unix:@q1,server=on,wait=off \
         -qmp unix:@q2,server=on,wait=off -device pvpanic -action panic=pause",
    );
    let (mut a, mut c, mut serial) = (b.connect("q1"), b.connect("q2"), b.connect("serial"));
    let mut none = Vec::new();
    for client in [&mut a, &mut c] {
        assert!(client.json()["QMP"]["version"]["qemu"]["major"].is_u64());
        assert_eq!(client.qmp(GREET, &mut none)["return"], serde_json::json!({}));
    }
    let got = c.qmp("{\"execute\": \"query-status\", \"id\": 7}", &mut none);
    assert_eq!((&got["return"]["status"], &got["id"]), (&"running".into(), &7.into()));
    let threads = c.qmp("{\"execute\": \"query-cpus-fast\"}", &mut none);
    assert!(threads["return"][0]["thread-id"].as_u64().unwrap() > 0);
    // One stops the machine, both are told.
    a.qmp("{\"execute\": \"stop\"}", &mut none);
    assert_eq!(none, ["STOP"]);
    let stop = c.json();
    assert_eq!(stop["event"], "STOP");
    assert!(stop["timestamp"]["seconds"].as_u64().unwrap() > 1_600_000_000);
    c.qmp("{\"execute\": \"cont\"}", &mut none);
    assert_eq!(a.json()["event"], "RESUME");
    // The guest is alive, and what it does is told.
    serial.send("xyz");
    serial.until("xyz");
    serial.send("r");
    let reset = a.json();
    assert_eq!((&reset["event"], &reset["data"]["guest"]), (&"RESET".into(), &true.into()));
    serial.until("ready\n");
    serial.send("p");
    assert_eq!(a.json()["event"], "GUEST_PANICKED");
    assert_eq!(a.json()["event"], "STOP");
    let got = a.qmp("{\"execute\": \"query-status\"}", &mut none);
    assert_eq!(got["return"]["status"], "guest-panicked");
    a.qmp("{\"execute\": \"cont\"}", &mut none);
    serial.send("q");
    let end = loop {
        let got = a.json();
        if got["event"] == "SHUTDOWN" {
            break got;
        }
    };
    assert_eq!(end["data"]["reason"], "guest-shutdown");
    assert!(a.closed() && c.closed());
    assert!(vm.wait().success());
}

#[test]
fn clients_that_misbehave() {
    let Some(b) = bench("misbehaving clients") else { return };
    let mut vm = b.start(
        "-serial file:@serial -monitor unix:@mon,server=on,wait=off -qmp unix:@qmp,server=on,wait=off",
    );
    let mut none = Vec::new();
    // Leaves in the middle of a command; the next one begins anew.
    let mut q = b.connect("qmp");
    q.json();
    q.send("{\"execute\": \"qmp_cap");
    drop(q);
    let mut q = b.connect("qmp");
    q.json();
    q.qmp(GREET, &mut none);
    for junk in ["\u{1}\u{2}nonsense\n", "}\n", "{\"execute\": [}\n", "'\\xff'\n", "[[[[]]]]"] {
        let got = q.qmp(junk, &mut none);
        assert_eq!(got["error"]["class"], "GenericError", "{junk}: {got}");
    }
    q.send(b"{\"a\": \"\xc3\x28\"}".as_slice());
    assert_eq!(q.json()["error"]["class"], "GenericError");
    // More than any command: refused, and skipped.
    let giant = format!("{{\"execute\": \"{}\"}}\n", "x".repeat(5 << 20));
    assert!(q.qmp(&giant, &mut none)["error"]["desc"].as_str().unwrap().contains("size limit"));
    let deep = "[".repeat(100_000) + "\n";
    assert!(q.qmp(&deep, &mut none)["error"]["desc"].as_str().unwrap().contains("nesting"));
    assert_eq!(q.qmp("{\"execute\": \"query-status\"}", &mut none)["return"]["running"], true);
    let mut m = b.connect("mon");
    m.until("(qemu) ");
    m.send(vec![b'x'; 1 << 20]);
    m.send(b"\n\xff\xfe\x80(\n".as_slice());
    m.until("unknown command");
    m.until("unknown command");
    m.until("(qemu) ");
    assert_eq!(m.hmp("info status"), "VM status: running\r\n");
    // Asks for much and never reads: the other monitor works, and the machine ends.
    for _ in 0..200 {
        m.send("help\n");
    }
    assert_eq!(q.qmp("{\"execute\": \"query-status\"}", &mut none)["return"]["running"], true);
    vm.signal(Signal::SIGTERM);
    let end = q.json();
    assert_eq!(
        (&end["event"], &end["data"]["reason"]),
        (&"SHUTDOWN".into(), &"host-signal".into())
    );
    assert!(q.closed());
    assert!(vm.wait().success());
}

#[test]
fn keys_on_a_shared_terminal() {
    let Some(b) = bench("the Ctrl-a keys") else { return };
    let mut vm = b.start("-serial mon:stdio");
    let mut out = vm.child.stdout.take().unwrap();
    let mut seen = Vec::new();
    let mut until = |what: &str| {
        while !seen.windows(what.len()).any(|w| w == what.as_bytes()) {
            let mut buf = [0; 1024];
            let n = out.read(&mut buf).unwrap();
            assert!(n > 0, "no {what:?} in {:?}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&buf[..n]);
        }
        seen.clear();
    };
    until("ready\n");
    vm.type_in(b"hello\x01\x01");
    until("hello\x01");
    vm.type_in(b"\x01h");
    until("send break (magic sysrq)");
    vm.type_in(b"\x01cinfo status\r");
    until("VM status: running");
    vm.type_in(b"\x01cback");
    until("back");
    vm.type_in(b"\x01x");
    until("rkvm: Terminated");
    assert!(vm.wait().success());
}

#[test]
fn pausing_a_guest_that_talks_and_quitting_at_once() {
    let Some(b) = bench("pauses") else { return };
    let mut vm =
        b.start("-serial unix:@s,server=on,wait=off -qmp unix:@q,server=on,wait=off -smp 2");
    let (mut q, mut s) = (b.connect("q"), b.connect("s"));
    let mut events = Vec::new();
    q.json();
    q.qmp(GREET, &mut events);
    for i in 0..50 {
        s.send("abcdefgh");
        q.qmp("{\"execute\": \"stop\"}", &mut events);
        q.qmp("{\"execute\": \"cont\"}", &mut events);
        if i % 10 == 0 {
            q.qmp("{\"execute\": \"system_reset\"}", &mut events);
            // What was typed before the reset may be lost with the port's FIFO.
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    s.send("END");
    s.until("END");
    assert_eq!(events.iter().filter(|e| *e == "STOP").count(), 50);
    assert_eq!(events.iter().filter(|e| *e == "RESUME").count(), 50);
    assert_eq!(events.iter().filter(|e| *e == "RESET").count(), 5);
    let got = q.qmp("{\"execute\": \"quit\"}", &mut events);
    assert_eq!(got["return"], serde_json::json!({}));
    assert_eq!(events.last().unwrap(), "SHUTDOWN");
    assert!(q.closed());
    assert!(vm.wait().success());
}

#[test]
fn committing_images() {
    let Some(b) = bench("commit") else { return };
    std::fs::write(b.path("base.img"), vec![0; 1 << 20]).unwrap();
    let run = |words: &str, line: &str| {
        let mut vm =
            b.start(&format!("-serial null -monitor unix:@mon,server=on,wait=off {words}"));
        let mut m = b.connect("mon");
        m.until("(qemu) ");
        let answer = m.hmp(line);
        // Whatever happened, the disk is still there.
        assert!(m.hmp("info block").contains("virtio0: "), "{answer}");
        assert!(!m.hmp("info block").contains("virtio0:  ("), "{answer}");
        m.send("quit\n");
        assert!(vm.wait().success(), "{}", vm.errors());
        answer
    };
    let raw = "-drive file=@base.img,if=virtio,format=raw";
    assert_eq!(run(&format!("{raw},snapshot=on"), "commit virtio0"), "");
    assert_eq!(run(&format!("{raw},snapshot=on"), "commit all"), "");
    assert!(run(raw, "commit virtio0").contains("no backing file"));
    assert_eq!(run(raw, "commit all"), "");
    assert!(run(raw, "commit nope").contains("Device 'nope' not found"));
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
        .args([b.path("base.img"), b.path("over.qcow2")])
        .status();
    if !made.is_ok_and(|s| s.success()) {
        eprintln!("SKIPPED committing an overlay: no qemu-img");
        return;
    }
    let overlay = "-drive file=@over.qcow2,if=virtio";
    let denied = run(&format!("{overlay} -sandbox on,commit=deny"), "commit virtio0");
    assert!(denied.contains("Permission denied"), "{denied}");
    assert_eq!(run(overlay, "commit virtio0"), "");
    assert_eq!(run(&format!("{overlay},snapshot=on"), "commit all"), "");
    assert_eq!(run(&format!("{overlay} -sandbox off"), "commit virtio0"), "");
    // What lies below the image below is read: it may be what others stand on.
    let qemu_img = |words: &[&str]| {
        let mut c = Command::new("qemu-img");
        assert!(c.current_dir(b.folder.path()).args(words).status().unwrap().success());
    };
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "over.qcow2", "top.qcow2"]);
    let mut io = Command::new("qemu-io");
    let written = io.current_dir(b.folder.path()).args(["-c", "write -P 5 0 64k", "top.qcow2"]);
    if !written.stdout(Stdio::null()).status().is_ok_and(|s| s.success()) {
        eprintln!("SKIPPED committing what was written: no qemu-io");
        return;
    }
    let before = std::fs::read(b.path("base.img")).unwrap();
    assert_eq!(run("-drive file=@top.qcow2,if=virtio", "commit virtio0"), "");
    assert_eq!(std::fs::read(b.path("base.img")).unwrap(), before);
    qemu_img(&["rebase", "-u", "-f", "qcow2", "-b", "", "top.qcow2"]);
    qemu_img(&["check", "-q", "over.qcow2"]);
    qemu_img(&["convert", "-O", "raw", "over.qcow2", "all.img"]);
    let all = std::fs::read(b.path("all.img")).unwrap();
    assert!(all[..65_536].iter().all(|b| *b == 5) && all[65_536..].iter().all(|b| *b == 0));
    // Another guest stands on the image below: nothing is changed, and the disk goes on.
    let other = "-drive file=@over.qcow2,if=virtio,readonly=on,id=other";
    qemu_img(&["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "over.qcow2", "top.qcow2"]);
    let locked = run(&format!("-drive file=@top.qcow2,if=virtio {other}"), "commit virtio0");
    assert!(locked.contains("lock"), "{locked}");
}

/// The package qemu.qmp: from PYTHON_QMP, or where python3 finds it.
#[test]
fn the_client_library_of_qemu() {
    let python = std::env::var("PYTHON_QMP").unwrap_or_else(|_| "python3".into());
    let has = Command::new(&python).args(["-c", "import qemu.qmp"]).stderr(Stdio::null()).status();
    if !has.is_ok_and(|s| s.success()) {
        eprintln!(
            "SKIPPED the client library of QEMU: no qemu.qmp (pip install qemu.qmp; PYTHON_QMP=...)"
        );
        return;
    }
    let Some(b) = bench("the client library of QEMU") else { return };
    let mut vm = b.start("-serial null -qmp unix:@q,server=on,wait=off -name lib");
    drop(b.connect("q"));
    let script = r#"
import asyncio, sys
from qemu.qmp import QMPClient, ExecuteError
async def main():
    c = QMPClient('test')
    await c.connect(sys.argv[1])
    assert (await c.execute('query-name'))['name'] == 'lib'
    with c.listener(('STOP', 'RESUME')) as listener:
        await c.execute('stop')
        assert (await listener.get())['event'] == 'STOP'
        assert (await c.execute('query-status'))['status'] == 'paused'
        await c.execute('cont')
        assert (await listener.get())['event'] == 'RESUME'
    try:
        await c.execute('nope')
        assert False
    except ExecuteError as e:
        assert e.error_class == 'CommandNotFound', e
    for name in [n['name'] for n in await c.execute('query-commands')]:
        if name.startswith('query-') and name != 'query-balloon':
            await c.execute(name)
    text = await c.execute('human-monitor-command', {'command-line': 'info status'})
    assert 'running' in text, text
    await c.execute('quit')
    try:
        await c.disconnect()
    except EOFError:
        pass  # The machine has ended first.
asyncio.run(main())
"#;
    let done = Command::new(python).args(["-c", script]).arg(b.path("q")).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(vm.wait().success());
}

//! The process around the machine: background, PID file, signals, identity, messages.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Bench, bench, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Ends a machine in the background when a test fails.
struct Background(Pid);

impl Background {
    fn of(b: &Bench) -> Self {
        let text = std::fs::read_to_string(b.path("pid")).unwrap();
        Background(Pid::from_raw(text.trim().parse().unwrap()))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
    }
}

#[test]
fn in_the_background() {
    let Some(b) = bench("-daemonize") else { return };
    let done = b.output(
        "-daemonize -pidfile @pid -serial file:@serial -monitor unix:@mon,server=on,wait=off -name guest=g,process=vmproc",
    );
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    // Everything is there when the caller goes on.
    let running = Background::of(&b);
    assert!(b.path("mon").exists());
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.0)).unwrap();
    assert!(status.contains("Name:\tvmproc\n"), "{status}");
    let stdout = std::fs::read_link(format!("/proc/{}/fd/1", running.0)).unwrap();
    assert_eq!(stdout.to_str(), Some("/dev/null"));
    wait_for(&b.path("serial"), |t| t == "ready\n");
    // A second one with the same file is refused before it touches anything.
    let second = b.output("-daemonize -pidfile @pid -serial file:@serial");
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && text.contains("another machine has it"), "{text}");
    assert_eq!(std::fs::read_to_string(b.path("serial")).unwrap(), "ready\n");
    let mut m = b.connect("mon");
    m.until("(qemu) ");
    m.send("quit\n");
    assert!(m.closed());
    wait_for(&b.path("pid"), |_| !b.path("pid").exists());
}

#[test]
fn errors_reach_the_caller_of_a_daemon() {
    let Some(b) = bench("errors of -daemonize") else { return };
    for (words, what) in [
        ("-daemonize -serial file:/nonexistent/x", "/nonexistent/x"),
        ("-daemonize -drive file=@missing.img,if=virtio", "missing.img"),
        ("-daemonize -pidfile /nonexistent/pid -serial null", "/nonexistent/pid"),
        ("-daemonize -serial stdio", "cannot use stdio with -daemonize"),
        ("-daemonize -runas no-such-user-here -serial null", "no-such-user-here"),
    ] {
        let done = b.output(words);
        let text = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(1), "{words}: {text}");
        assert!(text.contains(what), "{words}: {text}");
    }
    assert!(!b.path("pid").exists());
}

#[test]
fn signals_end_the_machine_and_leave_disks_clean() {
    let Some(b) = bench("signals") else { return };
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let disk = b.path("disk.img");
        std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
        let mut vm = b.start(
            "-pidfile @pid -serial file:@serial -drive file=@disk.img,if=virtio,format=raw -monitor unix:@m,server=on,wait=off",
        );
        wait_for(&b.path("serial"), |t| t == "ready\n");
        let pid = std::fs::read_to_string(b.path("pid")).unwrap();
        assert_eq!(pid.trim(), vm.child.id().to_string());
        vm.signal(signal);
        assert!(vm.wait().success(), "{signal}");
        assert!(!b.path("pid").exists() && !b.path("m").exists(), "{signal}");
        std::fs::remove_file(b.path("serial")).unwrap();
    }
}

#[test]
fn rights_are_given_up() {
    let Some(b) = bench("-runas") else { return };
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED -runas: not root");
        return;
    }
    let mut vm = b.start("-runas 65534:65534 -serial file:@serial");
    wait_for(&b.path("serial"), |t| t == "ready\n");
    let status = std::fs::read_to_string(format!("/proc/{}/status", vm.child.id())).unwrap();
    for line in
        ["Uid:\t65534\t65534\t65534\t65534", "Gid:\t65534\t65534\t65534\t65534", "Groups:\t65534 "]
    {
        assert!(status.contains(line), "{line} in {status}");
    }
    vm.signal(Signal::SIGTERM);
    assert!(vm.wait().success());
}

#[test]
fn messages_and_exit_status() {
    let Some(b) = bench("messages") else { return };
    let done =
        b.output("-D @log -msg timestamp=on,guest-name=on -name g -serial file:/nonexistent/x");
    assert_eq!((done.status.code(), done.stderr.as_slice()), (Some(1), &b""[..]));
    let log = std::fs::read_to_string(b.path("log")).unwrap();
    let line = log.lines().next().unwrap();
    assert!(line.contains("Z g rkvm: ") && line.starts_with("20"), "{log}");
    // Panics of the guest, with and without failure.
    for (action, code) in [("", 0), ("-action panic=exit-failure", 1)] {
        let mut vm =
            b.start(&format!("{action} -device pvpanic -serial unix:@s,server=on,wait=off"));
        let mut s = b.connect("s");
        s.send("p");
        assert_eq!(vm.wait().code(), Some(code), "{action}: {}", vm.errors());
    }
    // Waiting for a client, and saying so.
    let mut vm = b.start("-serial unix:@s,server=on");
    let mut s = b.connect("s");
    s.until("ready\n");
    s.send("q");
    assert!(vm.wait().success());
    assert!(vm.errors().contains("waiting for connection on: disconnected:unix:"));
}

/// The terminal is raw while the guest has it, and as it was afterwards, however the machine ends.
#[test]
fn the_terminal_is_given_back() {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::termios::{LocalFlags, tcgetattr};
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    let Some(b) = bench("the terminal") else { return };
    for way in ["keys", "signal", "guest"] {
        let pair = nix::pty::openpty(None, None).unwrap();
        let mut master = std::fs::File::from(pair.master);
        let slave = || std::process::Stdio::from(pair.slave.try_clone().unwrap());
        let mut command = b.command("-serial mon:stdio");
        let child = command.stdin(slave()).stdout(slave()).stderr(slave()).spawn().unwrap();
        let mut vm = common::Running { child };
        let mut seen = Vec::new();
        let end = std::time::Instant::now() + common::LIMIT;
        while !seen.windows(6).any(|w| w == b"ready\r") && !seen.ends_with(b"ready\n") {
            assert!(std::time::Instant::now() < end, "{:?}", String::from_utf8_lossy(&seen));
            let mut set = [PollFd::new(master.as_fd(), PollFlags::POLLIN)];
            if poll(&mut set, PollTimeout::from(200u8)).unwrap() > 0 {
                let mut buf = [0; 256];
                let n = master.read(&mut buf).unwrap();
                seen.extend_from_slice(&buf[..n]);
            }
        }
        let cooked = || tcgetattr(&pair.slave).unwrap().local_flags.contains(LocalFlags::ICANON);
        assert!(!cooked(), "{way}");
        match way {
            "keys" => master.write_all(b"\x01x").unwrap(),
            "guest" => master.write_all(b"q").unwrap(),
            _ => vm.signal(Signal::SIGTERM),
        }
        assert!(vm.wait().success(), "{way}");
        assert!(cooked(), "{way}");
    }
}

#[test]
fn a_disk_on_a_server_and_every_thread_in_the_sandbox() {
    let Some(b) = bench("a disk on a server") else { return };
    let socket = b.path("nbd");
    let server = std::process::Command::new("nbdkit")
        .args(["-f", "-U"])
        .arg(&socket)
        .args(["memory", "1M"])
        .spawn();
    let Ok(server) = server else {
        eprintln!("SKIPPED a disk on a server: no nbdkit");
        return;
    };
    let _server = common::Running { child: server };
    wait_for(&b.path("absent"), |_| socket.exists());
    for more in ["", ",file.reconnect-delay=5"] {
        let mut vm = b.start(&format!(
            "-serial file:@serial -monitor unix:@m,server=on,wait=off -smp 2 \
             -drive file=nbd+unix:///?socket=@nbd,if=virtio,format=raw{more}"
        ));
        wait_for(&b.path("serial"), |t| t == "ready\n");
        let mut m = b.connect("m");
        m.until("(qemu) ");
        let said = m.hmp("info block");
        assert!(said.contains("?socket="), "{said}");
        let mut names = Vec::new();
        for thread in std::fs::read_dir(format!("/proc/{}/task", vm.child.id())).unwrap() {
            let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
            assert!(status.contains("Seccomp:\t2"), "{status}");
            names.extend(status.lines().next().map(str::to_owned));
        }
        assert!(names.iter().any(|n| n.contains("nbd-replies")), "{names:?}");
        m.send("quit\n");
        assert!(vm.wait().success());
        assert_eq!(vm.errors(), "");
        std::fs::remove_file(b.path("serial")).unwrap();
    }
    let refused = b.output("-drive file=http://127.0.0.1:1/x,if=virtio,readonly=on -sandbox off");
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("http://127.0.0.1:1/x"), "{text}");
}

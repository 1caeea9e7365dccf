//! Zeroes that must not be slower than writing (`NBD_CMD_FLAG_FAST_ZERO`), with real peers on both sides.

#![allow(clippy::unwrap_used, clippy::panic)] // all of it is test code

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use suite::daemon::{Daemon, data_and_zeroes};
use suite::process::{Invocation, Outcome};
use suite::tools;

fn run(program: &Path, dir: &Path, args: &[&str]) -> Outcome {
    let call = Invocation::new(program, dir).args(args);
    call.time_limit(Duration::from_secs(120)).run().unwrap()
}

fn good(dir: &Path, args: &[&str]) -> String {
    let outcome = run(&tools::rimg().unwrap(), dir, args);
    assert!(outcome.success(), "{args:?}: {}{}", outcome.out(), outcome.err());
    outcome.out()
}

/// A server at a UNIX socket.
struct Server {
    _daemon: Daemon,
    socket: PathBuf,
}

impl Server {
    /// Starts a program; `SOCK` in its arguments is the socket `dir/NAME`.
    fn start(program: &Path, dir: &Path, name: &str, args: &[&str]) -> Self {
        let socket = dir.join(name);
        let path = socket.to_string_lossy().into_owned();
        let mut command = Command::new(program);
        command.args(args.iter().map(|a| a.replace("SOCK", &path))).current_dir(dir);
        Server { _daemon: Daemon::start(&mut command).until(|| socket.exists()), socket }
    }

    fn of_rimg(dir: &Path, name: &str, args: &[&str]) -> Self {
        let all = [&["serve", "-q", "-t", "-e", "4", "-k", "SOCK"], args].concat();
        Server::start(&tools::rimg().unwrap(), dir, name, &all)
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }
}

/// Whether file systems here make holes, as the server has to find out too.
fn makes_holes(dir: &Path) -> bool {
    std::fs::write(dir.join("probe"), vec![7; 1 << 20]).unwrap();
    let args = ["--punch-hole", "--offset", "0", "--length", "65536", "probe"];
    let done = Command::new("fallocate").args(args).current_dir(dir).status();
    let done = done.is_ok_and(|status| status.success());
    if !done {
        tools::skip("quick zeroes of raw files", "no holes on this file system, or no fallocate");
    }
    done
}

#[test]
fn the_server_offers_what_is_true() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    data_and_zeroes(&dir.join("a.raw"), 4 << 20);
    for (format, options, file) in [
        ("qcow2", "compat=1.1", "a.qcow2"),
        ("qcow2", "compat=0.10", "old.qcow2"),
        ("vdi", "static=off", "a.vdi"),
    ] {
        good(dir, &["convert", "-f", "raw", "-O", format, "-o", options, "a.raw", file]);
    }
    let holes = makes_holes(dir);
    let Some(nbdinfo) = tools::find("nbdinfo") else {
        return tools::skip("quick zeroes offered to libnbd", "no nbdinfo");
    };
    let io = tools::find("qemu-io");
    if io.is_none() {
        tools::skip("quick zeroes asked for by QEMU", "no qemu-io");
    }
    for (name, args, quick) in [
        ("qcow2", &["-f", "qcow2", "a.qcow2"][..], true),
        ("version 2", &["-f", "qcow2", "old.qcow2"], false),
        ("vdi", &["-f", "vdi", "a.vdi"], false),
        ("read-only", &["-r", "-f", "qcow2", "a.qcow2"], false),
        ("raw", &["-f", "raw", "a.raw"], holes),
        ("raw that keeps its space", &["-f", "raw", "--discard", "ignore", "a.raw"], false),
    ] {
        let server = Server::of_rimg(dir, &name.replace(' ', "-"), args);
        let offered = run(&nbdinfo, dir, &["--can", "fast-zero", &server.uri()]);
        assert_eq!(offered.success(), quick, "{name}: {}", offered.err());
        let Some(io) = io.as_ref().filter(|_| name != "read-only") else { continue };
        let uri = server.uri();
        let ask = |command: &str| {
            let out = run(io, dir, &["-d", "unmap", "-f", "raw", "-c", command, &uri]);
            out.success() && !out.out().contains("failed")
        };
        // -n: no fallback to writing; -u: space may be given back.
        assert_eq!(ask("write -z -u -n 1M 1M"), quick, "{name}");
        assert!(ask("read -P 1 0 1") || ask("read 0 512"), "{name}: the server is gone");
        if quick {
            assert!(ask("read -P 0 1M 1M"), "{name}: no zeroes");
        }
        // Less than a cluster would have to be written.
        if name == "qcow2" {
            assert!(!ask("write -z -u -n 70000 512"), "{name}");
            assert!(ask("write -z -u 70144 512") && ask("read -P 0 70144 512"), "{name}");
        }
        // Whoever wants to keep the space of a raw file gets it slowly, or not at all.
        if name == "raw" && quick {
            assert!(!ask("write -z -n 2M 1M"), "{name}");
            assert!(ask("write -z 2M 1M") && ask("read -P 0 2M 1M"), "{name}");
        }
    }
    good(dir, &["check", "a.qcow2"]);
}

#[test]
fn the_client_empties_a_target_where_that_is_quick() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let Some(nbdkit) = tools::find("nbdkit") else {
        return tools::skip("quick zeroes asked for by the client", "no nbdkit");
    };
    data_and_zeroes(&dir.join("src.raw"), (9 << 20) + 512);
    let source = std::fs::read(dir.join("src.raw")).unwrap();
    for mode in ["plain", "ignore", "slow", "none"] {
        let target = vec![0xa5; 10 << 20];
        std::fs::write(dir.join("dst.raw"), &target).unwrap();
        let log = format!("logfile={mode}.log");
        let setting = format!("fastzeromode={mode}");
        let mut args = vec!["-f", "-U", "SOCK", "--filter=log"];
        if mode == "plain" {
            args.extend(["file", "dst.raw", &log]);
        } else {
            args.extend(["--filter=nozero", "file", "dst.raw", &log]);
            args.extend(["zeromode=notrim", &setting]);
        }
        let server = Server::start(&nbdkit, dir, mode, &args);
        good(dir, &["convert", "-n", "-f", "raw", "-O", "raw", "src.raw", &server.uri()]);
        drop(server);
        // What was asked for: quick zeroes where the server has them; others only where it has not, or would be slow.
        let log = std::fs::read_to_string(dir.join(format!("{mode}.log"))).unwrap();
        let (quick, others): (Vec<&str>, Vec<&str>) = log
            .lines()
            .filter(|line| line.contains(" Zero "))
            .partition(|line| line.contains("fast=1"));
        // Whether nbdkit's files are quick depends on the file system; the filter decides for itself.
        let offered = !log.contains("fast_zero=0");
        assert!(mode == "plain" || offered == (mode != "none"), "{mode}: {log}");
        assert_eq!(quick.is_empty(), !offered, "{mode}: {log}");
        assert_eq!(others.is_empty(), offered && mode != "slow", "{mode}: {log}");
        let got = std::fs::read(dir.join("dst.raw")).unwrap();
        assert!(got[..source.len()] == source[..], "{mode}: contents differ");
        assert!(got[source.len()..].iter().all(|b| *b == 0xa5), "{mode}: too much was zeroed");
    }
    // Our own server with a full disk: it is emptied, and only data are written.
    std::fs::write(dir.join("own.raw"), vec![0xa5; 10 << 20]).unwrap();
    let server = Server::of_rimg(dir, "own", &["-f", "raw", "own.raw"]);
    good(dir, &["convert", "-n", "-f", "raw", "-O", "raw", "src.raw", &server.uri()]);
    drop(server);
    let got = std::fs::read(dir.join("own.raw")).unwrap();
    assert!(got[..source.len()] == source[..] && got[source.len()..].iter().all(|b| *b == 0xa5));
}

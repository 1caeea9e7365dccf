//! NBD beyond plain images: `dd` into an export, data files on an export, sockets that others opened.

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

fn rimg(dir: &Path, args: &[&str]) -> Outcome {
    run(&tools::rimg().unwrap(), dir, args)
}

fn good(dir: &Path, args: &[&str]) -> String {
    let outcome = rimg(dir, args);
    assert!(outcome.success(), "{args:?}: {}{}", outcome.out(), outcome.err());
    outcome.out()
}

fn bad(dir: &Path, args: &[&str], wanted: &str) {
    let outcome = rimg(dir, args);
    let said = outcome.err();
    assert!(!outcome.success() && said.contains(wanted), "{args:?}: {said}");
}

/// A server at a UNIX socket.
struct Server {
    _daemon: Daemon,
    socket: PathBuf,
}

impl Server {
    /// Serves a raw file of `dir` at a UNIX socket.
    fn new(dir: &Path, file: &str) -> Self {
        let socket = dir.join(format!("{file}.sock"));
        let program = tools::rimg().unwrap();
        let mut command = Command::new(program);
        command.args(["serve", "-f", "raw", "-t", "-e", "8", "-k"]).arg(&socket).arg(file);
        Server::start(command.current_dir(dir), socket)
    }

    /// Starts a program that will listen at `socket`.
    fn start(command: &mut Command, socket: PathBuf) -> Self {
        Server { _daemon: Daemon::start(command).until(|| socket.exists()), socket }
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }
}

#[test]
fn dd_writes_into_an_export() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    data_and_zeroes(&dir.join("src.raw"), 5 << 20);
    good(dir, &["convert", "-f", "raw", "-O", "qcow2", "src.raw", "src.qcow2"]);
    std::fs::write(dir.join("to.raw"), vec![0xaa; 6 << 20]).unwrap();
    let server = Server::new(dir, "to.raw");
    let to = format!("of={}", server.uri());
    good(dir, &["dd", "-f", "qcow2", "-O", "raw", "bs=1M", "if=src.qcow2", &to]);
    let (from, got) =
        (std::fs::read(dir.join("src.raw")).unwrap(), std::fs::read(dir.join("to.raw")).unwrap());
    assert!(got[..from.len()] == from && got[from.len()..].iter().all(|b| *b == 0xaa));
    bad(dir, &["dd", "-f", "raw", "-O", "qcow2", "if=src.raw", &to], "only be written as raw");
    data_and_zeroes(&dir.join("large.raw"), 7 << 20);
    bad(dir, &["dd", "-f", "raw", "-O", "raw", "if=large.raw", &to], "7340032 are needed");
}

#[test]
fn a_data_file_on_an_export() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    data_and_zeroes(&dir.join("src.raw"), 5 << 20);
    let new =
        ["create", "-f", "qcow2", "-o", "data_file=data.raw,data_file_raw=on", "a.qcow2", "5M"];
    good(dir, &new);
    let server = Server::new(dir, "data.raw");
    let image = format!(
        "driver=qcow2,file.filename=a.qcow2,data-file.driver=nbd,data-file.server.type=unix,\
         data-file.server.path={}",
        server.socket.display()
    );
    let to = ["convert", "-n", "-f", "raw", "--target-image-opts", "src.raw", &image];
    good(dir, &to);
    let digest = good(dir, &["digest", "-f", "raw", "src.raw"]);
    let digest = digest.split_whitespace().next().unwrap();
    assert!(good(dir, &["digest", "--image-opts", &image]).starts_with(digest));
    good(dir, &["check", "--image-opts", &image]);
    drop(server);
    // The bytes went where the export keeps them.
    good(dir, &["compare", "-f", "raw", "-F", "raw", "src.raw", "data.raw"]);
    good(dir, &["compare", "-f", "raw", "-F", "qcow2", "src.raw", "a.qcow2"]);
}

#[test]
fn a_socket_that_a_client_opened() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    data_and_zeroes(&dir.join("src.raw"), 3 << 20);
    good(dir, &["convert", "-f", "raw", "-O", "qcow2", "src.raw", "a.qcow2"]);
    let program = tools::rimg().unwrap().to_string_lossy().into_owned();
    let server = ["[", &program, "serve", "-q", "-f", "qcow2", "-r", "a.qcow2", "]"];
    match tools::find("nbdinfo") {
        None => tools::skip("sockets that libnbd opened", "no nbdinfo"),
        Some(nbdinfo) => {
            let out = run(&nbdinfo, dir, &[&["--size", "--"][..], &server].concat());
            assert_eq!(out.out().trim(), (3 << 20).to_string(), "{}", out.err());
        }
    }
    match tools::find("nbdcopy") {
        None => tools::skip("sockets that libnbd opened", "no nbdcopy"),
        Some(nbdcopy) => {
            let out = run(&nbdcopy, dir, &[&["--"][..], &server, &["copy.raw"]].concat());
            assert!(out.success(), "{}", out.err());
            good(dir, &["compare", "-f", "raw", "-F", "raw", "src.raw", "copy.raw"]);
        }
    }
    let Some(activate) = tools::find("systemd-socket-activate") else {
        return tools::skip("sockets that systemd opened", "no systemd-socket-activate");
    };
    let socket = dir.join("activated");
    let mut command = Command::new(activate);
    command.arg("-l").arg(&socket).args([&program, "serve", "-q", "-f", "qcow2", "-r", "a.qcow2"]);
    let server = Server::start(command.current_dir(dir), socket);
    good(dir, &["compare", "-f", "raw", "-F", "raw", "src.raw", &server.uri()]);
    // What does not go together, and what is not there.
    let with = |more: &[&str]| {
        let mut script = "export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" \"$@\"".to_owned();
        script.push_str(" 3</dev/null");
        let args = [&["-c", &script, &program, "serve", "-f", "qcow2"][..], more].concat();
        run(Path::new("/bin/sh"), dir, &args).err()
    };
    assert!(with(&["-p", "0", "a.qcow2"]).contains("--port can't be set"));
    assert!(with(&["a.qcow2"]).contains("is no socket"), "{}", with(&["a.qcow2"]));
}

#[test]
fn several_connections() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    data_and_zeroes(&dir.join("src.raw"), 48 << 20);
    // Our own server, with room for several clients and for one.
    let digest = good(dir, &["digest", "-f", "raw", "src.raw"]);
    let digest = digest.split_whitespace().next().unwrap();
    let server = Server::new(dir, "src.raw");
    assert!(good(dir, &["digest", "-f", "raw", &server.uri()]).starts_with(digest));
    drop(server);
    let Some(nbdkit) = tools::find("nbdkit") else {
        return tools::skip("several connections to one server", "no nbdkit");
    };
    let socket = dir.join("kit.sock");
    let mut command = Command::new(nbdkit);
    command.args(["-f", "-U"]).arg(&socket);
    command.args(["--filter=log", "file", "src.raw", "logfile=log"]);
    let server = Server::start(command.current_dir(dir), socket);
    let info = good(dir, &["info", "-f", "raw", &server.uri()]);
    assert!(info.contains("48 MiB"), "{info}");
    assert!(!std::fs::read_to_string(dir.join("log")).unwrap().contains("connection=2 "));
    assert!(good(dir, &["digest", "-f", "raw", &server.uri()]).starts_with(digest));
    let log = std::fs::read_to_string(dir.join("log")).unwrap();
    assert!(log.contains("connection=3 "), "one connection only");
}

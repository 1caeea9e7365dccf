//! NBD with real peers: the client against qemu-nbd and nbdkit.

#![allow(clippy::unwrap_used, clippy::panic)] // all of it is test code

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

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
    assert!(outcome.success(), "{args:?}: {}", outcome.err());
    outcome.out()
}

/// A server that is killed when the test is done with it.
struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    /// Starts a program that listens at `dir/NAME` and waits until it does. `SOCK` in the arguments is
    /// replaced by the socket.
    fn start(program: &Path, dir: &Path, name: &str, args: &[&str]) -> Self {
        let socket = dir.join(name);
        let path = socket.to_string_lossy().into_owned();
        let mut child = Command::new(program)
            .args(args.iter().map(|a| a.replace("SOCK", &path)))
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        while !socket.exists() {
            assert!(child.try_wait().unwrap().is_none(), "{} ended: {args:?}", program.display());
            assert!(Instant::now() < end, "{} does not listen: {args:?}", program.display());
            std::thread::sleep(Duration::from_millis(20));
        }
        Server { child, socket }
    }

    fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A tool of the tests; its absence is said loudly.
fn tool(name: &str, lost: &str) -> Option<PathBuf> {
    let found = tools::find(name);
    if found.is_none() {
        tools::skip(lost, &format!("no {name}"));
    }
    found
}

/// 3 MiB and a bit, with holes and an end that is no sector's.
fn source(path: &Path) {
    let mut bytes = vec![0u8; (3 << 20) + 100];
    for start in [0usize, 70_000, 1 << 20, (3 << 20) - 50] {
        let end = (start + 66_000).min(bytes.len());
        for (i, byte) in bytes[start..end].iter_mut().enumerate() {
            *byte = u8::try_from((i / 3 + start) % 251).unwrap() | 1;
        }
    }
    std::fs::write(path, bytes).unwrap();
}

fn reads_all(dir: &Path, uri: &str) {
    let copy = dir.join("copy.raw");
    let _ = std::fs::remove_file(&copy);
    good(dir, &["convert", "-f", "raw", "-O", "raw", uri, "copy.raw"]);
    let (a, b) = (std::fs::read(dir.join("src.raw")).unwrap(), std::fs::read(copy).unwrap());
    assert!(b.len() == a.len().next_multiple_of(512) && b[..a.len()] == a[..], "{uri}");
    assert!(b[a.len()..].iter().all(|byte| *byte == 0), "{uri}");
    good(dir, &["compare", "-f", "raw", "-F", "raw", "copy.raw", uri]);
    let (one, other) =
        (good(dir, &["digest", "-f", "raw", uri]), good(dir, &["digest", "-f", "raw", "copy.raw"]));
    assert_eq!(one.split_whitespace().next(), other.split_whitespace().next());
    assert!(good(dir, &["info", uri]).contains("disk size: unavailable"));
    good(dir, &["map", "-f", "raw", uri]);
    good(dir, &["measure", "-f", "raw", "-O", "qcow2", uri]);
}

#[test]
fn reading_from_qemu_nbd_and_nbdkit() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    source(&dir.join("src.raw"));
    if let Some(qemu) = tool("qemu-nbd", "reading from qemu-nbd") {
        let args = ["-r", "-f", "raw", "-t", "-e", "8", "-x", "name", "-k", "SOCK", "src.raw"];
        let server = Server::start(&qemu, dir, "q", &args);
        reads_all(dir, &server.uri("name"));
        let bad = rimg(dir, &["info", &server.uri("other")]);
        assert!(bad.err().contains("Requested export not available"), "{}", bad.err());
        let bad = rimg(dir, &["bench", "-w", "-f", "raw", "-c", "1", &server.uri("name")]);
        assert!(!bad.success() && bad.err().contains("write"), "{}", bad.err());
    }
    let Some(nbdkit) = tool("nbdkit", "reading from nbdkit") else { return };
    let variants: [(&str, &[&str]); 4] = [
        ("plain", &[]),
        ("simple", &["--no-sr"]),
        (
            "blocks",
            &[
                "--filter=blocksize-policy",
                "blocksize-minimum=4",
                "blocksize-maximum=4096",
                "blocksize-error-policy=error",
            ],
        ),
        ("noextents", &["--filter=noextents"]),
    ];
    for (name, more) in variants {
        let (flags, settings): (Vec<&str>, Vec<&str>) =
            more.iter().partition(|word| word.starts_with("--"));
        let args = [&["-f", "-r", "-U", "SOCK"], &flags[..], &["file", "src.raw"], &settings[..]];
        let server = Server::start(&nbdkit, dir, name, &args.concat());
        reads_all(dir, &server.uri(""));
    }
}

#[test]
fn writing_to_qemu_nbd_and_nbdkit() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    source(&dir.join("src.raw"));
    let full = vec![0xa5u8; 4 << 20];
    if let Some(qemu) = tool("qemu-nbd", "writing to qemu-nbd") {
        std::fs::write(dir.join("dst.raw"), &full).unwrap();
        let args = ["-f", "raw", "-t", "-e", "8", "-k", "SOCK", "dst.raw"];
        let server = Server::start(&qemu, dir, "q", &args);
        let uri = server.uri("");
        good(dir, &["convert", "-n", "-f", "raw", "-O", "raw", "src.raw", &uri]);
        drop(server);
        let (a, b) = (
            std::fs::read(dir.join("src.raw")).unwrap(),
            std::fs::read(dir.join("dst.raw")).unwrap(),
        );
        assert!(b[..a.len()] == a[..] && b.len() == full.len());
    }
    let Some(nbdkit) = tool("nbdkit", "writing to nbdkit") else { return };
    let variants: [(&str, &[&str]); 3] = [
        ("plain", &[]),
        ("simple", &["--no-sr"]),
        (
            "blocks",
            &[
                "--filter=blocksize-policy",
                "blocksize-minimum=4096",
                "blocksize-maximum=64K",
                "blocksize-error-policy=error",
            ],
        ),
    ];
    for (name, more) in variants {
        let (flags, settings): (Vec<&str>, Vec<&str>) =
            more.iter().partition(|word| word.starts_with("--"));
        let args = [&["-f", "-U", "SOCK"], &flags[..], &["memory", "4M"], &settings[..]];
        let server = Server::start(&nbdkit, dir, name, &args.concat());
        let uri = server.uri("");
        // A source of whole blocks of every size, and one that ends within a block.
        good(dir, &["convert", "-n", "-f", "raw", "-O", "raw", "src.raw", &uri]);
        let same = rimg(dir, &["compare", "-f", "raw", "-F", "raw", "src.raw", &uri]);
        assert!(same.success(), "{name}: {}{}", same.out(), same.err());
    }
}

#[test]
fn a_server_that_fails_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    source(&dir.join("src.raw"));
    let bad = rimg(dir, &["info", "nbd+unix://?socket=/nonexistent/s"]);
    assert!(bad.err().contains("Failed to connect to '/nonexistent/s'"), "{}", bad.err());
    let bad = rimg(dir, &["info", "nbds://localhost/x"]);
    assert!(bad.err().contains("TLS is not supported"), "{}", bad.err());
    let Some(nbdkit) = tool("nbdkit", "servers that fail") else { return };
    let args = [
        "-f",
        "-U",
        "SOCK",
        "--filter=error",
        "file",
        "src.raw",
        "error-pread=ENOSPC",
        "error-pread-rate=100%",
    ];
    let server = Server::start(&nbdkit, dir, "error", &args);
    let uri = server.uri("");
    let bad = rimg(dir, &["convert", "-f", "raw", "-O", "raw", &uri, "copy.raw"]);
    assert!(!bad.success() && bad.err().contains("No space left"), "{}", bad.err());
    assert!(!dir.join("copy.raw").exists());
}

#[test]
fn names_of_servers_inside_images_are_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    good(
        dir,
        &["create", "-f", "qcow2", "-u", "-b", "nbd://localhost:1/x", "-F", "raw", "a.qcow2", "1M"],
    );
    let bad = rimg(dir, &["convert", "-O", "raw", "a.qcow2", "b.raw"]);
    assert!(bad.err().contains("named inside 'a.qcow2', is not a file"), "{}", bad.err());
}

//! NBD with real peers: the client against qemu-nbd and nbdkit, `rimg serve` against nbdinfo, nbdcopy, QEMU and rimg.

#![allow(clippy::unwrap_used, clippy::panic)] // all of it is test code

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use suite::daemon::Daemon;
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
    child: Daemon,
    socket: PathBuf,
}

impl Server {
    /// Starts a program that listens at `dir/NAME` and waits until it does. `SOCK` in the arguments is
    /// replaced by the socket.
    fn start(program: &Path, dir: &Path, name: &str, args: &[&str]) -> Self {
        let socket = dir.join(name);
        let path = socket.to_string_lossy().into_owned();
        let mut command = Command::new(program);
        command.args(args.iter().map(|a| a.replace("SOCK", &path))).current_dir(dir);
        let child = Daemon::start(&mut command).until(|| socket.exists());
        Server { child, socket }
    }

    fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
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

impl Server {
    /// `rimg serve` at `dir/NAME`.
    fn rimg(dir: &Path, name: &str, args: &[&str]) -> Self {
        let all = [&["serve", "-q", "-k", "SOCK"], args].concat();
        Server::start(&tools::rimg().unwrap(), dir, name, &all)
    }

    /// Asks it to end; it must do so in peace.
    fn terminate(mut self) {
        let pid = self.child.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.ended();
    }

    fn ended(&mut self) {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = self.child.0.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                assert!(!self.socket.exists());
                return;
            }
            assert!(Instant::now() < end, "the server does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Runs a peer; it must succeed.
fn peer(program: &Path, dir: &Path, args: &[&str]) -> String {
    let outcome = run(program, dir, args);
    assert!(outcome.success(), "{} {args:?}: {}", program.display(), outcome.err());
    outcome.out()
}

/// base.qcow2 with the source, and top.qcow2 of 8 MiB over it.
fn chain(dir: &Path) {
    source(&dir.join("src.raw"));
    good(dir, &["convert", "-f", "raw", "-O", "qcow2", "src.raw", "base.qcow2"]);
    good(dir, &["create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2", "8M"]);
    good(dir, &["convert", "-O", "raw", "top.qcow2", "whole.raw"]);
}

#[test]
fn libnbd_reads_and_writes_what_rimg_serves() {
    let lost = "rimg serve with libnbd";
    let (Some(info), Some(copy)) = (tool("nbdinfo", lost), tool("nbdcopy", lost)) else { return };
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    chain(dir);
    let args = ["-t", "-e", "0", "-x", "a disk", "-D", "for people", "-A", "top.qcow2"];
    let server = Server::rimg(dir, "s", &args);
    let uri = server.uri("a%20disk");
    let told = peer(&info, dir, &[&uri]);
    for line in
        ["export-size: 8388608", "for people", "can_multi_conn: true", "is_read_only: false"]
    {
        assert!(told.contains(line), "{told}");
    }
    assert!(peer(&info, dir, &["--list", &server.uri("")]).contains("a disk"));
    let map = peer(&info, dir, &["--map", &uri]);
    assert!(map.contains("data") && map.contains("hole,zero"), "{map}");
    let depth = peer(&info, dir, &["--map=qemu:allocation-depth", &uri]);
    assert!(depth.contains("backing depth 2") && !depth.contains("local"), "{depth}");
    peer(&copy, dir, &[&uri, "copied.raw"]);
    let same = |name: &str| std::fs::read(dir.join(name)).unwrap();
    assert!(same("copied.raw") == same("whole.raw"));
    // Several connections at a time write.
    let other: Vec<u8> = (0..8u32 << 20).map(|i| u8::try_from((i / 4096) % 255).unwrap()).collect();
    std::fs::write(dir.join("other.raw"), &other).unwrap();
    peer(&copy, dir, &["--connections=4", "--flush", "other.raw", &uri]);
    peer(&copy, dir, &["--connections=4", &uri, "back.raw"]);
    assert!(same("back.raw") == other);
    assert!(!run(&info, dir, &[&server.uri("b")]).success());
    // Others must not write the image meanwhile.
    let locked = rimg(dir, &["resize", "top.qcow2", "9M"]);
    assert!(locked.err().contains("lock"), "{}", locked.err());
    server.terminate();
    good(dir, &["check", "top.qcow2"]);
    good(dir, &["compare", "-f", "raw", "other.raw", "top.qcow2"]);
}

#[test]
fn qemu_reads_and_writes_what_rimg_serves() {
    let reference = match tools::Reference::find() {
        Ok(reference) => reference,
        Err(why) => return tools::skip("rimg serve with QEMU", &why),
    };
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    chain(dir);
    let server = Server::rimg(dir, "s", &["-t", "-e", "3", "top.qcow2"]);
    let uri = server.uri("");
    let map =
        |args: &[&str]| peer(&reference.img, dir, &[&["map", "--output=json"], args].concat());
    // The first two of the four pieces of data share a cluster.
    assert_eq!(map(&["-f", "raw", &uri]).matches("\"data\": true").count(), 3);
    peer(&reference.img, dir, &["compare", "-f", "raw", "-F", "raw", "whole.raw", &uri]);
    let writes = [
        "-c",
        "write -P 9 100k 300k",
        "-c",
        "write -z -u 1M 100k",
        "-c",
        "discard 2M 64k",
        "-c",
        "write -f -P 5 513 1000",
        "-c",
        "flush",
        "-c",
        "read -P 9 100k 300k",
        "-c",
        "read -P 0 1M 100k",
        "-c",
        "read -P 5 513 1000",
    ];
    let told = peer(&reference.io, dir, &[&["-f", "raw"], &writes[..], &[&uri]].concat());
    assert!(!told.contains("fail"), "{told}");
    good(dir, &["convert", "-f", "raw", "-O", "raw", &uri, "now.raw"]);
    peer(&reference.img, dir, &["convert", "-f", "raw", "-O", "qcow2", &uri, "now.qcow2"]);
    good(dir, &["compare", "-f", "raw", "-F", "raw", "now.raw", &uri]);
    server.terminate();
    peer(&reference.img, dir, &["check", "top.qcow2"]);
    for image in ["top.qcow2", "now.qcow2"] {
        peer(&reference.img, dir, &["compare", "-f", "raw", "-F", "qcow2", "now.raw", image]);
    }
}

#[test]
fn rimg_serves_snapshots_bitmaps_and_one_client_only() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    source(&dir.join("src.raw"));
    good(dir, &["convert", "-f", "raw", "-O", "qcow2", "src.raw", "a.qcow2"]);
    good(dir, &["snapshot", "-c", "before", "a.qcow2"]);
    good(dir, &["bitmap", "--add", "a.qcow2", "changes"]);
    good(dir, &["bench", "-w", "-c", "16", "-s", "64k", "--pattern", "17", "a.qcow2"]);
    let mut server = Server::rimg(dir, "s", &["-l", "before", "a.qcow2"]);
    good(dir, &["convert", "-f", "raw", "-O", "raw", &server.uri(""), "old.raw"]);
    good(dir, &["compare", "-f", "raw", "-F", "raw", "src.raw", "old.raw"]);
    // Without -t the server ends with its client.
    server.ended();
    let refused = rimg(dir, &["serve", "-k", "s2", "-B", "changes", "a.qcow2"]);
    assert!(refused.err().contains("would change"), "{}", refused.err());
    let refused = rimg(dir, &["serve", "-k", "s2", "-r", "-B", "none", "a.qcow2"]);
    assert!(refused.err().contains("Bitmap 'none' is not found"), "{}", refused.err());
    let server = Server::rimg(dir, "s3", &["-r", "-t", "-B", "changes", "a.qcow2"]);
    if let Some(info) = tool("nbdinfo", "bitmaps of rimg serve") {
        let map = peer(&info, dir, &["--map=qemu:dirty-bitmap:changes", &server.uri("")]);
        assert!(map.contains("1048576    1  dirty"), "{map}");
    }
    let refused = rimg(dir, &["bench", "-w", "-f", "raw", "-c", "1", &server.uri("")]);
    assert!(refused.err().contains("without write permission"), "{}", refused.err());
    server.terminate();
}

#[test]
fn a_server_in_the_background() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    good(dir, &["create", "-f", "qcow2", "a.qcow2", "1M"]);
    let told = good(dir, &["serve", "--fork", "--pid-file", "pid", "-p", "0", "-t", "a.qcow2"]);
    let uri = told.trim().rsplit(' ').next().unwrap();
    let pid = std::fs::read_to_string(dir.join("pid")).unwrap();
    let seen = rimg(dir, &["info", uri]);
    assert!(Command::new("kill").args(["-TERM", pid.trim()]).status().unwrap().success());
    assert!(seen.success() && seen.out().contains("1 MiB"), "{uri}: {}", seen.err());
    let end = Instant::now() + Duration::from_secs(60);
    while dir.join("pid").exists() {
        assert!(Instant::now() < end, "the server does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
    let bad = rimg(dir, &["serve", "--fork", "-p", "0", "missing.qcow2"]);
    assert!(bad.err().contains("No such file"), "{}", bad.err());
}

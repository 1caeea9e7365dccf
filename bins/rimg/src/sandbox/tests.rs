//! What a confined process can and cannot do, tried by a process of its own: this test program, started again.

use std::path::Path;
use std::process::Command;

use super::*;

/// Names the folder to the process that confines itself.
const PROBE: &str = "RIMG_SANDBOX_PROBE";

fn ok<T>(result: std::io::Result<T>) -> char {
    result.map_or('0', |_| '1')
}

/// What the confined process tries, in order: each one a digit.
fn attempts(dir: &Path) -> String {
    let at = |name: &str| dir.join(name);
    let thread = std::thread::spawn(|| std::fs::write("/nonexistent/x", b"x"));
    [
        // What the command needs.
        ok(std::fs::read(at("in/image"))),
        ok(std::fs::write(at("out/new"), b"x")),
        ok(std::fs::rename(at("out/new"), at("out/newer"))),
        ok(std::fs::remove_file(at("out/newer"))),
        ok(std::fs::read("/proc/self/status")),
        if thread.join().is_ok() { '1' } else { '0' },
        // What somebody else would like.
        ok(std::fs::read(at("secret"))),
        ok(std::fs::read("/etc/passwd")),
        ok(std::fs::write(at("in/image"), b"x")),
        ok(std::fs::write(at("in/new"), b"x")),
        ok(std::fs::write(at("elsewhere"), b"x")),
        ok(std::os::unix::fs::symlink("/etc", at("out/link"))),
        ok(Command::new("/bin/true").status()),
        ok(std::net::TcpStream::connect("127.0.0.1:1").map_err(|e| {
            // Refused by the other side: there was a socket.
            let socket = e.kind() == std::io::ErrorKind::ConnectionRefused;
            std::io::Error::from(if socket { std::io::ErrorKind::Other } else { e.kind() })
        })),
        ok(std::os::unix::net::UnixDatagram::unbound()),
        ok(nothing_is_left(dir)),
    ]
    .iter()
    .collect()
}

/// Threads of a confined process are confined too.
fn nothing_is_left(dir: &Path) -> std::io::Result<()> {
    let path = dir.join("secret");
    let result = std::thread::spawn(move || std::fs::read(path)).join();
    result.map_err(|_| std::io::Error::other("the thread died"))?.map(drop)
}

/// Not a test of its own: the confined process of the ones below.
#[test]
fn probe() {
    let Some(dir) = std::env::var_os(PROBE) else { return };
    let dir = Path::new(&dir);
    let mut plan = Plan::default();
    plan.reads(&dir.join("in/image").to_string_lossy());
    plan.write_folder(&dir.join("out"));
    enter(&plan, Mode::Require).map_err(|f| f.message().to_owned()).unwrap();
    println!("PROBE {} PROBE", attempts(dir));
}

#[test]
fn only_what_the_command_names_can_be_used() {
    if files::version() == 0 || !calls::available() {
        eprintln!("SKIPPED the sandbox: {}", support());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    for folder in ["in", "out"] {
        std::fs::create_dir(at.join(folder)).unwrap();
    }
    for file in ["in/image", "secret"] {
        std::fs::write(at.join(file), b"x").unwrap();
    }
    let out = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sandbox::tests::probe", "--nocapture", "--test-threads=1"])
        .env(PROBE, at)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    let found = said.split("PROBE ").nth(1).and_then(|rest| rest.split(' ').next());
    assert_eq!(found, Some("1111110000000000"), "{said}{}", String::from_utf8_lossy(&out.stderr));
    assert!(!at.join("in/new").exists() && !at.join("elsewhere").exists());
}

#[test]
fn modes() {
    assert_eq!(Mode::parse("require"), Some(Mode::Require));
    assert_eq!(Mode::parse("maybe"), None);
    assert!(support().starts_with("sandbox: "));
}

//! What the end-to-end tests share: a guest of our own, the program, and patience.
#![allow(dead_code, unsafe_code, missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::arch::global_asm;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

pub const LIMIT: Duration = Duration::from_secs(60);

// Prints "ready" with a line feed, then answers what comes in on the serial port: `q` powers off, `r`
// restarts, `p` reports a panic, anything else comes back.
global_asm!(
    ".pushsection .rodata.guest_echo, \"a\"",
    "guest_echo_start:",
    ".code32",
    "mov edx, 0x3f8",
    "mov al, 'r'",
    "out dx, al",
    "mov al, 'e'",
    "out dx, al",
    "mov al, 'a'",
    "out dx, al",
    "mov al, 'd'",
    "out dx, al",
    "mov al, 'y'",
    "out dx, al",
    "mov al, 10",
    "out dx, al",
    "1: mov edx, 0x3fd",
    "in al, dx",
    "test al, 1",
    "jz 1b",
    "mov edx, 0x3f8",
    "in al, dx",
    "cmp al, 'q'",
    "je 2f",
    "cmp al, 'r'",
    "je 3f",
    "cmp al, 'p'",
    "je 4f",
    "out dx, al",
    "jmp 1b",
    "2: mov edx, 0x604",
    "mov ax, 0x3400",
    "out dx, ax",
    "jmp 1b",
    "3: mov edx, 0xcf9",
    "mov al, 0x0f",
    "out dx, al",
    "jmp 1b",
    "4: mov edx, 0x505",
    "mov al, 1",
    "out dx, al",
    "jmp 1b",
    "guest_echo_end:",
    ".popsection",
    ".code64",
);

fn code() -> &'static [u8] {
    unsafe extern "C" {
        static guest_echo_start: u8;
        static guest_echo_end: u8;
    }
    // SAFETY: both symbols delimit bytes that `global_asm!` put into this binary, in this order.
    unsafe {
        let start = &raw const guest_echo_start;
        let end = &raw const guest_echo_end;
        std::slice::from_raw_parts(start, end.offset_from(start).try_into().unwrap())
    }
}

/// An ELF file with one segment at 1 MiB and a PVH note (Xen's `hvm/start_info.h`).
fn elf(code: &[u8]) -> Vec<u8> {
    let mut b = vec![0; 64 + 2 * 56];
    b[..6].copy_from_slice(b"\x7fELF\x02\x01");
    (b[18], b[32], b[54], b[56]) = (62, 64, 56, 2);
    let data = b.len() as u64;
    let mut note = Vec::new();
    for w in [4u32, 4, 18] {
        note.extend_from_slice(&w.to_le_bytes());
    }
    note.extend_from_slice(b"Xen\0");
    note.extend_from_slice(&0x10_0000u32.to_le_bytes());
    let header = |kind: u32, offset: u64, len: u64| {
        let mut h = vec![0; 56];
        h[..4].copy_from_slice(&kind.to_le_bytes());
        h[8..16].copy_from_slice(&offset.to_le_bytes());
        h[24..32].copy_from_slice(&0x10_0000u64.to_le_bytes());
        h[32..40].copy_from_slice(&len.to_le_bytes());
        h[40..48].copy_from_slice(&len.to_le_bytes());
        h
    };
    b[64..120].copy_from_slice(&header(1, data, code.len() as u64));
    b[120..176].copy_from_slice(&header(4, data + code.len() as u64, note.len() as u64));
    b.extend_from_slice(code);
    b.extend_from_slice(&note);
    b
}

/// A folder with the guest's kernel, or `None` with a line that cannot be overlooked.
pub fn bench(what: &str) -> Option<Bench> {
    if let Err(e) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        eprintln!("SKIPPED {what}: no usable /dev/kvm: {e}");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("kernel"), elf(code())).unwrap();
    Some(Bench { folder })
}

pub struct Bench {
    pub folder: tempfile::TempDir,
}

impl Bench {
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `words` with `@` before names that lie in the folder.
    pub fn command(&self, words: &str) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_rkvm"));
        let folder = format!("{}/", self.folder.path().display());
        c.args(words.split_whitespace().map(|w| w.replace('@', &folder)));
        c.args(["-kernel".as_ref(), self.path("kernel").as_os_str()]);
        c.args(["-m", "16", "-cpu", "host", "-nodefaults", "-display", "none"]);
        c.current_dir(self.folder.path());
        c
    }

    pub fn start(&self, words: &str) -> Running {
        let mut command = self.command(words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running { child: command.spawn().unwrap() }
    }

    /// Runs it to its end.
    pub fn output(&self, words: &str) -> Output {
        let mut command = self.command(words);
        command.stdin(Stdio::null()).output().unwrap()
    }

    pub fn connect(&self, name: &str) -> Client {
        let path = self.path(name);
        let end = Instant::now() + LIMIT;
        loop {
            match UnixStream::connect(&path) {
                Ok(stream) => return Client::new(stream),
                Err(e) if Instant::now() > end => panic!("{}: {e}", path.display()),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

/// A running program, killed when dropped.
pub struct Running {
    pub child: Child,
}

impl Running {
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    pub fn type_in(&mut self, text: &[u8]) {
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(text).unwrap();
        stdin.flush().unwrap();
    }

    pub fn wait(&mut self) -> ExitStatus {
        let end = Instant::now() + LIMIT;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("it does not end");
    }

    pub fn errors(&mut self) -> String {
        let mut text = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads until something comes, or the limit is over.
pub struct Client {
    pub stream: UnixStream,
    pub seen: Vec<u8>,
}

impl Client {
    pub fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        Client { stream, seen: Vec::new() }
    }

    pub fn send(&mut self, text: impl AsRef<[u8]>) {
        self.stream.write_all(text.as_ref()).unwrap();
    }

    /// What has come up to and with `what`; it is taken away.
    pub fn until(&mut self, what: &str) -> String {
        let end = Instant::now() + LIMIT;
        loop {
            let found = self.seen.windows(what.len()).position(|w| w == what.as_bytes());
            if let Some(at) = found {
                let rest = self.seen.split_off(at + what.len());
                let text = std::mem::replace(&mut self.seen, rest);
                return String::from_utf8_lossy(&text).into_owned();
            }
            let so_far = String::from_utf8_lossy(&self.seen).into_owned();
            assert!(Instant::now() < end, "no {what:?} in {so_far:?}");
            let mut buf = [0; 4096];
            match self.stream.read(&mut buf) {
                Ok(0) => panic!("closed; no {what:?} in {so_far:?}"),
                Ok(n) => self.seen.extend_from_slice(&buf[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => panic!("{e}; no {what:?} in {so_far:?}"),
            }
        }
    }

    /// A line for the human monitor; the answer without the echo.
    pub fn hmp(&mut self, line: &str) -> String {
        self.send(format!("{line}\n"));
        self.until("\r\n");
        let answer = self.until("(qemu) ");
        answer.trim_end_matches("(qemu) ").to_owned()
    }

    /// A line of JSON.
    pub fn json(&mut self) -> serde_json::Value {
        let line = self.until("\r\n");
        serde_json::from_str(line.trim()).unwrap_or_else(|e| panic!("{e}: {line}"))
    }

    /// A QMP command; the answer without events, which are kept in `events`.
    pub fn qmp(&mut self, request: &str, events: &mut Vec<String>) -> serde_json::Value {
        self.send(request);
        loop {
            let got = self.json();
            match got["event"].as_str() {
                Some(e) => events.push(e.to_owned()),
                None => return got,
            }
        }
    }

    /// Whether the other side closes the connection.
    pub fn closed(&mut self) -> bool {
        let end = Instant::now() + LIMIT;
        let mut buf = [0; 4096];
        while Instant::now() < end {
            match self.stream.read(&mut buf) {
                Ok(0) => return true,
                Ok(n) => self.seen.extend_from_slice(&buf[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return true,
            }
        }
        false
    }
}

/// Waits until a file has this content.
pub fn wait_for(path: &Path, what: impl Fn(&str) -> bool) -> String {
    let end = Instant::now() + LIMIT;
    loop {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        if what(&text) {
            return text;
        }
        assert!(Instant::now() < end, "{}: {text:?}", path.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

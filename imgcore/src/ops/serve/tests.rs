//! The server against clients that misbehave; well-behaved ones are real (the suite's `nbd` tests).

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Control, Lifetime, Listener, ServeOptions, serve};
use crate::graph::open::{OpenOptions, OpenRequest, open};
use crate::nbd::*;
use crate::opts::nbd::NbdTarget;
use crate::opts::secret::Secrets;
use crate::storage::{FileOptions, NbdStorage, Storage};

/// Serves until the flag is set.
struct Until(Arc<AtomicBool>);

impl Control for Until {
    fn stop(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn refused(&self, _why: &str) {}
}

/// Serves a raw disk of 1 MiB to `clients`, which get the path of the socket.
fn with_server(clients: impl FnOnce(&str)) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("disk");
    std::fs::write(&file, vec![7; 1 << 20]).unwrap();
    let request = OpenRequest::file(file.to_string_lossy()).with_driver(Some("raw"));
    let node = open(&request, &OpenOptions::default().writable()).unwrap();
    let path = dir.path().join("s").to_string_lossy().into_owned();
    let listener = Listener::Unix(UnixListener::bind(&path).unwrap());
    let options =
        ServeOptions { shared: 4, lifetime: Lifetime::Persistent, ..ServeOptions::default() };
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let server = std::thread::spawn(move || {
        serve(&node, &options, &listener, &Until(stopped)).unwrap();
    });
    clients(&path);
    // It still serves.
    let target = NbdTarget::parse(&format!("nbd:unix:{path}")).unwrap();
    let storage = NbdStorage::open(
        &target,
        FileOptions { writable: true, ..FileOptions::default() },
        &Secrets::default(),
    );
    let storage = storage.unwrap();
    assert_eq!(storage.len().unwrap(), 1 << 20);
    storage.write_at(100, &[1, 2, 3]).unwrap();
    storage.flush().unwrap();
    let mut buf = [0; 5];
    storage.read_at(99, &mut buf).unwrap();
    assert_eq!(buf[1..4], [1, 2, 3]);
    assert_eq!(storage.write_at(1 << 20, &[1]).unwrap_err().raw_errno(), Some(libc::ENOSPC));
    drop(storage);
    stop.store(true, Ordering::Relaxed);
    server.join().unwrap();
}

fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut all = OPTION_MAGIC.to_be_bytes().to_vec();
    all.extend_from_slice(&option.to_be_bytes());
    all.extend_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
    all.extend_from_slice(data);
    all
}

fn request(command: u16, flags: u16, offset: u64, len: u32) -> Vec<u8> {
    let mut all = REQUEST_MAGIC.to_be_bytes().to_vec();
    all.extend_from_slice(&flags.to_be_bytes());
    all.extend_from_slice(&command.to_be_bytes());
    all.extend_from_slice(&42u64.to_be_bytes());
    all.extend_from_slice(&offset.to_be_bytes());
    all.extend_from_slice(&len.to_be_bytes());
    all
}

/// Says `bytes` and reads until the server hangs up.
fn say(path: &str, bytes: &[u8]) -> Vec<u8> {
    let mut socket = UnixStream::connect(path).unwrap();
    // The server may hang up before it has heard all.
    let _ = socket.write_all(bytes);
    let _ = socket.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    answer
}

const FLAGS: [u8; 4] = [0, 0, 0, 3];

/// `GO` for the empty name.
fn go() -> Vec<u8> {
    option(OPT_GO, &[0; 6])
}

#[test]
fn requests_that_make_no_sense_get_an_error_or_nothing() {
    with_server(|path| {
        let begin = [&FLAGS[..], &go()].concat();
        let plain = say(path, &begin).len();
        for (bad, errno) in [
            (request(CMD_READ, 0, 1 << 20, 1), 22u8),
            (request(CMD_READ, 0, u64::MAX, 2), 22),
            (request(CMD_READ, 0, 0, u32::MAX), 22),
            (request(CMD_TRIM, 0, 1, 1 << 20), 22),
            (request(CMD_WRITE_ZEROES, 0, 1, 1 << 20), 28),
            (request(CMD_READ, 0xfff0, 0, 512), 22),
            (request(CMD_BLOCK_STATUS, 0, 0, 512), 22),
            (request(99, 0, 0, 0), 22),
        ] {
            let answer = say(path, &[&begin[..], &bad].concat());
            let reply = &answer[plain..];
            assert_eq!((reply.len(), reply[7]), (16, errno), "{bad:?}");
        }
        // No answer, but the end: a wrong magic number, and a payload beyond all bounds.
        for bad in [vec![1; 28], request(CMD_WRITE, 0, 0, u32::MAX)] {
            assert_eq!(say(path, &[&begin[..], &bad].concat()).len(), plain);
        }
    });
}

#[test]
fn negotiations_are_bounded() {
    with_server(|path| {
        say(path, b"GET / HTTP/1.0\r\n\r\n");
        say(path, &[0xff; 4]);
        let mut huge = option(OPT_GO, b"");
        huge[12..].copy_from_slice(&u32::MAX.to_be_bytes());
        say(path, &[&FLAGS[..], &huge].concat());
        let endless = option(OPT_LIST, b"").repeat(10_000);
        assert!(say(path, &[&FLAGS[..], &endless].concat()).len() < 100_000);
        let mut many = vec![0; 4];
        many.extend_from_slice(&u32::MAX.to_be_bytes());
        let all =
            [&FLAGS[..], &option(OPT_STRUCTURED_REPLY, b""), &option(OPT_SET_META_CONTEXT, &many)];
        say(path, &all.concat());
    });
}

/// Good conversations with some bytes changed.
#[test]
fn changed_bytes_do_no_harm() {
    with_server(|path| {
        let query =
            [&[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 15][..], BASE_ALLOCATION.as_bytes()].concat();
        let good = [
            FLAGS.to_vec(),
            option(OPT_LIST, b""),
            option(OPT_STRUCTURED_REPLY, b""),
            option(OPT_SET_META_CONTEXT, &query),
            go(),
            request(CMD_READ, 0, 4096, 4096),
            request(CMD_BLOCK_STATUS, 0, 0, 1 << 20),
            request(CMD_WRITE_ZEROES, CMD_FLAG_NO_HOLE, 8192, 4096),
            request(CMD_FLUSH, 0, 0, 0),
        ]
        .concat();
        assert!(say(path, &good).len() > 4096);
        let mut seed = 99u32;
        let mut random = move || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            seed >> 8
        };
        for _ in 0..400 {
            let mut bytes = good.clone();
            for _ in 0..=random() % 3 {
                let at = random() as usize % bytes.len();
                bytes[at] = u8::try_from(random() & 255).unwrap();
            }
            bytes.truncate(bytes.len() - random() as usize % 40);
            say(path, &bytes);
        }
    });
}

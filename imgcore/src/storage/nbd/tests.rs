//! The client against servers that misbehave; well-behaved ones are real (the suite's `nbd` tests).

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::NbdStorage;
use crate::nbd::*;
use crate::opts::nbd::NbdTarget;
use crate::opts::secret::Secrets;
use crate::storage::{FileOptions, HostKind, Storage, ZeroMode};
use crate::{Error, Result};

const SIZE: u64 = 1 << 20;
const CONTEXT: u32 = 7;

/// A server that serves so many connections, each by `serve(number, socket)`.
struct Fake {
    _dir: tempfile::TempDir,
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    fn new(
        connections: usize,
        serve: impl Fn(usize, &mut UnixStream) -> std::io::Result<()> + Send + 'static,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let thread = std::thread::spawn(move || {
            for number in 0..connections {
                let (mut socket, _) = listener.accept().unwrap();
                // The client may hang up at any time.
                let _ = serve(number, &mut socket);
            }
        });
        Fake { _dir: dir, path, thread: Some(thread) }
    }

    fn target(&self, options: &str) -> NbdTarget {
        let mut all = vec![("path".to_owned(), self.path.to_string_lossy().into_owned())];
        all.extend(
            options.split(',').filter_map(|o| o.split_once('=')).map(|(k, v)| (k.into(), v.into())),
        );
        NbdTarget::from_options(None, &all).unwrap()
    }

    fn open(&self) -> Result<NbdStorage> {
        NbdStorage::open(
            &self.target(""),
            FileOptions { writable: true, ..FileOptions::default() },
            &Secrets::default(),
        )
    }

    fn end(mut self) {
        self.thread.take().unwrap().join().unwrap();
    }
}

fn get<const N: usize>(socket: &mut UnixStream) -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    socket.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut all = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
    for n in [option, kind, u32::try_from(data.len()).unwrap()] {
        all.extend_from_slice(&n.to_be_bytes());
    }
    all.extend_from_slice(data);
    all
}

/// Negotiates as far as the client's `GO`, whose answer `go` gives.
fn greet(socket: &mut UnixStream, structured: bool, go: &[Vec<u8>]) -> std::io::Result<()> {
    socket.write_all(&INIT_MAGIC.to_be_bytes())?;
    socket.write_all(&OPTION_MAGIC.to_be_bytes())?;
    socket.write_all(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes())?;
    get::<4>(socket)?;
    loop {
        get::<8>(socket)?;
        let option = u32::from_be_bytes(get(socket)?);
        let mut data = vec![0; u32::from_be_bytes(get(socket)?) as usize];
        socket.read_exact(&mut data)?;
        match option {
            OPT_STRUCTURED_REPLY => {
                let kind = if structured { REP_ACK } else { REP_ERR_UNSUP };
                socket.write_all(&option_reply(option, kind, b""))?;
            }
            OPT_SET_META_CONTEXT => {
                let context = [&CONTEXT.to_be_bytes()[..], BASE_ALLOCATION.as_bytes()].concat();
                socket.write_all(&option_reply(option, REP_META_CONTEXT, &context))?;
                socket.write_all(&option_reply(option, REP_ACK, b""))?;
            }
            _ => {
                for reply in go {
                    socket.write_all(reply)?;
                }
                return Ok(());
            }
        }
    }
}

fn export_info(size: u64) -> Vec<u8> {
    let flags = HAS_FLAGS | SEND_FLUSH | SEND_TRIM | SEND_WRITE_ZEROES | SEND_FUA;
    let data = [&INFO_EXPORT.to_be_bytes()[..], &size.to_be_bytes(), &flags.to_be_bytes()].concat();
    option_reply(OPT_GO, REP_INFO, &data)
}

fn block_info(min: u32, preferred: u32, max: u32) -> Vec<u8> {
    let mut data = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
    for n in [min, preferred, max] {
        data.extend_from_slice(&n.to_be_bytes());
    }
    option_reply(OPT_GO, REP_INFO, &data)
}

fn ack() -> Vec<u8> {
    option_reply(OPT_GO, REP_ACK, b"")
}

/// What the client asked: command, cookie, offset, length. A write's bytes are read too.
fn request(socket: &mut UnixStream) -> std::io::Result<(u16, u64, u64, u32)> {
    let head: [u8; 28] = get(socket)?;
    let number =
        |at: usize, n: usize| head[at..at + n].iter().fold(0u64, |a, b| a << 8 | u64::from(*b));
    let command = u16::try_from(number(6, 2)).unwrap();
    let len = u32::try_from(number(24, 4)).unwrap();
    if command == CMD_WRITE {
        let mut bytes = vec![0; len as usize];
        socket.read_exact(&mut bytes)?;
    }
    Ok((command, number(8, 8), number(16, 8), len))
}

fn chunk(flags: u16, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let mut all = STRUCTURED_MAGIC.to_be_bytes().to_vec();
    all.extend_from_slice(&flags.to_be_bytes());
    all.extend_from_slice(&kind.to_be_bytes());
    all.extend_from_slice(&cookie.to_be_bytes());
    all.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
    all.extend_from_slice(payload);
    all
}

fn simple(error: u32, cookie: u64) -> Vec<u8> {
    [&SIMPLE_MAGIC.to_be_bytes()[..], &error.to_be_bytes(), &cookie.to_be_bytes()].concat()
}

fn data(offset: u64, bytes: &[u8]) -> Vec<u8> {
    [&offset.to_be_bytes()[..], bytes].concat()
}

fn report(e: &Error) -> String {
    e.report()
}

#[test]
fn negotiations_that_make_no_sense_are_refused() {
    let endless: Vec<Vec<u8>> = (0..200).map(|_| export_info(SIZE)).collect();
    let mut huge = option_reply(OPT_GO, REP_INFO, b"");
    let at = huge.len() - 4;
    huge[at..].copy_from_slice(&u32::MAX.to_be_bytes());
    let cases: Vec<(Vec<Vec<u8>>, &str)> = vec![
        (endless, "without end"),
        (vec![huge], "at most 16384 are taken"),
        (vec![ack()], "does not tell the size"),
        (vec![option_reply(OPT_LIST, REP_ACK, b"")], "answers option 3 instead of 7"),
        (vec![option_reply(OPT_GO, REP_INFO, b"\0")], "short information"),
        (vec![option_reply(OPT_GO, REP_SERVER, b"")], "with 2"),
        (vec![export_info(SIZE), block_info(3, 3, 9), ack()], "no power of two"),
        (vec![export_info(SIZE), block_info(0, 0, 0), ack()], "no power of two"),
        (vec![export_info(SIZE), block_info(4096, 4096, 512), ack()], "at most 512"),
        (vec![export_info(SIZE + 1), block_info(512, 512, 512), ack()], "no multiple"),
        (vec![export_info(u64::MAX), ack()], "more than a file can have"),
        (vec![option_reply(OPT_GO, REP_ERR_TLS_REQD, b"")], "TLS"),
        (vec![option_reply(OPT_GO, REP_ERR_UNKNOWN, b"no\x1b[2Jne")], "not available"),
        (vec![option_reply(OPT_GO, REP_ERR_POLICY, b"")], "forbidden by its configuration"),
        (vec![vec![0; 100]], "without its magic"),
        (vec![], "closed the connection"),
    ];
    for (go, wanted) in cases {
        let fake = Fake::new(1, move |_, socket| greet(socket, true, &go));
        let error = fake.open().unwrap_err();
        assert!(report(&error).contains(wanted), "{error:?} without {wanted}");
        assert!(error.hints().iter().all(|h| !h.contains('\x1b')));
        fake.end();
    }
    let fake = Fake::new(1, |_, socket| socket.write_all(b"SSH-2.0-OpenSSH_9.2\r\n"));
    assert!(report(&fake.open().unwrap_err()).contains("does not speak NBD"));
}

#[test]
fn replies_that_do_not_fit_break_the_connection_once_and_for_all() {
    type Reply = fn(u64, u64, u32) -> Vec<u8>;
    let cases: &[(Reply, &str)] = &[
        (|c, _, _| chunk(1, REPLY_NONE, c ^ 1, b""), "request that was not made"),
        (|c, _, _| chunk(1, REPLY_NONE, c, b""), "0 of 4096 bytes"),
        (|c, o, _| chunk(1, REPLY_OFFSET_DATA, c, &data(o - 1, b"x")), "outside of what"),
        (
            |c, o, n| chunk(1, REPLY_OFFSET_DATA, c, &data(o + u64::from(n), b"x")),
            "outside of what",
        ),
        (|c, _, _| chunk(1, REPLY_OFFSET_DATA, c, &data(u64::MAX, b"x")), "outside of what"),
        (|c, o, _| chunk(1, REPLY_OFFSET_DATA, c, &data(o, b"")), "outside of what"),
        (|c, _, _| chunk(1, REPLY_OFFSET_DATA, c, b"x"), "too short"),
        (
            |c, o, n| chunk(0, REPLY_OFFSET_DATA, c, &data(o, &vec![1; n as usize])).repeat(2),
            "some bytes twice",
        ),
        (|c, _, _| chunk(0, REPLY_NONE, c, b"").repeat(1000), "too many pieces"),
        (|c, _, _| chunk(1, REPLY_BLOCK_STATUS, c, &[0; 12]), "does not fit the request"),
        (|c, _, _| chunk(1, REPLY_ERROR, c, &[0; 5]), "wrong length"),
        (|c, _, _| chunk(1, REPLY_ERROR, c, &[0, 0, 0, 5, 0xff, 0xff]), "wrong length"),
        (|c, _, _| simple(0, c), "simple reply"),
        (|_, _, _| vec![0x55; 64], "no reply but 0x55555555"),
        (|_, _, _| vec![], "closed the connection"),
    ];
    for (reply, wanted) in cases {
        let fake = Fake::new(1, move |_, socket| {
            greet(socket, true, &[export_info(SIZE), ack()])?;
            let (_, cookie, offset, len) = request(socket)?;
            socket.write_all(&reply(cookie, offset, len))
        });
        let storage = fake.open().unwrap();
        let mut buf = vec![0; 4096];
        let error = storage.read_at(8192, &mut buf).unwrap_err();
        assert!(report(&error).contains(wanted), "{error:?} without {wanted}");
        let later = storage.read_at(0, &mut buf).unwrap_err();
        assert!(report(&later).contains("broke"), "{later:?}");
        fake.end();
    }
}

#[test]
fn status_replies_are_checked() {
    let status = |context: u32, extents: &[(u32, u32)]| {
        let mut all = context.to_be_bytes().to_vec();
        for (len, flags) in extents {
            all.extend_from_slice(&len.to_be_bytes());
            all.extend_from_slice(&flags.to_be_bytes());
        }
        all
    };
    let cases = [
        (status(CONTEXT, &[(4096, 0), (u32::MAX, 3)]), ""),
        (status(CONTEXT + 1, &[(4096, 0)]), "not asked for"),
        (status(CONTEXT, &[(0, 0)]), "empty extent"),
        (status(CONTEXT, &[]), "wrong length"),
        (vec![0, 0, 0, 7, 1], "wrong length"),
    ];
    for (payload, wanted) in cases {
        let fake = Fake::new(1, move |_, socket| {
            greet(socket, true, &[export_info(SIZE), ack()])?;
            let (command, cookie, ..) = request(socket)?;
            assert_eq!(command, CMD_BLOCK_STATUS);
            socket.write_all(&chunk(1, REPLY_BLOCK_STATUS, cookie, &payload))
        });
        let storage = fake.open().unwrap();
        match storage.status(0, SIZE) {
            Ok(extent) => {
                assert_eq!((extent.kind, extent.len, wanted), (HostKind::Data, 4096, ""));
                let rest = storage.status(4096, SIZE).unwrap();
                assert_eq!((rest.kind, rest.len), (HostKind::Hole, SIZE - 4096));
            }
            Err(e) => assert!(!wanted.is_empty() && report(&e).contains(wanted), "{e:?}"),
        }
    }
}

#[test]
fn errors_of_the_server_leave_the_connection_alone() {
    let fake = Fake::new(1, |_, socket| {
        greet(socket, true, &[export_info(SIZE), ack()])?;
        let (_, cookie, ..) = request(socket)?;
        let mut payload = 28u32.to_be_bytes().to_vec();
        payload.extend_from_slice(&4u16.to_be_bytes());
        payload.extend_from_slice(b"full");
        socket.write_all(&chunk(1, REPLY_ERROR, cookie, &payload))?;
        let (_, cookie, offset, len) = request(socket)?;
        socket.write_all(&chunk(0, REPLY_OFFSET_DATA, cookie, &data(offset, &[9; 100])))?;
        let mut hole = (offset + 100).to_be_bytes().to_vec();
        hole.extend_from_slice(&(len - 100).to_be_bytes());
        socket.write_all(&chunk(1, REPLY_OFFSET_HOLE, cookie, &hole))
    });
    let storage = fake.open().unwrap();
    let error = storage.write_zeroes(0, 4096, ZeroMode::MayUnmap).unwrap_err();
    assert_eq!(error.raw_errno(), Some(libc::ENOSPC));
    assert!(report(&error).contains("server reported: full"), "{error:?}");
    let mut buf = [1; 512];
    storage.read_at(SIZE - 300, &mut buf).unwrap();
    assert!(buf[..100] == [9; 100] && buf[100..] == [0; 412]);
    fake.end();
}

#[test]
fn a_server_of_old_style_without_options() {
    let fake = Fake::new(1, |_, socket| {
        socket.write_all(&INIT_MAGIC.to_be_bytes())?;
        socket.write_all(&OPTION_MAGIC.to_be_bytes())?;
        socket.write_all(&0u16.to_be_bytes())?;
        get::<4>(socket)?;
        get::<16>(socket)?;
        socket.write_all(&1000u64.to_be_bytes())?;
        socket.write_all(&HAS_FLAGS.to_be_bytes())?;
        socket.write_all(&[0; 124])?;
        let (_, cookie, _, len) = request(socket)?;
        socket.write_all(&simple(0, cookie))?;
        socket.write_all(&vec![3; len as usize])?;
        let (_, cookie, ..) = request(socket)?;
        socket.write_all(&simple(5, cookie))
    });
    let storage = fake.open().unwrap();
    assert_eq!(storage.len().unwrap(), 1000);
    let mut buf = [0; 1024];
    storage.read_at(0, &mut buf).unwrap();
    assert!(buf[..1000] == [3; 1000] && buf[1000..] == [0; 24]);
    assert_eq!(storage.read_at(0, &mut buf).unwrap_err().raw_errno(), Some(libc::EIO));
    // Flushing is not offered, zeroes have no command, and only zeroes may be written past the end.
    storage.flush().unwrap();
    storage.write_at(1000, &[0; 24]).unwrap();
    assert_eq!(storage.write_at(1000, &[1]).unwrap_err().raw_errno(), Some(libc::ENOSPC));
    assert!(storage.set_len(1001, crate::storage::Preallocation::Off).is_err());
    fake.end();
}

#[test]
fn a_broken_connection_is_replaced_where_that_is_wanted() {
    let fake = Fake::new(2, |number, socket| {
        greet(socket, true, &[export_info(SIZE), ack()])?;
        let (_, cookie, offset, len) = request(socket)?;
        if number == 0 {
            return Ok(());
        }
        let bytes = vec![5; len as usize];
        socket.write_all(&chunk(1, REPLY_OFFSET_DATA, cookie, &data(offset, &bytes)))
    });
    let target = fake.target("reconnect-delay=60");
    let storage = NbdStorage::open(&target, FileOptions::default(), &Secrets::default()).unwrap();
    let mut buf = [0; 512];
    storage.read_at(512, &mut buf).unwrap();
    assert_eq!(buf, [5; 512]);
    fake.end();
}

#[test]
fn requests_of_many_threads_are_answered_in_any_order() {
    let fake = Fake::new(1, |_, socket| {
        greet(socket, true, &[export_info(SIZE), ack()])?;
        for _ in 0..20 {
            let mut all = (0..4).map(|_| request(socket)).collect::<std::io::Result<Vec<_>>>()?;
            all.reverse();
            for (_, cookie, offset, len) in all {
                let byte = u8::try_from(offset / 4096).unwrap();
                let bytes = vec![byte; len as usize];
                socket.write_all(&chunk(1, REPLY_OFFSET_DATA, cookie, &data(offset, &bytes)))?;
            }
        }
        Ok(())
    });
    let storage = Arc::new(fake.open().unwrap());
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let storage = &storage;
            scope.spawn(move || {
                for round in 0..20u8 {
                    let block = thread * 20 + round;
                    let mut buf = vec![0; 4096];
                    storage.read_at(u64::from(block) * 4096, &mut buf).unwrap();
                    assert!(buf.iter().all(|b| *b == block));
                }
            });
        }
    });
    fake.end();
}

/// Good conversations with some bytes changed: whatever comes of it, it ends.
#[test]
fn changed_bytes_end_in_data_or_in_an_error() {
    let mut seed = 12_345u32;
    let mut random = move || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        seed >> 8
    };
    for _ in 0..300 {
        let changes: Vec<(u32, u8)> =
            (0..=random() % 3).map(|_| (random(), u8::try_from(random() & 255).unwrap())).collect();
        let in_reply = random() % 2 == 0;
        let fake = Fake::new(1, move |_, socket| {
            let change = |bytes: &mut Vec<u8>, really: bool| {
                let len = u32::try_from(bytes.len()).unwrap();
                changes
                    .iter()
                    .filter(|_| really)
                    .for_each(|(at, b)| bytes[(at % len) as usize] = *b);
            };
            let mut go = [export_info(SIZE), block_info(512, 4096, 65536), ack()].concat();
            change(&mut go, !in_reply);
            greet(socket, true, &[go])?;
            if !in_reply {
                // A changed length must not make both sides wait for each other.
                return socket.shutdown(std::net::Shutdown::Both);
            }
            let (command, cookie, offset, len) = request(socket)?;
            let mut reply = match command {
                CMD_READ => [
                    chunk(0, REPLY_OFFSET_DATA, cookie, &data(offset, &[7; 512])),
                    chunk(
                        1,
                        REPLY_OFFSET_DATA,
                        cookie,
                        &data(offset + 512, &vec![7; len as usize - 512]),
                    ),
                ]
                .concat(),
                _ => simple(0, cookie),
            };
            change(&mut reply, in_reply);
            socket.write_all(&reply)
        });
        if let Ok(storage) = fake.open() {
            let mut buf = vec![0; 2048];
            let _ = storage.read_at(1024, &mut buf);
            let _ = storage.status(0, 4096);
        }
        fake.end();
    }
}

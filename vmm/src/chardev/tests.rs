//! Character devices with real descriptors on the other side.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::config::*;
use super::*;
use crate::devices::Output;

/// Keeps what arrives; takes only so much at a time.
#[derive(Default)]
struct Front {
    got: Mutex<(Vec<u8>, Vec<CharEvent>)>,
    changed: Condvar,
}

impl FrontEnd for Front {
    fn receive(&self, bytes: &[u8]) -> usize {
        let n = bytes.len().min(3);
        self.got.lock().unwrap().0.extend_from_slice(&bytes[..n]);
        self.changed.notify_all();
        n
    }
    fn event(&self, event: CharEvent) {
        self.got.lock().unwrap().1.push(event);
        self.changed.notify_all();
    }
}

impl Front {
    fn until(&self, what: impl Fn(&[u8], &[CharEvent]) -> bool) -> (Vec<u8>, Vec<CharEvent>) {
        let end = Instant::now() + Duration::from_secs(20);
        let mut got = self.got.lock().unwrap();
        while !what(&got.0, &got.1) {
            let left = end.checked_duration_since(Instant::now());
            let left = left.unwrap_or_else(|| panic!("only got {got:?}"));
            got = self.changed.wait_timeout(got, left).unwrap().0;
        }
        got.clone()
    }
}

fn open(config: impl Into<CharConfig>, standard: Standard) -> (Arc<Chardev>, Vec<String>) {
    let (mut standard, mut notes) = (standard, Vec::new());
    let device =
        Chardev::open("c0", &config.into(), &mut standard, &mut |n| notes.push(n.to_owned()))
            .unwrap();
    (device, notes)
}

fn no_keys() -> OnKey {
    Arc::new(|_| {})
}

fn server(path: &std::path::Path, protocol: Protocol) -> CharConfig {
    CharKind::Socket(SocketConfig {
        address: SocketAddress::Unix(path.into()),
        role: Role::Server(Wait::Off),
        protocol,
        nodelay: false,
    })
    .into()
}

#[test]
fn a_server_is_left_and_entered_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let (device, _) = open(server(&path, Protocol::Raw), Standard::default());
    assert_eq!(device.filename(), format!("disconnected:unix:{},server=on", path.display()));
    let front = Arc::new(Front::default());
    device.attach(front.clone()).unwrap();
    assert!(device.attach(front.clone()).unwrap_err().to_string().contains("in use"));
    let mut writer = device.writer(Patience::Brief);
    writer.put(b"nobody is there");
    device.start(1, no_keys()).unwrap();
    for round in 1..=2 {
        let mut client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let opened = |e: &[CharEvent]| e.iter().filter(|e| **e == CharEvent::Opened).count();
        front.until(|_, e| opened(e) == round);
        writer.put(b"hello");
        let mut buf = [0; 5];
        client.read_exact(&mut buf).unwrap();
        assert_eq!(&buf, b"hello");
        client.write_all(b"from the client").unwrap();
        front.until(|b, _| b.len() == 15 * round);
        drop(client);
        front.until(|_, e| e.iter().filter(|e| **e == CharEvent::Closed).count() == round);
    }
    drop(device);
    assert!(!path.exists(), "the socket is taken away");
}

#[test]
fn a_reader_that_is_stuck_delays_once_and_one_that_is_slow_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let (device, _) = open(server(&path, Protocol::Raw), Standard::default());
    let front = Arc::new(Front::default());
    device.attach(front.clone()).unwrap();
    device.start(1, no_keys()).unwrap();
    let mut client = UnixStream::connect(&path).unwrap();
    front.until(|_, e| e.contains(&CharEvent::Opened));
    let mut writer = device.writer(Patience::Brief);
    let begin = Instant::now();
    for _ in 0..2000 {
        writer.put(&[b'x'; 1024]);
    }
    // One wait of PATIENCE, not two thousand.
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    // A monitor's writer gives up when the client goes.
    let mut patient = device.writer(Patience::UntilGone);
    let thread = std::thread::spawn(move || patient.put(&vec![b'y'; 1 << 20]));
    std::thread::sleep(Duration::from_millis(50));
    let mut some = vec![0; 100];
    client.read_exact(&mut some).unwrap();
    drop(client);
    thread.join().unwrap();
    // Slow: everything arrives.
    let mut client = UnixStream::connect(&path).unwrap();
    front.until(|_, e| e.iter().filter(|e| **e == CharEvent::Opened).count() == 2);
    let mut patient = device.writer(Patience::UntilGone);
    let thread = std::thread::spawn(move || patient.put(&vec![b'z'; 1 << 20]));
    let mut all = vec![0; 1 << 20];
    for piece in all.chunks_mut(64 << 10) {
        std::thread::sleep(Duration::from_millis(2));
        client.read_exact(piece).unwrap();
    }
    assert!(all.iter().all(|b| *b == b'z'));
    thread.join().unwrap();
}

#[test]
fn telnet_negotiates_and_breaks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let (device, _) = open(server(&path, Protocol::Telnet), Standard::default());
    let front = Arc::new(Front::default());
    device.attach(front.clone()).unwrap();
    device.start(1, no_keys()).unwrap();
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(&[255, 253, 1, b'o', b'k', 255, 243]).unwrap();
    front.until(|b, e| b == b"ok" && e.contains(&CharEvent::Break));
    device.writer(Patience::Brief).put(b"a\xffb");
    let mut got = [0; telnet::GREETING.len() + 4];
    client.read_exact(&mut got).unwrap();
    assert_eq!(got[..telnet::GREETING.len()], telnet::GREETING);
    assert_eq!(&got[telnet::GREETING.len()..], b"a\xff\xffb");
}

#[test]
fn a_client_dials_until_somebody_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let config = |role| -> CharConfig {
        CharKind::Socket(SocketConfig {
            address: SocketAddress::Unix(path.clone()),
            role,
            protocol: Protocol::Raw,
            nodelay: false,
        })
        .into()
    };
    let refused =
        Chardev::open("c", &config(Role::Client(None)), &mut Standard::default(), &mut |_| {});
    assert!(refused.unwrap_err().hints().iter().any(|h| h.contains("reconnect=")));
    let pause = Some(Duration::from_millis(20));
    let (device, _) = open(config(Role::Client(pause)), Standard::default());
    let front = Arc::new(Front::default());
    device.attach(front.clone()).unwrap();
    device.start(1, no_keys()).unwrap();
    for round in 1..=2 {
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        peer.write_all(b"abc").unwrap();
        front.until(|b, _| b.len() == 3 * round);
    }
}

#[test]
fn keys_switch_between_the_front_ends_of_a_shared_device() {
    let (reader, mut keyboard) = std::io::pipe().unwrap();
    let (mut screen, output) = std::io::pipe().unwrap();
    let standard =
        Standard { input: Some(OwnedFd::from(reader)), output: Some(OwnedFd::from(output)) };
    let kind = CharKind::Stdio { signals: Signals::Pass };
    let config = CharConfig { sharing: Sharing::Mux, ..kind.into() };
    let (device, _) = open(config, standard);
    let (serial, monitor) = (Arc::new(Front::default()), Arc::new(Front::default()));
    device.attach(serial.clone()).unwrap();
    device.attach(monitor.clone()).unwrap();
    let pressed = Arc::new(Mutex::new(Vec::new()));
    let seen = pressed.clone();
    device.start(1, Arc::new(move |k| seen.lock().unwrap().push(k))).unwrap();
    keyboard.write_all(b"to serial\x01cto monitor\x01b\x01cback\x01\x01\x01t").unwrap();
    serial.until(|b, e| b == b"to serialback\x01" && e.contains(&CharEvent::FocusIn));
    monitor.until(|b, e| {
        b == b"to monitor" && e == [CharEvent::FocusIn, CharEvent::Break, CharEvent::FocusOut]
    });
    keyboard.write_all(b"\x01x").unwrap();
    let mut text = vec![0; 18];
    screen.read_exact(&mut text).unwrap();
    assert_eq!(text, b"rkvm: Terminated\r\n");
    device.writer(Patience::Brief).put(b"line\n");
    let mut text = vec![0; 20];
    screen.read_exact(&mut text).unwrap();
    assert!(text.starts_with(b"[00:00:0") && text.ends_with(b"] line\n"), "{text:?}");
    drop(device);
    assert_eq!(*pressed.lock().unwrap(), [Key::Quit]);
}

#[test]
fn files_rings_and_logs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    std::fs::write(&path, "old ").unwrap();
    let log = LogFile { path: folder.path().join("log"), mode: FileMode::Truncate };
    let file = |mode| CharConfig {
        log: Some(log.clone()),
        ..CharKind::File { path: path.clone(), mode, input: None }.into()
    };
    open(file(FileMode::Append), Standard::default()).0.writer(Patience::Brief).put(b"new");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "old new");
    assert_eq!(std::fs::read_to_string(&log.path).unwrap(), "new");
    open(file(FileMode::Truncate), Standard::default()).0.writer(Patience::Brief).put(b"x");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "x");
    let (ring, _) = open(CharKind::Ring(8), Standard::default());
    ring.writer(Patience::Brief).put(b"0123456789");
    assert_eq!(ring.read_ring(3).unwrap(), b"234");
    assert_eq!(ring.read_ring(9).unwrap(), b"56789");
    let missing =
        CharKind::File { path: "/nonexistent/x".into(), mode: FileMode::Truncate, input: None };
    let e = Chardev::open("c1", &missing.into(), &mut Standard::default(), &mut |_| {});
    let e = e.unwrap_err().report();
    assert!(e.contains("c1") && e.contains("/nonexistent/x"), "{e}");
}

#[test]
fn a_pseudo_terminal_is_opened_and_closed() {
    let (device, notes) = open(CharKind::Pty, Standard::default());
    let name = device.filename();
    let path = name.strip_prefix("pty:").unwrap();
    assert_eq!(notes, [format!("char device redirected to {path} (label c0)")]);
    let front = Arc::new(Front::default());
    device.attach(front.clone()).unwrap();
    device.start(1, no_keys()).unwrap();
    for round in 1..=2 {
        let mut terminal = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        terminal.write_all(b"typed").unwrap();
        front.until(|b, _| b.len() == 5 * round);
        device.writer(Patience::Brief).put(b"shown");
        let mut buf = [0; 5];
        terminal.read_exact(&mut buf).unwrap();
        assert_eq!(&buf, b"shown");
        drop(terminal);
        front.until(|_, e| e.iter().filter(|e| **e == CharEvent::Closed).count() == round);
    }
}

#[test]
fn pipes_and_datagrams() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("p");
    let e = Chardev::open(
        "c",
        &CharKind::Pipe(base.clone()).into(),
        &mut Standard::default(),
        &mut |_| {},
    );
    assert!(e.unwrap_err().hints().iter().any(|h| h.contains("mkfifo")));
    for suffix in ["in", "out"] {
        let path = base.with_extension(suffix);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    }
    let (device, _) = open(CharKind::Pipe(base.clone()), Standard::default());
    let front = Arc::new(Front::default());
    device.attach(front.clone()).unwrap();
    device.start(1, no_keys()).unwrap();
    std::fs::write(base.with_extension("in"), "through a pipe").unwrap();
    front.until(|b, _| b == b"through a pipe");
    device.writer(Patience::Brief).put(b"back");
    let mut buf = [0; 4];
    std::fs::File::open(base.with_extension("out")).unwrap().read_exact(&mut buf).unwrap();
    assert_eq!(&buf, b"back");

    let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = peer.local_addr().unwrap().port();
    let kind = CharKind::Udp { to: (String::new(), port), from: ("127.0.0.1".into(), 0) };
    let (device, _) = open(kind, Standard::default());
    let front = Arc::new(Front::default());
    device.attach(front.clone()).unwrap();
    device.start(1, no_keys()).unwrap();
    device.writer(Patience::Brief).put(b"datagram");
    let mut buf = [0; 64];
    let (n, from) = peer.recv_from(&mut buf).unwrap();
    assert_eq!(&buf[..n], b"datagram");
    peer.send_to(b"answer", from).unwrap();
    front.until(|b, _| b == b"answer");
}

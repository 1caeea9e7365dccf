//! Servers that do what real ones do only on bad days: see also the suite's `http` test with real ones.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::*;
use crate::opts::secret::Secrets;
use crate::storage::Storage;
use crate::{Error, ErrorKind};

/// A request: its path, the range it asks for, all its lines.
struct Request {
    path: String,
    start: u64,
    end: u64,
    lines: String,
}

/// Answers requests with a function until dropped; the function is told how many came before.
struct Server {
    url: String,
    count: Arc<AtomicUsize>,
    end: Arc<AtomicBool>,
    address: std::net::SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
}

type Answer = dyn Fn(usize, &Request) -> Vec<u8> + Send + Sync;

impl Server {
    fn new(answer: impl Fn(usize, &Request) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (count, end) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let answer: Arc<Answer> = Arc::new(answer);
        let (n, stop, log) = (Arc::clone(&count), Arc::clone(&end), Arc::clone(&seen));
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (answer, n, log) = (Arc::clone(&answer), Arc::clone(&n), Arc::clone(&log));
                std::thread::spawn(move || one(socket.unwrap(), &*answer, &n, &log));
            }
        });
        Server { url: format!("http://{address}/x"), count, end, address, seen }
    }

    fn open(&self) -> Result<HttpStorage> {
        HttpStorage::open(&self.target(), &Secrets::default())
    }

    fn target(&self) -> HttpTarget {
        HttpTarget { readahead: 64 << 10, ..HttpTarget::parse(&self.url).unwrap() }
    }

    fn requests(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

/// One connection, one request.
fn one(mut socket: TcpStream, answer: &Answer, count: &AtomicUsize, log: &Mutex<Vec<String>>) {
    let mut lines = String::new();
    let mut reader = BufReader::new(socket.try_clone().unwrap());
    while reader.read_line(&mut lines).is_ok_and(|n| n > 2) {}
    let Some(path) = lines.split_whitespace().nth(1) else { return };
    let range = lines
        .lines()
        .find_map(|l| l.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
    let (start, end) = range
        .and_then(|r| {
            r.split_once('-').map(|(a, b)| (a.parse().unwrap(), b.parse::<u64>().unwrap() + 1))
        })
        .unwrap();
    let request = Request { path: path.to_owned(), start, end, lines: lines.clone() };
    log.lock().unwrap().push(lines);
    let bytes = answer(count.fetch_add(1, Ordering::SeqCst), &request);
    let _ = socket.write_all(&bytes);
}

fn byte(at: u64) -> u8 {
    u8::try_from((at / 7) % 251).unwrap()
}

fn content(start: u64, end: u64) -> Vec<u8> {
    (start..end).map(byte).collect()
}

/// The answer of a server that does everything right.
fn part(request: &Request, size: u64, tag: &str) -> Vec<u8> {
    let end = request.end.min(size);
    let mut all = format!(
        "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {}-{}/{size}\r\nContent-Length: {}\r\n\
         ETag: \"{tag}\"\r\nConnection: close\r\n\r\n",
        request.start,
        end - 1,
        end - request.start
    )
    .into_bytes();
    all.extend(content(request.start, end));
    all
}

fn plain(status: &str, more: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n{more}\r\n")
        .into_bytes()
}

const SIZE: u64 = 1_000_000;

fn reads(storage: &HttpStorage, start: u64, len: usize) {
    let mut buf = vec![0xff; len];
    storage.read_at(start, &mut buf).unwrap();
    let end = (start + len as u64).min(SIZE);
    let mut wanted = content(start.min(end), end);
    wanted.resize(len, 0);
    assert!(buf == wanted, "{start}+{len}");
}

fn why(error: &Error) -> String {
    format!("{} {}", error.report(), error.hints().join(" "))
}

#[test]
fn reads_of_any_place_and_size() {
    let server = Server::new(|_, request| part(request, SIZE, "a"));
    let storage = server.open().unwrap();
    assert_eq!(storage.len().unwrap(), SIZE);
    for (start, len) in
        [(0, 10), (65_535, 2), (500_000, 300_000), (SIZE - 5, 10), (SIZE, 4), (3 * SIZE, 4)]
    {
        reads(&storage, start, len);
    }
    let before = server.requests();
    for _ in 0..100 {
        reads(&storage, 70_000, 512);
    }
    assert_eq!(server.requests(), before, "what was fetched is not fetched again");
    assert!(storage.write_at(0, b"x").unwrap_err().report().contains("does not support writes"));
    assert!(storage.identity().unwrap().contains("ETag \"a\""));
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let storage = &storage;
            scope.spawn(move || {
                for n in (thread..200).step_by(4) {
                    reads(storage, n * 5000, 5000);
                }
            });
        }
    });
}

#[test]
fn a_file_that_changes_is_an_error() {
    let answers: [fn(&Request) -> Vec<u8>; 4] = [
        |r| part(r, SIZE, "b"),
        |r| part(r, SIZE + 1, "a"),
        |_| plain("200 OK", ""),
        |_| plain("416 Range Not Satisfiable", "Content-Range: bytes */10\r\n"),
    ];
    for answer in answers {
        let server = Server::new(move |n, r| if n == 0 { part(r, SIZE, "a") } else { answer(r) });
        let storage = server.open().unwrap();
        let error = storage.read_at(500_000, &mut [0; 512]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(why(&error).contains("has changed since it was opened"), "{error:?}");
        assert_eq!(error.offset(), Some(458_752));
    }
}

#[test]
fn answers_that_do_not_fit_are_refused() {
    let head = |range: &str, more: &str| {
        format!("HTTP/1.1 206 Partial Content\r\n{range}Connection: close\r\n{more}\r\nabc")
            .into_bytes()
    };
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (head("", "Content-Length: 3\r\n"), "which part of the file"),
        (head("Content-Range: bytes 1-3/1000000\r\n", "Content-Length: 3\r\n"), "instead of"),
        (
            head("Content-Range: bytes 0-99999999/1000000\r\n", "Content-Length: 3\r\n"),
            "which part",
        ),
        (
            head(
                "Content-Range: bytes 65536-65538/1000000\r\n",
                "Content-Encoding: gzip\r\nContent-Length: 3\r\n",
            ),
            "packs the file as 'gzip'",
        ),
        (plain("404 Not Found", ""), "404 Not Found"),
        (plain("403 Forbidden", ""), "password-secret"),
        (plain("302 Found", ""), "without saying where to"),
        (plain("302 Found", "Location: /x\r\n"), "more than 10 times"),
    ];
    for (answer, wanted) in cases {
        let copy = answer.clone();
        let server =
            Server::new(move |n, r| if n == 0 { part(r, SIZE, "a") } else { copy.clone() });
        let storage = server.open().unwrap();
        let error = storage.read_at(65_536, &mut [0; 512]).unwrap_err();
        assert!(why(&error).contains(wanted), "{error:?} without {wanted}");
    }
    let error = Server::new(|_, _| b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()).open().unwrap_err();
    assert!(!why(&error).is_empty());
    let unknown = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-2/*\r\n";
    let unknown =
        format!("{unknown}Content-Length: 3\r\nConnection: close\r\n\r\nabc").into_bytes();
    let error = Server::new(move |_, _| unknown.clone()).open().unwrap_err();
    assert!(why(&error).contains("how long the file is"), "{error:?}");
}

#[test]
fn connections_that_break_are_replaced() {
    // Every answer ends 40000 bytes early; every third one is "later".
    let server = Server::new(|n, request| {
        if n % 3 == 1 {
            return plain("503 Service Unavailable", "");
        }
        let mut all = part(request, SIZE, "a");
        all.truncate(all.len().saturating_sub(40_000).max(all.len().min(12_000)));
        all
    });
    let storage = server.open().unwrap();
    reads(&storage, 200_000, 200_000);
}

#[test]
fn a_server_that_never_delivers_is_given_up() {
    let server = Server::new(|n, r| {
        if n == 0 { part(r, SIZE, "a") } else { plain("500 Internal Server Error", "") }
    });
    let storage = server.open().unwrap();
    let error = storage.read_at(500_000, &mut [0; 16]).unwrap_err();
    assert!(why(&error).contains("given up after 7 tries"), "{error:?}");
    assert_eq!(server.requests(), 8);
    // One that was never there is not tried twice.
    let url = "http://127.0.0.1:1/x";
    let error =
        HttpStorage::open(&HttpTarget::parse(url).unwrap(), &Secrets::default()).unwrap_err();
    assert!(why(&error).contains("refused"), "{error:?}");
}

#[test]
fn a_name_and_password_go_to_the_named_server_only() {
    let other = Server::new(|_, request| part(request, SIZE, "a"));
    let to = other.url.clone();
    let server = Server::new(move |_, request| match request.path.as_str() {
        "/x" => plain("302 Found", "Location: y?q=1\r\n"),
        "/y?q=1" => plain("307 Temporary Redirect", &format!("Location: {to}\r\n")),
        _ => plain("404 Not Found", ""),
    });
    let url = server.url.replace("http://", "http://me:pa%20ss@");
    let options = [("url".to_owned(), url), ("cookie".to_owned(), "a=b".to_owned())];
    let target = HttpTarget::from_options("http", None, &options).unwrap();
    let storage = HttpStorage::open(&target, &Secrets::default()).unwrap();
    reads(&storage, 600_000, 1000);
    assert!(!storage.name().contains("me"));
    let seen = server.seen.lock().unwrap().join("");
    assert_eq!(server.requests(), 2, "the second read goes straight to the other server: {seen}");
    // me:pa ss
    assert!(seen.to_lowercase().contains("authorization: basic bwu6cgegc3m="), "{seen}");
    assert!(seen.to_lowercase().contains("cookie: a=b"));
    let seen = other.seen.lock().unwrap().join("").to_lowercase();
    assert!(!seen.contains("authorization") && !seen.contains("cookie"), "{seen}");
}

#[test]
fn a_server_without_ranges_is_a_stream() {
    let server = Server::new(|_, request| {
        assert!(request.lines.contains("identity"), "{}", request.lines);
        let mut all =
            b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\nConnection: close\r\n\r\n".to_vec();
        all.extend(content(0, SIZE));
        all
    });
    let error = server.open().unwrap_err();
    assert!(why(&error).contains("Server does not support 'range'"), "{error:?}");
    let Opened::Stream(mut stream) = open(&server.target(), &Secrets::default()).unwrap() else {
        panic!("no stream")
    };
    let mut all = Vec::new();
    std::io::Read::read_to_end(&mut stream, &mut all).unwrap();
    assert!(all == content(0, SIZE));
    let cut = Server::new(|_, _| {
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\nConnection: close\r\n\r\nabc".to_vec()
    });
    let Opened::Stream(mut stream) = open(&cut.target(), &Secrets::default()).unwrap() else {
        panic!("no stream")
    };
    assert!(std::io::Read::read_to_end(&mut stream, &mut Vec::new()).is_err());
}

#[test]
fn an_empty_file() {
    let server =
        Server::new(|_, _| plain("416 Range Not Satisfiable", "Content-Range: bytes */0\r\n"));
    let storage = server.open().unwrap();
    assert_eq!(storage.len().unwrap(), 0);
    reads(&storage, SIZE, 10);
}

/// Changed bytes in an answer end in data or in an error, and they end.
#[test]
fn changed_answers_end() {
    let mut seed = 4_711u32;
    for _ in 0..200 {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let (at, value) = ((seed >> 8) as usize % 200, (seed >> 24).to_le_bytes()[0]);
        let server = Server::new(move |n, request| {
            let mut all = part(request, 2000, "a");
            if n == 0 {
                all[at] = value;
                all
            } else {
                plain("404 Not Found", "")
            }
        });
        if let Ok(storage) = server.open() {
            let _ = storage.read_at(100, &mut [0; 512]);
        }
    }
}

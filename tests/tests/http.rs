//! Images on web servers: nginx, which gives parts of files, and Python's server, which does not.

#![allow(clippy::unwrap_used, clippy::panic)] // all of it is test code

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use suite::daemon::{Daemon, data_and_zeroes, free_port};
use suite::process::{Invocation, Outcome};
use suite::tools;

fn call(dir: &Path, args: &[&str]) -> Invocation {
    let call = Invocation::new(tools::rimg().unwrap(), dir).args(args);
    call.time_limit(Duration::from_secs(120))
}

fn rimg(dir: &Path, args: &[&str]) -> Outcome {
    call(dir, args).run().unwrap()
}

fn good(dir: &Path, args: &[&str]) -> String {
    let outcome = rimg(dir, args);
    assert!(outcome.success(), "{args:?}: {}", outcome.err());
    outcome.out()
}

fn bad(dir: &Path, args: &[&str], wanted: &str) {
    let outcome = rimg(dir, args);
    let said = outcome.err();
    assert!(!outcome.success() && said.contains(wanted), "{args:?}: {said}");
    assert!(!said.contains("sesame"), "a password is shown: {said}");
}

/// A program that is killed when the test is done with it.
struct Server {
    _daemon: Daemon,
    port: u16,
}

impl Server {
    /// Starts a program that will listen at `port`.
    fn start(command: &mut Command, port: u16) -> Self {
        let ready = || TcpStream::connect(("127.0.0.1", port)).is_ok();
        Server { _daemon: Daemon::start(command).until(ready), port }
    }

    /// nginx over the files of `dir`; `locations` go into its configuration.
    fn nginx(dir: &Path, locations: &str) -> Option<Self> {
        Self::nginx_with(dir, "", locations)
    }

    fn nginx_with(dir: &Path, listen: &str, locations: &str) -> Option<Self> {
        let given = std::env::var_os("NGINX").map(PathBuf::from);
        let Some(nginx) = given.or_else(|| tools::find("nginx")) else {
            tools::skip("images on a web server", "no nginx (or set NGINX)");
            return None;
        };
        let (port, at) = (free_port(), dir.display());
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|t| format!("{t}_temp_path {at}/nginx/{t};\n"))
            .collect();
        std::fs::create_dir_all(dir.join("nginx")).unwrap();
        let text = format!(
            "daemon off;\nmaster_process off;\npid {at}/nginx/pid;\nerror_log stderr;\n\
             events {{ worker_connections 64; }}\n\
             http {{\naccess_log off;\n{temporary}\nserver {{\nlisten 127.0.0.1:{port} {listen};\n\
             root {at};\n{locations}\n}}\n}}\n"
        );
        let config = dir.join("nginx/conf");
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new(nginx);
        command.args([
            "-c",
            &config.to_string_lossy(),
            "-p",
            &dir.to_string_lossy(),
            "-e",
            "stderr",
        ]);
        Some(Server::start(&mut command, port))
    }

    /// Python's server over the files of `dir`: it does not know ranges.
    fn python(dir: &Path) -> Option<Self> {
        let Some(python) = tools::find("python3") else {
            tools::skip("images on a server without ranges", "no python3");
            return None;
        };
        let port = free_port();
        let mut command = Command::new(python);
        command.args(["-m", "http.server", "--bind", "127.0.0.1", &port.to_string()]);
        Some(Server::start(command.current_dir(dir), port))
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }
}

#[test]
fn every_command_that_reads() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    data_and_zeroes(&dir.join("src.raw"), (40 << 20) + 100);
    for (format, name) in
        [("qcow2", "a.qcow2"), ("vmdk", "a.vmdk"), ("vhdx", "a.vhdx"), ("vpc", "a.vpc")]
    {
        good(dir, &["convert", "-f", "raw", "-O", format, "src.raw", name]);
    }
    let Some(server) = Server::nginx(dir, "") else { return };
    let whole = good(dir, &["digest", "-f", "raw", "src.raw"]);
    let whole = whole.split_whitespace().next().unwrap();
    for name in ["src.raw", "a.qcow2", "a.vmdk", "a.vhdx"] {
        let url = server.url(name);
        let info = good(dir, &["info", &url]);
        assert!(info.contains(&format!("image: {url}\n")), "{info}");
        assert!(
            info.contains("disk size: unavailable") && info.contains("protocol type: http"),
            "{info}"
        );
        assert!(good(dir, &["digest", &url]).starts_with(whole), "{name}");
        let same = rimg(dir, &["compare", "-f", "raw", "src.raw", &url]);
        assert!(same.success(), "{name}: {}{}", same.out(), same.err());
        good(dir, &["map", "--output=json", &url]);
        good(dir, &["measure", "-O", "qcow2", &url]);
        good(dir, &["convert", "-O", "qcow2", &url, "--force", "copy.qcow2"]);
        good(dir, &["compare", "-f", "raw", "-F", "qcow2", "src.raw", "copy.qcow2"]);
    }
    good(dir, &["check", &server.url("a.qcow2")]);
    good(dir, &["check", &server.url("a.vhdx")]);
    // All ways to name it.
    let url = server.url("a.qcow2");
    let json =
        format!("json:{{\"driver\":\"qcow2\",\"file\":{{\"driver\":\"http\",\"url\":\"{url}\"}}}}");
    assert!(good(dir, &["info", &json]).contains("file format: qcow2"));
    for options in [
        format!("driver=qcow2,file.driver=http,file.url={url},file.readahead=64k,file.timeout=20"),
        format!("file.driver=http,file.url={url}"),
    ] {
        good(dir, &["convert", "-O", "raw", "--image-opts", &options, "--force", "o.raw"]);
        good(dir, &["compare", "-f", "raw", "-F", "raw", "src.raw", "o.raw"]);
    }
    let raw = format!("driver=http,url={url}");
    let info = good(dir, &["info", "--image-opts", &raw]);
    assert!(info.contains("file format: http"), "{info}");
    // An image here that stands on one there.
    good(dir, &["create", "-f", "qcow2", "-u", "-b", &url, "-F", "qcow2", "top.qcow2", "41943552"]);
    bad(dir, &["compare", "top.qcow2", &url], "is not a file");
    let chain = format!(
        "driver=qcow2,file.filename=top.qcow2,backing.driver=qcow2,backing.file.driver=http,\
         backing.file.url={url}"
    );
    good(
        dir,
        &[
            "compare",
            "--image-opts",
            &chain,
            &format!("driver=qcow2,file.driver=http,file.url={url}"),
        ],
    );
    // What cannot be.
    bad(dir, &["info", &server.url("none")], "404 Not Found");
    bad(dir, &["convert", "-n", "-O", "raw", "src.raw", &url], "does not support writes");
    bad(dir, &["snapshot", "-c", "x", &url], "does not support writes");
    bad(dir, &["info", &format!("http://127.0.0.1:{}/x", free_port())], "refused");
    bad(
        dir,
        &["info", "--image-opts", "driver=http,url=https://h/x"],
        "does not start with 'http://'",
    );
}

#[test]
fn redirects_passwords_and_cookies() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    data_and_zeroes(&dir.join("src.raw"), 3 << 20);
    std::fs::create_dir(dir.join("closed")).unwrap();
    good(dir, &["convert", "-f", "raw", "-O", "qcow2", "src.raw", "closed/a.qcow2"]);
    // open-sesame, by openssl passwd -apr1
    let hash = Command::new("openssl").args(["passwd", "-apr1", "open-sesame"]).output().unwrap();
    std::fs::write(dir.join("users"), format!("me:{}", String::from_utf8(hash.stdout).unwrap()))
        .unwrap();
    std::fs::write(dir.join("word"), "open-sesame").unwrap();
    std::fs::write(dir.join("wrong"), "sesame").unwrap();
    let locations = format!(
        "location /closed/ {{ auth_basic x; auth_basic_user_file {}/users; }}\n\
         location /moved/ {{ return 302 /closed/a.qcow2; }}\n\
         location /round/ {{ return 302 /round/; }}\n\
         location /cookie/ {{ if ($cookie_key != \"sesame\") {{ return 403; }} rewrite .* /src.raw break; }}",
        dir.display()
    );
    let Some(server) = Server::nginx(dir, &locations) else { return };
    let url = server.url("closed/a.qcow2");
    bad(dir, &["info", &url], "401 Unauthorized");
    bad(dir, &["info", &url.replace("//", "//me:sesame@")], "401 Unauthorized");
    for name in [
        url.replace("//", "//me:open-sesame@"),
        server.url("moved/").replace("//", "//me:open-sesame@"),
    ] {
        let info = good(dir, &["info", &name]);
        assert!(info.contains("file format: qcow2") && !info.contains("sesame"), "{info}");
        good(dir, &["compare", "-f", "raw", "src.raw", &name]);
        let digest = good(dir, &["digest", &name]);
        assert!(!digest.contains("sesame"), "{digest}");
    }
    let options = format!(
        "driver=qcow2,file.driver=http,file.url={url},file.username=me,file.password-secret=s"
    );
    let with = |file: &str| format!("secret,id=s,file={file}");
    good(dir, &["info", "--object", &with("word"), "--image-opts", &options]);
    bad(dir, &["info", "--object", &with("wrong"), "--image-opts", &options], "401");
    bad(dir, &["info", "--image-opts", &options], "No secret with id 's'");
    bad(dir, &["info", &server.url("round/")], "redirects more than");
    bad(dir, &["info", &server.url("cookie/")], "403 Forbidden");
    let cookie = |word: &str| {
        format!(
            "driver=raw,file.driver=http,file.url={},file.cookie=key={word}",
            server.url("cookie/")
        )
    };
    let info = good(dir, &["info", "--image-opts", &cookie("sesame")]);
    assert!(info.contains("3 MiB") && !info.contains("sesame"), "{info}");
    bad(dir, &["info", "--image-opts", &cookie("open-sesame")], "403 Forbidden");
}

#[test]
fn servers_without_ranges_and_packed_files() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    data_and_zeroes(&dir.join("src.raw"), 3 << 20);
    good(dir, &["convert", "-f", "raw", "-O", "qcow2", "src.raw", "a.qcow2"]);
    for name in ["src.raw", "a.qcow2"] {
        assert!(
            Command::new("gzip").args(["-k", name]).current_dir(dir).status().unwrap().success()
        );
    }
    std::fs::create_dir(dir.join("out")).unwrap();
    let everything = |server: &Server, names: &[&str]| {
        for name in names {
            let url = server.url(name);
            good(dir, &["convert", "-O", "raw", &url, "--force", "out/c.raw"]);
            good(dir, &["compare", "-f", "raw", "-F", "raw", "src.raw", "out/c.raw"]);
            good(dir, &["compare", "-f", "raw", "src.raw", &url]);
            assert_eq!(std::fs::read_dir(dir.join("out")).unwrap().count(), 1);
        }
    };
    if let Some(server) = Server::python(dir) {
        let hint = "rimg convert, compare and digest do so by";
        bad(
            dir,
            &["info", &server.url("a.qcow2")],
            "Server does not support 'range' (byte ranges).",
        );
        bad(dir, &["map", &server.url("a.qcow2")], hint);
        bad(
            dir,
            &["convert", "--resume", "-O", "raw", &server.url("src.raw"), "r.raw"],
            "cannot be gone on with",
        );
        everything(&server, &["src.raw", "a.qcow2", "src.raw.gz", "a.qcow2.gz"]);
        let opts = format!("driver=qcow2,file.driver=http,file.url={}", server.url("a.qcow2"));
        good(dir, &["convert", "--image-opts", &opts, "-O", "raw", "out/o.raw"]);
        std::fs::remove_file(dir.join("out/o.raw")).unwrap();
    }
    let Some(server) = Server::nginx(dir, "") else { return };
    everything(&server, &["src.raw.gz", "a.qcow2.gz", "a.qcow2"]);
}

/// Stands between rimg and a server: told how many connections there were, `mind` says after how many bytes of the
/// answer this one breaks.
fn between(to: u16, mind: impl Fn(usize) -> usize + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (count, mind) = (AtomicUsize::new(0), Arc::new(mind));
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(mut client) = client else { return };
            let n = count.fetch_add(1, Ordering::SeqCst);
            let mind = Arc::clone(&mind);
            std::thread::spawn(move || {
                let mut left = mind(n);
                let Ok(mut server) = TcpStream::connect(("127.0.0.1", to)) else { return };
                let (mut back, mut up) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                std::thread::spawn(move || std::io::copy(&mut up, &mut back));
                let mut buf = vec![0; 16 << 10];
                while let Ok(got) = server.read(&mut buf) {
                    let pass = got.min(left);
                    if pass == 0 || client.write_all(&buf[..pass]).is_err() {
                        break;
                    }
                    left -= pass;
                }
                for socket in [client, server] {
                    let _ = socket.shutdown(std::net::Shutdown::Both);
                }
            });
        }
    });
    port
}

#[test]
fn connections_break_and_files_change() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    data_and_zeroes(&dir.join("src.raw"), 20 << 20);
    let Some(server) = Server::nginx(dir, "") else { return };
    let port = between(server.port, |n| if n % 5 == 4 { 0 } else { 900_000 });
    let url = format!("http://127.0.0.1:{port}/src.raw");
    good(dir, &["convert", "-f", "raw", "-O", "raw", &url, "a.raw"]);
    good(dir, &["compare", "-f", "raw", "-F", "raw", "src.raw", "a.raw"]);
    // Another file of the same length appears in its place.
    let (old, new) = (dir.join("src.raw"), dir.join("other"));
    let mut bytes = std::fs::read(&old).unwrap();
    bytes[19 << 20] ^= 1;
    std::fs::write(&new, bytes).unwrap();
    let time = std::time::SystemTime::now() - Duration::from_secs(86_400);
    std::fs::File::open(&new).unwrap().set_modified(time).unwrap();
    let port = between(server.port, move |n| {
        if n == 3 {
            std::fs::rename(&new, &old).unwrap();
        }
        500_000
    });
    let url = format!("http://127.0.0.1:{port}/src.raw");
    bad(
        dir,
        &["convert", "-f", "raw", "-O", "raw", &url, "b.raw"],
        "has changed since it was opened",
    );
    assert!(!dir.join("b.raw").exists());
}

#[test]
fn a_killed_conversion_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    data_and_zeroes(&dir.join("src.raw"), 24 << 20);
    let Some(server) = Server::nginx(dir, "limit_rate_after 64k; limit_rate 2m;") else { return };
    let url = server.url("src.raw");
    let args =
        ["convert", "--resume", "--checkpoint", "0", "-f", "raw", "-O", "qcow2", &url, "a.qcow2"];
    let journal = dir.join("a.qcow2.part.json");
    for round in 1..3u64 {
        let mut child = Command::new(tools::rimg().unwrap())
            .args(args)
            .current_dir(dir)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        let far = || -> Option<u64> {
            let text = std::fs::read(&journal).ok()?;
            serde_json::from_slice::<serde_json::Value>(&text).ok()?["position"].as_u64()
        };
        while far().is_none_or(|p| p < round * (4 << 20)) {
            assert!(child.try_wait().unwrap().is_none(), "done already");
            assert!(Instant::now() < end, "it does not come on");
            std::thread::sleep(Duration::from_millis(10));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!dir.join("a.qcow2").exists());
    }
    // Another file in its place is not gone on with.
    let old = std::fs::metadata(dir.join("src.raw")).unwrap().modified().unwrap();
    let file = std::fs::File::open(dir.join("src.raw")).unwrap();
    file.set_modified(old + Duration::from_secs(5)).unwrap();
    bad(dir, &args, "has changed since the conversion was begun");
    file.set_modified(old).unwrap();
    good(dir, &args);
    good(dir, &["compare", "-f", "raw", "-F", "qcow2", "src.raw", "a.qcow2"]);
    assert!(!journal.exists());
}

/// A certificate authority of our own, and a certificate for 127.0.0.1.
fn certificates(dir: &Path) -> PathBuf {
    let openssl = |args: &[&str]| {
        let out = Command::new("openssl").args(args).current_dir(dir).output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    };
    let new = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3"];
    openssl(
        &[&new[..], &["-subj", "/CN=a test's own", "-keyout", "ca.key", "-out", "ca.pem"]].concat(),
    );
    openssl(&[
        "req",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=server",
        "-keyout",
        "key.pem",
        "-out",
        "req",
    ]);
    std::fs::write(dir.join("ext"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n").unwrap();
    let sign = [
        "x509",
        "-req",
        "-in",
        "req",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-days",
        "2",
    ];
    openssl(&[&sign[..], &["-extfile", "ext", "-out", "cert.pem"]].concat());
    dir.join("ca.pem")
}

#[test]
fn encrypted_connections() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    data_and_zeroes(&dir.join("src.raw"), 5 << 20);
    good(dir, &["convert", "-f", "raw", "-O", "qcow2", "src.raw", "a.qcow2"]);
    let ca = certificates(dir);
    let at = dir.display();
    let locations = format!(
        "ssl_certificate {at}/cert.pem; ssl_certificate_key {at}/key.pem;\n\
         location /down/ {{ return 302 http://127.0.0.1:1/a.qcow2; }}"
    );
    let Some(server) = Server::nginx_with(dir, "ssl", &locations) else { return };
    let url = server.url("a.qcow2").replace("http:", "https:");
    let trusting = |args: &[&str]| call(dir, args).env("SSL_CERT_FILE", &ca).run().unwrap();
    let info = trusting(&["info", &url]);
    assert!(
        info.success() && info.out().contains("protocol type: https"),
        "{}{}",
        info.out(),
        info.err()
    );
    assert!(trusting(&["compare", "-f", "raw", "src.raw", &url]).success());
    let copied = trusting(&["convert", "-O", "raw", &url, "b.raw"]);
    assert!(copied.success(), "{}", copied.err());
    good(dir, &["compare", "-f", "raw", "-F", "raw", "src.raw", "b.raw"]);
    // Nobody vouches for it; or the name is another one.
    bad(dir, &["info", &url], "certificate");
    let other = trusting(&["info", &url.replace("127.0.0.1", "127.0.0.2")]);
    assert!(!other.success(), "{}", other.out());
    let off = format!("driver=qcow2,file.driver=https,file.url={url},file.sslverify=off");
    assert!(good(dir, &["info", "--image-opts", &off]).contains("file format: qcow2"));
    let down = trusting(&["info", &url.replace("a.qcow2", "down/")]);
    assert!(down.err().contains("from https to http"), "{}", down.err());
}

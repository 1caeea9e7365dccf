//! NBD over TLS with real peers and real certificates: `rimg serve` against nbdinfo, nbdcopy and qemu-img, the client
//! against qemu-nbd and nbdkit; and what neither side may put up with.

#![allow(clippy::unwrap_used, clippy::panic)] // all of it is test code

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use suite::daemon::{Daemon, data_and_zeroes, free_port};
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

/// A tool of the tests; its absence is said loudly.
fn tool(name: &str, lost: &str) -> Option<PathBuf> {
    let found = tools::find(name);
    if found.is_none() {
        tools::skip(lost, &format!("no {name}"));
    }
    found
}

/// A certificate authority, whose folder has what `tls-creds-x509` looks for.
struct Authority {
    dir: PathBuf,
}

impl Authority {
    /// A new one, with certificates for both sides. `None` without openssl.
    fn new(dir: &Path, name: &str) -> Option<Self> {
        tool("openssl", "NBD over TLS")?;
        let authority = Authority { dir: dir.join(name) };
        std::fs::create_dir(&authority.dir).unwrap();
        let subject = format!("/CN=the authority {name}");
        let new =
            ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3", "-subj", &subject];
        let usage = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"];
        let files = ["-keyout", "ca-key.pem", "-out", "ca-cert.pem"];
        authority.openssl(&[&new[..], &usage, &files].concat());
        authority.issue("server", "DNS:disks.example,IP:127.0.0.1", "2");
        authority.issue("client", "DNS:reader.example", "2");
        Some(authority)
    }

    fn openssl(&self, args: &[&str]) {
        let out = Command::new("openssl").args(args).current_dir(&self.dir).output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    }

    /// A certificate for a side, valid for so many days.
    fn issue(&self, side: &str, names: &str, days: &str) {
        let (key, cert) = (format!("{side}-key.pem"), format!("{side}-cert.pem"));
        let subject = format!("/CN={side}");
        let new = ["req", "-newkey", "rsa:2048", "-nodes", "-subj", &subject];
        self.openssl(&[&new[..], &["-keyout", &key, "-out", "request"]].concat());
        let extensions = format!(
            "basicConstraints=critical,CA:FALSE\nextendedKeyUsage={side}Auth\n\
             keyUsage=critical,digitalSignature,keyEncipherment\nsubjectAltName={names}\n"
        );
        std::fs::write(self.dir.join("extensions"), extensions).unwrap();
        let by = ["x509", "-req", "-in", "request", "-CA", "ca-cert.pem", "-CAkey", "ca-key.pem"];
        let how = ["-CAcreateserial", "-days", days, "-extfile", "extensions", "-out", &cert];
        self.openssl(&[&by[..], &how].concat());
    }

    /// Revokes the client's certificate.
    fn revoke_client(&self) {
        let config = "[ca]\ndefault_ca=own\n[own]\ndatabase=index\nserial=serial\n\
                      new_certs_dir=.\ncertificate=ca-cert.pem\nprivate_key=ca-key.pem\n\
                      default_md=sha256\ndefault_crl_days=2\ncrlnumber=number\n";
        for (file, text) in [("config", config), ("index", ""), ("number", "01\n")] {
            std::fs::write(self.dir.join(file), text).unwrap();
        }
        self.openssl(&["ca", "-config", "config", "-revoke", "client-cert.pem"]);
        self.openssl(&["ca", "-config", "config", "-gencrl", "-out", "ca-crl.pem"]);
    }

    fn path(&self) -> String {
        self.dir.to_string_lossy().into_owned()
    }

    fn server(&self, more: &str) -> String {
        format!("tls-creds-x509,id=t,dir={},endpoint=server{more}", self.path())
    }

    fn client(&self, more: &str) -> String {
        format!("tls-creds-x509,id=c,dir={},endpoint=client{more}", self.path())
    }
}

/// A server at a UNIX socket.
struct Server {
    _daemon: Daemon,
    socket: PathBuf,
}

impl Server {
    /// Starts a program; `SOCK` in its arguments is the socket `dir/NAME`.
    fn start(program: &Path, dir: &Path, name: &str, args: &[&str]) -> Self {
        let socket = dir.join(name);
        let path = socket.to_string_lossy().into_owned();
        let mut command = Command::new(program);
        command.args(args.iter().map(|a| a.replace("SOCK", &path))).current_dir(dir);
        Server { _daemon: Daemon::start(&mut command).until(|| socket.exists()), socket }
    }

    /// `rimg serve` of a raw file, for reading only.
    fn of_rimg_to_read(dir: &Path, name: &str, object: &str, file: &str) -> Self {
        let tls = ["serve", "-r", "-f", "raw", "-t", "-e", "8", "-k", "SOCK", "--object", object];
        let args = [&tls[..], &["--tls-creds", "t", file]].concat();
        Server::start(&tools::rimg().unwrap(), dir, name, &args)
    }

    /// The same, for writing too.
    fn of_rimg(dir: &Path, name: &str, object: &str, file: &str) -> Self {
        let tls = ["serve", "-f", "raw", "-t", "-e", "8", "-k", "SOCK", "--object", object];
        let args = [&tls[..], &["--tls-creds", "t", file]].concat();
        Server::start(&tools::rimg().unwrap(), dir, name, &args)
    }

    fn options(&self, host: &str) -> String {
        let at = self.socket.display();
        format!(
            "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={at},file.tls-creds=c,file.tls-hostname={host}"
        )
    }

    fn plain(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    fn uri(&self, folder: &str) -> String {
        let at = self.socket.display();
        format!("nbds+unix:///?socket={at}&tls-certificates={folder}&tls-hostname=disks.example")
    }
}

fn same(dir: &Path, one: &str, other: &str) {
    let (one, other) =
        (std::fs::read(dir.join(one)).unwrap(), std::fs::read(dir.join(other)).unwrap());
    assert!(one == other, "contents differ");
}

#[test]
fn our_server_and_clients_of_all_kinds() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let Some(ca) = Authority::new(dir, "ca") else { return };
    data_and_zeroes(&dir.join("src.raw"), 40 << 20);
    let server = Server::of_rimg_to_read(dir, "s", &ca.server(""), "src.raw");
    let uri = server.uri(&ca.path());
    let object = ca.client("");
    let options = server.options("disks.example");
    // Our own client, by both ways to name credentials; reads on several connections at a time.
    let digest = good(dir, &["digest", "-f", "raw", "src.raw"]);
    let digest = digest.split_whitespace().next().unwrap();
    let by_object = ["--object", &object, "--image-opts", &options];
    assert!(good(dir, &[&["digest"], &by_object[..]].concat()).starts_with(digest));
    assert!(good(dir, &["digest", "--sandbox", "require", "-f", "raw", &uri]).starts_with(digest));
    // QEMU shows no credentials in the name, and so do we; a URI is shown as it was given.
    assert!(
        good(dir, &[&["info"], &by_object[..]].concat()).contains("image: nbd+unix://?socket=")
    );
    assert!(good(dir, &["info", "-f", "raw", &uri]).contains("image: nbds+unix://?socket="));
    // Whoever comes in plain text sees nothing.
    bad(dir, &["info", &server.plain()], "insists on TLS");
    if let Some(nbdinfo) = tool("nbdinfo", "libnbd's client over TLS") {
        let out = run(&nbdinfo, dir, &["--size", &uri]);
        assert_eq!(out.out().trim(), (40u64 << 20).to_string(), "{}", out.err());
        let out = run(&nbdinfo, dir, &["--map", &uri]);
        assert!(out.success() && out.out().contains("data"), "{}{}", out.out(), out.err());
        for what in [&["--size"][..], &["--list"]] {
            let out = run(&nbdinfo, dir, &[what, &[&server.plain()]].concat());
            assert!(!out.success() && out.out().is_empty(), "{}", out.out());
        }
    }
    if let Some(nbdcopy) = tool("nbdcopy", "libnbd's client over TLS") {
        let out = run(&nbdcopy, dir, &[&uri, "copy.raw"]);
        assert!(out.success(), "{}", out.err());
        same(dir, "src.raw", "copy.raw");
    }
    if let Some(qemu) = tool("qemu-img", "QEMU's client over TLS") {
        let args = ["compare", "--object", &object, "--image-opts", &options];
        let out = run(&qemu, dir, &[&args[..], &["driver=file,filename=src.raw"]].concat());
        assert!(out.success(), "{}{}", out.out(), out.err());
        let out = run(&qemu, dir, &["info", &server.plain()]);
        assert!(!out.success() && out.err().contains("TLS negotiation required"), "{}", out.err());
    }
    // Writing, through several connections' worth of requests.
    std::fs::write(dir.join("dst.raw"), vec![0xa5; 40 << 20]).unwrap();
    let target = Server::of_rimg(dir, "d", &ca.server(""), "dst.raw");
    let to = target.options("disks.example");
    let args =
        ["convert", "-n", "-f", "raw", "--target-image-opts", "--object", &object, "src.raw"];
    good(dir, &[&args[..], &[&to]].concat());
    drop(target);
    same(dir, "src.raw", "dst.raw");
}

#[test]
fn over_tcp_to_a_host() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let Some(ca) = Authority::new(dir, "ca") else { return };
    data_and_zeroes(&dir.join("src.raw"), 5 << 20);
    let port = free_port();
    let mut command = Command::new(tools::rimg().unwrap());
    let number = port.to_string();
    command.args(["serve", "-f", "raw", "-r", "-t", "-e", "8", "-p", &number, "--object"]);
    command.args([&ca.server(""), "--tls-creds", "t", "src.raw"]).current_dir(dir);
    let _server = Daemon::start(&mut command)
        .until(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    let folder = format!("tls-certificates={}", ca.path());
    // The address is in the certificate, the name `localhost` is not.
    let uri = format!("nbds://127.0.0.1:{port}?{folder}");
    good(dir, &["compare", "-f", "raw", "-F", "raw", "src.raw", &uri]);
    let by_name = format!("nbds://localhost:{port}?{folder}");
    bad(dir, &["info", &by_name], "the certificate is that of another host");
    good(dir, &["info", &format!("{by_name}&tls-hostname=disks.example")]);
    good(dir, &["info", &format!("{by_name}&tls-verify-peer=false")]);
    let options = format!("driver=nbd,host=127.0.0.1,port={port},tls-creds=c");
    good(dir, &["info", "--object", &ca.client(""), "--image-opts", &options]);
    // Without a folder, the authorities of the system: ours is none of them, until the user says so.
    let uri = format!("nbds://127.0.0.1:{port}");
    let trusting = |file: &Path| {
        let call = Invocation::new(tools::rimg().unwrap(), dir).args(["info", &uri]);
        call.env("SSL_CERT_FILE", file).time_limit(Duration::from_secs(120)).run().unwrap()
    };
    let said = trusting(&ca.dir.join("ca-cert.pem")).err();
    assert!(said.contains("certificate"), "a client without a certificate was let in: {said}");
    let Some(nbdinfo) = tool("nbdinfo", "libnbd's client over TLS and TCP") else { return };
    let out = run(&nbdinfo, dir, &["--size", &format!("nbds://127.0.0.1:{port}?{folder}")]);
    assert_eq!(out.out().trim(), (5u64 << 20).to_string(), "{}", out.err());
}

/// Servers of others, each with a name: qemu-nbd and nbdkit with these certificates.
fn others(dir: &Path, ca: &Authority, file: &str, read_only: bool) -> Vec<Server> {
    let mut all = Vec::new();
    let name = |program: &str| format!("{program}-{file}.sock");
    let only = if read_only { &["-r"][..] } else { &[] };
    if let Some(qemu) = tool("qemu-nbd", "our client over TLS to qemu-nbd") {
        let object = ca.server("");
        let args = ["-f", "raw", "-t", "-e", "8", "-k", "SOCK", "--object", &object];
        let args = [&args[..], only, &["--tls-creds", "t", file]].concat();
        all.push(Server::start(&qemu, dir, &name("qemu"), &args));
    }
    if let Some(nbdkit) = tool("nbdkit", "our client over TLS to nbdkit") {
        let folder = format!("--tls-certificates={}", ca.path());
        let args = ["-f", "-U", "SOCK", "--tls=require", "--tls-verify-peer", &folder];
        let args = [&args[..], only, &["file", file]].concat();
        all.push(Server::start(&nbdkit, dir, &name("nbdkit"), &args));
    }
    all
}

#[test]
fn our_client_and_servers_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let Some(ca) = Authority::new(dir, "ca") else { return };
    let other = Authority::new(dir, "other").unwrap();
    data_and_zeroes(&dir.join("src.raw"), 12 << 20);
    let object = ca.client("");
    for server in others(dir, &ca, "src.raw", true) {
        let options = server.options("disks.example");
        let with = |object: &str, options: &str| {
            rimg(dir, &["info", "--object", object, "--image-opts", options])
        };
        let file = "driver=raw,file.filename=src.raw";
        good(dir, &["compare", "--object", &object, "--image-opts", file, &options]);
        let uri = server.uri(&ca.path());
        good(dir, &["compare", "-f", "raw", "-F", "raw", "src.raw", &uri]);
        // In plain text.
        bad(dir, &["info", &server.plain()], "TLS");
        // By another name, and by none.
        let said = with(&object, &server.options("tapes.example")).err();
        assert!(said.contains("that of another host") && said.contains("disks.example"), "{said}");
        let nameless = options.replace(",file.tls-hostname=disks.example", "");
        let said = with(&object, &nameless).err();
        assert!(said.contains("No hostname for certificate validation"), "{said}");
        // An authority that is not the server's.
        let said = with(&other.client(""), &options).err();
        assert!(said.contains("not signed by an authority"), "{said}");
        // The server does not know ours: it lets us in for nothing.
        let said = with(&other.client(",verify-peer=off"), &options);
        assert!(!said.success(), "{}", said.out());
        assert!(with(&ca.client(",verify-peer=off"), &nameless).success());
    }
    std::fs::write(dir.join("dst.raw"), vec![0xa5; 12 << 20]).unwrap();
    for server in others(dir, &ca, "dst.raw", false) {
        let to = server.options("disks.example");
        let args = ["convert", "-n", "-f", "raw", "--target-image-opts", "--object", &object];
        good(dir, &[&args[..], &["src.raw", &to]].concat());
        drop(server);
        same(dir, "src.raw", "dst.raw");
        std::fs::write(dir.join("dst.raw"), vec![0xa5; 12 << 20]).unwrap();
    }
    // A server without TLS is left, however readable its disk.
    let plain = ["serve", "-f", "raw", "-r", "-t", "-e", "8", "-k", "SOCK", "src.raw"];
    let mut servers = vec![Server::start(&tools::rimg().unwrap(), dir, "plain", &plain)];
    if let Some(qemu) = tool("qemu-nbd", "a client with credentials at a plain qemu-nbd") {
        let args = ["-r", "-f", "raw", "-t", "-e", "8", "-k", "SOCK", "src.raw"];
        servers.push(Server::start(&qemu, dir, "plain-qemu", &args));
    }
    if let Some(nbdkit) = tool("nbdkit", "a client with credentials at a plain nbdkit") {
        let args = ["-f", "-r", "-U", "SOCK", "file", "src.raw"];
        servers.push(Server::start(&nbdkit, dir, "plain-nbdkit", &args));
        // From before options: it has no way to agree upon TLS.
        let args = ["-f", "-r", "-o", "-U", "SOCK", "file", "src.raw"];
        servers.push(Server::start(&nbdkit, dir, "oldstyle-nbdkit", &args));
    }
    for server in servers {
        let options = server.options("disks.example");
        let args = ["info", "--object", &object, "--image-opts", &options];
        bad(dir, &args, "refuses TLS");
        bad(dir, &["info", &server.uri(&ca.path())], "refuses TLS");
    }
}

#[test]
fn older_versions_of_tls() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let Some(ca) = Authority::new(dir, "ca") else { return };
    let Some(qemu) = tool("qemu-nbd", "TLS 1.2 with QEMU") else { return };
    let Some(client) = tool("qemu-img", "TLS 1.2 with QEMU") else { return };
    data_and_zeroes(&dir.join("src.raw"), 5 << 20);
    // GnuTLS's words for what a server or a client speaks; the last one has no forward secrecy.
    let own = Server::of_rimg_to_read(dir, "own", &ca.server(""), "src.raw");
    for (name, priority, spoken) in [
        ("new", "NORMAL:-VERS-ALL:+VERS-TLS1.3", true),
        ("old", "NORMAL:-VERS-ALL:+VERS-TLS1.2", true),
        ("older", "NORMAL:-VERS-ALL:+VERS-TLS1.1", false),
        ("forever", "NORMAL:-VERS-ALL:+VERS-TLS1.2:-KX-ALL:+RSA", false),
    ] {
        let object = ca.server(&format!(",priority={priority}"));
        let args = ["-r", "-f", "raw", "-t", "-k", "SOCK", "--object", &object];
        let args = [&args[..], &["--tls-creds", "t", "src.raw"]].concat();
        let server = Server::start(&qemu, dir, name, &args);
        let uri = server.uri(&ca.path());
        let out = rimg(dir, &["compare", "-f", "raw", "-F", "raw", "src.raw", &uri]);
        assert_eq!(out.success(), spoken, "{name}: {}{}", out.out(), out.err());
        assert!(spoken || out.err().contains("TLS with"), "{name}: {}", out.err());
        let object = ca.client(&format!(",priority={priority}"));
        let options = own.options("disks.example");
        let args = ["compare", "--object", &object, "--image-opts", &options];
        let out = run(&client, dir, &[&args[..], &["driver=file,filename=src.raw"]].concat());
        assert_eq!(out.success(), spoken, "{name}: {}{}", out.out(), out.err());
    }
}

#[test]
fn certificates_that_are_no_good() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let Some(ca) = Authority::new(dir, "ca") else { return };
    let other = Authority::new(dir, "other").unwrap();
    std::fs::write(dir.join("src.raw"), vec![7; 1 << 20]).unwrap();
    let server = Server::of_rimg_to_read(dir, "s", &ca.server(""), "src.raw");
    let options = server.options("disks.example");
    let ask = |object: &str| rimg(dir, &["info", "--object", object, "--image-opts", &options]);
    assert!(ask(&ca.client("")).success());
    // A client without a certificate.
    let bare = dir.join("bare");
    std::fs::create_dir(&bare).unwrap();
    std::fs::copy(ca.dir.join("ca-cert.pem"), bare.join("ca-cert.pem")).unwrap();
    let nobody = format!("tls-creds-x509,id=c,dir={}", bare.display());
    let said = ask(&nobody);
    assert!(!said.success() && said.err().contains("wants a certificate"), "{}", said.err());
    // One of another authority: told by our own check, and by the server without it.
    for file in ["client-cert.pem", "client-key.pem"] {
        std::fs::copy(other.dir.join(file), bare.join(file)).unwrap();
    }
    assert!(ask(&nobody).err().contains("failed validation against"), "{}", ask(&nobody).err());
    let said = ask(&format!("{nobody},sanity-check=off"));
    assert!(!said.success() && said.err().contains("authority"), "{}", said.err());
    // Half of one.
    std::fs::remove_file(bare.join("client-key.pem")).unwrap();
    assert!(ask(&nobody).err().contains("Unable to access credentials"), "{}", ask(&nobody).err());
    // A certificate for servers in the hand of a client.
    for (from, to) in [("server-cert.pem", "client-cert.pem"), ("server-key.pem", "client-key.pem")]
    {
        std::fs::copy(ca.dir.join(from), bare.join(to)).unwrap();
    }
    assert!(ask(&nobody).err().contains("for another purpose"), "{}", ask(&nobody).err());
    assert!(!ask(&format!("{nobody},sanity-check=off")).success());
    // A key that does not fit.
    std::fs::copy(ca.dir.join("client-cert.pem"), bare.join("client-cert.pem")).unwrap();
    assert!(ask(&nobody).err().contains("Unable to use"), "{}", ask(&nobody).err());
    // Without a check of clients, everybody may come.
    let open = Server::of_rimg_to_read(dir, "open", &ca.server(",verify-peer=off"), "src.raw");
    for file in ["client-cert.pem", "client-key.pem"] {
        std::fs::remove_file(bare.join(file)).unwrap();
    }
    let anybody = open.options("disks.example");
    good(dir, &["info", "--object", &nobody, "--image-opts", &anybody]);
    drop(open);
    // Yesterday's certificate of a server.
    let old = Authority { dir: dir.join("old") };
    std::fs::create_dir(&old.dir).unwrap();
    for file in ["ca-cert.pem", "ca-key.pem", "client-cert.pem", "client-key.pem"] {
        std::fs::copy(ca.dir.join(file), old.dir.join(file)).unwrap();
    }
    old.issue("server", "DNS:disks.example", "-1");
    let args = ["serve", "-f", "raw", "-k", "never", "--tls-creds", "t", "--object"];
    bad(dir, &[&args[..], &[&old.server(""), "src.raw"]].concat(), "has expired");
    let late = Server::of_rimg_to_read(dir, "late", &old.server(",sanity-check=off"), "src.raw");
    let options_late = late.options("disks.example");
    let args = ["info", "--object", &ca.client(""), "--image-opts", &options_late];
    bad(dir, &args, "the certificate has expired");
    drop(late);
    // A client whose certificate was taken back.
    ca.revoke_client();
    drop(server);
    let server = Server::of_rimg_to_read(dir, "s2", &ca.server(""), "src.raw");
    let object = format!("{nobody},sanity-check=off");
    for file in ["client-cert.pem", "client-key.pem"] {
        std::fs::copy(ca.dir.join(file), bare.join(file)).unwrap();
    }
    let options = server.options("disks.example");
    let said = rimg(dir, &["info", "--object", &object, "--image-opts", &options]);
    assert!(!said.success() && said.err().contains("revoked"), "{}", said.err());
}

#[test]
fn objects_and_options() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let Some(ca) = Authority::new(dir, "ca") else { return };
    std::fs::write(dir.join("src.raw"), vec![7; 1 << 20]).unwrap();
    let object = |text: &str, wanted: &str| {
        bad(dir, &["info", "-f", "raw", "--object", text, "src.raw"], wanted);
    };
    object("tls-creds-x509,id=c", "Missing 'dir' property value");
    object("tls-creds-x509,dir=x", "Parameter 'id' is missing");
    object("tls-creds-x509,id=c,dir=gone", "Unable to access credentials gone/ca-cert.pem");
    object("tls-creds-x509,id=c,dir=x,endpoint=both", "does not accept value 'both'");
    object("tls-creds-x509,id=c,dir=x,verify-peer=maybe", "expects 'on' or 'off'");
    object("tls-creds-x509,id=c,dir=x,priority=NORMAL", "'priority'");
    object("tls-creds-x509,id=c,dir=x,foo=1", "Parameter 'foo' is unexpected");
    object("tls-creds-x509,id=c,dir=x,passwordid=p", "No secret with id 'p'");
    object("tls-creds-psk,id=c,dir=x", "pre-shared keys are not supported");
    object("tls-creds-anon,id=c,dir=x", "use certificates");
    let serve = |args: &[&str], wanted: &str| {
        bad(dir, &[&["serve", "-f", "raw", "-k", "s"], args, &["src.raw"]].concat(), wanted);
    };
    serve(&["--tls-creds", "x"], "No TLS credentials with id 'x'");
    serve(&["--tls-authz", "x"], "--tls-authz is not supported");
    serve(&["--tls-hostname", "x"], "--tls-hostname is not permitted");
    serve(&["--object", &ca.client(""), "--tls-creds", "c"], "for a server endpoint");
    serve(&["--object", "secret,id=c,data=x", "--tls-creds", "c"], "is not TLS credentials");
    let nbd = "driver=nbd,server.type=unix,server.path=/gone";
    let with = |object: &str, more: &str, wanted: &str| {
        let options = format!("{nbd}{more}");
        bad(dir, &["info", "--object", object, "--image-opts", &options], wanted);
    };
    with(&ca.server(""), ",tls-creds=t", "for a client endpoint");
    with(&ca.server(""), ",tls-creds=x", "No TLS credentials with id 'x'");
    with(&ca.server(""), ",tls-hostname=x", "not permitted without tls-creds");
    // A key that is encrypted.
    let sealed = ["pkcs8", "-topk8", "-in", "server-key.pem", "-passout", "pass:open sesame"];
    ca.openssl(&[&sealed[..], &["-v2", "aes-256-cbc", "-out", "sealed"]].concat());
    std::fs::rename(ca.dir.join("sealed"), ca.dir.join("server-key.pem")).unwrap();
    serve(&["--object", &ca.server("")], "the key is encrypted");
    let password = |word: &str| format!("secret,id=p,data={word}");
    let (right, wrong) = (password("open sesame"), password("sesame"));
    let named = ca.server(",passwordid=p");
    serve(&["--object", &wrong, "--object", &named], "does not decrypt the key");
    let args = ["serve", "-f", "raw", "-t", "-k", "SOCK", "--object", &right, "--object", &named];
    let args = [&args[..], &["--tls-creds", "t", "src.raw"]].concat();
    let server = Server::start(&tools::rimg().unwrap(), dir, "sealed.sock", &args);
    good(dir, &["info", "-f", "raw", &server.uri(&ca.path())]);
}

/// `STARTTLS` and its acknowledgement, as they are on the wire.
const START: [u8; 16] = *b"IHAVEOPT\0\0\0\x05\0\0\0\0";
const ACKNOWLEDGED: [u8; 20] =
    [0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0, 0];
const GREETING: [u8; 18] = *b"NBDMAGICIHAVEOPT\0\x03";

#[test]
fn text_put_in_before_the_handshake() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let Some(ca) = Authority::new(dir, "ca") else { return };
    std::fs::write(dir.join("src.raw"), vec![7; 1 << 20]).unwrap();
    // To the server: options that wait behind STARTTLS must not be carried out, before or after the handshake.
    let server = Server::of_rimg_to_read(dir, "s", &ca.server(""), "src.raw");
    let mut socket = UnixStream::connect(&server.socket).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let list = *b"IHAVEOPT\0\0\0\x03\0\0\0\0";
    socket.write_all(&[&[0, 0, 0, 3][..], &START, &list].concat()).unwrap();
    let mut said = Vec::new();
    // The server may hang up as it likes.
    let _ = socket.read_to_end(&mut said);
    let wanted = [&GREETING[..], &ACKNOWLEDGED].concat();
    assert!(said.starts_with(&wanted), "{said:?}");
    let rest = &said[wanted.len()..];
    // Nothing but an alert (RFC 8446, 5.1: content type 21).
    assert!(rest.first().is_none_or(|kind| *kind == 21), "{rest:?}");
    assert!(!rest.windows(8).any(|w| w == &ACKNOWLEDGED[..8]), "{rest:?}");
    // STARTTLS with something in it, and anything else in plain text, is refused; leaving is not.
    let mut socket = UnixStream::connect(&server.socket).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let filled = *b"IHAVEOPT\0\0\0\x05\0\0\0\x01x";
    let abort = *b"IHAVEOPT\0\0\0\x02\0\0\0\0";
    socket.write_all(&[&[0, 0, 0, 3][..], &filled, &list, &abort].concat()).unwrap();
    let mut said = Vec::new();
    let _ = socket.read_to_end(&mut said);
    let kinds: Vec<u32> = said[18..]
        .windows(16)
        .filter(|w| w[..8] == ACKNOWLEDGED[..8])
        .map(|w| u32::from_be_bytes(w[12..16].try_into().unwrap()))
        .collect();
    assert_eq!(kinds, [0x8000_0003, 0x8000_0005, 1]);
    // To the client: the same from a server, or from who sits on the way.
    let path = dir.join("liar");
    let listener = UnixListener::bind(&path).unwrap();
    let liar = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        socket.write_all(&GREETING).unwrap();
        let mut asked = [0; 20];
        socket.read_exact(&mut asked).unwrap();
        // A client with credentials asks for TLS before it asks for anything else.
        assert_eq!(asked[4..], START);
        let structured = *b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x08\0\0\0\x01\0\0\0\0";
        socket.write_all(&[&ACKNOWLEDGED[..], &structured].concat()).unwrap();
        let _ = socket.read_to_end(&mut Vec::new());
    });
    let uri = format!(
        "nbds+unix:///?socket={}&tls-certificates={}&tls-hostname=disks.example",
        path.display(),
        ca.path()
    );
    bad(dir, &["info", "-f", "raw", &uri], "does not speak TLS, or somebody between");
    liar.join().unwrap();
}

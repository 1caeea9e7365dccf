//! Images on a host reached by ssh: OpenSSH's server with its own keys and port.
//!
//! The program is the one that `RIMG_SSH` names, built with the feature `ssh`; the server the one that `SSHD` names.

#![allow(clippy::unwrap_used, clippy::panic)] // all of it is test code

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use suite::daemon::{Daemon, data_and_zeroes, free_port};
use suite::process::{Invocation, Outcome};
use suite::tools;

/// A server, and a user who can log in to it.
struct Host {
    dir: PathBuf,
    program: PathBuf,
    port: u16,
    user: String,
    _server: Daemon,
}

fn must(program: &str, args: &[&str], dir: &Path) -> String {
    let out = Command::new(program).args(args).current_dir(dir).stdin(Stdio::null()).output();
    let out = out.unwrap();
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

/// The program, if it was built with ssh.
fn program() -> Option<PathBuf> {
    tools::featured("ssh", "ssh://nobody@127.0.0.1:1/x", "images on hosts reached by ssh")
}

impl Host {
    fn new(dir: &Path) -> Option<Self> {
        let program = program()?;
        let given = std::env::var_os("SSHD").map(PathBuf::from);
        let Some(sshd) = given.or_else(|| tools::find("sshd")) else {
            tools::skip("images on hosts reached by ssh", "no sshd (or set SSHD)");
            return None;
        };
        let ssh = dir.join("home/.ssh");
        std::fs::create_dir_all(&ssh).unwrap();
        for (kind, file) in
            [("ed25519", "host"), ("rsa", "host_rsa"), ("ed25519", "home/.ssh/id_ed25519")]
        {
            must("ssh-keygen", &["-q", "-t", kind, "-N", "", "-f", file], dir);
        }
        let (at, port) = (dir.display(), free_port());
        std::fs::copy(ssh.join("id_ed25519.pub"), dir.join("authorized")).unwrap();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {at}/host\nHostKey {at}/host_rsa\n\
             AuthorizedKeysFile {at}/authorized\nStrictModes no\nUsePAM no\nPidFile none\n\
             PermitRootLogin yes\nPasswordAuthentication no\nSubsystem sftp internal-sftp\n"
        );
        std::fs::write(dir.join("config"), config).unwrap();
        let user = must("id", &["-un"], dir);
        let mut server = Command::new(&sshd);
        if must("id", &["-u"], dir) == "0" {
            // A server of root wants a user and a folder of its own; only this one sees them.
            let users = std::fs::read_to_string("/etc/passwd").unwrap();
            let line = "sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n";
            std::fs::write(dir.join("passwd"), format!("{users}{line}")).unwrap();
            let script = "mount --bind passwd /etc/passwd && mount -t tmpfs none /run && \
                          mkdir /run/sshd && exec \"$0\" -D -e -f config";
            server = Command::new("unshare");
            server.args(["-m", "--propagation", "private", "sh", "-c", script]).arg(&sshd);
        } else {
            server.args(["-D", "-e", "-f", "config"]);
        }
        let log = std::fs::File::create(dir.join("log")).unwrap();
        let server = server.current_dir(dir).stdin(Stdio::null()).stderr(log).spawn().unwrap();
        let mut host = Host { dir: dir.to_owned(), program, port, user, _server: Daemon(server) };
        let end = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if host._server.0.try_wait().unwrap().is_some() {
                let log = std::fs::read_to_string(dir.join("log")).unwrap();
                tools::skip("images on hosts reached by ssh", &format!("sshd ended: {log}"));
                return None;
            }
            assert!(Instant::now() < end, "the server does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        host.know(port, "host.pub");
        Some(host)
    }

    /// Makes the host's key known, and no other.
    fn know(&self, port: u16, key: &str) {
        let key = std::fs::read_to_string(self.dir.join(key)).unwrap();
        std::fs::write(self.dir.join("home/.ssh/known_hosts"), format!("[127.0.0.1]:{port} {key}"))
            .unwrap();
    }

    fn url_at(&self, port: u16, file: &str) -> String {
        format!("ssh://{}@127.0.0.1:{port}{}/{file}", self.user, self.dir.display())
    }

    fn url(&self, file: &str) -> String {
        self.url_at(self.port, file)
    }

    fn call(&self, args: &[&str]) -> Invocation {
        let call = Invocation::new(&self.program, &self.dir).args(args);
        let call = call.env("HOME", self.dir.join("home")).env("SSH_AUTH_SOCK", "");
        call.time_limit(Duration::from_secs(120))
    }

    fn run(&self, args: &[&str]) -> Outcome {
        self.call(args).run().unwrap()
    }

    fn good(&self, args: &[&str]) -> String {
        let outcome = self.run(args);
        assert!(outcome.success(), "{args:?}: {}{}", outcome.out(), outcome.err());
        outcome.out()
    }

    fn bad(&self, args: &[&str], wanted: &str) {
        let outcome = self.run(args);
        let said = outcome.err();
        assert!(!outcome.success() && said.contains(wanted), "{args:?}: {said}");
    }
}

#[test]
fn every_command_that_reads() {
    let dir = tempfile::tempdir().unwrap();
    let Some(host) = Host::new(dir.path()) else { return };
    data_and_zeroes(&host.dir.join("src.raw"), (30 << 20) + 100);
    let whole = host.good(&["digest", "-f", "raw", "src.raw"]);
    let whole = whole.split_whitespace().next().unwrap();
    for (format, name) in [("qcow2", "a.qcow2"), ("vmdk", "a.vmdk"), ("vhdx", "a.vhdx")] {
        host.good(&["convert", "-f", "raw", "-O", format, "src.raw", name]);
        let url = host.url(name);
        let info = host.good(&["info", &url]);
        assert!(info.contains(&format!("image: {url}\n")), "{info}");
        assert!(info.contains("protocol type: ssh"), "{info}");
        assert!(host.good(&["digest", &url]).starts_with(whole), "{name}");
        host.good(&["compare", "-f", "raw", "src.raw", &url]);
        host.good(&["map", "--output=json", &url]);
        host.good(&["convert", "-O", "qcow2", &url, "--force", "copy.qcow2"]);
        host.good(&["compare", "-f", "raw", "-F", "qcow2", "src.raw", "copy.qcow2"]);
    }
    host.good(&["check", &host.url("a.qcow2")]);
    assert!(host.good(&["digest", "-f", "raw", &host.url("src.raw")]).starts_with(whole));
    // All ways to name it.
    let at = host.dir.join("a.qcow2");
    let options = format!(
        "driver=qcow2,file.driver=ssh,file.server.host=127.0.0.1,file.server.port={},\
         file.user={},file.path={}",
        host.port,
        host.user,
        at.display()
    );
    assert!(host.good(&["info", "--image-opts", &options]).contains("file format: qcow2"));
    let json = format!(
        "json:{{\"driver\":\"ssh\",\"server\":{{\"host\":\"127.0.0.1\",\"port\":\"{}\"}},\
         \"user\":\"{}\",\"path\":\"{}\"}}",
        host.port,
        host.user,
        at.display()
    );
    assert!(host.good(&["info", &json]).contains("file format: ssh"));
    host.bad(&["info", &host.url("none")], "No such file");
    host.bad(&["info", &host.url("home")], "not a regular file");
    host.bad(&["info", &format!("ssh://x@127.0.0.1:{}/x", free_port())], "refused");
}

#[test]
fn hosts_and_users_prove_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let Some(host) = Host::new(dir.path()) else { return };
    host.good(&["create", "-f", "qcow2", "a.qcow2", "10M"]);
    let (url, ssh) = (host.url("a.qcow2"), host.dir.join("home/.ssh"));
    let info = |more: &str| host.run(&["info", &format!("{url}{more}")]);
    assert!(info("").success());
    // The key that is known is asked for, though the host would rather show another.
    host.know(host.port, "host_rsa.pub");
    assert!(info("").success(), "{}", info("").err());
    must("ssh-keygen", &["-q", "-H", "-f", "home/.ssh/known_hosts"], &host.dir);
    assert!(info("").success(), "{}", info("").err());
    host.know(host.port, "home/.ssh/id_ed25519.pub");
    assert!(info("").err().contains("does not match the one in known_hosts"));
    std::fs::remove_file(ssh.join("known_hosts")).unwrap();
    assert!(info("").err().contains("no host key was found in known_hosts"));
    assert!(info("?host_key_check=no").success());
    // By fingerprint, of whichever key the host shows.
    let shown = info("?host_key_check=sha256:0").err();
    assert!(shown.contains("not a fingerprint"), "{shown}");
    let line = must("ssh-keygen", &["-l", "-f", "host.pub"], &host.dir);
    let sha256 = line.split("SHA256:").nth(1).unwrap().split(' ').next().unwrap();
    let pinned = |hash: &str| {
        let options = format!(
            "driver=qcow2,file.driver=ssh,file.host=127.0.0.1,file.port={},file.user={},\
             file.path={}/a.qcow2,file.host-key-check.mode=hash,{hash}",
            host.port,
            host.user,
            host.dir.display()
        );
        host.run(&["info", "--image-opts", &options])
    };
    let of = |kind: &str, hash: &str| {
        pinned(&format!("file.host-key-check.type={kind},file.host-key-check.hash={hash}"))
    };
    assert!(of("sha256", sha256).success(), "{}", of("sha256", sha256).err());
    let line = must("ssh-keygen", &["-l", "-E", "md5", "-f", "host.pub"], &host.dir);
    let md5 = line.split("MD5:").nth(1).unwrap().split(' ').next().unwrap();
    assert!(of("md5", md5).success(), "{}", of("md5", md5).err());
    let wrong = of("sha1", &"00".repeat(20)).err();
    assert!(wrong.contains("does not match host_key_check"), "{wrong}");
    // Keys of the user: none, one with a passphrase, one in the agent, an RSA key.
    host.know(host.port, "host.pub");
    std::fs::rename(ssh.join("id_ed25519"), host.dir.join("key")).unwrap();
    assert!(info("").err().contains("no key was found in the agent"));
    must("ssh-keygen", &["-q", "-t", "rsa", "-N", "word", "-f", "home/.ssh/id_rsa"], &host.dir);
    assert!(info("").err().contains("has a passphrase"), "{}", info("").err());
    must("ssh-keygen", &["-q", "-p", "-P", "word", "-N", "", "-f", "home/.ssh/id_rsa"], &host.dir);
    assert!(info("").err().contains("1 keys"), "{}", info("").err());
    let rsa = std::fs::read(ssh.join("id_rsa.pub")).unwrap();
    let first = std::fs::read(host.dir.join("authorized")).unwrap();
    std::fs::write(host.dir.join("authorized"), rsa).unwrap();
    assert!(info("").success(), "{}", info("").err());
    std::fs::write(host.dir.join("authorized"), first).unwrap();
    if tools::find("ssh-agent").is_none() {
        return tools::skip("keys of an agent", "no ssh-agent");
    }
    let socket = host.dir.join("agent");
    let mut agent = Command::new("ssh-agent");
    let agent = agent.arg("-D").arg("-a").arg(&socket).stdout(Stdio::null()).spawn().unwrap();
    let _agent = Daemon(agent);
    let end = Instant::now() + Duration::from_secs(60);
    while !socket.exists() {
        assert!(Instant::now() < end, "the agent does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut add = Command::new("ssh-add");
    let added = add.env("SSH_AUTH_SOCK", &socket).arg(host.dir.join("key")).output().unwrap();
    assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    let call = host.call(&["info", &url]).env("SSH_AUTH_SOCK", &socket).run().unwrap();
    assert!(call.success(), "{}", call.err());
}

#[test]
fn targets() {
    let dir = tempfile::tempdir().unwrap();
    let Some(host) = Host::new(dir.path()) else { return };
    data_and_zeroes(&host.dir.join("src.raw"), (9 << 20) + 512);
    for format in ["raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc"] {
        let (file, url) = (format!("new.{format}"), host.url(&format!("new.{format}")));
        host.good(&["convert", "-f", "raw", "-O", format, "src.raw", &url]);
        let verdict = host.run(&["compare", "-f", "raw", "-F", format, "src.raw", &file]);
        assert!(verdict.success(), "{format}: {}{}", verdict.out(), verdict.err());
        assert!(!host.dir.join(format!("{file}.part")).exists());
    }
    let url = host.url("new.qcow2");
    host.good(&["check", "-f", "qcow2", "new.qcow2"]);
    // What is there stays, unless it is to be replaced.
    host.bad(&["convert", "-f", "raw", "-O", "qcow2", "src.raw", &url], "not empty");
    host.good(&["convert", "--verify", "--force", "-f", "raw", "-O", "qcow2", "src.raw", &url]);
    std::fs::write(host.dir.join("new.qcow2.part"), b"x").unwrap();
    host.bad(
        &["convert", "--force", "-f", "raw", "-O", "qcow2", "src.raw", &url],
        "may be writing",
    );
    std::fs::remove_file(host.dir.join("new.qcow2.part")).unwrap();
    // A link is followed, an error leaves nothing behind.
    std::os::unix::fs::symlink("real.raw", host.dir.join("link.raw")).unwrap();
    host.good(&["convert", "-f", "raw", "-O", "raw", "src.raw", &host.url("link.raw")]);
    assert!(host.dir.join("link.raw").is_symlink() && host.dir.join("real.raw").is_file());
    host.bad(
        &[
            "convert",
            "-f",
            "raw",
            "-O",
            "vmdk",
            "-o",
            "subformat=twoGbMaxExtentSparse",
            "src.raw",
            &host.url("many.vmdk"),
        ],
        "several files",
    );
    assert!(!host.dir.join("many.vmdk.part").exists() && !host.dir.join("many.vmdk").exists());
    host.bad(&["convert", "-f", "raw", "-O", "raw", "src.raw", &host.url("no/x")], "No such file");
    let resume = ["convert", "--resume", "-f", "raw", "-O", "raw", "src.raw", &host.url("r")];
    host.bad(&resume, "cannot be resumed");
    assert!(!host.dir.join("r.part").exists());
    // Images that are there: written in place, grown, shrunk, snapshots made.
    host.good(&["create", "-f", "qcow2", &host.url("c.qcow2"), "9437696"]);
    host.good(&["convert", "-n", "-f", "raw", "-O", "qcow2", "src.raw", &host.url("c.qcow2")]);
    host.good(&["compare", "-f", "raw", "-F", "qcow2", "src.raw", "c.qcow2"]);
    host.good(&["snapshot", "-c", "s", &host.url("c.qcow2")]);
    host.good(&["resize", "-f", "raw", &host.url("new.raw"), "+1M"]);
    host.good(&["resize", "--shrink", "-f", "raw", &host.url("new.raw"), "9437696"]);
    host.good(&["compare", "-f", "raw", "-F", "raw", "src.raw", "new.raw"]);
    let to = format!("of={}", host.url("dd.raw"));
    host.good(&["dd", "-f", "raw", "-O", "raw", "if=src.raw", &to, "bs=1M", "count=2"]);
    assert_eq!(std::fs::metadata(host.dir.join("dd.raw")).unwrap().len(), 2 << 20);
    host.bad(&["create", "-f", "qcow2", "-b", "src.raw", "-F", "raw", &host.url("b")], "this host");
}

/// Passes connections on to a port, and tells `mind` how many bytes came from there; it says whether more may.
fn between(to: u16, mind: impl Fn(usize) -> bool + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mind = Arc::new(mind);
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(mut client) = client else { return };
            let mind = Arc::clone(&mind);
            std::thread::spawn(move || {
                let Ok(mut server) = TcpStream::connect(("127.0.0.1", to)) else { return };
                let (mut back, mut up) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                std::thread::spawn(move || std::io::copy(&mut up, &mut back));
                let (mut buf, mut came) = (vec![0; 16 << 10], 0);
                while let Ok(got) = server.read(&mut buf) {
                    came += got;
                    if got == 0 || !mind(came) || client.write_all(&buf[..got]).is_err() {
                        break;
                    }
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
    let Some(host) = Host::new(dir.path()) else { return };
    let file = host.dir.join("src.raw");
    data_and_zeroes(&file, 40 << 20);
    let port = between(host.port, |came| came < 5_000_000);
    host.know(port, "host.pub");
    let convert = |port| {
        let url = host.url_at(port, "src.raw");
        host.run(&["convert", "-f", "raw", "-O", "raw", &url, "a.raw"])
    };
    let broken = convert(port).err();
    assert!(broken.contains("the ssh connection to") && broken.contains("broke"), "{broken}");
    assert!(!host.dir.join("a.raw").exists());
    // Written to while it is read.
    let then = SystemTime::now() - Duration::from_secs(86_400);
    let port = between(host.port, move |came| {
        if came > 3_000_000 {
            std::fs::File::options().write(true).open(&file).unwrap().set_modified(then).unwrap();
        }
        true
    });
    host.know(port, "host.pub");
    let changed = convert(port).err();
    assert!(changed.contains("has changed since it was opened"), "{changed}");
    assert!(!host.dir.join("a.raw").exists());
}

//! Images of a Ceph cluster: one monitor and one storage daemon that keep everything in memory.
//!
//! The program is the one that `RIMG_RBD` names, built with the feature `rbd`; the cluster's programs and libraries are
//! those of the folder `CEPH_ROOT` (Debian's packages, unpacked), or the installed ones.

#![allow(clippy::unwrap_used, clippy::panic)] // all of it is test code

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use suite::daemon::{Daemon, free_port};
use suite::process::{Invocation, Outcome};
use suite::tools;

/// Where the cluster's programs are.
struct Ceph {
    root: Option<PathBuf>,
}

impl Ceph {
    fn libraries(&self) -> String {
        let root = self.root.as_deref().unwrap_or(Path::new("/"));
        let all =
            ["usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/ceph", "lib/x86_64-linux-gnu"];
        all.map(|dir| root.join(dir).to_string_lossy().into_owned()).join(":")
    }

    fn program(&self, name: &str) -> Option<PathBuf> {
        match &self.root {
            Some(root) => Some(root.join("usr/bin").join(name)).filter(|p| p.is_file()),
            None => tools::find(name),
        }
    }

    fn command(&self, name: &str, dir: &Path) -> Command {
        let mut command = Command::new(self.program(name).unwrap());
        command.current_dir(dir).env("CEPH_CONF", dir.join("ceph.conf")).stdin(Stdio::null());
        if self.root.is_some() {
            command.env("LD_LIBRARY_PATH", self.libraries());
        }
        command
    }

    fn must(&self, name: &str, args: &[&str], dir: &Path) -> String {
        let out = self.command(name, dir).args(args).output().unwrap();
        let err = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{name} {args:?}: {err}");
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    fn daemon(&self, name: &str, args: &[&str], dir: &Path) -> Daemon {
        let mut command = self.command(name, dir);
        Daemon::start(command.args(args))
    }
}

/// The program, if it was built with rbd.
fn program() -> Option<PathBuf> {
    tools::featured("rbd", "rbd:p/i:conf=/none", "images of Ceph clusters")
}

/// A cluster, and the program that uses it.
struct Cluster {
    dir: PathBuf,
    ceph: Ceph,
    program: PathBuf,
    daemons: Vec<Daemon>,
}

/// Sends commands to the monitor: nothing but Ceph's Python has a program for it.
const COMMAND: &str = r"
import ctypes, sys
rados = ctypes.CDLL('librados.so.2')
cluster = ctypes.c_void_p()
rados.rados_create(ctypes.byref(cluster), None)
rados.rados_conf_read_file(cluster, sys.argv[1].encode())
rados.rados_conf_set(cluster, b'client_mount_timeout', b'30')
code = rados.rados_connect(cluster)
if code == 0:
    command = (ctypes.c_char_p * 1)(sys.argv[2].encode())
    out, status = ctypes.c_void_p(), ctypes.c_void_p()
    n, m = ctypes.c_size_t(), ctypes.c_size_t()
    code = rados.rados_mon_command(cluster, command, ctypes.c_size_t(1), None, ctypes.c_size_t(0), ctypes.byref(out),
        ctypes.byref(n), ctypes.byref(status), ctypes.byref(m))
    sys.stdout.write(ctypes.string_at(out, n.value).decode())
sys.exit(0 if code == 0 else 'code %d' % code)
";

impl Cluster {
    fn new(dir: &Path) -> Option<Self> {
        let program = program()?;
        let ceph = Ceph { root: std::env::var_os("CEPH_ROOT").map(PathBuf::from) };
        for tool in ["ceph-mon", "ceph-osd", "ceph-authtool", "monmaptool", "rbd"] {
            if ceph.program(tool).is_none() {
                tools::skip("images of Ceph clusters", &format!("no {tool} (or set CEPH_ROOT)"));
                return None;
            }
        }
        if tools::find("python3").is_none() {
            tools::skip("images of Ceph clusters", "no python3");
            return None;
        }
        let port = free_port();
        let (at, fsid) = (dir.display(), "5f9c5a0e-0c1d-4c56-9a58-2a3bb3a0c0de");
        let root = ceph.root.clone().unwrap_or_else(|| PathBuf::from("/"));
        let lib = root.join("usr/lib/x86_64-linux-gnu");
        let lib = lib.display();
        let none =
            ["cluster", "service", "client"].map(|who| format!("auth {who} required = none\n"));
        let config = format!(
            "[global]\nfsid = {fsid}\nmon host = v1:127.0.0.1:{port}\npublic addr = 127.0.0.1\n\
             ms bind msgr2 = false\n{}osd pool default size = 1\nosd pool default min size = 1\n\
             osd pool default pg num = 8\nosd crush chooseleaf type = 0\nmon allow pool size one = true\n\
             mon data = {at}/mon\nosd data = {at}/osd\nmon data avail crit = 1\nrun dir = {at}\n\
             admin socket =\npid file =\nheartbeat file =\nlog file = {at}/$name.log\ncrash dir = {at}\n\
             mon cluster log file = {at}/cluster.log\nosd objectstore = memstore\n\
             memstore device bytes = 1073741824\nplugin dir = {lib}/ceph\n\
             erasure code dir = {lib}/ceph/erasure-code\nosd class dir = {lib}/rados-classes\n\
             keyring = {at}/keyring\n",
            none.concat()
        );
        std::fs::write(dir.join("ceph.conf"), config).unwrap();
        for folder in ["mon", "osd"] {
            std::fs::create_dir(dir.join(folder)).unwrap();
        }
        let mon =
            ["--create-keyring", "keyring", "--gen-key", "-n", "mon.", "--cap", "mon", "allow *"];
        ceph.must("ceph-authtool", &mon, dir);
        let all = ["--cap", "mon", "allow *", "--cap", "osd", "allow *"];
        let admin = [&["keyring", "--gen-key", "-n", "client.admin"][..], &all].concat();
        ceph.must("ceph-authtool", &admin, dir);
        let address = format!("[v1:127.0.0.1:{port}]");
        let map = ["--create", "--fsid", fsid, "--addv", "a", &address, "monmap"];
        ceph.must("monmaptool", &map, dir);
        let here = ["-c", "ceph.conf", "-i", "a"];
        let make = [&here[..], &["--mkfs", "--monmap", "monmap", "--keyring", "keyring"]].concat();
        ceph.must("ceph-mon", &make, dir);
        let mut daemons = vec![ceph.daemon("ceph-mon", &[&here[..], &["-f"]].concat(), dir)];
        let mut cluster = Cluster { dir: dir.to_owned(), ceph, program, daemons: Vec::new() };
        let uuid = "0b6e5a3c-7f43-4f0a-8d0e-6f1f0a3b9c77";
        cluster.ask(&format!("{{\"prefix\":\"osd new\",\"uuid\":\"{uuid}\"}}"));
        // A store in memory takes its name from here.
        std::fs::write(dir.join("osd/fsid"), format!("{uuid}\n")).unwrap();
        let here = ["-c", "ceph.conf", "-i", "0"];
        let make = [&here[..], &["--mkfs", "--osd-uuid", uuid]].concat();
        cluster.ceph.must("ceph-osd", &make, dir);
        daemons.push(cluster.ceph.daemon("ceph-osd", &[&here[..], &["-f"]].concat(), dir));
        cluster.daemons = daemons;
        cluster.ask("{\"prefix\":\"osd pool create\",\"pool\":\"rbd\",\"pg_num\":8}");
        let end = Instant::now() + Duration::from_secs(120);
        while !cluster
            .ask("{\"prefix\":\"osd stat\",\"format\":\"json\"}")
            .contains("\"num_up_osds\":1")
        {
            assert!(Instant::now() < end, "the storage daemon does not come up");
            // Now and then the monitor tells it "wrong fsid" at its start, and it ends; who runs it starts it again.
            if cluster.daemons[1].0.try_wait().unwrap().is_some() {
                cluster.daemons[1] =
                    cluster.ceph.daemon("ceph-osd", &[&here[..], &["-f"]].concat(), dir);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Some(cluster)
    }

    /// A command of the monitor, tried until it is there.
    fn ask(&self, command: &str) -> String {
        let end = Instant::now() + Duration::from_secs(120);
        loop {
            let mut python = Command::new("python3");
            if self.ceph.root.is_some() {
                python.env("LD_LIBRARY_PATH", self.ceph.libraries());
            }
            let conf = self.dir.join("ceph.conf");
            let out = python.args(["-c", COMMAND]).arg(&conf).arg(command).output().unwrap();
            if out.status.success() {
                return String::from_utf8_lossy(&out.stdout).into_owned();
            }
            let said = String::from_utf8_lossy(&out.stderr).into_owned();
            assert!(Instant::now() < end, "{command}: {said}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn name(&self, image: &str) -> String {
        format!("rbd:rbd/{image}:conf={}/ceph.conf", self.dir.display())
    }

    fn run(&self, args: &[&str]) -> Outcome {
        let mut call = Invocation::new(&self.program, &self.dir).args(args);
        if let Some(root) = &self.ceph.root {
            // The libraries lie where a confined process is not meant to look.
            call = call.args(["--allow", &root.to_string_lossy()]);
            call = call.env("LD_LIBRARY_PATH", self.ceph.libraries());
        }
        call.time_limit(Duration::from_secs(180)).run().unwrap()
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

    fn rbd(&self, args: &[&str]) -> String {
        self.ceph.must("rbd", &[&["-c", "ceph.conf"][..], args].concat(), &self.dir)
    }
}

/// Data and holes of several objects.
fn source(path: &Path, len: usize) {
    let mut bytes = vec![0u8; len];
    for start in [0usize, 9 << 20, (17 << 20) + 5000] {
        for (n, byte) in bytes[start..start + (2 << 20)].iter_mut().enumerate() {
            *byte = u8::try_from((n / 5 + start) % 251).unwrap() | 1;
        }
    }
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn images_of_a_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let Some(cluster) = Cluster::new(dir.path()) else { return };
    source(&cluster.dir.join("src.raw"), 32 << 20);
    let digest = cluster.good(&["digest", "-f", "raw", "src.raw"]);
    let digest = digest.split_whitespace().next().unwrap();
    // Made by us, read by Ceph's own program.
    let name = cluster.name("a");
    cluster.good(&["convert", "-f", "raw", "-O", "raw", "src.raw", &name]);
    assert_eq!(cluster.rbd(&["ls"]).trim(), "a");
    cluster.rbd(&["export", "a", "exported"]);
    cluster.good(&["compare", "-f", "raw", "-F", "raw", "src.raw", "exported"]);
    cluster.bad(&["convert", "--force", "-f", "raw", "-O", "raw", "src.raw", &name], "exists");
    // Read by us.
    let info = cluster.good(&["info", "-f", "raw", &name]);
    assert!(info.contains("32 MiB") && info.contains("protocol type: rbd"), "{info}");
    assert!(cluster.good(&["digest", "-f", "raw", &name]).starts_with(digest));
    let map = cluster.good(&["map", "-f", "raw", "--output=json", &name]);
    assert!(map.contains("\"zero\": true") || map.contains("\"zero\":true"), "no holes: {map}");
    // Made by Ceph's program.
    cluster.rbd(&["import", "src.raw", "b"]);
    let options = format!(
        "driver=raw,file.driver=rbd,file.pool=rbd,file.image=b,file.conf={}/ceph.conf",
        cluster.dir.display()
    );
    assert!(cluster.good(&["digest", "--image-opts", &options]).starts_with(digest));
    // A snapshot stays when the image changes; sizes change; space is given back.
    cluster.rbd(&["snap", "create", "a@s"]);
    cluster.rbd(&["create", "--size", "40", "c"]);
    cluster.good(&["convert", "-n", "-f", "raw", "-O", "raw", "src.raw", &cluster.name("c")]);
    cluster.good(&["resize", "--shrink", "-f", "raw", &name, "16M"]);
    assert!(cluster.good(&["digest", "-f", "raw", &cluster.name("a@s")]).starts_with(digest));
    cluster.bad(&["resize", "-f", "raw", &cluster.name("a@s"), "+1M"], "");
    cluster.good(&["resize", "-f", "raw", &name, "32M"]);
    let info = cluster.good(&["info", "-f", "raw", &name]);
    assert!(info.contains("32 MiB"), "{info}");
    // A format on it grows it.
    let name = cluster.name("q");
    cluster.good(&["convert", "-f", "raw", "-O", "qcow2", "src.raw", &name]);
    cluster.good(&["check", "-f", "qcow2", &name]);
    cluster.good(&["compare", "-f", "raw", "-F", "qcow2", "src.raw", &name]);
    cluster.good(&["snapshot", "-c", "s", &name]);
    cluster.good(&["convert", "-f", "qcow2", "-O", "raw", &name, "back.raw"]);
    cluster.good(&["compare", "-f", "raw", "-F", "raw", "src.raw", "back.raw"]);
    // What fails leaves nothing.
    let full = ["-O", "vmdk", "-o", "subformat=twoGbMaxExtentFlat", "src.raw"];
    cluster.bad(
        &[&["convert", "-f", "raw"], &full[..], &[&cluster.name("v")]].concat(),
        "several files",
    );
    assert_eq!(cluster.rbd(&["ls"]).split_whitespace().collect::<Vec<_>>(), ["a", "b", "c", "q"]);
    cluster.bad(&["info", "-f", "raw", &cluster.name("none")], "No such file");
    let pool = cluster.name("a").replace("rbd:rbd/", "rbd:nopool/");
    cluster.bad(&["info", "-f", "raw", &pool], "error opening pool nopool");
}

#[test]
fn clusters_that_are_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let Some(program) = program() else { return };
    let ceph = Ceph { root: std::env::var_os("CEPH_ROOT").map(PathBuf::from) };
    let run = |name: &str| {
        let mut call = Invocation::new(&program, dir).args(["info", "-f", "raw", name]);
        if let Some(root) = &ceph.root {
            call = call.args(["--allow", &root.to_string_lossy()]);
            call = call.env("LD_LIBRARY_PATH", ceph.libraries());
        }
        let outcome = call.time_limit(Duration::from_secs(120)).run().unwrap();
        assert!(!outcome.success());
        outcome.err()
    };
    let said = run("rbd:p/i:conf=/none");
    if said.contains("Ceph's library cannot be used") {
        assert!(said.contains("install it"), "{said}");
        return tools::skip("clusters that are not there", "no librbd (or set CEPH_ROOT)");
    }
    assert!(said.contains("error reading conf file /none"), "{said}");
    std::fs::write(dir.join("bad"), "[global\nnonsense = = \"\n").unwrap();
    let said = run(&format!("rbd:p/i:conf={}/bad", dir.display()));
    assert!(said.contains("error "), "{said}");
    // Nobody listens there; nobody is named.
    let nobody = "rbd:p/i:conf=:mon_host=v1\\:127.0.0.1\\:1:auth_client_required=none";
    let said = run(&format!("{nobody}:client_mount_timeout=2"));
    assert!(said.contains("error connecting") && said.contains("no monitor answered"), "{said}");
    let said = run("rbd:p/i:conf=:auth_client_required=none");
    assert!(said.contains("error connecting") && said.contains("no monitor is named"), "{said}");
    assert!(run("rbd:p/i:conf=:nonsense=1").contains("invalid conf option nonsense"));
}

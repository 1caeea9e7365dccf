//! Networks that come back after a restart, under every network manager: plan, apply, a second apply, a restart, making
//! them again, undo. What real kernels and daemons do is in `bins/rhostprep/tests/namespaces.sh`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fakes;
mod shapes;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use fakes::{Snapshot, same, snapshot};
use hostprep::Result;
use hostprep::change::{self, Applied, Force, Plan, TreeEffects};
use hostprep::host::{Facts, Host};
use hostprep::net::{
    self, Cidr, Forward, Model, NetBackend, NetBefore, NetChange, NetworkWish, Outcome, Persist,
    RestoreWish,
};
use shapes::{Fake, Shape};

const PROGRAM: &str = "/usr/local/bin/rhostprep";

/// A network that is a file of lines: what there is, a tab, and for a table its body.
struct FileNet(std::path::PathBuf);

impl FileNet {
    fn read(&self) -> BTreeMap<String, String> {
        let text = std::fs::read_to_string(&self.0).unwrap();
        let pair = |line: &str| line.split_once('\t').map(|(a, b)| (a.to_owned(), b.to_owned()));
        text.lines().filter_map(pair).collect()
    }

    fn write(&self, all: &BTreeMap<String, String>) {
        let lines: Vec<String> =
            all.iter().map(|(key, value)| format!("{key}\t{value}\n")).collect();
        std::fs::write(&self.0, lines.concat()).unwrap();
    }

    fn entry(change: &NetChange) -> (String, String) {
        match change {
            NetChange::Table { name, body } => (format!("table {name}"), body.replace('\n', ";")),
            other => (other.describe(), String::new()),
        }
    }
}

impl NetBackend for FileNet {
    fn remember(&mut self, change: &NetChange) -> Result<NetBefore> {
        let now = self.read().remove(&Self::entry(change).0);
        Ok(match change {
            NetChange::Table { .. } => NetBefore::Table { text: now },
            NetChange::Belongs { .. } => NetBefore::There { there: true },
            _ => NetBefore::There { there: now.is_some() },
        })
    }

    fn perform(&mut self, change: &NetChange, _before: &NetBefore) -> Result<()> {
        if matches!(change, NetChange::Belongs { .. }) {
            return Ok(());
        }
        let mut all = self.read();
        let (key, value) = Self::entry(change);
        all.insert(key, value);
        self.write(&all);
        Ok(())
    }

    fn restore(&mut self, change: &NetChange, before: &NetBefore) -> Result<()> {
        let mut all = self.read();
        let (key, _) = Self::entry(change);
        match before {
            NetBefore::There { there: true } => {}
            NetBefore::Table { text: Some(text) } => {
                all.insert(key, text.clone());
            }
            _ => {
                all.remove(&key);
            }
        }
        self.write(&all);
        Ok(())
    }
}

/// A host with dnsmasq and these files.
fn fake(files: &[&str]) -> Fake {
    let mut shape = Shape(hostprep::host::Tree::default());
    shape
        .set("/usr/sbin/dnsmasq", "")
        .set("/etc/hostname", "a")
        .set("/run/utmp", "")
        .set("/var/lib/misc", "")
        .set("/proc/sys/net/ipv4/ip_forward", "0")
        .set("/net", "x");
    for file in files {
        shape.set(file, "");
    }
    let fake = shape.build();
    std::fs::write(fake.folder.path().join("net"), "").unwrap();
    fake
}

fn host(root: &Path) -> Host {
    Host::below(root, Facts::default())
}

fn effects(root: &Path) -> TreeEffects {
    TreeEffects::new(root).with_net(Box::new(FileNet(root.join("net"))))
}

fn lasting() -> Persist {
    Persist::Yes { program: PROGRAM.into() }
}

fn nat(root: &Path, name: &str, third: u8, persist: Persist) -> Plan {
    let wish = NetworkWish {
        name: name.into(),
        model: Model::Nat,
        subnet: Cidr { address: Ipv4Addr::new(192, 168, third, 0), prefix: 24 },
        subnet6: None,
        dhcp: true,
        persist,
    };
    net::network(&host(root), &wish).unwrap()
}

fn forward(root: &Path, persist: &Persist) -> Plan {
    let forward = Forward::parse("8080 -> 192.168.122.140:80").unwrap();
    net::forward(&host(root), &forward, persist).unwrap()
}

fn apply(root: &Path, plan: &Plan) -> Applied {
    change::apply(&mut effects(root), plan, &mut |_, _| ()).unwrap()
}

fn undo(root: &Path) {
    change::undo(&mut effects(root), None, Force::No).unwrap();
}

/// A restart: what the kernel and /run hold is gone.
fn restart(root: &Path) {
    std::fs::write(root.join("net"), "").unwrap();
    std::fs::write(root.join("proc/sys/net/ipv4/ip_forward"), "0\n").unwrap();
    for entry in std::fs::read_dir(root.join("run")).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_str().unwrap().starts_with("rhostprep-") {
            std::fs::remove_file(path).unwrap();
        }
    }
}

/// What became of each network, in words.
fn restore(root: &Path) -> Vec<String> {
    let wish = RestoreWish { names: Vec::new(), patience: Duration::ZERO, program: PROGRAM.into() };
    let restored = net::restore(&host(root), &mut effects(root), &wish).unwrap();
    let words = restored.into_iter().map(|one| match one.outcome {
        Outcome::AsRecorded => format!("{} as recorded", one.name),
        Outcome::MadeAgain(parts) => format!("{}: {}", one.name, parts.join(", ")),
        other => format!("{} {other:?}", one.name),
    });
    words.collect()
}

/// Without times: what is made again is as new as that.
fn timeless(root: &Path) -> Snapshot {
    let mut all = snapshot(root);
    all.values_mut().for_each(|value| value.4 = 0);
    all
}

fn entries(root: &Path) -> usize {
    change::list(root).unwrap().len()
}

const SYSTEMD: &str = "/run/systemd/system/x";
const UNIT: &str = "etc/systemd/system/rhostprep-net.service";
const WANTED: &str = "etc/systemd/system/multi-user.target.d/50-rhostprep-net.conf";

#[test]
fn under_every_manager() {
    let keyfile = "etc/NetworkManager/system-connections/virbr0.nmconnection";
    let netdev = "etc/systemd/network/10-virbr0.netdev";
    let network = "etc/systemd/network/10-virbr0.network";
    let yaml = "etc/netplan/90-rhostprep-virbr0.yaml";
    let stanza = "etc/network/interfaces.d/rhostprep-virbr0";
    let cases: [(&str, &[&str], &[&str]); 6] = [
        ("NetworkManager", &[SYSTEMD, "/run/NetworkManager/x"], &[keyfile, UNIT, WANTED]),
        ("networkd", &[SYSTEMD, "/run/systemd/netif/x"], &[netdev, network, UNIT, WANTED]),
        ("netplan", &[SYSTEMD, "/etc/netplan/a.yaml"], &[yaml, UNIT, WANTED]),
        ("ifupdown", &[SYSTEMD, "/etc/network/interfaces"], &[stanza, UNIT, WANTED]),
        ("ifupdown alone", &["/etc/network/interfaces"], &[stanza]),
        ("nobody", &[SYSTEMD], &[UNIT, WANTED]),
    ];
    for (name, files, expected) in cases {
        let fake = fake(files);
        let root = fake.folder.path();
        let before = snapshot(root);
        let plan = nat(root, "virbr0", 122, lasting());
        same(&snapshot(root), &before, &format!("{name}: a plan changes nothing"));
        apply(root, &plan);
        let made: Vec<String> = snapshot(root)
            .into_iter()
            .filter(|(path, state)| {
                path.starts_with("etc/") && !before.contains_key(path) && state.0 & 0o40_000 == 0
            })
            .map(|(path, _)| path)
            .collect();
        let mut expected: Vec<&str> = expected.to_vec();
        expected.sort_unstable();
        assert_eq!(made, expected, "{name}");
        let text = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
        if expected.contains(&UNIT) {
            assert!(text(UNIT).contains(&format!("ExecStart=\"{PROGRAM}\" net restore --wait")));
            assert!(text(WANTED).ends_with("[Unit]\nWants=rhostprep-net.service\n"));
        } else {
            assert!(text(stanza).contains(&format!("post-up '{PROGRAM}' net restore virbr0")));
        }
        assert_eq!(apply(root, &nat(root, "virbr0", 122, lasting())), Applied::NothingToDo);
        // Asked for without --persist it stays what it is.
        assert_eq!(apply(root, &nat(root, "virbr0", 122, Persist::No)), Applied::NothingToDo);
        apply(root, &forward(root, &lasting()));
        assert_eq!(apply(root, &forward(root, &lasting())), Applied::NothingToDo);
        let up = timeless(root);
        for _ in 0..2 {
            restart(root);
            let parts = "the bridge, its address 192.168.122.1/24, packet filters, ways through others' filters, forwarding, dnsmasq";
            assert_eq!(restore(root), [format!("virbr0: {parts}")], "{name}");
            same(&timeless(root), &up, &format!("{name}: made again"));
            assert_eq!(restore(root), ["virbr0 as recorded"], "{name}");
            same(&timeless(root), &up, &format!("{name}: and again"));
        }
        assert_eq!(entries(root), 2, "{name}: restoring is no change of its own");
        undo(root);
        assert!(!text("net").contains("192.168.122.140"), "{name}: the forward stayed");
        undo(root);
        same(&snapshot(root), &before, &format!("{name}: undone"));
    }
}

#[test]
fn undone_after_a_restart_without_being_made_again() {
    let fake = fake(&[SYSTEMD, "/run/systemd/netif/x"]);
    let root = fake.folder.path();
    let before = snapshot(root);
    apply(root, &nat(root, "virbr0", 122, Persist::No));
    // Persisted by its forward.
    apply(root, &forward(root, &lasting()));
    assert!(root.join(UNIT).exists());
    restart(root);
    undo(root);
    assert!(!root.join(UNIT).exists());
    undo(root);
    same(&snapshot(root), &before, "undone");
}

#[test]
fn persisted_later() {
    let fake = fake(&[SYSTEMD]);
    let root = fake.folder.path();
    apply(root, &nat(root, "virbr0", 122, Persist::No));
    let running = snapshot(root);
    restart(root);
    assert_eq!(restore(root), ["virbr0 NotPersisted"]);
    // Records of a version that did not persist such networks have no word about it.
    let record = root.join("var/lib/rhostprep/networks/virbr0.json");
    assert!(!std::fs::read_to_string(record).unwrap().contains("persisted"));
    apply(root, &nat(root, "virbr0", 122, Persist::No));
    let plan = nat(root, "virbr0", 122, lasting());
    assert_eq!(plan.actions.len(), 3, "{plan:#?}");
    assert!(plan.actions.iter().any(|action| net::concerns(action, "virbr0")));
    apply(root, &plan);
    // What somebody removed is written anew, in an entry that belongs to the network.
    std::fs::remove_file(root.join(WANTED)).unwrap();
    let plan = nat(root, "virbr0", 122, lasting());
    assert_eq!(plan.actions.len(), 2, "{plan:#?}");
    assert!(plan.actions.iter().any(|action| net::concerns(action, "virbr0")));
    apply(root, &plan);
    undo(root);
    undo(root);
    let mut now = timeless(root);
    now.retain(|path, _| running.contains_key(path));
    same(&now, &timeless(root), "no file of it stays");
}

#[test]
fn refused_where_nobody_would_start_it() {
    for (files, said) in [
        (&["/run/NetworkManager/x"][..], "neither systemd nor ifupdown"),
        (&[SYSTEMD, "/etc/systemd/system/rhostprep-net.service"][..], "did not write it"),
    ] {
        let fake = fake(files);
        let wish = NetworkWish {
            name: "virbr0".into(),
            model: Model::Isolated,
            subnet: Cidr { address: Ipv4Addr::new(192, 168, 122, 0), prefix: 24 },
            subnet6: None,
            dhcp: false,
            persist: lasting(),
        };
        let error = net::network(&host(fake.folder.path()), &wish).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
        assert!(error.remedy_text().is_some());
    }
}

//! What is written for network managers, read by the managers' own programs. `parsers FOLDER` collects those; without
//! RHOSTPREP_PARSERS=FOLDER/root the tests are skipped, loudly. systemd-networkd itself is in `namespaces`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hostprep::host::NetworkManager;
use hostprep::net::{Addressing, HostAddress, PersistBridge, PersistFile, Stp, persist_files};

/// The program below the folder of parsers.
fn parser(test: &str, program: &str) -> Option<Command> {
    let root = std::env::var_os("RHOSTPREP_PARSERS").map(PathBuf::from);
    let path = root.as_ref().map(|root| root.join(program)).filter(|path| path.exists());
    let (Some(root), Some(path)) = (root, path) else {
        eprintln!(
            "SKIPPED parsers::{test}: no {program} (bins/rhostprep/tests/parsers FOLDER; RHOSTPREP_PARSERS=FOLDER/root)"
        );
        return None;
    };
    let libraries = [root.join("usr/lib/x86_64-linux-gnu"), root.join("lib/x86_64-linux-gnu")];
    let mut command = Command::new(path);
    command.env("LD_LIBRARY_PATH", std::env::join_paths(libraries).unwrap()).env("LC_ALL", "C");
    Some(command)
}

/// Runs it with an input; what it wrote, once it ended well.
fn said(mut command: Command, input: &str) -> String {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}: {errors}\n{input}", output.status);
    assert!(!errors.to_lowercase().contains("warn"), "{errors}\n{input}");
    String::from_utf8(output.stdout).unwrap()
}

/// Every sort of bridge: what it is called, and its files.
fn bridges(manager: NetworkManager) -> Vec<(&'static str, Vec<PersistFile>)> {
    let fixed = ["192.0.2.5/24", "2001:db8::5/64"].map(|text| HostAddress::parse(text).unwrap());
    let with_gateway = Addressing::Static {
        addresses: &fixed,
        gateway: Some("192.0.2.1".parse().unwrap()),
        servers: vec!["192.0.2.53".parse().unwrap()],
    };
    let alone = Addressing::Static { addresses: &fixed[..1], gateway: None, servers: Vec::new() };
    let cases = [
        ("fixed", Some("eth0"), with_gateway, Stp::On),
        ("automatic", Some("eth0"), Addressing::Automatic, Stp::Off),
        ("inside", None, alone, Stp::Off),
    ];
    cases
        .into_iter()
        .map(|(name, port, addressing, stp)| {
            let bridge = PersistBridge { name: "br0", port, addressing, stp };
            (name, persist_files(manager, &bridge).unwrap())
        })
        .collect()
}

fn expect(text: &str, words: &[&str], what: &str) {
    for word in words {
        assert!(text.contains(word), "{what}: no '{word}' in\n{text}");
    }
}

#[test]
fn network_manager_reads_its_keyfiles() {
    for (name, files) in bridges(NetworkManager::NetworkManager) {
        for file in files {
            assert_eq!(file.mode, 0o600);
            let Some(mut nmcli) = parser("network_manager", "usr/bin/nmcli") else { return };
            // Offline it reads a profile, changes it, checks all of it, and writes it.
            nmcli.args(["--offline", "connection", "modify", "connection.zone", "seen"]);
            let text = said(nmcli, &file.text);
            let port = file.path.contains("br0-eth0");
            let words: &[&str] = match (name, port) {
                (_, true) => {
                    &["interface-name=eth0", "master=br0", "slave-type=bridge", "type=ethernet"]
                }
                ("fixed", _) => &[
                    "address1=192.0.2.5/24",
                    "192.0.2.1",
                    "dns=192.0.2.53;",
                    "address1=2001:db8::5/64",
                    "interface-name=br0",
                    "method=manual",
                    "forward-delay=2",
                ],
                ("automatic", _) => &["method=auto", "stp=false", "type=bridge"],
                _ => &["address1=192.0.2.5/24", "method=link-local"],
            };
            expect(&text, &[words, &["zone=seen"]].concat(), &file.path);
        }
    }
}

/// Everything below a folder as one text.
fn all(folder: &Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            text.push_str(&all(&path));
        } else {
            let inner = std::fs::read_to_string(&path).unwrap_or_default();
            text.push_str(&format!("## {}\n{inner}\n", path.display()));
        }
    }
    text
}

#[test]
fn netplan_generates_from_its_file() {
    for (name, files) in bridges(NetworkManager::Netplan) {
        let Some(mut generate) = parser("netplan", "usr/libexec/netplan/generate") else { return };
        let root = tempfile::tempdir().unwrap();
        for file in &files {
            let path = root.path().join(file.path.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &file.text).unwrap();
            let mode = std::fs::Permissions::from_mode(file.mode);
            std::fs::set_permissions(&path, mode).unwrap();
        }
        generate.arg("--root-dir").arg(root.path());
        said(generate, "");
        let made = all(&root.path().join("run/systemd/network"));
        let words: &[&str] = match name {
            "fixed" => &[
                "Kind=bridge",
                "STP=true",
                "Address=192.0.2.5/24",
                "Address=2001:db8::5/64",
                "Gateway=192.0.2.1",
                "DNS=192.0.2.53",
                "Bridge=br0",
                "Name=eth0",
            ],
            "automatic" => &["Kind=bridge", "STP=false", "DHCP=ipv4", "Bridge=br0"],
            _ => &["Kind=bridge", "Address=192.0.2.5/24"],
        };
        expect(&made, words, name);
    }
}

#[test]
fn ifupdown_reads_its_file() {
    for (name, files) in bridges(NetworkManager::Ifupdown) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("interfaces");
        std::fs::write(&path, &files[0].text).unwrap();
        let Some(mut ifquery) = parser("ifupdown", "sbin/ifquery") else { return };
        ifquery.arg("-i").arg(&path).arg("--state-dir").arg(folder.path()).arg("br0");
        let text = said(ifquery, "");
        let words: &[&str] = match name {
            "fixed" => &[
                "address: 192.0.2.5",
                "gateway: 192.0.2.1",
                "bridge_ports: eth0",
                "bridge_stp: on",
                "address: 2001:db8::5",
                "netmask: 64",
            ],
            "automatic" => &["bridge_ports: eth0", "bridge_fd: 0"],
            _ => &["address: 192.0.2.5", "bridge_ports: none", "netmask: 255.255.255.0"],
        };
        expect(&text, words, name);
        let Some(mut list) = parser("ifupdown", "sbin/ifquery") else { return };
        list.arg("-i").arg(&path).args(["--list", "--allow", "auto"]);
        assert!(said(list, "").lines().any(|line| line == "br0"));
    }
}

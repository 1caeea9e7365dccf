//! Real bridges, taps, nftables and dnsmasq in network namespaces. The scenarios are in `namespaces.sh`; they are
//! skipped, loudly, where a right or a tool is missing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::{Command, Stdio};

fn found(tool: &str) -> bool {
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/lib/systemd"]
        .iter()
        .any(|folder| std::path::Path::new(folder).join(tool).exists())
}

/// What a scenario cannot do without, and is not here.
fn missing(more: &[&'static str]) -> Option<String> {
    let usable = Command::new("unshare").args(["-mn", "true"]).stderr(Stdio::null()).status();
    if !usable.is_ok_and(|status| status.success()) {
        return Some("the right to make namespaces (run as root)".into());
    }
    let tools = ["ip", "nft", "dnsmasq", "udhcpc", "busybox", "ping", "pgrep"];
    let lacking: Vec<&str> =
        tools.into_iter().chain(more.iter().copied()).filter(|tool| !found(tool)).collect();
    if lacking.is_empty() {
        return None;
    }
    Some(format!(
        "{} (apt install iproute2 nftables iptables dnsmasq-base udhcpc isc-dhcp-client busybox iputils-ping procps)",
        lacking.join(", ")
    ))
}

fn scenario(name: &str) {
    scenario_with(name, &[]);
}

fn scenario_with(name: &str, more: &[&'static str]) {
    if let Some(what) = missing(more) {
        eprintln!("SKIPPED namespaces::{name}: missing {what}");
        return;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/namespaces.sh");
    let disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    // A process namespace of its own, so that daemons end with the test and pgrep sees only ours.
    let output = Command::new("timeout")
        .args(["-k", "5", "900", "unshare", "-mnpf", "--mount-proc", "bash", script])
        .args([env!("CARGO_BIN_EXE_rhostprep"), name])
        .arg(disk.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    for line in text.lines().filter(|line| line.starts_with("SKIPPED ")) {
        eprintln!("{line} (namespaces::{name})");
    }
    assert!(
        output.status.success() && text.ends_with("PASSED\n"),
        "{name}: {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn nat_gives_leases_translates_and_forwards() {
    scenario("nat");
}

#[test]
fn isolated_guests_reach_each_other_only() {
    scenario("isolated");
}

#[test]
fn guests_get_through_beside_docker() {
    scenario("docker");
}

#[test]
fn guests_get_through_beside_docker_with_the_old_iptables() {
    scenario_with("legacy", &["iptables-legacy", "ip6tables-legacy"]);
}

#[test]
fn routed_guests_have_addresses_of_their_own() {
    scenario("routed");
}

#[test]
fn forwarding_does_not_cost_the_advertised_default_route() {
    scenario("accept_ra");
}

#[test]
fn bridge_moves_ipv6_too() {
    scenario("six");
}

#[test]
fn bridge_gets_a_lease_by_dhclient() {
    scenario_with("dhclient", &["dhclient"]);
}

#[test]
fn bridge_gets_a_lease_by_udhcpc() {
    scenario("udhcpc");
}

#[test]
fn bridge_gets_a_lease_by_systemd_networkd() {
    scenario_with("networkd", &["systemd-networkd", "networkctl", "dbus-daemon"]);
}

#[test]
fn what_is_persisted_makes_the_bridge_at_boot() {
    scenario_with("persist", &["systemd-networkd", "networkctl", "dbus-daemon"]);
}

#[test]
fn networks_come_back_after_a_restart() {
    scenario_with("restart", &["systemd-networkd", "networkctl", "dbus-daemon"]);
}

#[test]
fn what_networks_share_stays_with_those_that_stay() {
    scenario("restart-shared");
}

#[test]
fn networks_come_back_with_ifupdown_alone() {
    scenario("restart-ifupdown");
}

#[test]
fn grub_writes_and_reads_the_menu() {
    let parsers = std::env::var_os("RHOSTPREP_PARSERS").map(std::path::PathBuf::from);
    if !parsers.is_some_and(|root| root.join("usr/sbin/grub-mkconfig").exists()) {
        eprintln!(
            "SKIPPED namespaces::grub: no grub-mkconfig (bins/rhostprep/tests/parsers FOLDER; RHOSTPREP_PARSERS=FOLDER/root)"
        );
        return;
    }
    scenario("grub");
}

#[test]
fn bad_places_names_and_missing_tools_leave_the_host_as_it_was() {
    scenario("bad");
}

#[test]
fn without_a_dhcp_client_there_is_a_remedy() {
    scenario("no-client");
}

#[test]
fn bridge_moves_addresses_and_routes() {
    scenario("bridge");
}

#[test]
fn bridge_rolls_back_unless_confirmed() {
    scenario("rollback");
}

#[test]
fn killed_at_any_time_undo_restores() {
    scenario("killed");
}

#[test]
fn killed_at_every_system_call_undo_restores() {
    scenario_with("every-call", &["strace"]);
}

#[test]
fn scripts_do_what_the_guides_do() {
    scenario("scripts");
}

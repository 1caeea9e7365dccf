//! Making networks again at boot: what no network manager keeps (filters, forwarding, DHCP) is made by
//! `rhostprep net restore`, which systemd starts, or ifupdown where there is no systemd.
//!
//! One unit serves all networks (systemd.service(5)). A drop-in of multi-user.target wants it (systemd.unit(5)): that
//! is a file like all others we write, where the link that `systemctl enable` makes is none.

use super::persist::{HEADER, PersistFile};
use crate::error::{Error, Result};
use crate::host::{Host, NetworkManager};

const UNIT: &str = "/etc/systemd/system/rhostprep-net.service";
const WANTED: &str = "/etc/systemd/system/multi-user.target.d/50-rhostprep-net.conf";

/// Seconds that the unit gives the manager to make its bridges.
const PATIENCE: u32 = 30;

/// Who starts programs at boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Starter {
    /// systemd.
    Systemd,
    /// ifupdown, by `post-up` of an interface.
    Ifupdown,
}

/// Finds it; an error where nobody known starts programs.
pub fn starter(host: &Host) -> Result<Starter> {
    // sd_booted(3)
    if host.exists("/run/systemd/system") {
        return Ok(Starter::Systemd);
    }
    if host.network_manager() == NetworkManager::Ifupdown {
        return Ok(Starter::Ifupdown);
    }
    Err(Error::host(
        "neither systemd nor ifupdown runs here, so nobody would make filters, forwarding and DHCP at boot",
    )
    .remedy("leave --persist away, and let what starts this host run the same command"))
}

/// A path that units and shell lines can hold.
fn check_program(program: &str) -> Result<()> {
    if program.starts_with('/') && !program.chars().any(|c| c.is_control() || c == '\\') {
        return Ok(());
    }
    Err(Error::refused(format!("'{}' cannot be started at boot", program.escape_debug()))
        .remedy("install rhostprep in a plain place, as /usr/local/bin/rhostprep"))
}

/// A word of a command line of systemd: quoted, and `%` is no specifier.
fn systemd_word(program: &str) -> String {
    format!("\"{}\"", program.replace('%', "%%").replace('"', "\\\""))
}

/// The program that a unit of ours starts.
pub fn program_of(unit: &str) -> Option<String> {
    let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart=\""))?;
    let (word, _) = line.rsplit_once("\" ")?;
    Some(word.replace("\\\"", "\"").replace("%%", "%"))
}

fn unit(program: &str) -> String {
    let word = systemd_word(program);
    format!(
        "{HEADER}# Started by {WANTED}.
[Unit]
Description=Networks for guests made by rhostprep
# After those who make bridges, and those who load (and flush) packet filters.
After=network.target systemd-networkd.service NetworkManager.service networking.service wicked.service
After=nftables.service iptables.service ip6tables.service netfilter-persistent.service
After=firewalld.service ufw.service docker.service
# nftables.service flushes everybody's tables when it is restarted or reloaded.
PartOf=nftables.service
ReloadPropagatedFrom=nftables.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={word} net restore --wait {PATIENCE}
ExecReload={word} net restore
# 1 is a warning: the networks are there.
SuccessExitStatus=1
# dnsmasq stays when the unit stops or starts anew.
KillMode=process
TimeoutStartSec=300
"
    )
}

/// The unit and what has it started as they are, where they are ours.
pub fn present(host: &Host) -> Option<Vec<PersistFile>> {
    let read = |path: &&str| {
        let text = host.read(path).ok().filter(|text| text.starts_with(HEADER))?;
        Some(PersistFile { path: (*path).into(), mode: 0o644, text })
    };
    [UNIT, WANTED].iter().map(read).collect()
}

/// The unit and what has it started. A unit that is there stays as it is when the program it starts is there too.
pub fn unit_files(host: &Host, program: &str) -> Result<Vec<PersistFile>> {
    check_program(program)?;
    let mut text = unit(program);
    if let Ok(old) = host.read(UNIT) {
        let other = program_of(&old).filter(|_| old.starts_with(HEADER)).ok_or_else(|| {
            Error::refused("is there, and rhostprep did not write it")
                .at(UNIT)
                .remedy("move it away")
        })?;
        // A tree holds no copy of this program.
        let gone = host.root() == std::path::Path::new("/") && !host.exists(&other);
        if gone && other != program {
            return Err(Error::refused(format!("starts {other}, which is not there any more"))
                .at(UNIT)
                .remedy(format!(
                    "copy rhostprep to {other}; or `rhostprep net remove` the networks that are persisted and make them again"
                )));
        }
        text = old;
    }
    let wanted = format!("{HEADER}[Unit]\nWants=rhostprep-net.service\n");
    Ok([(UNIT, text), (WANTED, wanted)]
        .map(|(path, text)| PersistFile { path: path.into(), mode: 0o644, text })
        .into())
}

/// Lines at the end of an interface's stanza of interfaces(5), which `/bin/sh -c` runs.
pub fn stanza_lines(program: &str, name: &str, pid_file: &str) -> Result<String> {
    check_program(program)?;
    let word = format!("'{}'", program.replace('\'', "'\"'\"'"));
    // The interface stays up when this fails, and dnsmasq may not run.
    Ok(format!(
        "    post-up {word} net restore {name} || true\n    pre-down kill \"$(cat {pid_file})\" 2>/dev/null || true\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_in_odd_places() {
        for program in ["/usr/local/bin/rhostprep", "/opt/a b/100%/it's \"here\"/rhostprep"] {
            assert_eq!(program_of(&unit(program)).as_deref(), Some(program));
            assert!(stanza_lines(program, "br0", "/run/x.pid").unwrap().lines().count() == 2);
        }
        assert!(unit("/a b/100%").contains("ExecStart=\"/a b/100%%\" net restore --wait 30\n"));
        assert!(stanza_lines("/it's", "br0", "/p").unwrap().contains("'/it'\"'\"'s' net restore"));
        for bad in ["rhostprep", "/a\nExecStart=/b", "/a\\b", ""] {
            assert!(check_program(bad).is_err(), "{bad}");
        }
    }
}

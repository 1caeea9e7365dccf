//! Who may open /dev/kvm, and for how long (checks 7 and 8).

use super::outcome::{Needs, Outcome, Remedy};
use crate::host::Host;
use crate::wanted::Wanted;

/// Entries of a POSIX ACL that name a user or group, with their permission bits (linux/posix_acl_xattr.h: a
/// version word, then tag, perm and id of each entry, little endian).
fn acl_grants(acl: &[u8], tag_wanted: u16) -> Vec<u32> {
    let entries = acl.get(4..).unwrap_or_default().chunks_exact(8);
    let grants = entries.filter_map(|entry| {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let perm = u16::from_le_bytes([entry[2], entry[3]]);
        let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        (tag == tag_wanted && perm & 6 == 6).then_some(id)
    });
    grants.collect()
}

struct Group {
    name: String,
    members: Vec<String>,
}

fn group(host: &Host, gid: u32) -> Option<Group> {
    let text = host.read("/etc/group").ok()?;
    text.lines().find_map(|line| {
        let parts: Vec<&str> = line.split(':').collect();
        let [name, _, number, members] = parts.as_slice() else { return None };
        (number.parse() == Ok(gid)).then(|| Group {
            name: (*name).to_owned(),
            members: members.split(',').map(str::to_owned).collect(),
        })
    })
}

fn user_name(host: &Host, uid: u32) -> Option<String> {
    let text = host.read("/etc/passwd").ok()?;
    text.lines().find_map(|line| {
        let parts: Vec<&str> = line.split(':').collect();
        (parts.get(2)?.parse() == Ok(uid)).then(|| parts[0].to_owned())
    })
}

/// 7: mode, group, ACL and the real thing.
pub fn kvm_node(host: &Host, _wanted: &Wanted) -> Outcome {
    const NODE: &str = "/dev/kvm";
    let identity = host.probe().identity();
    let Some(stat) = host.stat(NODE) else {
        return Outcome::fatal("there is no /dev/kvm")
            .read(NODE, "not there")
            .remedy(Remedy::text("see kvm.modules"));
    };
    let group = group(host, stat.gid);
    let group_name =
        group.as_ref().map_or_else(|| stat.gid.to_string(), |group| group.name.clone());
    let user = user_name(host, identity.uid).unwrap_or_else(|| format!("user {}", identity.uid));
    let evidence = |outcome: Outcome| {
        outcome.read(
            NODE,
            format!("mode {:04o}, owner {}, group {group_name}", stat.mode & 0o7777, stat.uid),
        )
    };
    match host.probe().open_device(NODE) {
        Ok(()) if stat.mode & 0o006 == 0o006 => evidence(Outcome::info("everybody may open /dev/kvm")),
        Ok(()) => evidence(Outcome::pass(format!("{user} may open /dev/kvm"))),
        Err(libc::EACCES) => {
            let acl = host.probe().acl(NODE).unwrap_or_default();
            if acl_grants(&acl, 2).contains(&identity.uid) {
                return evidence(Outcome::fatal("an access list grants it, and yet it is refused")).remedy(
                    Remedy::text("a security module or container forbids it: see sec.mac and sec.cgroup"),
                );
            }
            denied(&evidence, &group_name, group.as_ref(), &user, stat.mode)
        }
        Err(libc::EPERM) => evidence(Outcome::fatal(
            "the mode allows it, a device control group or sandbox forbids it",
        ))
        .remedy(Remedy::text(
            "container: start it with --device /dev/kvm; snap: connect the kvm interface; systemd unit: DeviceAllow=/dev/kvm rw",
        )),
        Err(errno) => evidence(Outcome::fatal("opening /dev/kvm fails"))
            .read("open", std::io::Error::from_raw_os_error(errno).to_string())
            .remedy(Remedy::text("see kvm.modules")),
    }
}

fn denied(
    evidence: &dyn Fn(Outcome) -> Outcome,
    group_name: &str,
    group: Option<&Group>,
    user: &str,
    mode: u32,
) -> Outcome {
    if mode & 0o060 != 0o060 {
        return evidence(Outcome::fatal(format!(
            "{user} may not open /dev/kvm: the group has no rights"
        )))
        .remedy(
            Remedy::command(
                "give it to the group kvm, now and at boot",
                "rhostprep apply --kvm-access",
            )
            .file("/etc/udev/rules.d/65-kvm.rules"),
        );
    }
    if group.is_some_and(|group| group.members.iter().any(|member| member == user)) {
        return evidence(Outcome::fatal(format!(
            "{user} is in the group {group_name}, but this session began before that"
        )))
        .read("/etc/group", format!("{group_name}: {user}"))
        .remedy(
            Remedy::command(
                "log out of every session and in again, or for one shell",
                format!("newgrp {group_name}"),
            )
            .needs(Needs::NewLogin),
        );
    }
    evidence(Outcome::fatal(format!("{user} is not in the group {group_name}"))).remedy(
        Remedy::command(
            "join the group (never chmod 666)",
            format!("usermod -aG {group_name} {user}"),
        )
        .needs(Needs::NewLogin),
    )
}

/// 8: a rule that names kvm.
pub fn udev_rule(host: &Host, _wanted: &Wanted) -> Outcome {
    let folders =
        ["/etc/udev/rules.d", "/run/udev/rules.d", "/usr/lib/udev/rules.d", "/lib/udev/rules.d"];
    for folder in folders {
        for name in host.list(folder) {
            if !name.ends_with(".rules") {
                continue;
            }
            let path = format!("{folder}/{name}");
            let text = host.read(&path).unwrap_or_default();
            let line = text.lines().map(str::trim).find(|line| {
                !line.starts_with('#')
                    && line.contains("KERNEL==\"kvm\"")
                    && ["GROUP", "MODE", "uaccess"].iter().any(|word| line.contains(word))
            });
            if let Some(line) = line {
                return Outcome::pass("udev sets the rights of /dev/kvm at boot").read(path, line);
            }
        }
    }
    if !folders.iter().any(|folder| host.exists(folder)) {
        return Outcome::skipped("this host does not use udev").read("udev rules", "no folder");
    }
    Outcome::warning(
        "no udev rule names /dev/kvm: its rights are the kernel's default after every boot",
    )
    .read("udev rules", "none with KERNEL==\"kvm\"")
    .remedy(
        Remedy::command("write the rule", "rhostprep apply --kvm-access")
            .file("/etc/udev/rules.d/65-kvm.rules"),
    )
}

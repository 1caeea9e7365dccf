//! Security, devices, network, storage.

use hostprep::check::Status::{Error, Info, Pass, Warning};
use hostprep::host::{FsFact, Stat};
use hostprep::wanted::Use;

use super::{Case, case, with};
use crate::shapes::{Shape, amd, intel, laptop, vm_without_vmx};

pub fn security_cases() -> Vec<Case> {
    let set = |path: &'static str, value: &'static str| {
        with(intel(), |s| {
            s.set(path, value);
        })
    };
    let secure = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
    vec![
        case("cpu.vulnerabilities", intel(), Pass, ""),
        case(
            "cpu.vulnerabilities",
            set("/sys/devices/system/cpu/vulnerabilities/mds", "Vulnerable; SMT vulnerable"),
            Warning,
            "mds",
        ),
        case("sec.lockdown", intel(), Pass, ""),
        case(
            "sec.lockdown",
            with(intel(), |s| {
                s.bytes(secure, &[6, 0, 0, 0, 1]);
            }),
            Info,
            "Secure Boot",
        ),
        case(
            "sec.lockdown",
            set("/sys/kernel/security/lockdown", "none [integrity] confidentiality"),
            Info,
            "locked down",
        ),
        case("sec.module-signatures", intel(), Pass, ""),
        case(
            "sec.module-signatures",
            with(vm_without_vmx(), |s| {
                s.set("/proc/sys/kernel/modules_disabled", "1");
            }),
            Warning,
            "modules-load.d",
        ),
        case("sec.cgroup", intel(), Pass, "version 2"),
        case("sec.cgroup", amd(), Pass, "version 1"),
        case(
            "sec.cgroup",
            with(intel(), |s| {
                s.facts().devices.insert("/dev/net/tun".into(), libc::EPERM);
            }),
            Warning,
            "DeviceAllow",
        ),
        case("sec.landlock", intel(), Pass, "ABI 6"),
        case(
            "sec.landlock",
            with(intel(), |s| s.facts().landlock = -libc::EOPNOTSUPP),
            Warning,
            "lsm=",
        ),
        case("sec.io-uring", intel(), Pass, ""),
        case("sec.io-uring", with(intel(), |s| s.facts().io_uring = libc::EPERM), Info, "threads"),
        case("sec.mac", intel(), Pass, ""),
        case("sec.mac", set("/sys/fs/selinux/enforce", "1"), Warning, "restorecon")
            .wants(|w| w.images = vec!["/vm/a.img".into()]),
        case("sec.userns", intel(), Pass, ""),
        case(
            "sec.userns",
            set("/proc/sys/user/max_user_namespaces", "0"),
            Warning,
            "max_user_namespaces",
        ),
        case(
            "sec.userns",
            set("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"),
            Warning,
            "AppArmor",
        ),
    ]
}

pub fn device_cases() -> Vec<Case> {
    let groups = "/sys/kernel/iommu_groups/1/devices";
    let driver = |device: &str, name: &str| {
        (format!("{groups}/{device}/driver"), format!("../../drivers/{name}"))
    };
    let bound = |names: &[(&str, &str)]| {
        with(intel(), |s| {
            for (device, name) in names {
                let (path, target) = driver(device, name);
                s.set(&format!("{groups}/{device}/class"), "0x020000").link(&path, &target);
            }
            s.set("/dev/vfio/vfio", "");
        })
    };
    vec![
        case("dev.tun", intel(), Pass, ""),
        case("dev.tun", with(intel(), |s| s.facts().tap = libc::EPERM), Info, "--owner"),
        case("dev.tun", with(intel(), |s| s.facts().tap = libc::ENODEV), Error, "modprobe tun")
            .wants(|w| w.tap = Use::Yes),
        case("dev.vhost", intel(), Pass, ""),
        case(
            "dev.vhost",
            with(intel(), |s| {
                s.facts().devices.remove("/dev/vhost-net");
            }),
            Error,
            "vhost_net",
        )
        .wants(|w| w.vhost = Use::Yes),
        case("dev.iommu", intel(), Pass, "1 groups"),
        case(
            "dev.iommu",
            with(intel(), |s| {
                s.remove("/sys/kernel/iommu_groups");
            }),
            Error,
            "intel_iommu=on",
        )
        .wants(|w| w.vfio = Use::Yes),
        case("dev.iommu", vm_without_vmx(), Info, "only for passing"),
        case("dev.iommu-groups", bound(&[("0000:01:00.0", "vfio-pci")]), Pass, "1 of 1"),
        case(
            "dev.iommu-groups",
            bound(&[("0000:01:00.0", "vfio-pci"), ("0000:01:00.1", "nvme")]),
            Error,
            "nvme",
        ),
    ]
}

pub fn network_cases() -> Vec<Case> {
    let bridge = |edit: fn(&mut Shape)| {
        with(intel(), |s| {
            s.set("/sys/class/net/br0/mtu", "1500")
                .set("/sys/class/net/br0/operstate", "up")
                .set("/sys/class/net/br0/bridge/stp_state", "0")
                .set("/sys/class/net/br0/bridge/forward_delay", "1500")
                .set("/sys/class/net/tap0/mtu", "1500")
                .set("/sys/class/net/tap0/tun_flags", "0x1002")
                .set("/sys/class/net/br0/brif/tap0/state", "3");
            edit(s);
        })
    };
    let nat = |edit: fn(&mut Shape)| {
        with(bridge(|_| ()), |s| {
            s.replace(
                "/proc/net/route",
                "00FFFFFF 0 0 0\n",
                "00FFFFFF 0 0 0\nbr0 007AA8C0 00000000 0001 0 0 0 00FFFFFF 0 0 0\n",
            );
            edit(s);
        })
    };
    vec![
        case("net.manager", intel(), Info, "NetworkManager"),
        case("net.manager", vm_without_vmx(), Info, "netplan"),
        case("net.manager", amd(), Info, "ifupdown"),
        case(
            "net.manager",
            with(amd(), |s| {
                s.remove("/etc/network");
            }),
            Info,
            "no manager",
        ),
        case("net.bridge-safety", intel(), Pass, "eth0"),
        case("net.bridge-safety", laptop(), Error, "wireless"),
        case("net.bridge-safety", intel(), Warning, "--confirm-within").wants(|w| {
            w.ssh_connection = Some("192.168.1.7 50022 192.168.1.2 22".into());
        }),
        case("net.bridge", bridge(|_| ()), Pass, ""),
        case(
            "net.bridge",
            bridge(|s| {
                s.set("/sys/class/net/br0/bridge/stp_state", "1");
            }),
            Warning,
            "30 s",
        ),
        case(
            "net.bridge",
            bridge(|s| {
                s.remove("/sys/class/net/tap0");
            }),
            Warning,
            "vanished",
        ),
        case(
            "net.bridge",
            bridge(|s| {
                s.set("/sys/class/net/br0/brif/eth0/state", "3");
            }),
            Warning,
            "address of its own",
        ),
        case("net.bridge", intel(), Error, "no bridge br7")
            .wants(|w| w.bridge = Some("br7".into())),
        case(
            "net.forwarding",
            nat(|s| {
                s.set("/proc/sys/net/ipv4/ip_forward", "1");
            }),
            Pass,
            "",
        ),
        case(
            "net.forwarding",
            nat(|s| {
                s.set("/proc/sys/net/ipv4/ip_forward", "0");
            }),
            Error,
            "ip_forward=1",
        ),
        case(
            "net.forwarding",
            nat(|s| {
                s.replace("/proc/net/route", "007AA8C0", "0001A8C0");
            }),
            Error,
            "overlaps",
        ),
        case(
            "net.forwarding",
            nat(|s| {
                let default =
                    format!("{0} 00 {0} 00 {0} 00000400 1 0 00000003 eth0", "0".repeat(32));
                s.set("/proc/net/ipv6_route", &default)
                    .set("/proc/sys/net/ipv6/conf/all/forwarding", "1")
                    .set("/proc/sys/net/ipv6/conf/eth0/accept_ra", "1");
            }),
            Warning,
            "accept_ra=2",
        ),
        case("net.forward-drop", intel(), Pass, ""),
        case(
            "net.forward-drop",
            bridge(|s| {
                s.set("/proc/sys/net/bridge/bridge-nf-call-iptables", "1")
                    .set("/sys/class/net/docker0/mtu", "1500");
            }),
            Warning,
            "DOCKER-USER",
        ),
    ]
}

pub fn storage_cases() -> Vec<Case> {
    let on = |magic: i64, free: u64, direct: Option<bool>| {
        with(intel(), |s| {
            s.facts().filesystems.insert("/".into(), FsFact { magic, free, direct });
        })
    };
    vec![
        case("storage.images", intel(), Pass, "ext4"),
        case("storage.images", on(0x9123_683E, 1 << 40, None), Warning, "chattr +C"),
        case("storage.images", on(0x0102_1994, 1 << 40, None), Warning, "memory"),
        case("storage.images", on(0xEF53, 1 << 20, None), Warning, "free space"),
        case("storage.images", on(0x5846_5342, 1 << 40, Some(false)), Warning, "cache=none"),
        case(
            "storage.images",
            with(intel(), |s| {
                s.facts()
                    .stat
                    .insert("/home/alice".into(), Stat { mode: 0o040_700, uid: 1000, gid: 1000 });
            }),
            Warning,
            "chmod o+x /home/alice",
        )
        .wants(|w| w.images = vec!["/home/alice/vm/a.img".into()]),
    ]
}

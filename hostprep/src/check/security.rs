//! Security and limits (checks 21, 48 to 54).

use super::outcome::{Needs, Outcome, Remedy};
use crate::host::Host;
use crate::wanted::Wanted;

/// 21: the kernel's own words.
pub fn vulnerabilities(host: &Host, _wanted: &Wanted) -> Outcome {
    let folder = "/sys/devices/system/cpu/vulnerabilities";
    let names = host.list(folder);
    if names.is_empty() {
        return Outcome::unknown("the kernel does not tell (older than 4.15)")
            .read(folder, "not there");
    }
    let open: Vec<(String, String)> = names
        .into_iter()
        .filter_map(|name| {
            let text = host.text(&format!("{folder}/{name}"))?;
            (text.starts_with("Vulnerable") || text.contains("SMT vulnerable"))
                .then_some((name, text))
        })
        .collect();
    if open.is_empty() {
        return Outcome::pass("none is open").read(folder, "no entry begins with Vulnerable");
    }
    let list: Vec<&str> = open.iter().map(|(name, _)| name.as_str()).collect();
    let mut outcome = Outcome::warning(format!("open: {}", list.join(", "))).remedy(
        Remedy::text("install the newest kernel and microcode; where the text speaks of SMT, boot with nosmt or give whole cores to guests")
            .needs(Needs::Reboot),
    );
    for (name, text) in open {
        outcome = outcome.read(format!("{folder}/{name}"), text);
    }
    outcome
}

const SECURE_BOOT: &str =
    "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";

/// 48: Secure Boot and lockdown.
pub fn lockdown(host: &Host, _wanted: &Wanted) -> Outcome {
    // Four bytes of attributes, then the value (UEFI 2.10, 8.2).
    let secure = host.bytes(SECURE_BOOT).ok().and_then(|bytes| bytes.get(4).copied()) == Some(1);
    let mode = host.text("/sys/kernel/security/lockdown");
    let locked = mode.as_ref().is_some_and(|text| !text.contains("[none]"));
    let outcome = match (secure, locked) {
        (false, false) => Outcome::pass("neither restricts this host"),
        (_, true) => Outcome::info(
            "the kernel is locked down: no registers, no unsigned modules, no kexec of unsigned kernels",
        ),
        (true, false) => Outcome::info("Secure Boot is on, lockdown is not"),
    };
    outcome
        .read(SECURE_BOOT, if secure { "1" } else { "0 or not there" })
        .read_opt("/sys/kernel/security/lockdown", mode)
}

/// 49: may modules be loaded.
pub fn modules(host: &Host, _wanted: &Wanted) -> Outcome {
    let disabled = host.number("/proc/sys/kernel/modules_disabled") == Some(1);
    let enforce = host.switch("/sys/module/module/parameters/sig_enforce");
    let no_modules = !host.exists("/proc/modules");
    let missing: Vec<&str> =
        ["kvm", "tun", "bridge"].into_iter().filter(|module| !host.has_module(module)).collect();
    let outcome = if no_modules {
        Outcome::info("this kernel has no loadable modules: everything must be built in")
    } else if disabled && !missing.is_empty() {
        Outcome::warning(format!(
            "loading is switched off until reboot, and {} not there",
            missing.join(", ")
        ))
        .remedy(
            Remedy::text(
                "list the modules in /etc/modules-load.d so that they load before the switch",
            )
            .file("/etc/modules-load.d/kvm.conf")
            .needs(Needs::Reboot),
        )
    } else if enforce == Some(true) {
        Outcome::info("only signed modules load: the distribution's do, home-made ones do not")
    } else {
        Outcome::pass("modules can be loaded, or all that matter are there")
    };
    outcome
        .read_opt(
            "/proc/sys/kernel/modules_disabled",
            host.text("/proc/sys/kernel/modules_disabled"),
        )
        .read_opt(
            "/sys/module/module/parameters/sig_enforce",
            host.text("/sys/module/module/parameters/sig_enforce"),
        )
}

/// 50: judged by opening, not by which controllers exist.
pub fn cgroup(host: &Host, _wanted: &Wanted) -> Outcome {
    let mounts = host.mounts();
    let two = mounts.iter().any(|mount| mount.kind == "cgroup2" && mount.point == "/sys/fs/cgroup");
    let one = mounts.iter().any(|mount| mount.kind == "cgroup");
    let mode = match (two, one) {
        (true, _) => "version 2",
        (false, true) => "version 1",
        (false, false) => "none",
    };
    let forbidden: Vec<&str> = ["/dev/kvm", "/dev/net/tun"]
        .into_iter()
        .filter(|device| host.probe().open_device(device) == Err(libc::EPERM))
        .collect();
    let evidence = |outcome: Outcome| outcome.read("/proc/self/mountinfo cgroup", mode);
    if forbidden.is_empty() {
        return evidence(Outcome::pass(format!(
            "control groups {mode}, no device is forbidden by them"
        )));
    }
    evidence(Outcome::warning(format!("{} may not be opened although the mode allows it", forbidden.join(", "))))
        .read("open", "EPERM")
        .remedy(Remedy::text(
            "container: --device /dev/kvm --device /dev/net/tun; systemd unit: DeviceAllow=/dev/kvm rw; snap: connect its interfaces",
        ))
}

/// 51: Landlock and seccomp.
pub fn landlock(host: &Host, _wanted: &Wanted) -> Outcome {
    let abi = host.probe().landlock_abi();
    let actions = host.text("/proc/sys/kernel/seccomp/actions_avail");
    let outcome = match (&abi, &actions) {
        (Ok(version), Some(_)) => Outcome::pass(format!("Landlock ABI {version}, seccomp filters")),
        (_, None) => Outcome::warning("this kernel has no seccomp filters")
            .remedy(Remedy::text("use a kernel with CONFIG_SECCOMP_FILTER").needs(Needs::Reboot)),
        (Err(libc::EOPNOTSUPP), _) => Outcome::warning("Landlock is built in but not started")
            .remedy(
                Remedy::text("add landlock to the list after lsm= on the kernel line")
                    .needs(Needs::Reboot),
            ),
        (Err(_), _) => Outcome::warning("this kernel has no Landlock").remedy(
            Remedy::text("use Linux 5.13 or newer with CONFIG_SECURITY_LANDLOCK")
                .needs(Needs::Reboot),
        ),
    };
    let shown = abi.map_or_else(
        |errno| std::io::Error::from_raw_os_error(errno).to_string(),
        |version| version.to_string(),
    );
    outcome
        .read("landlock_create_ruleset(VERSION)", shown)
        .read_opt("/proc/sys/kernel/seccomp/actions_avail", actions)
}

/// 52: io_uring.
pub fn io_uring(host: &Host, _wanted: &Wanted) -> Outcome {
    let path = "/proc/sys/kernel/io_uring_disabled";
    let switch = host.text(path);
    let tried = host.probe().io_uring();
    let outcome = match tried {
        Ok(()) => Outcome::pass("can be used"),
        Err(libc::ENOSYS) => Outcome::info("this kernel has none: disk I/O uses threads"),
        Err(libc::EPERM) => {
            Outcome::info("forbidden here: disk I/O uses threads").remedy(Remedy::command(
                "allow it if you accept the larger attack surface",
                "rhostprep apply --sysctl kernel.io_uring_disabled=0",
            ))
        }
        Err(_) => Outcome::info("cannot be set up: disk I/O uses threads"),
    };
    let shown = tried.map_or_else(
        |errno| std::io::Error::from_raw_os_error(errno).to_string(),
        |()| "works".into(),
    );
    outcome.read("io_uring_setup", shown).read_opt(path, switch)
}

/// 53: SELinux or AppArmor.
pub fn mac(host: &Host, wanted: &Wanted) -> Outcome {
    let selinux = host.text("/sys/fs/selinux/enforce");
    let apparmor = host.switch("/sys/module/apparmor/parameters/enabled") == Some(true);
    let evidence = |outcome: Outcome| {
        outcome.read_opt("/sys/fs/selinux/enforce", selinux.clone()).read(
            "/sys/module/apparmor/parameters/enabled",
            if apparmor { "Y" } else { "N or not there" },
        )
    };
    let outside: Vec<&str> = wanted
        .images
        .iter()
        .map(String::as_str)
        .filter(|path| {
            path.starts_with('/')
                && !path.starts_with("/var/lib/libvirt/")
                && !path.starts_with("/var/lib/rkvm/")
        })
        .collect();
    if selinux.as_deref() == Some("1") && !outside.is_empty() {
        return evidence(Outcome::warning(format!(
            "SELinux is enforcing; {} may lack the label of images",
            outside.join(", ")
        )))
        .remedy(
            Remedy::text("label the folder for confined launchers")
                .then("semanage fcontext -a -t virt_image_t 'FOLDER(/.*)?'")
                .then("restorecon -R FOLDER"),
        );
    }
    if selinux.as_deref() == Some("1") || apparmor {
        let name = if apparmor { "AppArmor" } else { "SELinux" };
        return evidence(Outcome::info(format!(
            "{name} is on; launchers without a profile of their own are not confined by it"
        )));
    }
    evidence(Outcome::pass("neither restricts launchers"))
}

/// 54: user namespaces.
pub fn userns(host: &Host, _wanted: &Wanted) -> Outcome {
    let (max, clone, apparmor) = (
        "/proc/sys/user/max_user_namespaces",
        "/proc/sys/kernel/unprivileged_userns_clone",
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
    );
    let fix = |name: &str, value: &str| {
        Remedy::command("allow it", format!("rhostprep apply --sysctl {name}={value}"))
    };
    let outcome = if host.number(max) == Some(0) {
        Outcome::warning("user namespaces are switched off")
            .remedy(fix("user.max_user_namespaces", "15000"))
    } else if host.number(clone) == Some(0) {
        Outcome::warning("only root may make user namespaces")
            .remedy(fix("kernel.unprivileged_userns_clone", "1"))
    } else if host.number(apparmor) == Some(1) {
        Outcome::warning("AppArmor takes the rights inside user namespaces away").remedy(
            Remedy::text("give the launcher a profile with `userns,`, or allow all")
                .then("rhostprep apply --sysctl kernel.apparmor_restrict_unprivileged_userns=0"),
        )
    } else if host.number(max).is_none() {
        Outcome::unknown("the limits cannot be read")
    } else {
        Outcome::pass("users may make them")
    };
    outcome
        .read_opt(max, host.text(max))
        .read_opt(clone, host.text(clone))
        .read_opt(apparmor, host.text(apparmor))
}

//! What a Linux system says about the machine it can start on.

use serde::Serialize;

use super::verdict::{Bus, BusAnswer, Level, Opinion, Reason, Starts};
use crate::guest::boot::device_on;
use crate::guest::linux::fstab::DeviceName;
use crate::guest::linux::initramfs::Generator;
use crate::guest::linux::kernel::{Kernel, Place, kernels};
use crate::guest::linux::loader::{BootEntry, entries};
use crate::guest::linux::network::{Interface, interfaces};
use crate::guest::linux::release::{Release, Tools, release, tools};
use crate::guest::system::{LinuxRoot, Volumes, first_disk};

/// An installed Linux.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct LinuxReport {
    /// `linux`
    pub family: &'static str,
    /// The volume of its root.
    pub root: String,
    /// The subvolume of its root, if it is not the default one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subvolume: Option<String>,
    /// The distribution.
    #[serde(flatten)]
    pub release: Release,
    /// What is mounted where.
    pub mounts: Vec<Mount>,
    /// Entries of the boot menu, the default one first.
    pub boot_entries: Vec<BootEntry>,
    /// Installed kernels, the default one first.
    pub kernels: Vec<Kernel>,
    /// How the root file system is named on the kernel's command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root_argument: Option<String>,
    /// Cards that the network's configuration knows.
    pub network: Vec<Interface>,
    /// Programs for virtual machines.
    pub tools: Tools,
}

/// A line of fstab, and what it stands for on this disk.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Mount {
    /// Line in fstab; absent for what is not there.
    pub line: usize,
    /// As written.
    pub what: String,
    /// Where.
    pub mount_point: String,
    /// The volume on this disk; absent when it is not on this disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
}

/// Reads what is to be told of it.
pub fn report(root: &LinuxRoot<'_>, volumes: &Volumes) -> LinuxReport {
    let tree = &root.tree;
    let boot_entries = entries(tree);
    let kernels = kernels(tree, &boot_entries);
    let mounts = root
        .fstab
        .iter()
        .map(|line| Mount {
            line: line.line,
            what: line.what.clone(),
            mount_point: line.mount_point.clone(),
            volume: volumes.named(&line.device).map(|v| volumes.all[v].volume.name()),
        })
        .collect();
    LinuxReport {
        family: "linux",
        root: volumes.all.get(root.volume).map(|v| v.volume.name()).unwrap_or_default(),
        subvolume: root.subvolume.clone(),
        release: release(tree),
        mounts,
        root_argument: boot_entries.first().and_then(|e| e.argument("root")).map(str::to_owned),
        boot_entries,
        kernels,
        network: interfaces(tree),
        tools: tools(tree),
    }
}

/// Drivers that must be there before the root file system, by bus; of each group one is enough.
fn needed(bus: Bus) -> &'static [&'static [&'static str]] {
    match bus {
        Bus::VirtioBlk => &[&["virtio_pci"], &["virtio_blk"]],
        Bus::VirtioScsi => &[&["virtio_pci"], &["virtio_scsi"], &["sd_mod"]],
        Bus::Nvme => &[&["nvme"]],
        Bus::Sata => &[&["ahci"], &["sd_mod"]],
        Bus::Ide => &[&["ata_piix", "ata_generic"], &["sd_mod"]],
    }
}

/// What it says.
pub fn opinion(report: &LinuxReport, root: &LinuxRoot<'_>, volumes: &Volumes) -> Opinion {
    let mut opinion = Opinion::default();
    let Some(kernel) = report.kernels.first() else {
        opinion.reasons.push(
            Reason::blocker(
                "no kernel is installed: it is the root of a container, or /boot is elsewhere",
            )
            .fix("install one in a chroot: apt install linux-image-amd64, dnf install kernel"),
        );
        opinion.buses = Bus::ALL.iter().map(|b| BusAnswer::new(*b, Vec::new())).collect();
        return opinion;
    };
    for bus in Bus::ALL {
        let mut reasons = drivers(kernel, report, bus);
        reasons.extend(names(report, root, volumes, bus));
        let mut answer = BusAnswer::new(bus, reasons);
        if kernel.drivers.is_none() && answer.starts == Starts::Yes {
            answer.starts = Starts::Unknown;
        }
        opinion.buses.push(answer);
    }
    opinion.nic = Some(nic(kernel));
    opinion.prefers_efi =
        report.mounts.iter().any(|m| matches!(m.mount_point.as_str(), "/boot/efi" | "/efi"));
    general(report, kernel, root, volumes, &mut opinion.reasons);
    opinion
}

/// The best card that it has a driver for.
fn nic(kernel: &Kernel) -> &'static str {
    let cards = [
        ("virtio_net", "virtio-net-pci"),
        ("e1000e", "e1000e"),
        ("e1000", "e1000"),
        ("8139cp", "rtl8139"),
    ];
    let has = |driver: &str| kernel.driver(driver).is_none_or(|p| p > Place::Absent);
    cards.into_iter().find(|(driver, _)| has(driver)).map_or("e1000", |(_, card)| card)
}

/// Drivers that are missing for a bus.
fn drivers(kernel: &Kernel, report: &LinuxReport, bus: Bus) -> Vec<Reason> {
    if kernel.drivers.is_none() {
        return Vec::new();
    }
    let missing: Vec<&str> = needed(bus)
        .iter()
        .filter(|group| !group.iter().any(|d| kernel.early(d)))
        .filter_map(|group| group.first().copied())
        .collect();
    if missing.is_empty() {
        return Vec::new();
    }
    let version = kernel.version.as_deref().unwrap_or("VERSION");
    let absent = missing.iter().any(|d| kernel.driver(d) == Some(Place::Absent));
    if absent {
        let list = missing.join(", ");
        let mut reason = Reason::blocker(format!("kernel {version} has no driver {list}"));
        if report.release.id == "debian" || report.release.is("debian") {
            reason = reason.fix("install a full kernel: apt install linux-image-amd64");
        } else {
            reason = reason.fix("install a kernel of the distribution that has it");
        }
        return vec![reason];
    }
    let list = missing.join(" ");
    let why = match &kernel.initramfs {
        Some(i) if i.host_only => {
            format!("its initial RAM disk was made for the old machine only and has no {list}")
        }
        Some(_) => format!("its initial RAM disk has no {list}"),
        None => format!("it has no initial RAM disk, and {list} is a module"),
    };
    let reason = Reason::blocker(format!("kernel {version}: {why}"));
    vec![rebuild(reason, kernel, report, &missing)]
}

/// The commands that put drivers into the initial RAM disk.
fn rebuild(reason: Reason, kernel: &Kernel, report: &LinuxReport, missing: &[&str]) -> Reason {
    let version = kernel.version.as_deref().unwrap_or("$(uname -r)");
    let list = missing.join(" ");
    let generator = kernel.initramfs.as_ref().map(|i| i.generator).unwrap_or_default();
    let release = &report.release;
    let reason =
        reason.fix("inside of it (on the old machine, or started on a bus that works), as root:");
    match generator {
        Generator::Dracut => dracut(reason, &list, version),
        Generator::InitramfsTools => debian(reason, missing, version),
        Generator::Mkinitcpio => arch(reason, &list),
        Generator::Mkinitfs => reason
            .fix("add virtio to features=\"...\" in /etc/mkinitfs/mkinitfs.conf")
            .fix(format!("mkinitfs {version}")),
        Generator::Unknown if release.is("debian") || release.is("ubuntu") => {
            debian(reason, missing, version)
        }
        Generator::Unknown if release.is("arch") => arch(reason, &list),
        Generator::Unknown => dracut(reason, &list, version),
    }
}

fn dracut(reason: Reason, list: &str, version: &str) -> Reason {
    reason
        .fix(format!("echo 'add_drivers+=\" {list} \"' > /etc/dracut.conf.d/kvm.conf"))
        .fix(format!("dracut --force --add-drivers \"{list}\" --kver {version}"))
}

fn debian(reason: Reason, missing: &[&str], version: &str) -> Reason {
    reason
        .fix(format!("printf '%s\\n' {} >> /etc/initramfs-tools/modules", missing.join(" ")))
        .fix(format!("update-initramfs -u -k {version}"))
}

fn arch(reason: Reason, list: &str) -> Reason {
    reason.fix(format!("MODULES=({list}) in /etc/mkinitcpio.conf")).fix("mkinitcpio -P")
}

/// Names of devices that another bus changes.
fn names(report: &LinuxReport, root: &LinuxRoot<'_>, volumes: &Volumes, bus: Bus) -> Vec<Reason> {
    let mut all = Vec::new();
    let disk = bus.linux_disk();
    let moved = |name: &DeviceName| match name {
        DeviceName::Kernel { disk: old, .. } => first_disk(old) && old != disk,
        DeviceName::Hardware(_) => true,
        _ => false,
    };
    if let Some(argument) = &report.root_argument {
        let name = DeviceName::parse(argument);
        if moved(&name) {
            let new = volumes
                .all
                .get(root.volume)
                .map(|v| device_on(&v.volume, disk))
                .unwrap_or_default();
            let stable = uuid_of(volumes, root.volume);
            let better = stable.as_deref().unwrap_or(&new);
            all.push(
                Reason::blocker(format!(
                    "the kernel is started with root={argument}, which is {new} on {}",
                    bus.name()
                ))
                .fix(format!("in the boot menu, for once: press e, write root={new}"))
                .fix(format!(
                    "for good: root={better} in /etc/default/grub or in {}; then {}",
                    report.boot_entries.first().map_or("the boot menu", |e| e.from.as_str()),
                    update_grub(&report.release)
                )),
            );
        }
    }
    for line in &root.fstab {
        if !moved(&line.device) {
            continue;
        }
        let volume = volumes.named(&line.device);
        let new = volume.and_then(|v| volumes.all.get(v)).map(|v| device_on(&v.volume, disk));
        let stable = volume.and_then(|v| uuid_of(volumes, v));
        let Some(better) = stable.or(new) else { continue };
        let edit = format!(
            "in /etc/fstab, line {}: sed -i '{}s|^[^[:space:]]*|{better}|' /etc/fstab",
            line.line, line.line
        );
        // The root is mounted by then; systemd waits for other ones, and ends in a rescue shell.
        let (level, what) = if line.mount_point == "/" || line.optional() {
            (Level::Warning, "will not be found there")
        } else {
            (Level::Blocker, "is waited for in vain, and the system ends in emergency mode")
        };
        let text = format!(
            "fstab names {} for {}: on {} it {what}",
            line.what,
            line.mount_point,
            bus.name()
        );
        all.push(Reason::new(level, text).fix(edit));
    }
    all
}

fn uuid_of(volumes: &Volumes, volume: usize) -> Option<String> {
    volumes.all.get(volume)?.names.uuid.as_ref().map(|u| format!("UUID={u}"))
}

fn update_grub(release: &Release) -> &'static str {
    if release.is("debian") || release.is("ubuntu") {
        "update-grub"
    } else if release.is("suse") || release.is("fedora") || release.is("rhel") {
        "grub2-mkconfig -o /boot/grub2/grub.cfg"
    } else {
        "grub-mkconfig -o /boot/grub/grub.cfg"
    }
}

/// What concerns every bus.
fn general(
    report: &LinuxReport,
    kernel: &Kernel,
    root: &LinuxRoot<'_>,
    volumes: &Volumes,
    reasons: &mut Vec<Reason>,
) {
    match report.release.architecture.as_deref() {
        None | Some("x86_64" | "i386") => {}
        Some(other) => reasons.push(
            Reason::blocker(format!("it is made for {other}: KVM runs it on such a host only"))
                .fix(format!("qemu-system-{other} emulates one elsewhere")),
        ),
    }
    for note in &kernel.notes {
        let missing = note.contains("is not there") || note.contains("cannot be read");
        let level = if missing { Level::Blocker } else { Level::Warning };
        let version = kernel.version.as_deref().unwrap_or("VERSION");
        let reason = Reason::new(level, format!("kernel {}: {note}", kernel.file));
        reasons.push(reason.fix(format!(
            "make it again: update-initramfs -c -k {version}, or dracut -f --kver {version}"
        )));
    }
    missing_mounts(report, root, volumes, reasons);
    network(report, reasons);
    let arguments = report.boot_entries.first().map_or("", |e| e.arguments.as_str());
    if !arguments.is_empty() && !arguments.contains("console=ttyS") {
        reasons.push(
            Reason::note("it writes nothing to a serial console: with -nographic the screen stays empty after the boot menu")
                .fix("console=tty0 console=ttyS0 in GRUB_CMDLINE_LINUX of /etc/default/grub; systemctl enable serial-getty@ttyS0"),
        );
    }
    if arguments.contains("console=hvc0") {
        reasons.push(Reason::warning("it comes from Xen: its console hvc0 is not there under KVM"));
    }
    let tools = &report.tools;
    if !tools.qemu_guest_agent {
        reasons.push(
            Reason::note("the QEMU guest agent is not installed")
                .fix("apt install qemu-guest-agent, or dnf install qemu-guest-agent"),
        );
    }
    if tools.vmware_tools || tools.virtualbox_additions {
        let what = if tools.vmware_tools { "open-vm-tools" } else { "virtualbox-guest-utils" };
        reasons.push(
            Reason::note(format!("it still has {what}")).fix(format!("remove {what} once it runs")),
        );
    }
    if tools.cloud_init {
        reasons.push(Reason::note(
            "cloud-init configures it at the first start: without a data source (a disk labelled cidata) \
             there is no password to log in with",
        ));
    }
    if tools.relabel_pending {
        reasons.push(Reason::note(
            "SELinux labels all files anew at the next start, and then starts again",
        ));
    } else if tools.selinux.as_deref() == Some("enforcing") {
        reasons.push(
            Reason::note(
                "SELinux is enforcing: files that are changed from outside lose their labels",
            )
            .fix("touch /.autorelabel with such a change"),
        );
    }
}

/// What fstab wants and this disk does not have.
fn missing_mounts(
    report: &LinuxReport,
    root: &LinuxRoot<'_>,
    volumes: &Volumes,
    reasons: &mut Vec<Reason>,
) {
    for line in &root.fstab {
        let known = volumes.named(&line.device).is_some();
        let network = matches!(line.kind.as_str(), "nfs" | "nfs4" | "cifs" | "ceph" | "glusterfs");
        if network && !line.optional() && !line.options.contains("_netdev") {
            reasons.push(Reason::note(format!(
                "fstab, line {}: {} is mounted from the network as {}",
                line.line, line.what, line.mount_point
            )));
        }
        if known || matches!(line.device, DeviceName::Other(_) | DeviceName::Mapper(_)) {
            continue;
        }
        if matches!(&line.device, DeviceName::Hardware(_))
            || line.kind == "iso9660"
            || line.kind == "udf"
        {
            continue;
        }
        let (level, what) = match (line.mount_point.as_str(), line.optional()) {
            ("/", _) => (Level::Warning, "its own root by a name that nothing here has"),
            (_, true) => (Level::Note, "something that is not on this disk"),
            (_, false) => {
                (Level::Warning, "something that is not on this disk, and the start waits for it")
            }
        };
        let text = format!(
            "fstab, line {}: {} for {} names {what}",
            line.line, line.what, line.mount_point
        );
        reasons.push(
            Reason::new(level, text)
                .fix("attach the other disk too, or add nofail to the options of the line"),
        );
    }
    if let Some(argument) = &report.root_argument {
        let name = DeviceName::parse(argument);
        let plain = matches!(
            name,
            DeviceName::Uuid(_)
                | DeviceName::Label(_)
                | DeviceName::PartUuid(_)
                | DeviceName::PartLabel(_)
        );
        if plain && volumes.named(&name).is_none() {
            reasons.push(
                Reason::blocker(format!(
                    "the kernel is started with root={argument}, which nothing on this disk has"
                ))
                .fix(format!(
                    "in the boot menu: press e, write root={}",
                    uuid_of(volumes, root.volume).unwrap_or_default()
                )),
            );
        }
    }
}

fn network(report: &LinuxReport, reasons: &mut Vec<Reason>) {
    for card in report.network.iter().filter(|c| c.mac.is_some()) {
        let mac = card.mac.as_deref().unwrap_or_default();
        let name = card.name.as_deref().unwrap_or("its connection");
        let reason = Reason::warning(format!("{} gives {name} to the card {mac} only", card.file))
            .fix(format!("keep the address: -device virtio-net-pci,netdev=net0,mac={mac}"));
        reasons.push(if card.pinned {
            reason.fix(format!("or remove the rule: rm {}", card.file))
        } else {
            reason.fix(format!("or take the address out of {}", card.file))
        });
    }
    let slots: Vec<&Interface> =
        report.network.iter().filter(|c| c.slot_name() && c.mac.is_none()).collect();
    if let Some(first) = slots.first() {
        let names: Vec<&str> = slots.iter().filter_map(|c| c.name.as_deref()).collect();
        let arguments = report.boot_entries.first().map_or("", |e| e.arguments.as_str());
        if !arguments.contains("net.ifnames=0") {
            reasons.push(
                Reason::warning(format!(
                    "{} configures {}, a name that comes from the slot of the old machine's card",
                    first.file,
                    names.join(", ")
                ))
                .fix("look for the new name with 'ip link' after the start (enp1s0, ens3, ...), and change it there")
                .fix("or let the file match by type: [Match] Type=ether (networkd), match: {driver: virtio*} (netplan)"),
            );
        }
    }
}

//! From wishes to a plan. Each wish becomes what holds now and what makes it hold after the next boot.

use super::action::{Action, Compaction};
use super::plan::Plan;
use super::{boot, persist};
use crate::error::{Error, Result};
use crate::host::{BootLoader, Host, Vendor};
use crate::units::CpuSet;

/// How CPUs are kept free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum IsolateBy {
    /// isolcpus=, nohz_full= and rcu_nocbs= on the kernel line.
    #[default]
    Boot,
    /// A cpuset partition (cgroup version 2), without a restart.
    Cpuset,
}

/// A number of hugepages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HugepageWish {
    /// Bytes a page.
    pub page: u64,
    /// Pages.
    pub count: u64,
    /// On this node only.
    pub node: Option<u32>,
}

/// What is wished.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// Modules to load; `kvm` brings the processor's.
    pub modules: Vec<String>,
    /// Parameters for the last of them.
    pub parameters: Vec<(String, String)>,
    /// Rights of /dev/kvm and their udev rule.
    pub kvm_access: bool,
    /// Rights of /dev/net/tun and their udev rule.
    pub tun_access: bool,
    /// Hugepages.
    pub hugepages: Vec<HugepageWish>,
    /// hugetlbfs mounts: folder and page size (0 for the default).
    pub hugetlbfs: Vec<(String, u64)>,
    /// Swap: path and bytes (0 for a partition).
    pub swap: Option<(String, u64)>,
    /// KSM: `run` and other names with values.
    pub ksm: Vec<(String, String)>,
    /// Transparent hugepages: always, madvise or never.
    pub thp: Option<String>,
    /// sysctls.
    pub sysctls: Vec<(String, String)>,
    /// CPU frequency governor.
    pub governor: Option<String>,
    /// CPUs to isolate, and how.
    pub isolate: Option<(CpuSet, IsolateBy)>,
    /// Words for the kernel line.
    pub boot_options: Vec<String>,
    /// CPUs that interrupts may use.
    pub irq_affinity: Option<CpuSet>,
    /// Limit of locked memory for the group kvm, in bytes.
    pub memlock: Option<u64>,
    /// IOMMU options on the kernel line.
    pub iommu: bool,
}

const SYSCTLS: &str = "/etc/sysctl.d/60-rhostprep.conf";
const TMPFILES: &str = "/etc/tmpfiles.d/60-rhostprep.conf";
const REBOOT: &str = "restart the host: the kernel line takes effect then";

/// Makes the plan for this host.
pub fn plan(host: &Host, wishes: &Wishes) -> Result<Plan> {
    let mut maker = Maker { host, plan: Plan::default() };
    maker.modules(wishes)?;
    maker.rights(wishes)?;
    wishes.hugepages.iter().try_for_each(|wish| maker.hugepages(wish))?;
    wishes.hugetlbfs.iter().try_for_each(|(point, page)| maker.hugetlbfs(point, *page))?;
    if let Some((path, size)) = &wishes.swap {
        maker.swap(path, *size)?;
    }
    for (name, value) in &wishes.ksm {
        maker.sysfs("/sys/kernel/mm/ksm", name, value)?;
    }
    if let Some(mode) = &wishes.thp {
        maker.sysfs("/sys/kernel/mm/transparent_hugepage", "enabled", mode)?;
    }
    wishes.sysctls.iter().try_for_each(|(name, value)| maker.sysctl(name, value))?;
    if let Some(name) = &wishes.governor {
        maker.governor(name)?;
    }
    if let Some(bytes) = wishes.memlock {
        maker.memlock(bytes);
    }
    let mut words = wishes.boot_options.clone();
    if let Some(set) = &wishes.irq_affinity {
        words.extend(maker.irqs(set)?);
    }
    if let Some((set, how)) = &wishes.isolate {
        maker.check_isolation(set)?;
        match how {
            IsolateBy::Boot => {
                words.extend(
                    ["isolcpus", "nohz_full", "rcu_nocbs"].map(|name| format!("{name}={set}")),
                );
            }
            IsolateBy::Cpuset => maker.partition(set)?,
        }
    }
    if wishes.iommu {
        let intel = host.cpuinfo().vendor == Vendor::Intel;
        words.extend(intel.then(|| "intel_iommu=on".to_owned()));
        words.push("iommu=pt".into());
    }
    maker.boot(&words)?;
    Ok(maker.plan)
}

struct Maker<'a> {
    host: &'a Host,
    plan: Plan,
}

fn plain_name(name: &str, what: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !name.is_empty() && name.chars().all(plain) && !name.starts_with('-') {
        return Ok(());
    }
    Err(Error::usage(format!("'{name}' is not {what}")))
}

fn one_line(value: &str) -> Result<()> {
    if value.is_empty() || value.chars().any(char::is_control) {
        return Err(Error::usage(format!("'{}' is not a value", value.escape_debug())));
    }
    Ok(())
}

impl Maker<'_> {
    /// Words for the kernel line.
    fn boot(&mut self, words: &[String]) -> Result<()> {
        let before = self.plan.actions.len();
        let plan = boot::actions(self.host, words)?;
        for action in plan.actions {
            self.add(action);
        }
        if self.plan.actions.len() > before {
            self.plan.notes.extend(plan.notes);
            self.plan.notes.push(REBOOT.into());
        }
        Ok(())
    }

    fn add(&mut self, action: Action) {
        self.plan.add(self.host, action);
    }

    fn file(&mut self, path: &str, edit: impl FnOnce(String) -> String) {
        let old = self.plan.text_of(self.host, path);
        let text = edit(persist::ours(old));
        self.add(Action::File { path: path.into(), text, mode: 0o644 });
    }

    /// A file that others own: no header is put into it.
    fn foreign_file(&mut self, path: &str, edit: impl FnOnce(&str) -> String) {
        let old = self.plan.text_of(self.host, path).unwrap_or_default();
        let text = edit(&old);
        self.add(Action::File { path: path.into(), text, mode: 0o644 });
    }

    fn modules(&mut self, wishes: &Wishes) -> Result<()> {
        let mut names: Vec<String> = Vec::new();
        for name in &wishes.modules {
            plain_name(name, "a module's name")?;
            let name = name.replace('-', "_");
            if name == "kvm" && !self.host.has_module("kvm_pvm") {
                let module = match self.host.cpuinfo().vendor {
                    Vendor::Intel => "kvm_intel",
                    Vendor::Amd => "kvm_amd",
                    Vendor::Other => {
                        return Err(Error::host("no KVM module is known for this processor"));
                    }
                };
                names.push(module.into());
            } else {
                names.push(name);
            }
        }
        if names.is_empty() && !wishes.parameters.is_empty() {
            return Err(Error::usage("--param needs a --module"));
        }
        for (index, name) in names.iter().enumerate() {
            let parameters =
                if index + 1 == names.len() { wishes.parameters.clone() } else { Vec::new() };
            for (key, value) in &parameters {
                plain_name(key, "a parameter's name")?;
                one_line(value)?;
                if value.contains([' ', '"', '\'', '#']) {
                    return Err(Error::usage(format!("the value of {key} holds blanks or quotes")));
                }
            }
            if !parameters.is_empty() {
                self.file(&format!("/etc/modprobe.d/rhostprep-{name}.conf"), |old| {
                    persist::set_module_options(&old, name, &parameters)
                });
            }
            if !self.host.is_built_in(name) {
                let path = format!("/etc/modules-load.d/rhostprep-{name}.conf");
                self.file(&path, |old| persist::set_line(&old, name, |line| line == name));
            }
            self.add(Action::Module { name: name.clone(), parameters });
        }
        Ok(())
    }

    fn group(&self, name: &str) -> Result<u32> {
        let text = self.host.read("/etc/group").unwrap_or_default();
        let number = text.lines().find_map(|line| {
            let mut parts = line.split(':');
            if parts.next() != Some(name) {
                return None;
            }
            parts.nth(1)?.parse().ok()
        });
        number.ok_or_else(|| {
            Error::host(format!("there is no group {name}"))
                .remedy(format!("groupadd --system {name}"))
        })
    }

    fn rights(&mut self, wishes: &Wishes) -> Result<()> {
        if wishes.kvm_access {
            let group = self.group("kvm")?;
            let rule =
                "KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0660\", OPTIONS+=\"static_node=kvm\"";
            self.file("/etc/udev/rules.d/65-kvm.rules", |old| {
                persist::set_line(&old, rule, |line| line.contains("KERNEL==\"kvm\""))
            });
            self.add(Action::Mode { path: "/dev/kvm".into(), mode: 0o660, group });
        }
        if wishes.tun_access {
            let rule = "KERNEL==\"tun\", MODE=\"0666\", OPTIONS+=\"static_node=net/tun\"";
            self.file("/etc/udev/rules.d/65-tun.rules", |old| {
                persist::set_line(&old, rule, |line| line.contains("KERNEL==\"tun\""))
            });
            let group = self.host.stat("/dev/net/tun").map_or(0, |stat| stat.gid);
            self.add(Action::Mode { path: "/dev/net/tun".into(), mode: 0o666, group });
        }
        Ok(())
    }

    fn need(&self, path: &str, what: &str) -> Result<()> {
        if self.host.exists(path) {
            return Ok(());
        }
        Err(Error::host(format!("this kernel has no {what}")).at(path))
    }

    fn hugepages(&mut self, wish: &HugepageWish) -> Result<()> {
        let HugepageWish { page, count, node } = *wish;
        let pool = format!("hugepages/hugepages-{}kB/nr_hugepages", page / 1024);
        let path = match node {
            Some(node) => format!("/sys/devices/system/node/node{node}/{pool}"),
            None => format!("/sys/kernel/mm/{pool}"),
        };
        self.need(&path, &format!("hugepages of {} there", crate::units::show_size(page)))?;
        let memory = self.host.meminfo().bytes("MemTotal");
        if memory > 0 && page.saturating_mul(count) > memory / 10 * 9 {
            return Err(Error::refused(format!(
                "{} of hugepages leave less than a tenth of {} for everything else",
                crate::units::show_size(page.saturating_mul(count)),
                crate::units::show_size(memory)
            )));
        }
        let value = count.to_string();
        self.add(Action::Value {
            path: path.clone(),
            value: value.clone(),
            compaction: Compaction::AndRetry,
        });
        self.file(TMPFILES, |old| persist::set_tmpfile(&old, &path, &value));
        Ok(())
    }

    fn hugetlbfs(&mut self, point: &str, page: u64) -> Result<()> {
        if !point.starts_with('/') || point.contains(char::is_whitespace) {
            return Err(Error::usage(format!("'{point}' is not a full path without blanks")));
        }
        let size = if page == 0 { String::new() } else { format!("pagesize={}K,", page / 1024) };
        let group = self.group("kvm").ok();
        let owner =
            group.map_or_else(|| "mode=0770".to_owned(), |gid| format!("mode=1770,gid={gid}"));
        let options = format!("{size}{owner}");
        self.foreign_file("/etc/fstab", |old| {
            persist::set_fstab(old, ["hugetlbfs", point, "hugetlbfs", &options])
        });
        self.add(Action::Mount {
            source: "hugetlbfs".into(),
            point: point.into(),
            kind: "hugetlbfs".into(),
            options,
        });
        Ok(())
    }

    fn swap(&mut self, path: &str, size: u64) -> Result<()> {
        if !path.starts_with('/') || path.contains(char::is_whitespace) {
            return Err(Error::usage(format!("'{path}' is not a full path without blanks")));
        }
        if self.host.swaps().iter().any(|swap| swap.name == path) {
            return Ok(());
        }
        if size > 0 {
            let folder = path.rsplit_once('/').map_or("/", |(folder, _)| folder);
            let fact = self.host.probe().filesystem(if folder.is_empty() { "/" } else { folder });
            // tmpfs, NFS, overlay (linux/magic.h): swapon refuses their files.
            let unfit = [0x0102_1994, 0x6969, 0x794C_7630];
            if fact.as_ref().is_some_and(|fact| unfit.contains(&fact.magic)) {
                return Err(Error::refused("that file system cannot hold a swap file")
                    .at(path)
                    .remedy("use a file on ext4, XFS or btrfs, or a partition"));
            }
            if let Some(free) = fact.map(|fact| fact.free)
                && free < size
            {
                return Err(Error::host(format!(
                    "{} of swap do not fit: {} are free",
                    crate::units::show_size(size),
                    crate::units::show_size(free)
                ))
                .at(path));
            }
        }
        self.add(Action::Swap { path: path.into(), size });
        self.foreign_file("/etc/fstab", |old| {
            persist::set_fstab(old, [path, "none", "swap", "defaults"])
        });
        Ok(())
    }

    fn sysfs(&mut self, folder: &str, name: &str, value: &str) -> Result<()> {
        plain_name(name, "the name of a setting")?;
        one_line(value)?;
        let path = format!("{folder}/{name}");
        self.need(&path, "such setting")?;
        self.add(Action::Value {
            path: path.clone(),
            value: value.into(),
            compaction: Compaction::No,
        });
        self.file(TMPFILES, |old| persist::set_tmpfile(&old, &path, value));
        Ok(())
    }

    fn sysctl(&mut self, name: &str, value: &str) -> Result<()> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
        if name.is_empty() || !name.chars().all(plain) || name.contains("..") {
            return Err(Error::usage(format!("'{name}' is not the name of a sysctl")));
        }
        one_line(value)?;
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        self.need(&path, &format!("sysctl {name}"))?;
        self.add(Action::Value { path, value: value.into(), compaction: Compaction::No });
        self.file(SYSCTLS, |old| persist::set_assignment(&old, name, value));
        Ok(())
    }

    fn governor(&mut self, name: &str) -> Result<()> {
        plain_name(name, "a governor")?;
        let folder = "/sys/devices/system/cpu/cpufreq";
        let policies: Vec<String> =
            self.host.list(folder).into_iter().filter(|name| name.starts_with("policy")).collect();
        if policies.is_empty() {
            return Err(Error::host("the kernel does not set frequencies on this host").at(folder));
        }
        for policy in policies {
            let path = format!("{folder}/{policy}/scaling_governor");
            if let Some(known) =
                self.host.text(&format!("{folder}/{policy}/scaling_available_governors"))
                && !known.split_whitespace().any(|word| word == name)
            {
                return Err(Error::usage(format!("there is no governor '{name}'"))
                    .remedy(format!("use one of: {known}")));
            }
            self.add(Action::Value {
                path: path.clone(),
                value: name.into(),
                compaction: Compaction::No,
            });
            self.file(TMPFILES, |old| persist::set_tmpfile(&old, &path, name));
        }
        Ok(())
    }

    fn online(&self, set: &CpuSet) -> Result<()> {
        let online = self.host.topology().online();
        if set.is_empty() || !set.without(&online).is_empty() {
            return Err(Error::usage(format!("CPUs '{set}' are not all there (online: {online})")));
        }
        Ok(())
    }

    /// Interrupts that are there now and those of later devices; at boot by irqaffinity= on the kernel line. Gives
    /// the word for it.
    fn irqs(&mut self, set: &CpuSet) -> Result<Option<String>> {
        self.online(set)?;
        let value = set.to_string();
        for irq in self.host.list("/proc/irq") {
            let path = format!("/proc/irq/{irq}/smp_affinity_list");
            if irq.parse::<u32>().is_err() || !self.host.exists(&path) {
                continue;
            }
            // Numbers that no driver uses move nothing.
            if self.host.text(&format!("/sys/kernel/irq/{irq}/actions")).as_deref() == Some("") {
                continue;
            }
            // Interrupts bound to one CPU by their nature are left alone.
            let now =
                self.host.text(&path).and_then(|text| CpuSet::parse(&text)).unwrap_or_default();
            if now.len() > 1 {
                self.add(Action::Interrupt { path, cpus: value.clone() });
            }
        }
        self.irqbalance(set);
        let word = format!("irqaffinity={set}");
        if self.host.boot_loader() == BootLoader::Unknown {
            self.plan
                .notes
                .push(format!("for the next boot add to the kernel line yourself: {word}"));
            return Ok(None);
        }
        Ok(Some(word))
    }

    /// irqbalance would move interrupts back within seconds: the other CPUs are forbidden to it.
    fn irqbalance(&mut self, set: &CpuSet) {
        let banned = self.host.topology().online().without(set);
        for path in ["/etc/default/irqbalance", "/etc/sysconfig/irqbalance"] {
            if !self.host.exists(path) || banned.is_empty() {
                continue;
            }
            let line = format!("IRQBALANCE_BANNED_CPULIST={banned}");
            self.foreign_file(path, |old| {
                persist::set_line(old, &line, |line| line.starts_with("IRQBALANCE_BANNED_CPULIST="))
            });
            self.plan.notes.push("systemctl restart irqbalance: it reads its file then".into());
        }
    }

    fn memlock(&mut self, bytes: u64) {
        let line = format!("@kvm - memlock {}", bytes.div_ceil(1024));
        self.file("/etc/security/limits.d/50-rhostprep.conf", |old| {
            persist::set_line(&old, &line, |line| {
                line.starts_with("@kvm ") && line.contains(" memlock ")
            })
        });
        self.plan.notes.push("log in again: limits are set at login".into());
    }

    fn check_isolation(&self, set: &CpuSet) -> Result<()> {
        self.online(set)?;
        let online = self.host.topology().online();
        if set.contains(0) || online.without(set).is_empty() {
            return Err(Error::refused("CPU 0 must stay with the host: it boots and keeps time")
                .remedy("`rhostprep cpu --guests ...` proposes a list"));
        }
        for core in self.host.topology().core_sets() {
            let part = core.and(set);
            if !part.is_empty() && part != core {
                return Err(Error::refused(format!(
                    "CPU {part} would leave its sibling {} behind",
                    core.without(set)
                ))
                .remedy("isolate whole cores"));
            }
        }
        Ok(())
    }

    /// A partition whose CPUs the scheduler balances nothing onto (cgroup-v2.rst, "cpuset.cpus.partition"); at boot
    /// by tmpfiles.d, which writes to the same files.
    fn partition(&mut self, set: &CpuSet) -> Result<()> {
        let group = "/sys/fs/cgroup/rhostprep";
        let all = "/sys/fs/cgroup/cgroup.controllers";
        self.need(all, "control groups of version 2")?;
        if !super::plan::controllers(self.host, all).contains(&"cpuset".to_owned()) {
            return Err(Error::host("the cpuset controller is not there")
                .at(all)
                .remedy("a hierarchy of version 1 may hold it: boot with cgroup_no_v1=cpuset, or leave --cpuset away"));
        }
        let switch = "/sys/fs/cgroup/cgroup.subtree_control";
        self.add(Action::Controller { path: switch.into(), name: "cpuset".into() });
        self.add(Action::Folder { path: group.into() });
        let mut lines = vec![(switch.to_owned(), "+cpuset".to_owned())];
        for (name, value) in
            [("cpuset.cpus", set.to_string()), ("cpuset.cpus.partition", "isolated".into())]
        {
            let path = format!("{group}/{name}");
            lines.push((path.clone(), value.clone()));
            self.add(Action::Value { path, value, compaction: Compaction::No });
        }
        let folder = format!("d {group} 0755 root root -");
        self.file(TMPFILES, |old| persist::set_line(&old, &folder, |line| line == folder));
        for (path, value) in lines {
            self.file(TMPFILES, |old| persist::set_tmpfile(&old, &path, &value));
        }
        self.plan.notes.push(format!(
            "only processes of the group use these CPUs: start guests by `sh -c 'echo $$ > {group}/cgroup.procs; exec rkvm ...'`"
        ));
        Ok(())
    }
}

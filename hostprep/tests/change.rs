//! Plans, applying, idempotence, undoing, and being killed at every step.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fakes;
mod shapes;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use fakes::{same, snapshot};
use hostprep::change::{
    self, Action, Applied, Effects, Force, HugepageWish, IsolateBy, JournalState, Plan,
    TreeEffects, Wishes,
};
use hostprep::host::{Facts, Host};
use hostprep::net::{NetBackend, NetBefore, NetChange};
use hostprep::units::CpuSet;
use hostprep::{Error, Result};
use shapes::{Fake, Shape, amd, intel, laptop};

/// A network that is a file of lines, one a link, address, table or daemon.
struct FileNet(std::path::PathBuf);

impl FileNet {
    fn lines(&self) -> Vec<String> {
        std::fs::read_to_string(&self.0).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    fn key(change: &NetChange) -> String {
        change.describe().lines().next().unwrap().to_owned()
    }
}

impl NetBackend for FileNet {
    fn remember(&mut self, change: &NetChange) -> Result<NetBefore> {
        Ok(NetBefore::There { there: self.lines().contains(&Self::key(change)) })
    }

    fn perform(&mut self, change: &NetChange, _before: &NetBefore) -> Result<()> {
        let mut lines = self.lines();
        lines.push(Self::key(change));
        std::fs::write(&self.0, lines.join("\n") + "\n").unwrap();
        Ok(())
    }

    fn restore(&mut self, change: &NetChange, before: &NetBefore) -> Result<()> {
        if *before == (NetBefore::There { there: false }) {
            let lines: Vec<String> =
                self.lines().into_iter().filter(|line| *line != Self::key(change)).collect();
            let text = if lines.is_empty() { String::new() } else { lines.join("\n") + "\n" };
            std::fs::write(&self.0, text).unwrap();
        }
        Ok(())
    }
}

/// Dies by SIGKILL at the n-th checkpoint.
struct Deadly {
    inner: TreeEffects,
    left: u32,
}

impl Effects for Deadly {
    fn root(&self) -> &Path {
        self.inner.root()
    }
    fn checkpoint(&mut self, _what: &str) {
        if self.left == 0 {
            let pid = std::process::id().to_string();
            let _ = std::process::Command::new("kill").args(["-9", &pid]).status();
            std::thread::sleep(std::time::Duration::from_secs(10));
        }
        self.left -= 1;
    }
    fn write_value(&mut self, place: &Path, value: &str) -> std::io::Result<()> {
        self.inner.write_value(place, value)
    }
    fn make_group(&mut self, place: &Path) -> std::io::Result<()> {
        self.inner.make_group(place)
    }
    fn remove_group(&mut self, place: &Path) -> std::io::Result<()> {
        self.inner.remove_group(place)
    }
    fn load_module(&mut self, name: &str, parameters: &[(String, String)]) -> Result<()> {
        self.inner.load_module(name, parameters)
    }
    fn unload_module(&mut self, name: &str) -> Result<()> {
        self.inner.unload_module(name)
    }
    fn mount(&mut self, source: &str, point: &str, kind: &str, options: &str) -> Result<()> {
        self.inner.mount(source, point, kind, options)
    }
    fn unmount(&mut self, point: &str) -> Result<()> {
        self.inner.unmount(point)
    }
    fn swap_on(&mut self, path: &str) -> Result<()> {
        self.inner.swap_on(path)
    }
    fn swap_off(&mut self, path: &str) -> Result<()> {
        self.inner.swap_off(path)
    }
    fn run(&mut self, command: &[String]) -> Result<()> {
        self.inner.run(command)
    }
    fn net(&mut self) -> Option<&mut dyn NetBackend> {
        self.inner.net()
    }
}

fn tree_effects(root: &Path) -> TreeEffects {
    TreeEffects::new(root).with_net(Box::new(FileNet(root.join("net"))))
}

fn host(root: &Path) -> Host {
    let facts = std::fs::read_to_string(root.join("facts.json")).unwrap();
    let mut facts: Facts = serde_json::from_str(&facts).unwrap();
    // Rights are looked up in the tree here, not in what was recorded.
    facts.stat.clear();
    Host::below(root, facts)
}

fn quiet(_: usize, _: &Action) {}

/// GRUB's environment block: 1024 bytes, filled up with '#'.
fn environment_block(line: &str) -> Vec<u8> {
    let mut bytes = format!("# GRUB Environment Block\n{line}\n").into_bytes();
    bytes.resize(1024, b'#');
    bytes
}

/// A shape with what actions need: device nodes as files, generated boot files, available governors.
fn prepared(mut shape: Shape) -> Fake {
    shape
        .set("/dev/kvm", "")
        .set("/dev/net/tun", "")
        .set("/net", "")
        .remove("/net")
        .set("/boot/grub/grub.cfg", "menuentry x {\n linux /vmlinuz quiet\n}")
        .bytes("/boot/grub2/grubenv", &environment_block("saved_entry=a"))
        .set(
            "/boot/loader/entries/a.conf",
            "title Linux\nlinux /vmlinuz\noptions root=/dev/sda1 quiet",
        )
        .set("/usr/sbin/grub-mkconfig", "")
        .set("/etc/fstab", "/dev/sda2 / ext4 defaults 0 1")
        .set("/sys/kernel/mm/ksm/pages_to_scan", "100")
        .set("/proc/sys/vm/compact_memory", "")
        .set("/proc/irq/5/smp_affinity_list", "0-3")
        .set("/proc/sys/net/ipv4/ip_forward", "0")
        .set("/sys/devices/system/cpu/cpufreq/policy0/scaling_governor", "powersave")
        .set("/sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages", "0")
        .set("/sys/module/kvm/parameters/x", "1");
    shape.set("/proc/irq/0/smp_affinity_list", "0-3").set("/run/utmp", "");
    let fake = shape.build();
    // The timer does not move; such files are read-only in a tree.
    let timer = fake.folder.path().join("proc/irq/0/smp_affinity_list");
    std::fs::set_permissions(timer, std::fs::Permissions::from_mode(0o444)).unwrap();
    std::fs::write(fake.folder.path().join("net"), "").unwrap();
    let node = fake.folder.path().join("dev/kvm");
    std::fs::set_permissions(node, std::fs::Permissions::from_mode(0o600)).unwrap();
    fake
}

fn group_of_this_process() -> String {
    let meta = std::fs::metadata("/proc/self").unwrap();
    format!("root:x:0:\nkvm:x:{}:", meta.gid())
}

struct Case {
    name: &'static str,
    fake: Fake,
    wishes: Wishes,
}

fn wish(edit: impl FnOnce(&mut Wishes)) -> Wishes {
    let mut wishes = Wishes::default();
    edit(&mut wishes);
    wishes
}

fn pair(key: &str, value: &str) -> (String, String) {
    (key.into(), value.into())
}

fn cases() -> Vec<Case> {
    let case = |name, shape: Shape, edit: &dyn Fn(&mut Wishes)| Case {
        name,
        fake: prepared(shape),
        wishes: wish(|wishes| edit(wishes)),
    };
    let own_group = |mut shape: Shape| {
        shape.set("/etc/group", &group_of_this_process());
        shape
    };
    let loaded = |mut shape: Shape| {
        shape.set("/proc/modules", "ext4 1 0 - Live 0x0\nkvm_amd 16384 0 - Live 0x0");
        shape
    };
    let groups = |mut shape: Shape| {
        shape
            .set("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids")
            .set("/sys/fs/cgroup/cgroup.subtree_control", "cpu");
        shape
    };
    let balanced = |mut shape: Shape| {
        shape.set("/etc/default/irqbalance", "# comment\nIRQBALANCE_ONESHOT=");
        shape
    };
    let big_governors = |mut shape: Shape| {
        for policy in 0..8 {
            let path = format!("/sys/devices/system/cpu/cpufreq/policy{policy}/scaling_governor");
            shape.set(&path, "powersave");
        }
        shape
    };
    let unloaded = |mut shape: Shape| {
        shape.remove("/sys/module/kvm_intel").set("/proc/modules", "ext4 1 0 - Live 0x0");
        shape
    };
    vec![
        case("load kvm", unloaded(intel()), &|w| w.modules = vec!["kvm".into()]),
        case("load with parameters", unloaded(intel()), &|w| {
            w.modules = vec!["kvm".into()];
            w.parameters = vec![pair("nested", "1"), pair("ept", "1")];
        }),
        case("load anew", loaded(amd()), &|w| {
            w.modules = vec!["kvm_amd".into()];
            w.parameters = vec![pair("avic", "1")];
        }),
        case("tun, vhost, bridge", unloaded(intel()), &|w| {
            w.modules = vec!["tun".into(), "vhost-net".into(), "bridge".into()];
        }),
        case("rights", own_group(intel()), &|w| {
            w.kvm_access = true;
            w.tun_access = true;
        }),
        case("hugepages", intel(), &|w| {
            w.hugepages = vec![
                HugepageWish { page: 2 << 20, count: 1024, node: None },
                HugepageWish { page: 2 << 20, count: 64, node: Some(0) },
                HugepageWish { page: 1 << 30, count: 2, node: None },
            ];
        }),
        case("hugetlbfs", intel(), &|w| w.hugetlbfs = vec![("/mnt/deep/huge".into(), 1 << 30)]),
        case("swap", intel(), &|w| w.swap = Some(("/var/swapfile".into(), 1 << 20))),
        case("ksm", intel(), &|w| w.ksm = vec![pair("run", "1")]),
        case("thp", intel(), &|w| w.thp = Some("always".into())),
        case("sysctl", intel(), &|w| {
            w.sysctls = vec![pair("vm.swappiness", "1"), pair("net.ipv4.ip_forward", "1")];
        }),
        case("governor", intel(), &|w| w.governor = Some("performance".into())),
        case("isolate by grubby", intel(), &|w| {
            w.isolate = CpuSet::parse("2-3,6-7").map(|set| (set, IsolateBy::Boot));
        }),
        case("isolate by grub", amd(), &|w| {
            w.isolate = CpuSet::parse("2-3").map(|set| (set, IsolateBy::Boot));
        }),
        case("isolate by a cpuset partition", groups(amd()), &|w| {
            w.isolate = CpuSet::parse("2-3").map(|set| (set, IsolateBy::Cpuset));
        }),
        case("irqs beside irqbalance", balanced(amd()), &|w| {
            w.irq_affinity = CpuSet::parse("0-1");
        }),
        case("governor of every policy", big_governors(intel()), &|w| {
            w.governor = Some("performance".into());
        }),
        case("ksm settings", intel(), &|w| {
            w.ksm = vec![pair("run", "1"), pair("pages_to_scan", "1000")];
        }),
        case("boot option by systemd-boot", laptop(), &|w| {
            w.boot_options = vec!["iommu=pt".into()];
        }),
        case("irqs", amd(), &|w| w.irq_affinity = CpuSet::parse("0-1")),
        case("memlock", intel(), &|w| w.memlock = Some(8 << 30)),
        case("iommu", amd(), &|w| w.iommu = true),
    ]
}

#[test]
fn every_action_plans_applies_once_and_undoes() {
    for case in cases() {
        let root = case.fake.folder.path();
        let before = snapshot(root);
        let plan = change::plan(&host(root), &case.wishes).unwrap();
        assert!(!plan.actions.is_empty(), "{}: nothing planned", case.name);
        let text = plan.text(&host(root)).unwrap();
        assert!(text.contains("undo:"), "{text}");
        same(&snapshot(root), &before, &format!("{}: planning changed something", case.name));

        let mut effects = tree_effects(root);
        let done = change::apply(&mut effects, &plan, &mut quiet)
            .unwrap_or_else(|error| panic!("{}: {error}", case.name));
        let Applied::Done(id) = done else { panic!("{}: nothing done", case.name) };
        assert!(snapshot(root) != before, "{}", case.name);

        let again = change::plan(&host(root), &case.wishes).unwrap();
        assert_eq!(again.actions, [], "{}: second apply is not empty", case.name);
        assert_eq!(change::apply(&mut effects, &again, &mut quiet).unwrap(), Applied::NothingToDo);

        change::undo(&mut effects, Some(&id), Force::No).unwrap();
        same(&snapshot(root), &before, &format!("{}: undo left something", case.name));
        assert!(change::undo(&mut effects, Some(&id), Force::No).is_err(), "undone twice");
    }
}

#[test]
fn cpuset_partition_needs_cgroup_2() {
    let wishes = wish(|w| w.isolate = CpuSet::parse("2-3").map(|set| (set, IsolateBy::Cpuset)));
    for controllers in [None, Some("cpu io memory")] {
        let mut shape = amd();
        shape.remove("/sys/fs/cgroup/cgroup.controllers");
        if let Some(controllers) = controllers {
            shape.set("/sys/fs/cgroup/cgroup.controllers", controllers);
        }
        let fake = prepared(shape);
        let error = change::plan(&host(fake.folder.path()), &wishes).unwrap_err();
        assert!(error.to_string().contains("cgroup.controllers"), "{error}");
    }
}

/// A plan of everything: files in new and old folders, values, a module, a mount, swap, boot loader, network.
fn big_plan(root: &Path) -> Plan {
    let wishes = wish(|w| {
        w.modules = vec!["kvm".into()];
        w.parameters = vec![pair("nested", "1")];
        w.kvm_access = true;
        w.hugetlbfs = vec![("/mnt/huge".into(), 0)];
        w.swap = Some(("/var/swapfile".into(), 65_536));
        w.sysctls = vec![pair("vm.swappiness", "1")];
        w.boot_options = vec!["iommu=pt".into()];
    });
    let mut plan = change::plan(&host(root), &wishes).unwrap();
    for change in [
        NetChange::Bridge { name: "br0".into(), stp: false, mtu: 0 },
        NetChange::Accept { bridge: "br0".into() },
    ] {
        plan.actions.push(Action::Net(change));
    }
    plan
}

fn kill_shape() -> Fake {
    let mut shape = amd();
    shape
        .set("/etc/group", &group_of_this_process())
        .remove("/sys/module/kvm_amd")
        .set("/proc/modules", "ext4 1 0 - Live 0x0");
    prepared(shape)
}

/// Not a test of its own: the child that gets killed. Runs only when the parent asks.
#[test]
fn child() {
    let Ok(root) = std::env::var("RHOSTPREP_TEST_ROOT") else { return };
    let root = Path::new(&root);
    let left = std::env::var("RHOSTPREP_TEST_LEFT").unwrap().parse().unwrap();
    let mut effects = Deadly { inner: tree_effects(root), left };
    match std::env::var("RHOSTPREP_TEST_DO").unwrap().as_str() {
        "apply" => {
            let plan = big_plan(root);
            change::apply(&mut effects, &plan, &mut quiet).unwrap();
        }
        _ => {
            change::undo(&mut effects, None, Force::No).unwrap();
        }
    }
}

/// Runs the child; true when it ended by itself, false when it was killed.
fn run_child(root: &Path, what: &str, left: u32) -> bool {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env("RHOSTPREP_TEST_ROOT", root)
        .env("RHOSTPREP_TEST_DO", what)
        .env("RHOSTPREP_TEST_LEFT", left.to_string())
        .output()
        .unwrap();
    use std::os::unix::process::ExitStatusExt as _;
    match output.status.signal() {
        Some(9) => false,
        _ if output.status.success() => true,
        _ => panic!("{what} at {left}: {}", String::from_utf8_lossy(&output.stderr)),
    }
}

#[test]
fn killed_at_every_step_of_apply_undo_restores_every_byte() {
    let mut steps = 0;
    loop {
        let fake = kill_shape();
        let root = fake.folder.path();
        let before = snapshot(root);
        let finished = run_child(root, "apply", steps);
        let journals = change::list(root).unwrap();
        if let Some(journal) =
            journals.last().filter(|journal| journal.state() != JournalState::Undone)
        {
            let interrupted = matches!(journal.state(), JournalState::Interrupted(_));
            assert_eq!(interrupted, !finished);
            if interrupted {
                // A second apply must not build on ruins.
                let plan = big_plan(root);
                assert!(change::apply(&mut tree_effects(root), &plan, &mut quiet).is_err());
            }
            change::undo(&mut tree_effects(root), None, Force::No).unwrap();
        }
        same(&snapshot(root), &before, &format!("killed at step {steps}"));
        if finished {
            break;
        }
        steps += 1;
    }
    assert!(steps > 60, "only {steps} places to die");
}

#[test]
fn killed_at_every_step_of_undo_a_second_undo_restores_every_byte() {
    let mut steps = 0;
    loop {
        let fake = kill_shape();
        let root = fake.folder.path();
        let before = snapshot(root);
        let plan = big_plan(root);
        change::apply(&mut tree_effects(root), &plan, &mut quiet).unwrap();
        if run_child(root, "undo", steps) {
            same(&snapshot(root), &before, "");
            break;
        }
        change::undo(&mut tree_effects(root), None, Force::No).unwrap();
        same(&snapshot(root), &before, &format!("killed at step {steps}"));
        steps += 1;
    }
    assert!(steps > 20, "only {steps} places to die");
}

#[test]
fn torn_and_damaged_journals() {
    let fake = kill_shape();
    let root = fake.folder.path();
    let before = snapshot(root);
    change::apply(&mut tree_effects(root), &big_plan(root), &mut quiet).unwrap();
    let path = root.join("var/lib/rhostprep/0001.journal");
    let whole = std::fs::read(&path).unwrap();
    // Torn at any byte: it loads, as whole lines only.
    for cut in 0..whole.len() {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let journal = change::Journal::load(root, "0001").unwrap();
        assert_eq!(
            journal.records.len(),
            whole[..cut].iter().filter(|byte| **byte == b'\n').count()
        );
    }
    // A flipped byte in the middle: an error that names the byte, and nothing is touched.
    let mut flipped = whole.clone();
    let middle = whole.len() / 2;
    flipped[middle] ^= 1;
    std::fs::write(&path, &flipped).unwrap();
    let after = snapshot(root);
    let error = change::undo(&mut tree_effects(root), None, Force::No).unwrap_err();
    assert!(error.to_string().contains("damaged at byte"), "{error}");
    same(&snapshot(root), &after, "");
    // A torn tail after everything was done.
    let mut torn = whole;
    torn.extend(b"0123 {\"record\":\"und");
    std::fs::write(&path, &torn).unwrap();
    change::undo(&mut tree_effects(root), None, Force::No).unwrap();
    same(&snapshot(root), &before, "");
}

#[test]
fn others_changes_are_not_lost() {
    let fake = kill_shape();
    let root = fake.folder.path();
    change::apply(&mut tree_effects(root), &big_plan(root), &mut quiet).unwrap();
    let fstab = root.join("etc/fstab");
    let mine = std::fs::read_to_string(&fstab).unwrap() + "/dev/sdb1 /data xfs defaults 0 0\n";
    std::fs::write(&fstab, &mine).unwrap();
    let error = change::undo(&mut tree_effects(root), None, Force::No).unwrap_err();
    assert!(error.to_string().contains("somebody else"), "{error}");
    assert_eq!(std::fs::read_to_string(&fstab).unwrap(), mine);
    change::undo(&mut tree_effects(root), None, Force::Yes).unwrap();
}

/// Fails when it is asked to mount.
struct NoMount(TreeEffects);

impl Effects for NoMount {
    fn root(&self) -> &Path {
        self.0.root()
    }
    fn load_module(&mut self, name: &str, parameters: &[(String, String)]) -> Result<()> {
        self.0.load_module(name, parameters)
    }
    fn unload_module(&mut self, name: &str) -> Result<()> {
        self.0.unload_module(name)
    }
    fn mount(&mut self, _: &str, _: &str, _: &str, _: &str) -> Result<()> {
        Err(Error::host("no such device").remedy("another kernel"))
    }
    fn unmount(&mut self, point: &str) -> Result<()> {
        self.0.unmount(point)
    }
    fn swap_on(&mut self, path: &str) -> Result<()> {
        self.0.swap_on(path)
    }
    fn swap_off(&mut self, path: &str) -> Result<()> {
        self.0.swap_off(path)
    }
    fn run(&mut self, command: &[String]) -> Result<()> {
        self.0.run(command)
    }
    fn net(&mut self) -> Option<&mut dyn NetBackend> {
        self.0.net()
    }
}

#[test]
fn a_failing_action_leaves_the_host_as_it_was() {
    let fake = kill_shape();
    let root = fake.folder.path();
    let before = snapshot(root);
    let error =
        change::apply(&mut NoMount(tree_effects(root)), &big_plan(root), &mut quiet).unwrap_err();
    assert!(error.to_string().contains("everything is as it was"), "{error}");
    assert_eq!(error.remedy_text(), Some("another kernel"));
    same(&snapshot(root), &before, "");
}

#[test]
fn bad_wishes_are_refused() {
    let fake = prepared(intel());
    let root = fake.folder.path();
    let refused = |edit: &dyn Fn(&mut Wishes)| {
        let wishes = wish(|wishes| edit(wishes));
        assert!(change::plan(&host(root), &wishes).is_err(), "{wishes:?}");
    };
    refused(&|w| w.modules = vec!["../x".into()]);
    refused(&|w| w.modules = vec!["-r".into()]);
    refused(&|w| w.parameters = vec![pair("a", "1")]);
    refused(&|w| w.sysctls = vec![pair("../../etc/passwd", "1")]);
    refused(&|w| w.sysctls = vec![pair("vm.swappiness", "1\nkernel.x=2")]);
    refused(&|w| w.sysctls = vec![pair("vm.no_such", "1")]);
    refused(&|w| w.boot_options = vec!["a\"; reboot".into()]);
    refused(&|w| w.isolate = CpuSet::parse("0-1").map(|set| (set, IsolateBy::Boot)));
    refused(&|w| w.isolate = CpuSet::parse("2").map(|set| (set, IsolateBy::Boot)));
    refused(&|w| w.isolate = CpuSet::parse("99").map(|set| (set, IsolateBy::Boot)));
    refused(&|w| w.hugepages = vec![HugepageWish { page: 1 << 30, count: 1 << 40, node: None }]);
    refused(&|w| w.hugepages = vec![HugepageWish { page: 12345, count: 1, node: None }]);
    refused(&|w| w.swap = Some(("relative".into(), 1 << 20)));
    refused(&|w| w.swap = Some(("/var/x".into(), 1 << 50)));
    refused(&|w| w.hugetlbfs = vec![("/a b".into(), 0)]);
}

#[test]
fn links_are_not_followed_when_writing() {
    let fake = prepared(intel());
    let root = fake.folder.path();
    let outside = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(outside.path(), root.join("etc/sysctl.d")).unwrap();
    let wishes = wish(|w| w.sysctls = vec![pair("vm.swappiness", "1")]);
    let plan = change::plan(&host(root), &wishes).unwrap();
    let error = change::apply(&mut tree_effects(root), &plan, &mut quiet).unwrap_err();
    assert!(error.to_string().contains("symbolic link"), "{error}");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}

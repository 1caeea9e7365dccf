//! The kernel line through every boot loader: plan, apply, a second apply, undo; and what must fail without a trace.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod shapes;

use std::collections::BTreeMap;
use std::path::Path;

use hostprep::change::{self, Action, Applied, Effects, Force, TreeEffects, Wishes};
use hostprep::host::{Facts, Host};
use hostprep::net::NetBackend;
use hostprep::{Error, Result};
use shapes::{Fake, Shape};

/// All files of the places that boot loaders read.
fn files(root: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(folder: &Path, out: &mut BTreeMap<String, Vec<u8>>) {
        let Ok(entries) = std::fs::read_dir(folder) else { return };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, out);
            } else {
                out.insert(path.to_string_lossy().into_owned(), std::fs::read(&path).unwrap());
            }
        }
    }
    let mut out = BTreeMap::new();
    for folder in ["boot", "efi", "etc"] {
        walk(&root.join(folder), &mut out);
    }
    out
}

fn host(fake: &Fake) -> Host {
    Host::below(fake.folder.path(), Facts::default())
}

fn wishes() -> Wishes {
    Wishes { boot_options: vec!["isolcpus=2-3".into(), "iommu=pt".into()], ..Wishes::default() }
}

const MENU: &str = "set default=0
menuentry 'Debian' --class debian {
\tlinux /boot/vmlinuz root=/dev/sda2 ro quiet isolcpus=1
\tinitrd /boot/initrd.img
}
menuentry 'Another system' {
\tlinux /vmlinuz root=/dev/sdb1
}";
const ENTRY: &str = "title Fedora\nversion 6.9\nlinux /vmlinuz-6.9\ninitrd /initramfs-6.9.img\noptions root=/dev/sda2 ro isolcpus=1";
const STUB: &str =
    "search.fs_uuid 1-2 root\nset prefix=($root)'/grub2'\nconfigfile $prefix/grub.cfg";

fn block(line: &str) -> Vec<u8> {
    let mut bytes = format!("# GRUB Environment Block\n{line}\n").into_bytes();
    bytes.resize(1024, b'#');
    bytes
}

/// Layouts after the distributions' own documentation: where each keeps what.
fn layouts() -> Vec<(&'static str, Shape)> {
    let mut all = Vec::new();
    let mut add = |name, edit: &dyn Fn(&mut Shape)| {
        let mut shape = Shape::default();
        edit(&mut shape);
        all.push((name, shape));
    };
    add("GRUB, BIOS, Debian", &|shape| {
        shape
            .set(
                "/etc/default/grub",
                "GRUB_DEFAULT=0\nGRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\nGRUB_CMDLINE_LINUX=\"\"",
            )
            .set("/usr/sbin/grub-mkconfig", "")
            .set("/boot/grub/grub.cfg", MENU);
    });
    add("GRUB, EFI with a stub, Debian", &|shape| {
        shape
            .set("/sys/firmware/efi/fw_platform_size", "64")
            .set("/etc/default/grub", "GRUB_CMDLINE_LINUX=\"quiet\"")
            .set("/usr/sbin/grub-mkconfig", "")
            .set("/boot/efi/EFI/debian/grub.cfg", STUB)
            .set("/boot/grub/grub.cfg", MENU);
    });
    add("GRUB, EFI with the whole menu there, without grubby", &|shape| {
        shape
            .set("/sys/firmware/efi/fw_platform_size", "64")
            .set("/etc/default/grub", "GRUB_CMDLINE_LINUX=\"quiet\"")
            .set("/usr/sbin/grub2-mkconfig", "")
            .set("/boot/efi/EFI/centos/grub.cfg", MENU);
    });
    add("GRUB with a drop-in, Ubuntu's cloud image", &|shape| {
        shape
            .set("/etc/default/grub", "GRUB_CMDLINE_LINUX=\"a\"")
            .set(
                "/etc/default/grub.d/50-cloudimg.cfg",
                "GRUB_CMDLINE_LINUX_DEFAULT=\"console=ttyS0\"",
            )
            .set("/usr/sbin/grub-mkconfig", "")
            .set("/boot/grub/grub.cfg", MENU);
    });
    add("grubby with entries, Fedora", &|shape| {
        shape
            .set("/etc/default/grub", "GRUB_ENABLE_BLSCFG=true\nGRUB_CMDLINE_LINUX=\"quiet\"")
            .set("/usr/sbin/grubby", "")
            .set("/boot/grub2/grub.cfg", "insmod blscfg\nblscfg")
            .bytes("/boot/grub2/grubenv", &block("saved_entry=fedora"))
            .set("/boot/loader/entries/fedora.conf", ENTRY)
            .set("/boot/loader/entries/rescue.conf", ENTRY);
    });
    add("systemd-boot, entries in /efi, Arch", &|shape| {
        shape
            .set("/efi/loader/loader.conf", "default arch")
            .set("/etc/kernel/cmdline", "root=/dev/sda2 rw")
            .set("/efi/loader/entries/arch.conf", ENTRY)
            .set("/efi/loader/entries/shell.conf", "title Shell\nefi /shell.efi");
    });
    all
}

#[test]
fn every_loader() {
    for (name, shape) in layouts() {
        let fake = shape.build();
        let root = fake.folder.path();
        let before = files(root);
        let plan = change::plan(&host(&fake), &wishes()).unwrap();
        let text = plan.text(&host(&fake)).unwrap();
        assert!(text.contains("isolcpus=2-3") && text.contains("back"), "{name}: {text}");
        assert_eq!(files(root), before, "{name}: planning changed something");
        let mut effects = TreeEffects::new(root);
        let done = change::apply(&mut effects, &plan, &mut |_, _| ())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let Applied::Done(id) = done else { panic!("{name}: nothing done") };
        let again = change::plan(&host(&fake), &wishes()).unwrap();
        assert_eq!(again.actions, [], "{name}: second apply is not empty");
        change::undo(&mut effects, Some(&id), Force::No).unwrap();
        assert_eq!(files(root), before, "{name}: undo left something");
    }
}

/// Does to the files what a tool could do wrong.
struct Tool(TreeEffects, &'static str, &'static str);

impl Effects for Tool {
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
        Err(Error::host("not here"))
    }
    fn unmount(&mut self, _: &str) -> Result<()> {
        Err(Error::host("not here"))
    }
    fn swap_on(&mut self, _: &str) -> Result<()> {
        Err(Error::host("not here"))
    }
    fn swap_off(&mut self, _: &str) -> Result<()> {
        Err(Error::host("not here"))
    }
    fn run(&mut self, _: &[String]) -> Result<()> {
        std::fs::write(self.0.root().join(self.1), self.2).unwrap();
        Ok(())
    }
    fn net(&mut self) -> Option<&mut dyn NetBackend> {
        None
    }
}

#[test]
fn a_menu_that_does_not_parse_afterwards_is_put_back() {
    let good = "menuentry 'a' {\n linux /v root=/dev/sda2 isolcpus=2-3 iommu=pt\n}\n";
    for (wrote, says) in [
        ("", "no entry"),
        ("menuentry 'a {\n linux /v isolcpus=2-3 iommu=pt\n}\n", "quote"),
        ("menuentry 'a' {\n linux /v isolcpus=2-3 iommu=pt\n", "not closed"),
        ("# isolcpus=2-3 iommu=pt\nmenuentry 'a' { linux /v root=/dev/sda2\n}\n", "does not hold"),
        // The kernel takes the last one.
        ("menuentry 'a' { linux /v isolcpus=2-3 iommu=pt isolcpus=1\n}\n", "does not hold"),
        (
            "menuentry 'a' { linux /v root=/dev/a isolcpus=2-3 iommu=pt\n}\nmenuentry b { linux /w root=/dev/a\n}\n",
            "'b' does not hold",
        ),
        (good, ""),
    ] {
        let (_, shape) = layouts().remove(0);
        let fake = shape.build();
        let before = files(fake.folder.path());
        let plan = change::plan(&host(&fake), &wishes()).unwrap();
        let mut tool = Tool(TreeEffects::new(fake.folder.path()), "boot/grub/grub.cfg", wrote);
        let result = change::apply(&mut tool, &plan, &mut |_, _| ());
        if says.is_empty() {
            result.unwrap();
            continue;
        }
        let error = result.unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert!(error.to_string().contains("everything is as it was"), "{error}");
        assert_eq!(files(fake.folder.path()), before);
    }
}

#[test]
fn entries_of_grubby_with_options_in_the_environment_block() {
    let (_, mut shape) = layouts().remove(4);
    shape
        .bytes("/boot/grub2/grubenv", &block("kernelopts=root=/dev/sda2 ro quiet"))
        .remove("/boot/loader/entries/rescue.conf")
        .set("/boot/loader/entries/fedora.conf", "title F\nlinux /v\noptions $kernelopts");
    let fake = shape.build();
    let plan = change::plan(&host(&fake), &wishes()).unwrap();
    let changed = "# GRUB Environment Block\nkernelopts=root=/dev/sda2 ro isolcpus=2-3 iommu=pt\n";
    let changed: &'static str = format!("{changed:#<1024}").leak();
    let mut tool = Tool(TreeEffects::new(fake.folder.path()), "boot/grub2/grubenv", changed);
    change::apply(&mut tool, &plan, &mut |_, _| ()).unwrap();
    assert_eq!(change::plan(&host(&fake), &wishes()).unwrap().actions, []);
    change::undo(&mut tool, None, Force::No).unwrap();
    // A block of the wrong size is none.
    let plan = change::plan(&host(&fake), &wishes()).unwrap();
    let mut tool = Tool(TreeEffects::new(fake.folder.path()), "boot/grub2/grubenv", "x");
    let error = change::apply(&mut tool, &plan, &mut |_, _| ()).unwrap_err();
    assert!(error.to_string().contains("environment block"), "{error}");
}

#[test]
fn links_of_the_loader_are_followed_to_the_file() {
    // RHEL 7 and 8 with EFI: /boot/grub2/grubenv leads to the system partition.
    let (_, mut shape) = layouts().remove(4);
    shape
        .bytes("/boot/efi/EFI/redhat/grubenv", &block("saved_entry=x"))
        .remove("/boot/grub2/grubenv");
    shape.link("/boot/grub2/grubenv", "../efi/EFI/redhat/grubenv");
    let fake = shape.build();
    let plan = change::plan(&host(&fake), &wishes()).unwrap();
    let Some(Action::Tool { rewrites, .. }) = plan.actions.first() else { panic!("{plan:?}") };
    assert!(rewrites.contains(&"/boot/efi/EFI/redhat/grubenv".to_owned()), "{rewrites:?}");
    change::apply(&mut TreeEffects::new(fake.folder.path()), &plan, &mut |_, _| ()).unwrap();
}

#[test]
fn what_cannot_be_edited_is_refused_with_the_way_out() {
    let refused = |edit: &dyn Fn(&mut Shape), says: &str| {
        let mut shape = layouts().remove(0).1;
        edit(&mut shape);
        let fake = shape.build();
        let error = change::plan(&host(&fake), &wishes()).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    };
    refused(
        &|s| {
            s.set("/etc/default/grub", "GRUB_CMDLINE_LINUX=\"$(cat /x)\"");
        },
        "line 1",
    );
    refused(
        &|s| {
            s.set("/etc/default/grub", "A=\"x\nGRUB_CMDLINE_LINUX=");
        },
        "line ",
    );
    refused(
        &|s| {
            s.remove("/boot/grub/grub.cfg");
        },
        "menu was not found",
    );
    refused(
        &|s| {
            s.remove("/usr/sbin/grub-mkconfig");
        },
        "grub-mkconfig is not installed",
    );
    refused(
        &|s| {
            s.remove("/etc/default/grub");
        },
        "no boot loader",
    );
    let fake = Shape::default().build();
    let error = change::plan(&host(&fake), &wishes()).unwrap_err();
    assert!(error.remedy_text().unwrap().contains("isolcpus=2-3 iommu=pt"));
    // Entries that are damaged before are not made worse.
    let mut shape = layouts().remove(5).1;
    shape.set("/efi/loader/entries/arch.conf", "linux /a\nlinux /b\noptions x");
    let error = change::plan(&host(&shape.build()), &wishes()).unwrap_err();
    assert!(error.to_string().contains("line 2: a second kernel"), "{error}");
    // Unified images hold the line inside.
    let mut shape = layouts().remove(5).1;
    shape.remove("/efi/loader/entries").set("/efi/EFI/Linux/arch.efi", "MZ");
    let plan = change::plan(&host(&shape.build()), &wishes()).unwrap();
    assert!(plan.notes[0].contains("rebuild"), "{:?}", plan.notes);
}

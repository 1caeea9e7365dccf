//! `rimg import`: appliances put together as VMware and VirtualBox put them together become disks with the same
//! content and a command line for the same hardware; what is wrong with them is said before anything is left.

#![allow(clippy::unwrap_used)] // all of it is test code

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use suite::content::sha256;
use suite::field::{self, names};
use suite::process::Outcome;
use suite::tools;

fn rimg(dir: &Path, args: &[&str]) -> Outcome {
    field::rimg(dir, args).unwrap()
}

fn good(dir: &Path, args: &[&str]) -> String {
    field::good(dir, args).unwrap().out()
}

fn tar(dir: &Path, archive: &str, files: &[&str]) {
    let done = Command::new("tar")
        .args(["--format=ustar", "-cf", archive])
        .args(files)
        .current_dir(dir)
        .status();
    assert!(done.unwrap().success());
}

/// A disk of 6 MiB with some bytes that depend on `seed`.
fn disk(path: &Path, seed: u8) {
    let mut bytes = vec![0u8; 6 << 20];
    for (i, byte) in bytes.iter_mut().enumerate().skip(70_000).take(900_000) {
        *byte = u8::try_from((i / 700) % 251).unwrap() ^ seed;
    }
    std::fs::write(path, bytes).unwrap();
}

fn same(dir: &Path, driver: &str, a: &str, b: &str) {
    let outcome = rimg(dir, &["compare", "-f", driver, "-F", "qcow2", a, b]);
    assert!(outcome.success(), "{a} {b}: {}{}", outcome.out(), outcome.err());
}

/// As VMware's exporter words it, with two disks, one card and UEFI.
fn ovf(files: &str, capacity: &str) -> String {
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<Envelope vmw:buildId="build-1" xmlns="http://schemas.dmtf.org/ovf/envelope/1"
  xmlns:cim="http://schemas.dmtf.org/wbem/wscim/1/common" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
  xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
  xmlns:vmw="http://www.vmware.com/schema/ovf" xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData">
  <References>{files}</References>
  <DiskSection><Info>Virtual disk information</Info>
    <Disk ovf:capacity="6" ovf:capacityAllocationUnits="byte * 2^20" ovf:diskId="vmdisk1" ovf:fileRef="file1"
      ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>
    <Disk ovf:capacity="{capacity}" ovf:capacityAllocationUnits="byte * 2^20" ovf:diskId="vmdisk2"/>
  </DiskSection>
  <NetworkSection><Info>Networks</Info><Network ovf:name="VM Network"/></NetworkSection>
  <VirtualSystem ovf:id="vm"><Info>A virtual machine</Info><Name>Web server</Name>
    <OperatingSystemSection ovf:id="94" vmw:osType="ubuntu64Guest"><Info>The OS</Info></OperatingSystemSection>
    <VirtualHardwareSection><Info>Hardware</Info>
      <Item><rasd:AllocationUnits>hertz * 10^6</rasd:AllocationUnits><rasd:InstanceID>1</rasd:InstanceID>
        <rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>4</rasd:VirtualQuantity>
        <vmw:CoresPerSocket ovf:required="false">2</vmw:CoresPerSocket></Item>
      <Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:InstanceID>2</rasd:InstanceID>
        <rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>2048</rasd:VirtualQuantity></Item>
      <Item><rasd:Address>0</rasd:Address><rasd:InstanceID>3</rasd:InstanceID>
        <rasd:ResourceSubType>VirtualSCSI</rasd:ResourceSubType><rasd:ResourceType>6</rasd:ResourceType></Item>
      <Item><rasd:AddressOnParent>1</rasd:AddressOnParent><rasd:ElementName>Hard Disk 2</rasd:ElementName>
        <rasd:HostResource>ovf:/disk/vmdisk2</rasd:HostResource><rasd:InstanceID>5</rasd:InstanceID>
        <rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
      <Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:ElementName>Hard Disk 1</rasd:ElementName>
        <rasd:HostResource>ovf:/disk/vmdisk1</rasd:HostResource><rasd:InstanceID>4</rasd:InstanceID>
        <rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
      <Item><rasd:Address>00:50:56:aa:bb:cc</rasd:Address><rasd:Connection>VM Network</rasd:Connection>
        <rasd:InstanceID>6</rasd:InstanceID><rasd:ResourceSubType>VmxNet3</rasd:ResourceSubType>
        <rasd:ResourceType>10</rasd:ResourceType></Item>
      <vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="efi"/>
    </VirtualHardwareSection>
  </VirtualSystem>
</Envelope>"#
    )
}

/// An OVA in the order that the standard asks for: description, manifest, disks.
fn appliance(dir: &Path) {
    disk(&dir.join("a.raw"), 1);
    good(
        dir,
        &[
            "convert",
            "-f",
            "raw",
            "-O",
            "vmdk",
            "-o",
            "subformat=streamOptimized",
            "a.raw",
            "my disk1.vmdk",
        ],
    );
    std::fs::write(
        dir.join("web.ovf"),
        ovf(r#"<File ovf:href="my%20disk1.vmdk" ovf:id="file1"/>"#, "5"),
    )
    .unwrap();
    let line = |name: &str| format!("SHA256({name})= {}\n", sha256(&dir.join(name)).unwrap());
    std::fs::write(dir.join("web.mf"), line("web.ovf") + &line("my disk1.vmdk")).unwrap();
    tar(dir, "web.ova", &["web.ovf", "web.mf", "my disk1.vmdk"]);
}

#[test]
fn an_ova() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = dir.path();
    appliance(at);
    let dry = good(at, &["import", "-n", "web.ova", "-d", "dry"]);
    assert!(
        dry.contains("4 processors, 2 GiB of memory, UEFI") && !at.join("dry").exists(),
        "{dry}"
    );
    let json = good(
        at,
        &[
            "import",
            "--verify",
            "--output",
            "json",
            "--network",
            "VM Network=br0",
            "web.ova",
            "-d",
            "out",
        ],
    );
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["checked"], 2);
    assert_eq!(report["machine"]["memory"], 2_u64 << 30);
    let out = at.join("out");
    assert_eq!(names(&out), ["Web server-disk1.qcow2", "Web server-disk2.qcow2", "Web server.sh"]);
    same(at, "raw", "a.raw", "out/Web server-disk1.qcow2");
    let second = good(at, &["info", "--output", "json", "out/Web server-disk2.qcow2"]);
    assert!(second.contains("\"virtual-size\": 5242880,"), "{second}");
    let command: Vec<&str> =
        report["command"].as_array().unwrap().iter().map(|a| a.as_str().unwrap()).collect();
    for wanted in [
        "4,sockets=2,cores=2,threads=1",
        "2048",
        "file=Web server-disk1.qcow2,format=qcow2,if=none,id=disk0",
        "virtio-blk-pci,drive=disk1,bootindex=2",
        "bridge,id=net0,br=br0",
        "virtio-net-pci,netdev=net0,mac=00:50:56:aa:bb:cc",
    ] {
        assert!(command.contains(&wanted), "{wanted} is not in {command:?}");
    }
    assert!(command.iter().any(|a| a.contains("if=pflash") && a.contains("OVMF")), "{command:?}");
    let script = out.join("Web server.sh");
    assert_eq!(std::fs::metadata(&script).unwrap().permissions().mode() & 0o111, 0o111);
    let parsed = Command::new("sh").arg("-n").arg(&script).status().unwrap();
    assert!(parsed.success());
    // Nothing is replaced by accident.
    let again = rimg(at, &["import", "web.ova", "-d", "out"]);
    assert!(!again.success() && again.err().contains("exists and is not empty"), "{}", again.err());
    good(at, &["import", "--force", "web.ova", "-d", "out", "--devices", "described", "-O", "raw"]);
    assert_eq!(
        sha256(&out.join("Web server-disk1.img")).unwrap(),
        sha256(&at.join("a.raw")).unwrap()
    );
    let script = std::fs::read_to_string(&script).unwrap();
    assert!(
        script.contains("pvscsi,id=scsi0") && script.contains("vmxnet3,netdev=net0"),
        "{script}"
    );
}

#[test]
fn appliances_that_are_wrong() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = dir.path();
    appliance(at);
    let refused = |args: &[&str], why: &str| {
        let end = rimg(at, &[&["import", "-d", "out"], args].concat());
        assert!(!end.success() && end.err().contains(why), "{args:?}: {}", end.err());
        assert!(names(&at.join("out")).is_empty(), "{args:?} leaves {:?}", names(&at.join("out")));
    };
    // One byte of the disk is another: the manifest tells.
    let mut bytes = std::fs::read(at.join("my disk1.vmdk")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(at.join("my disk1.vmdk"), bytes).unwrap();
    tar(at, "bad.ova", &["web.ovf", "web.mf", "my disk1.vmdk"]);
    refused(&["bad.ova"], "is not what the manifest says");
    // Not complete, no description, no archive, several machines, names that lead elsewhere.
    tar(at, "short.ova", &["web.ovf", "web.mf"]);
    refused(&["short.ova"], "'my disk1.vmdk' is not in 'short.ova'");
    tar(at, "none.ova", &["web.mf"]);
    refused(&["none.ova"], "holds no description");
    let whole = std::fs::read(at.join("web.ova")).unwrap();
    std::fs::write(at.join("cut.ova"), &whole[..whole.len() / 2]).unwrap();
    refused(&["cut.ova"], "cut.ova");
    std::fs::write(at.join("text.ova"), "no archive at all").unwrap();
    refused(&["text.ova"], "text.ova");
    let elsewhere = ovf(r#"<File ovf:href="/etc/hostname" ovf:id="file1"/>"#, "5");
    std::fs::write(at.join("evil.ovf"), &elsewhere).unwrap();
    refused(&["evil.ovf"], "outside of its folder");
    let up = ovf(r#"<File ovf:href="../../../etc/hostname" ovf:id="file1"/>"#, "5");
    std::fs::write(at.join("up.ovf"), up).unwrap();
    refused(&["up.ovf"], "outside of its folder");
    let two =
        elsewhere.replace("</VirtualSystem>", "</VirtualSystem><VirtualSystem ovf:id=\"other\"/>");
    std::fs::write(at.join("two.ovf"), two).unwrap();
    refused(&["two.ovf"], "several machines: vm, other");
    let bomb = "<?xml version=\"1.0\"?><!DOCTYPE x [<!ENTITY a \"aaaa\">]><Envelope>&a;</Envelope>";
    std::fs::write(at.join("bomb.ovf"), bomb).unwrap();
    refused(&["bomb.ovf"], "bad XML");
    std::fs::write(at.join("bad.vmx"), "scsi0:0.present").unwrap();
    refused(&["bad.vmx"], "line 1");
    refused(&["nosuch.ova"], "nosuch.ova");
}

#[test]
fn packed_and_cut_disks() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = dir.path();
    appliance(at);
    let bytes = std::fs::read(at.join("my disk1.vmdk")).unwrap();
    let packed =
        Command::new("gzip").args(["-k", "my disk1.vmdk"]).current_dir(at).status().unwrap();
    assert!(packed.success());
    let file = r#"<File ovf:href="my%20disk1.vmdk.gz" ovf:id="file1" ovf:compression="gzip"/>"#;
    std::fs::write(at.join("gz.ovf"), ovf(file, "5")).unwrap();
    good(at, &["import", "gz.ovf", "-d", "gz", "--name", "one"]);
    same(at, "raw", "a.raw", "gz/one-disk1.qcow2");
    for (i, piece) in bytes.chunks(10_000).enumerate() {
        std::fs::write(at.join(format!("c.vmdk.{i:09}")), piece).unwrap();
    }
    let file = r#"<File ovf:href="c.vmdk" ovf:id="file1" ovf:chunkSize="10000"/>"#;
    std::fs::write(at.join("cut.ovf"), ovf(file, "5")).unwrap();
    good(at, &["import", "cut.ovf", "-d", "cut", "--name", "one"]);
    same(at, "raw", "a.raw", "cut/one-disk1.qcow2");
    assert_eq!(names(&at.join("cut")), ["one-disk1.qcow2", "one-disk2.qcow2", "one.sh"]);
}

#[test]
fn a_vmx_with_a_chain_of_snapshots() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = dir.path();
    disk(&at.join("a.raw"), 3);
    good(
        at,
        &[
            "convert",
            "-f",
            "raw",
            "-O",
            "vmdk",
            "-o",
            "subformat=twoGbMaxExtentSparse",
            "a.raw",
            "win.vmdk",
        ],
    );
    for (below, image, byte) in
        [("win.vmdk", "win-000001.vmdk", "7"), ("win-000001.vmdk", "win-000002.vmdk", "9")]
    {
        good(at, &["create", "-q", "-f", "vmdk", "-b", below, "-F", "vmdk", image]);
        good(at, &["bench", "-w", "-c", "2", "-s", "64k", "--pattern", byte, "-f", "vmdk", image]);
    }
    let vmx = "displayName = \"Old: Windows\"\nguestOS = \"winnetstandard\"\nmemsize = \"512\"\nnumvcpus = \"2\"\n\
        scsi0.present = \"TRUE\"\nscsi0.virtualDev = \"lsisas1068\"\nscsi0:0.present = \"TRUE\"\n\
        scsi0:0.fileName = \"/vmfs/volumes/datastore1/win/win-000002.vmdk\"\n\
        ethernet0.present = \"TRUE\"\nethernet0.virtualDev = \"e1000\"\nethernet0.address = \"00:50:56:01:02:03\"\n";
    std::fs::write(at.join("win.vmx"), vmx).unwrap();
    let said = good(at, &["import", "win.vmx", "-d", "out"]);
    assert!(said.contains("Windows has no virtio drivers of its own"), "{said}");
    assert!(
        said.contains("mptsas1068,id=scsi0")
            && said.contains("e1000,netdev=net0,mac=00:50:56:01:02:03"),
        "{said}"
    );
    assert_eq!(names(&at.join("out")), ["Old_ Windows.qcow2", "Old_ Windows.sh"]);
    same(at, "vmdk", "win-000002.vmdk", "out/Old_ Windows.qcow2");
    // A snapshot is missing.
    std::fs::remove_file(at.join("win-000001.vmdk")).unwrap();
    let end = rimg(at, &["import", "win.vmx", "-d", "gone"]);
    assert!(!end.success() && end.err().contains("win-000001.vmdk"), "{}", end.err());
    assert!(names(&at.join("gone")).is_empty());
}

#[test]
fn a_machine_of_virtualbox_with_a_snapshot() {
    let corpus = match suite::corpus::Corpus::find() {
        Ok(corpus) => corpus,
        Err(why) => return tools::skip("a machine of VirtualBox with its own disks", &why),
    };
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = dir.path();
    let row = corpus.rows.iter().find(|r| r.path.ends_with("vbox72-diff/diff.vhd.xz")).unwrap();
    corpus.unpack(row, at).unwrap();
    let vbox = r#"<?xml version="1.0"?>
<VirtualBox xmlns="http://www.virtualbox.org/" version="1.19-linux">
  <Machine uuid="{11111111-2222-3333-4444-555555555555}" name="box" OSType="Debian_64">
    <MediaRegistry><HardDisks>
      <HardDisk uuid="{a}" location="base.vhd" format="VHD" type="Normal">
        <HardDisk uuid="{b}" location="diff.vhd" format="VHD"/>
      </HardDisk>
    </HardDisks></MediaRegistry>
    <Hardware><CPU count="2"/><Memory RAMSize="1024"/>
      <Network><Adapter slot="0" enabled="true" MACAddress="080027ABCDEF" type="82540EM"><NAT/></Adapter></Network>
      <StorageControllers><StorageController name="IDE" type="PIIX4">
        <AttachedDevice type="HardDisk" port="0" device="0"><Image uuid="{b}"/></AttachedDevice>
      </StorageController></StorageControllers>
    </Hardware>
  </Machine>
</VirtualBox>"#;
    std::fs::write(at.join("box.vbox"), vbox).unwrap();
    good(at, &["import", "--devices", "described", "box.vbox", "-d", "out"]);
    good(at, &["convert", "-O", "raw", "out/box.qcow2", "all.raw"]);
    assert_eq!(sha256(&at.join("all.raw")).unwrap(), row.sha256_content);
    let script = std::fs::read_to_string(at.join("out/box.sh")).unwrap();
    assert!(
        script.contains("ide-hd,bus=ide.0,unit=0") && script.contains("mac=08:00:27:ab:cd:ef"),
        "{script}"
    );
    understood(&at.join("out"), "box.sh");
}

#[test]
fn a_disk_alone() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = dir.path();
    disk(&at.join("a.raw"), 5);
    good(at, &["convert", "-f", "raw", "-O", "vmdk", "a.raw", "server.vmdk"]);
    good(at, &["import", "server.vmdk", "-d", "."]);
    same(at, "raw", "a.raw", "server.qcow2");
    understood(at, "server.sh");
}

/// QEMU takes the command line (with another network, which needs no rights): the installed one, or the one
/// that was unpacked for the nested host.
fn understood(dir: &Path, script: &str) {
    let installed = Path::new("qemu-system-x86_64").to_path_buf();
    let built = tools::rimg().unwrap();
    let unpacked = built.parent().and_then(Path::parent).map(|target| target.join("nested/qemu"));
    let runs = |program: &Path| Command::new(program).arg("--version").output().is_ok();
    let Some(qemu) = [Some(installed), unpacked].into_iter().flatten().find(|p| runs(p)) else {
        return tools::skip("the command line, read by QEMU", "no qemu-system-x86_64 is installed");
    };
    let text = std::fs::read_to_string(dir.join(script)).unwrap();
    let text =
        text.replace("exec rkvm", &format!("echo quit | exec timeout 60 {}", qemu.display()));
    let text =
        text.replace("-cpu host", "-accel tcg").replace("bridge,id=net0,br=virbr0", "user,id=net0");
    let more = " -S -display none -monitor stdio -m 64";
    std::fs::write(dir.join("try.sh"), text.replace(" \"$@\"", more)).unwrap();
    let out = Command::new("sh").arg("try.sh").current_dir(dir).output().unwrap();
    assert!(out.status.success(), "{}\n{}", text, String::from_utf8_lossy(&out.stderr));
}

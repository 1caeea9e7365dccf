//! `rimg inspect --policy`: what a service that takes images from strangers must refuse, and what it must not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::Value;
use suite::field::{good, rimg};
use suite::process::{End, Outcome};
use suite::tools;

fn code(outcome: &Outcome) -> i32 {
    match outcome.end {
        End::Exit(code) => code,
        _ => panic!("{}: {}", outcome.end, outcome.err()),
    }
}

/// Examines a file, and gives the report, the exit code, and the rules that failed.
fn examine(dir: &Path, args: &[&str]) -> (Value, i32, Vec<String>) {
    let mut all = vec!["inspect", "--output", "json"];
    if !args.contains(&"--policy") {
        all.extend(["--policy", "default"]);
    }
    all.extend(args);
    let outcome = rimg(dir, &all).unwrap();
    let report: Value = serde_json::from_str(&outcome.out())
        .unwrap_or_else(|e| panic!("{args:?}: {e}: {}{}", outcome.out(), outcome.err()));
    let rules = report["rules"].as_array().unwrap();
    let failed = rules.iter().filter(|r| r["result"] == "fail");
    let failed: Vec<String> = failed.map(|r| r["rule"].as_str().unwrap().to_owned()).collect();
    assert_eq!(report["accepted"], failed.is_empty(), "{report:#}");
    (report, code(&outcome), failed)
}

fn accepted(dir: &Path, args: &[&str]) -> Value {
    let (report, code, failed) = examine(dir, args);
    assert_eq!((code, failed.as_slice()), (0, &[][..]), "{args:?}: {report:#}");
    report
}

fn refused(dir: &Path, args: &[&str], rule: &str) -> Value {
    let (report, code, failed) = examine(dir, args);
    assert_eq!(code, 2, "{args:?}: {report:#}");
    assert!(failed.iter().any(|f| f == rule), "{args:?}: {rule}, {failed:?}: {report:#}");
    report
}

#[test]
fn honest_images_of_every_accepted_format() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut data = vec![0; 3 << 20];
    for (i, byte) in data.iter_mut().enumerate() {
        *byte = (i * i / 7).to_le_bytes()[0];
    }
    fs::write(dir.join("disk.raw"), &data).unwrap();
    let report = accepted(dir, &["disk.raw"]);
    assert_eq!(report["format"], "raw");
    assert_eq!(report["format-given"], false);
    accepted(dir, &["-f", "raw", "disk.raw"]);
    for (format, options) in [
        ("qcow2", "compat=1.1"),
        ("qcow2", "compat=0.10"),
        ("qcow2", "compression_type=zstd,extended_l2=on,cluster_size=128k"),
        ("vmdk", "subformat=monolithicSparse"),
        ("vmdk", "subformat=streamOptimized"),
        ("vdi", ""),
        ("vpc", ""),
        ("vpc", "subformat=fixed"),
        ("vhdx", ""),
    ] {
        let mut args = vec!["convert", "-O", format, "disk.raw", "copy", "--force"];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        good(dir, &args).unwrap();
        let report = accepted(dir, &["copy"]);
        assert_eq!(report["format"], format, "{options}");
        assert!(report["data-size"].as_u64().unwrap() >= 3 << 20, "{report:#}");
        accepted(dir, &["-f", format, "copy"]);
        fs::remove_file(dir.join("copy")).unwrap();
    }
}

#[test]
fn references_to_other_files() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    good(dir, &["create", "-f", "qcow2", "base.qcow2", "1M"]).unwrap();
    good(dir, &["create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2"]).unwrap();
    refused(dir, &["top.qcow2"], "backing-file");
    // CVE-2024-32498: a data file of the host, as raw.
    good(
        dir,
        &["create", "-f", "qcow2", "-o", "data_file=data.raw,data_file_raw=on", "d.qcow2", "1M"],
    )
    .unwrap();
    refused(dir, &["d.qcow2"], "data-file");
    refused(dir, &["-f", "qcow2", "d.qcow2"], "data-file");
    fs::remove_file(dir.join("data.raw")).unwrap();
    refused(dir, &["d.qcow2"], "data-file");
    // CVE-2022-47951: a VMDK of text that names a file of the host.
    let text = "# Disk DescriptorFile\nversion=1\nCID=11111111\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\
                RW 8 FLAT \"/etc/hostname\" 0\nddb.virtualHWVersion = \"4\"\n";
    fs::write(dir.join("flat.vmdk"), text).unwrap();
    let report = refused(dir, &["flat.vmdk"], "external-extents");
    assert!(!report.to_string().contains("/etc/hostname\\n"), "{report:#}");
    refused(dir, &["-f", "vmdk", "flat.vmdk"], "external-extents");
    // One that is honest about lying beside it is refused, too.
    good(dir, &["create", "-f", "vmdk", "-o", "subformat=monolithicFlat", "own.vmdk", "1M"])
        .unwrap();
    refused(dir, &["own.vmdk"], "external-extents");
}

#[test]
fn files_that_are_two_things() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    good(dir, &["create", "-f", "qcow2", "a.qcow2", "1M"]).unwrap();
    // CVE-2026-24708: a guest wrote a header of qcow2 into its raw disk.
    refused(dir, &["-f", "raw", "a.qcow2"], "polyglots");
    refused(dir, &["-f", "vmdk", "a.qcow2"], "format-matches");
    // A VHD's footer behind an image of qcow2.
    let mut both = fs::read(dir.join("a.qcow2")).unwrap();
    good(dir, &["create", "-f", "vpc", "-o", "subformat=fixed", "b.vhd", "1M"]).unwrap();
    let vhd = fs::read(dir.join("b.vhd")).unwrap();
    both.extend(&vhd[vhd.len() - 512..]);
    fs::write(dir.join("both"), &both).unwrap();
    refused(dir, &["-f", "qcow2", "both"], "polyglots");
    refused(dir, &["both"], "polyglots");
    // An ISO that can be put on a stick has an MBR: that is one thing.
    let mut iso = vec![0; 64 << 10];
    iso[510..512].copy_from_slice(&[0x55, 0xaa]);
    iso[32769..32774].copy_from_slice(b"CD001");
    fs::write(dir.join("disc.iso"), &iso).unwrap();
    let report = accepted(dir, &["disc.iso"]);
    assert_eq!(report["magics"].as_array().unwrap().len(), 2);
    // A packed file is not what it seems.
    fs::write(
        dir.join("disk.gz"),
        [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    )
    .unwrap();
    refused(dir, &["disk.gz"], "polyglots");
}

#[test]
fn sizes_and_bombs() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    good(dir, &["create", "-f", "qcow2", "huge.qcow2", "3T"]).unwrap();
    refused(dir, &["huge.qcow2"], "max-virtual-size");
    good(dir, &["create", "-f", "qcow2", "empty.qcow2", "1T"]).unwrap();
    accepted(dir, &["empty.qcow2"]);
    fs::write(dir.join("strict.toml"), "max-sparseness = 100\nmax-virtual-size = \"1G\"\n")
        .unwrap();
    refused(dir, &["--policy", "strict.toml", "empty.qcow2"], "max-sparseness");
    // Not zeroes, but nearly nothing to store: a thousandfold.
    fs::write(dir.join("sevens"), vec![7; 64 << 20]).unwrap();
    good(
        dir,
        &[
            "convert",
            "-c",
            "-O",
            "qcow2",
            "-o",
            "cluster_size=2M,compression_type=zstd",
            "sevens",
            "bomb.qcow2",
        ],
    )
    .unwrap();
    let file = fs::metadata(dir.join("bomb.qcow2")).unwrap().len();
    let report = examine(dir, &["bomb.qcow2"]).0;
    assert_eq!(report["data-size"], 64 << 20);
    if file * 201 < 64 << 20 {
        refused(dir, &["bomb.qcow2"], "max-expansion");
    }
    fs::write(dir.join("few.toml"), "max-expansion = 2\n").unwrap();
    refused(dir, &["--policy", "few.toml", "bomb.qcow2"], "max-expansion");
}

#[test]
fn features_snapshots_and_marks() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    good(dir, &["create", "-f", "qcow2", "a.qcow2", "1M"]).unwrap();
    good(dir, &["snapshot", "-c", "hidden", "a.qcow2"]).unwrap();
    refused(dir, &["a.qcow2"], "snapshots");
    fs::write(
        dir.join("p.json"),
        r#"{"snapshots": "allow", "qcow2-features": [], "check": "require"}"#,
    )
    .unwrap();
    accepted(dir, &["--policy", "p.json", "a.qcow2"]);
    good(dir, &["create", "-f", "qcow2", "-o", "extended_l2=on", "e.qcow2", "1M"]).unwrap();
    accepted(dir, &["e.qcow2"]);
    refused(dir, &["--policy", "p.json", "e.qcow2"], "qcow2-features");
    // The bit that says damaged (incompatible feature 1), and a reference count that is wrong.
    good(dir, &["create", "-f", "qcow2", "c.qcow2", "1M"]).unwrap();
    let file = fs::OpenOptions::new().write(true).open(dir.join("c.qcow2")).unwrap();
    file.write_all_at(&[2], 79).unwrap();
    refused(dir, &["c.qcow2"], "unclean");
    good(dir, &["create", "-f", "qcow2", "r.qcow2", "1M"]).unwrap();
    let file = fs::OpenOptions::new().write(true).open(dir.join("r.qcow2")).unwrap();
    file.write_all_at(&[0, 0], 2 * 65536).unwrap();
    accepted(dir, &["r.qcow2"]);
    refused(dir, &["--policy", "p.json", "r.qcow2"], "check");
}

#[test]
fn encryption_is_refused_or_required() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let secret = "secret,id=s,data=correct horse";
    let args = ["create", "-f", "qcow2", "--object", secret, "-o"];
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    good(dir, &[&args[..], &[options, "e.qcow2", "1M"]].concat()).unwrap();
    refused(dir, &["e.qcow2"], "encryption");
    fs::write(dir.join("p.toml"), "encryption = \"require\"\n").unwrap();
    accepted(dir, &["--policy", "p.toml", "e.qcow2"]);
    good(dir, &["create", "-f", "qcow2", "plain.qcow2", "1M"]).unwrap();
    refused(dir, &["--policy", "p.toml", "plain.qcow2"], "encryption");
}

#[test]
fn formats_and_documents() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    good(dir, &["create", "-f", "vdi", "a.vdi", "1M"]).unwrap();
    fs::write(dir.join("p.toml"), "formats = [\"raw\", \"qcow2\"]\nexplicit-format = true\n")
        .unwrap();
    refused(dir, &["--policy", "p.toml", "a.vdi"], "formats");
    refused(dir, &["--policy", "p.toml", "a.vdi"], "explicit-format");
    // What is printed is what holds.
    let text = good(dir, &["inspect", "--print-policy"]).unwrap().out();
    fs::write(dir.join("printed.toml"), text).unwrap();
    let (a, ..) = examine(dir, &["a.vdi"]);
    let (b, ..) = examine(dir, &["--policy", "printed.toml", "a.vdi"]);
    assert_eq!(a, b);
    fs::write(dir.join("bad.toml"), "snapshot = \"allow\"\n").unwrap();
    let bad = rimg(dir, &["inspect", "--policy", "bad.toml", "a.vdi"]).unwrap();
    assert_eq!(code(&bad), 1);
    assert!(bad.err().contains("--print-policy"), "{}", bad.err());
    let missing = rimg(dir, &["inspect", "--policy", "default", "missing"]).unwrap();
    assert_eq!(code(&missing), 1);
}

/// Damaged and hostile files of the shared corpus: an answer with all rules, in bounded time.
#[test]
fn hostile_files_get_an_answer() {
    let corpus = match suite::corpus::Corpus::find() {
        Ok(corpus) => corpus,
        Err(why) => return tools::skip("hostile files against the policy", &why),
    };
    let entries = fs::read_dir(corpus.root.join("malicious/own")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut names: Vec<_> = entries
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_none_or(|e| e != "xz"))
        .collect();
    names.sort();
    assert!(names.len() > 20);
    for path in names {
        let (report, code, _) = examine(dir.path(), &[&path.to_string_lossy()]);
        assert!(code == 0 || code == 2, "{}: {report:#}", path.display());
        for forbidden in ["backing", "extent-nbd", "bomb"] {
            if path.to_string_lossy().contains(forbidden) {
                assert_eq!(code, 2, "{}: {report:#}", path.display());
            }
        }
    }
}

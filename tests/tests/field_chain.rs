//! `rimg chain`: what is shown of a chain, and that changing how it hangs together changes no content.

#![allow(clippy::unwrap_used)] // all of it is test code

use std::path::Path;

use suite::field;
use suite::process::{End, Outcome};

fn rimg(dir: &Path, args: &[&str]) -> Outcome {
    field::rimg(dir, args).unwrap()
}

fn good(dir: &Path, args: &[&str]) -> String {
    field::good(dir, args).unwrap().out()
}

/// base <- mid <- top and base <- other, each with bytes of its own.
fn small_tree(at: &Path) {
    good(at, &["create", "-q", "-f", "qcow2", "base", "64M"]);
    for (below, image) in [("base", "mid"), ("mid", "top"), ("base", "other")] {
        good(at, &["create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", image]);
    }
    for (i, image) in ["base", "mid", "top", "other"].iter().enumerate() {
        let (byte, offset) = ((i + 1).to_string(), (i << 18).to_string());
        let how = ["bench", "-w", "-c", "8", "-s", "64k", "--pattern", &byte, "-o", &offset];
        good(at, &[&how[..], &["-f", "qcow2", image]].concat());
    }
}

fn digest(at: &Path, image: &str) -> String {
    let said = good(at, &["digest", image]);
    said.split_whitespace().next().unwrap().to_owned()
}

fn shown(at: &Path, image: &str) -> (End, serde_json::Value) {
    let outcome = rimg(at, &["chain", "--output", "json", image]);
    (outcome.end, serde_json::from_str(&outcome.out()).unwrap())
}

#[test]
fn a_chain_and_its_tree_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    small_tree(at);
    let (end, links) = shown(at, "top");
    assert_eq!(end, End::Exit(0));
    let names: Vec<_> = links.as_array().unwrap().iter().map(|l| &l["filename"]).collect();
    assert_eq!(names, ["top", "mid", "base"]);
    // base was written to when mid stood there already.
    assert!(good(at, &["chain", "top"]).contains("was written to after the file above was made"));
    let tree = good(at, &["chain", "--tree", "mid"]);
    let lines: Vec<&str> = tree.lines().map(|l| l.split("  ").next().unwrap()).collect();
    assert!(
        lines[0] == "base" && tree.contains("├─ mid  ") && tree.contains("│  └─ top  "),
        "{tree}"
    );
    assert!(tree.contains("└─ other  "), "{tree}");
    // Not there, not allowed, damaged, in a circle: said, with exit code 1.
    std::fs::rename(at.join("base"), at.join("away")).unwrap();
    let (end, links) = shown(at, "top");
    assert_eq!((end, &links[2]["state"]), (End::Exit(1), &"missing".into()));
    std::fs::write(at.join("base"), b"QFI\xfb and nothing else").unwrap();
    let (end, links) = shown(at, "top");
    assert_eq!((end, &links[2]["state"]), (End::Exit(1), &"broken".into()));
    std::fs::remove_file(at.join("base")).unwrap();
    std::os::unix::fs::symlink("top", at.join("base")).unwrap();
    let (end, links) = shown(at, "top");
    assert_eq!((end, &links[2]["state"]), (End::Exit(1), &"loop".into()));
    good(at, &["rebase", "-u", "-b", "/etc/hostname", "-F", "raw", "other"]);
    let (end, links) = shown(at, "other");
    assert_eq!((end, &links[1]["state"]), (End::Exit(1), &"not-allowed".into()));
    assert_eq!(rimg(at, &["chain", "nosuch"]).end, End::Exit(2));
}

#[test]
fn relocating_and_flattening_change_no_content() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    std::fs::create_dir(&old).unwrap();
    std::fs::create_dir(&new).unwrap();
    small_tree(&old);
    let before = [digest(&old, "top"), digest(&old, "other")];
    std::fs::rename(old.join("base"), new.join("base")).unwrap();
    // Nothing is written where a new name leads nowhere.
    let wrong = rimg(&old, &["chain", "relocate", "--map", "base=../new/nosuch", "top"]);
    assert_eq!(wrong.end, End::Exit(2), "{}", wrong.err());
    assert_eq!(shown(&old, "top").1[2]["recorded"], "base");
    let dry = good(&old, &["chain", "relocate", "-n", "--map", "base=../new/base", "top"]);
    assert!(dry.contains("'base' -> '../new/base'") && dry.contains("dry run"), "{dry}");
    assert_eq!(shown(&old, "top").1[2]["recorded"], "base");
    for image in ["top", "other"] {
        good(&old, &["chain", "relocate", "--map", "base=../new/base", image]);
    }
    let allowed = |image: &str| {
        good(&old, &["digest", "--allow", "..", image])
            .split_whitespace()
            .next()
            .unwrap()
            .to_owned()
    };
    assert_eq!([allowed("top"), allowed("other")], before);
    let moved = new.join("base").canonicalize().unwrap().to_string_lossy().into_owned();
    good(&old, &["chain", "relocate", "--absolute", "--allow", "..", "top"]);
    let info = good(&old, &["chain", "--allow", "..", "--output", "json", "top"]);
    assert!(info.contains(&moved), "{info}");
    good(&old, &["chain", "relocate", "--relative", "--allow", "..", "top"]);
    std::fs::rename(new.join("base"), old.join("base")).unwrap();
    let back = format!("{}=base", new.canonicalize().unwrap().join("base").display());
    for image in ["top", "other"] {
        let rule = if image == "top" { "../new/base=base" } else { back.as_str() };
        let rules = ["chain", "relocate", "--map", rule, "--map", "../new/base=base", image];
        good(&old, &rules);
    }
    assert_eq!([digest(&old, "top"), digest(&old, "other")], before);

    let dry = good(&old, &["chain", "flatten", "-n", "top", "top..mid"]);
    assert!(dry.contains("would take up mid"), "{dry}");
    assert_eq!(shown(&old, "top").1.as_array().unwrap().len(), 3);
    let wrong = rimg(&old, &["chain", "flatten", "top", "mid..top"]);
    assert!(wrong.end == End::Exit(2) && wrong.err().contains("not below"), "{}", wrong.err());
    good(&old, &["chain", "flatten", "top", "top..mid"]);
    std::fs::remove_file(old.join("mid")).unwrap();
    assert_eq!(shown(&old, "top").1.as_array().unwrap().len(), 2);
    assert_eq!(digest(&old, "top"), before[0]);
    good(&old, &["chain", "flatten", "top"]);
    assert_eq!(shown(&old, "top").1.as_array().unwrap().len(), 1);
    assert_eq!([digest(&old, "top"), digest(&old, "other")], before);
    for image in ["top", "other", "base"] {
        good(&old, &["check", image]);
    }
}

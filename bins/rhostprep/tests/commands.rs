//! The built program: exit codes, formats against the schema, pages and completions, changes in a fake tree.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use hostprep::host::Tree;
use serde_json::Value;

fn rhostprep(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rhostprep"))
        .args(arguments)
        .env_remove("SSH_CONNECTION")
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn library() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../hostprep")
}

fn tree() -> tempfile::TempDir {
    let text = std::fs::read_to_string(library().join("testdata/trees/pvm-microvm.tree")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    Tree::parse(&text).unwrap().write_below(folder.path()).unwrap();
    folder
}

/// The part of JSON Schema that our schema uses.
fn validate(schema: &Value, root: &Value, value: &Value, at: &str) {
    if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
        let target = root.pointer(name.trim_start_matches('#')).unwrap();
        return validate(target, root, value, at);
    }
    let fits = match schema["type"].as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_u64(),
        other => panic!("the schema uses type {other}"),
    };
    assert!(fits, "{at} has the wrong type: {value}");
    if let Some(all) = schema.get("enum").and_then(Value::as_array) {
        assert!(all.contains(value), "{at}: {value} is none of {all:?}");
    }
    if let Some(object) = value.as_object() {
        for name in schema["required"].as_array().unwrap() {
            assert!(object.contains_key(name.as_str().unwrap()), "{at} lacks {name}");
        }
        for (name, inner) in object {
            let inner_schema = schema["properties"].get(name);
            let inner_schema =
                inner_schema.unwrap_or_else(|| panic!("{at}.{name} is not in the schema"));
            validate(inner_schema, root, inner, &format!("{at}.{name}"));
        }
    }
    for (index, inner) in value.as_array().into_iter().flatten().enumerate() {
        validate(&schema["items"], root, inner, &format!("{at}[{index}]"));
    }
}

#[test]
fn json_follows_the_schema() {
    let schema = std::fs::read_to_string(library().join("schema/check.schema.json")).unwrap();
    let schema: Value = serde_json::from_str(&schema).unwrap();
    let folder = tree();
    let root = folder.path().to_str().unwrap();
    for extra in [
        &["--guests", "64x1G"][..],
        &["--profile", "passthrough"],
        &["--for", "rkvm -m 4G -smp 99 -net tap,vhost=on"],
    ] {
        let mut arguments = vec!["--root", root, "check", "--output", "json"];
        arguments.extend(extra);
        let output = rhostprep(&arguments);
        let value: Value = serde_json::from_str(&out(&output)).unwrap();
        validate(&schema, &schema, &value, "$");
        assert_eq!(value["findings"].as_array().unwrap().len(), 64);
        assert_eq!(value["exit-code"].as_i64(), output.status.code().map(i64::from));
    }
    // And of this very machine.
    let output = rhostprep(&["check", "--output", "json"]);
    validate(&schema, &schema, &serde_json::from_str(&out(&output)).unwrap(), "$");
}

#[test]
fn exit_codes() {
    let folder = tree();
    let root = folder.path().to_str().unwrap();
    let code =
        |arguments: &[&str]| rhostprep(&[&["--root", root][..], arguments].concat()).status.code();
    assert_eq!(code(&["check", "--only", "kvm.run"]), Some(0));
    assert_eq!(code(&["check", "--only", "dev.vhost"]), Some(1));
    assert_eq!(code(&["check", "--only", "mem.ram", "--guests", "64x1G"]), Some(2));
    assert_eq!(code(&["check", "--only", "no.such"]), Some(2));
    assert_eq!(code(&["check", "--guests", "lots"]), Some(2));
    assert_eq!(code(&["memory", "--guests", "1x1G"]), Some(0));
    assert_eq!(code(&["memory", "--guests", "64x1G", "--ram", "32G"]), Some(1));
    assert_eq!(code(&["frobnicate"]), Some(2));
}

#[test]
fn kvm_works_without_a_flag() {
    let folder = tree();
    let output = rhostprep(&["--root", folder.path().to_str().unwrap(), "check"]);
    let text = out(&output);
    assert!(text.contains("KVM guests run on this host"), "{text}");
    assert!(text.contains("yet KVM works"), "{text}");
    assert!(!text.contains('\x1b'), "colour without a terminal");
    let colour =
        rhostprep(&["--root", folder.path().to_str().unwrap(), "check", "--color", "always"]);
    assert!(out(&colour).contains("\x1b[32m"));
    let quiet = out(&rhostprep(&[
        "--root",
        folder.path().to_str().unwrap(),
        "check",
        "--quiet",
        "--only",
        "kvm",
    ]));
    assert_eq!(quiet, "");
}

#[test]
fn junit_is_well_formed() {
    let folder = tree();
    let text =
        out(&rhostprep(&["--root", folder.path().to_str().unwrap(), "check", "--output", "junit"]));
    assert_eq!(text.matches("<testcase ").count(), 64);
    assert!(text.contains("tests=\"64\""));
    // Every tag that is opened is closed.
    let opened = text.matches("<failure ").count();
    assert_eq!(opened, text.matches("</failure>").count());
    assert!(text.ends_with("</testsuite></testsuites>\n"));
}

#[test]
fn the_sum_of_the_guides() {
    let text = out(&rhostprep(&["memory", "--guests", "64x1G", "--reserve", "4G", "--ram", "32G"]));
    assert!(text.contains("64 x 1 GiB + 4 GiB - 32 GiB = 36 GiB"), "{text}");
    assert!(text.contains("36 GiB + 8 GiB = 44 GiB"), "{text}");
    let text =
        out(&rhostprep(&["memory", "--guests", "64x1G", "--ram", "32G", "--ksm-share", "20%"]));
    assert!(text.contains("less 20 % shared"), "{text}");
    assert_eq!(rhostprep(&["memory", "--ksm-share", "120%"]).status.code(), Some(2));
}

#[test]
fn plan_apply_undo_in_a_tree() {
    let folder = tree();
    let root = folder.path().to_str().unwrap();
    let run = |arguments: &[&str]| rhostprep(&[&["--root", root][..], arguments].concat());
    let wish = ["--sysctl", "vm.swappiness=10", "--thp", "always", "--ksm", "on"];
    let plan = out(&run(&[&["plan"][..], &wish].concat()));
    assert!(plan.contains("+vm.swappiness = 10") && plan.contains("undo:"), "{plan}");
    let refused = run(&[&["apply"][..], &wish].concat());
    assert_eq!(refused.status.code(), Some(2));
    assert!(err(&refused).contains("--yes"), "{}", err(&refused));
    assert!(!folder.path().join("etc/sysctl.d").exists());
    assert_eq!(run(&[&["apply", "--dry-run"][..], &wish].concat()).status.code(), Some(0));
    assert!(!folder.path().join("etc/sysctl.d").exists());
    assert_eq!(run(&[&["apply", "--yes"][..], &wish].concat()).status.code(), Some(0));
    assert!(out(&run(&["status"])).contains("applied"));
    assert!(out(&run(&[&["apply", "--yes"][..], &wish].concat())).contains("nothing to do"));
    assert_eq!(run(&["undo"]).status.code(), Some(0));
    assert!(!folder.path().join("etc/sysctl.d").exists());
    assert_eq!(run(&["undo"]).status.code(), Some(2));
    assert_eq!(run(&["undo", "../../x"]).status.code(), Some(2));
}

#[test]
fn pages_and_completions() {
    let page = out(&rhostprep(&["man"]));
    assert!(page.contains(".TH") && page.contains("check"), "{page}");
    let page = out(&rhostprep(&["man", "net", "nat"]));
    assert!(page.contains("\\-\\-subnet"), "{page}");
    let page = out(&rhostprep(&["man", "net", "restore"]));
    assert!(page.contains("\\-\\-wait") && page.contains("Exit code"), "{page}");
    assert_eq!(rhostprep(&["man", "nothing"]).status.code(), Some(2));
    for shell in ["bash", "zsh", "fish"] {
        let text = out(&rhostprep(&["completions", shell]));
        assert!(text.contains("rhostprep") && text.contains("hugepages"), "{shell}");
        assert!(text.contains("restore"), "{shell}");
    }
    let list = out(&rhostprep(&["check", "--list"]));
    assert_eq!(list.lines().count(), 64);
}

/// A program that reads what we write, when it is installed.
fn read_by(program: &str, arguments: &[&str], text: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rhostprep");
    std::fs::write(&path, text).unwrap();
    match Command::new(program).args(arguments).arg(&path).output() {
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            assert!(output.status.success(), "{program}: {said}");
        }
        Err(_) => {
            eprintln!("SKIPPED commands: {program} is not installed, so it reads nothing of ours");
        }
    }
}

#[test]
fn pages_and_completions_are_read_by_their_readers() {
    let pages: [&[&str]; 9] = [
        &[],
        &["check"],
        &["apply"],
        &["undo"],
        &["net"],
        &["net", "bridge"],
        &["net", "nat"],
        &["net", "restore"],
        &["pin"],
    ];
    for words in pages {
        let page = out(&rhostprep(&[&["man"], words].concat()));
        // Style is for authors; what would be shown wrongly counts.
        read_by("mandoc", &["-T", "lint", "-W", "error"], &page);
    }
    for (shell, arguments) in [("bash", &["-n"][..]), ("zsh", &["-n"]), ("fish", &["--no-execute"])]
    {
        read_by(shell, arguments, &out(&rhostprep(&["completions", shell])));
    }
}

#[test]
fn check_starts_no_program_and_opens_no_network_connection() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    let run = Command::new("strace")
        .args(["-f", "-qq", "-e", "trace=execve,execveat,connect", "-o"])
        .arg(&trace)
        .args([env!("CARGO_BIN_EXE_rhostprep"), "check", "--guests", "4x1G"])
        .output();
    let Ok(output) = run else {
        eprintln!("SKIPPED commands::check_starts_no_program: strace is not installed");
        return;
    };
    assert!(out(&output).contains("64 checks"), "{}", err(&output));
    let trace = std::fs::read_to_string(&trace).unwrap();
    let calls: Vec<&str> = trace.lines().filter(|line| line.contains('(')).collect();
    assert_eq!(calls.len(), 1, "more than our own start: {calls:#?}");
    assert!(calls[0].contains("execve("), "{}", calls[0]);
}

#[test]
fn pin_shows_and_binds_this_process() {
    let pid = std::process::id().to_string();
    let output = rhostprep(&["pin", &pid]);
    assert!(out(&output).contains("emulator"), "{}", err(&output));
    let output = rhostprep(&["pin", &pid, "--vcpu", "0=0"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("no thread of vCPU 0"), "{}", err(&output));
    assert_eq!(rhostprep(&["pin", &pid, "--emulator", "99999"]).status.code(), Some(2));
    assert_eq!(rhostprep(&["pin", "no-such-guest"]).status.code(), Some(2));
    // A thread that calls itself a vCPU can be bound.
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let (start, started) = std::sync::mpsc::channel::<()>();
    let body = move || {
        start.send(()).unwrap();
        stopped.recv()
    };
    let thread = std::thread::Builder::new().name("vcpu0".into()).spawn(body).unwrap();
    // A thread takes its name before it runs this, and not before `spawn` returns.
    started.recv().unwrap();
    let output = rhostprep(&["pin", &pid, "--vcpu", "0=0"]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let line = out(&output).lines().find(|line| line.contains("vCPU 0")).unwrap().to_owned();
    assert!(line.ends_with("CPUs 0"), "{line}");
    drop(stop);
    let _ = thread.join().unwrap();
}

#[test]
fn collected_trees_can_be_read_again() {
    let output = rhostprep(&["collect"]);
    assert_eq!(output.status.code(), Some(0));
    let tree = Tree::parse(&out(&output)).unwrap();
    assert!(tree.files.contains_key("/proc/cpuinfo"));
}

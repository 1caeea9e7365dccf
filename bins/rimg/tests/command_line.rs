//! The built program on command lines whose answer needs no image format: exit codes, and the text
//! that qemu-img 10.0.2 prints.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

/// Runs the program in a folder, called by this name.
fn run_as(name: &str, dir: &Path, line: &str) -> Output {
    let link = dir.join(name);
    if !link.exists() {
        symlink(env!("CARGO_BIN_EXE_rimg"), &link).unwrap();
    }
    Command::new(link).args(line.split_whitespace()).current_dir(dir).output().unwrap()
}

fn check(line: &str, code: i32, stderr: &str) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.raw"), vec![0; 4096]).unwrap();
    let out = run_as("qemu-img", dir.path(), line);
    let called = dir.path().join("qemu-img");
    let said = String::from_utf8_lossy(&out.stderr).replace(&*called.to_string_lossy(), "qemu-img");
    assert_eq!(said, stderr, "{line}");
    assert_eq!(out.status.code(), Some(code), "{line}");
    assert_eq!(String::from_utf8_lossy(&out.stdout), "", "{line}");
}

fn usage(line: &str, command: &str, message: &str) {
    check(line, 1, &format!("qemu-img: {message}\nTry 'qemu-img {command}--help' for more info\n"));
}

fn plain(line: &str, message: &str) {
    check(line, 1, &format!("qemu-img: {message}\n"));
}

#[test]
fn wrong_use() {
    usage("", "", "Not enough arguments");
    usage("foo", "", "Command not found: foo");
    usage("-Z", "", "invalid option -- 'Z'");
    usage("info", "info ", "Expecting one image file name");
    usage("info a b", "info ", "Expecting one image file name");
    usage("info --output xml a.raw", "info ", "--output expects 'human' or 'json' not 'xml'");
    usage("check -r foo a.raw", "check ", "--repair (-r) expects 'leaks' or 'all' not 'foo'");
    usage("compare a.raw", "compare ", "Expecting two image file names");
    usage("resize a.raw", "resize ", "Expecting image file name and size");
    usage("resize a.raw +1M +1M", "resize ", "Extra argument(s) in command line");
    usage("snapshot -c s1 -l a.raw", "snapshot ", "Cannot mix '-l', '-a', '-c', '-d'");
    usage("rebase a.raw", "rebase ", "Must specify backing file (-b) or use unsafe mode (-u)");
    usage("amend a.raw", "amend ", "Must specify options (-o)");
    usage("create", "create ", "Expecting image file name");
    check(
        "info -f",
        1,
        "qemu-img info: option requires an argument -- 'f'\n\
         Try 'qemu-img info --help' for more info\n",
    );
}

#[test]
fn wrong_values() {
    plain("create x 10Q", "Invalid image size specified: '10Q'.");
    plain(
        "create x -- -1",
        "Invalid image size specified. Must be between 0 and 9223372036854775807.",
    );
    plain("create -o a=b, x 1M", "Invalid option list: a=b,");
    plain("create x 1M --object foo", "Parameter 'qom-type' does not accept value 'foo'");
    plain("convert a.raw", "Must specify image file name");
    plain(
        "convert -m 17 a.raw x",
        "Invalid number of coroutines specified. Must be between 1 and 16.",
    );
    plain("convert -t foo a.raw x", "Invalid cache option: foo");
    plain("convert -T foo a.raw x", "Invalid source cache option: foo");
    plain("convert -C -c a.raw x", "Cannot enable copy offloading when -c is used");
    plain("convert -n -o size=1 a.raw x", "-o has no effect when skipping image creation");
    plain("convert -f raw --image-opts a x", "--image-opts and --format are mutually exclusive");
    plain(
        "convert -l snapshot.foo=1 a.raw x",
        "Invalid parameter 'snapshot.foo'\nqemu-img: Failed in parsing snapshot param 'snapshot.foo=1'",
    );
    plain("map --start-offset x a.raw", "Invalid start offset specified: 'x'.");
    plain("measure", "Either --size N or one filename must be specified.");
    plain("measure --size 1G a.raw", "--size N cannot be used together with a filename.");
    plain("measure --size 1G -f raw", "--image-opts, -f, and -l require a filename argument.");
    plain("dd if=a.raw", "Must specify both input and output files");
    plain("dd if=a.raw of=x foo=1", "unrecognized operand foo");
    plain("bench -c 0 a.raw", "Invalid request count specified. Must be between 1 and 2147483647.");
    plain("bitmap --add a.raw", "Expecting filename and bitmap name");
    plain("resize --preallocation foo a.raw +1M", "Invalid preallocation mode 'foo'");
    check("compare -T foo a b", 2, "qemu-img: Invalid source cache option: foo\n");
}

#[test]
fn help_and_version() {
    let dir = tempfile::tempdir().unwrap();
    for line in ["--help", "-h", "info --help", "convert -h", "dd --hel", "check x --help"] {
        let out = run_as("rimg", dir.path(), line);
        assert_eq!(out.status.code(), Some(0), "{line}");
        assert!(String::from_utf8_lossy(&out.stdout).contains("Usage: rimg"), "{line}");
    }
    let version = run_as("qemu-img", dir.path(), "--version");
    assert!(String::from_utf8_lossy(&version.stdout).starts_with("qemu-img version 10."));
    let version = run_as("rimg", dir.path(), "-V");
    assert!(String::from_utf8_lossy(&version.stdout).starts_with("rimg 0."));
}

#[test]
fn completions_and_man_pages() {
    let dir = tempfile::tempdir().unwrap();
    for (line, part) in [
        ("completions bash", "_rimg()"),
        ("completions zsh", "#compdef rimg"),
        ("completions fish", "complete -c rimg"),
        ("man", ".TH RIMG"),
        ("man convert", ".TH RIMG-CONVERT"),
    ] {
        let out = run_as("rimg", dir.path(), line);
        assert!(out.status.success(), "{line}");
        assert!(String::from_utf8_lossy(&out.stdout).contains(part), "{line}");
    }
    assert_eq!(run_as("rimg", dir.path(), "man nothing").status.code(), Some(1));
    assert_eq!(run_as("qemu-img", dir.path(), "man").status.code(), Some(1));
}

#[test]
fn a_file_is_not_overwritten_by_accident() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x");
    std::fs::write(&file, b"precious").unwrap();
    let refused = run_as("rimg", dir.path(), "create x 1M");
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    assert!(run_as("rimg", dir.path(), "create --force x 1M").status.success());
    assert_eq!(std::fs::metadata(&file).unwrap().len(), 1 << 20);
    assert!(run_as("qemu-img", dir.path(), "create x 2M").status.success());
    assert_eq!(std::fs::metadata(&file).unwrap().len(), 2 << 20);
}

#[test]
fn an_interrupted_conversion_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.raw"), vec![1; 8 << 20]).unwrap();
    run_as("rimg", dir.path(), "--version");
    let mut child = Command::new(dir.path().join("rimg"))
        .args(["convert", "-r", "1M", "-O", "qcow2", "a.raw", "b.qcow2"])
        .current_dir(dir.path())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // The rate limit makes it last eight seconds; it has begun once its temporary file is there.
    let names = || std::fs::read_dir(dir.path()).unwrap().count();
    for _ in 0..500 {
        if names() > 2 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(names(), 3);
    assert!(!dir.path().join("b.qcow2").exists());
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert_eq!(names(), 2);
}

/// The same answers as the installed qemu-img for raw images, byte for byte.
#[test]
fn as_the_installed_tool() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = vec![0; 1 << 20];
    bytes[65536..131_072].fill(7);
    std::fs::write(dir.path().join("a.raw"), &bytes).unwrap();
    std::fs::write(dir.path().join("a:b"), b"x").unwrap();
    let reference = |line: &str| {
        Command::new("qemu-img").args(line.split_whitespace()).current_dir(dir.path()).output()
    };
    if reference("--version").is_err() {
        eprintln!("skipped: no qemu-img");
        return;
    }
    for line in [
        "info a.raw",
        "info --output json a.raw",
        "info -b --output=json -f raw a.raw",
        "info file:a.raw",
        "info ./a:b",
        "info file:a:b",
        "info --image-opts driver=raw,file.filename=a.raw",
        "map a.raw",
        "map --output json a.raw",
        "map -s 64k -l 4k --output json a.raw",
        "measure -O raw a.raw",
        "measure --output json -O qcow2 --size 10G",
        "compare a.raw a.raw",
        "compare -s a.raw a:b",
        "check a.raw",
        "snapshot -l a.raw",
        "create -f raw x 1.5k",
        "create -f qcow2 -o cluster_size=4k,lazy_refcounts x 1M",
        "create -f raw -o help",
        "create -f raw -o help x",
        "create -f qcow2 -o help",
        "create -f qcow2 -o ? x",
        "resize -f raw a.raw +0",
    ] {
        let (theirs, ours) = (reference(line).unwrap(), run_as("qemu-img", dir.path(), line));
        assert_eq!(ours.status.code(), theirs.status.code(), "{line}");
        let text = |o: &Output| String::from_utf8_lossy(&o.stdout).into_owned();
        assert_eq!(text(&ours), text(&theirs), "{line}");
    }
}

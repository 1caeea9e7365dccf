use super::*;

fn path(dir: &tempfile::TempDir, name: &str) -> String {
    dir.path().join(name).to_string_lossy().into_owned()
}

fn output(target: &str) -> Output {
    Output::new(target, CacheMode::Unsafe, Overwrite::Allow)
}

fn names(dir: &tempfile::TempDir) -> Vec<String> {
    let mut all: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    all.sort();
    all
}

#[test]
fn appears_only_at_commit() {
    let dir = tempfile::tempdir().unwrap();
    let target = path(&dir, "a");
    std::fs::write(&target, b"old").unwrap();
    let out = output(&target);
    out.main().unwrap().write_at(0, b"new one").unwrap();
    out.beside("a-flat").unwrap().write_at(0, b"x").unwrap();
    assert_eq!(std::fs::read(&target).unwrap(), b"old");
    assert_eq!(names(&dir), ["a", "a-flat.part", "a.part"]);
    out.commit(Durability::Synced).unwrap();
    assert_eq!(std::fs::read(&target).unwrap(), b"new one");
    assert_eq!(names(&dir), ["a", "a-flat"]);
}

#[test]
fn dropping_leaves_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let target = path(&dir, "a");
    std::fs::write(&target, b"old").unwrap();
    let out = output(&target);
    out.main().unwrap().write_at(0, b"new").unwrap();
    drop(out);
    assert_eq!(names(&dir), ["a"]);
    assert_eq!(std::fs::read(&target).unwrap(), b"old");
}

#[test]
fn links_permissions_and_leftovers() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let real = path(&dir, "real");
    std::fs::write(&real, b"old").unwrap();
    std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::symlink("real", path(&dir, "link")).unwrap();
    std::fs::write(path(&dir, "real.part"), b"left by a killed run").unwrap();
    let out = output(&path(&dir, "link"));
    out.main().unwrap().write_at(0, b"new").unwrap();
    let second = output(&real);
    assert_eq!(second.main().unwrap_err().kind(), ErrorKind::Locked);
    out.commit(Durability::Fast).unwrap();
    assert_eq!(std::fs::read(&real).unwrap(), b"new");
    assert_eq!(std::fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(names(&dir), ["link", "real"]);
}

#[test]
fn refusing_to_overwrite() {
    let dir = tempfile::tempdir().unwrap();
    let target = path(&dir, "a");
    std::fs::write(&target, b"").unwrap();
    let refuse = || Output::new(&target, CacheMode::Unsafe, Overwrite::Refuse);
    assert!(refuse().main().is_ok());
    std::fs::write(&target, b"x").unwrap();
    assert!(refuse().main().unwrap_err().report().contains("exists and is not empty"));
    let e = output("/no/such/folder/x").main().unwrap_err();
    assert_eq!(e.report(), "Could not create '/no/such/folder/x': No such file or directory");
}

#[test]
fn what_is_no_file_is_never_renamed_over() {
    let dir = tempfile::tempdir().unwrap();
    let target = path(&dir, "pipe");
    nix::unistd::mkfifo(target.as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let refused = output(&target).main().unwrap_err();
    assert!(refused.report().contains("is a pipe"), "{refused:?}");
    assert_eq!(names(&dir), ["pipe"]);
    // Also where it came while the image was being written.
    let late = path(&dir, "late");
    let out = output(&late);
    out.main().unwrap().write_at(0, b"new").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(&late).unwrap();
    assert!(out.commit(Durability::Fast).unwrap_err().report().contains("is a socket"));
    assert_eq!(names(&dir), ["late", "pipe"]);
}

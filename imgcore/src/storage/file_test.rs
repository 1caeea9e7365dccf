use super::*;

fn scratch(options: FileOptions) -> (tempfile::TempDir, FileStorage) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    std::fs::write(&path, b"").unwrap();
    let file = FileStorage::open(&path, FileOptions { writable: true, ..options }).unwrap();
    (dir, file)
}

#[test]
fn reads_past_the_end_are_zero_and_writes_grow() {
    let (_dir, file) = scratch(FileOptions::default());
    file.write_at(10, b"abc").unwrap();
    assert_eq!(file.len().unwrap(), 13);
    let mut buf = [9u8; 8];
    file.read_at(9, &mut buf).unwrap();
    assert_eq!(&buf, b"\0abc\0\0\0\0");
}

#[test]
fn direct_io_takes_unaligned_requests() {
    let (_dir, file) = scratch(FileOptions { cache: CacheMode::None, ..FileOptions::default() });
    let data: Vec<u8> = (0..10_000u32).map(|i| i.to_le_bytes()[0]).collect();
    file.write_at(777, &data).unwrap();
    assert_eq!(file.len().unwrap(), 10_777);
    let mut back = vec![0; data.len()];
    file.read_at(777, &mut back).unwrap();
    assert_eq!(back, data);
    file.write_at(5000, b"xyz").unwrap();
    let mut three = [0; 3];
    file.read_at(5000, &mut three).unwrap();
    assert_eq!(&three, b"xyz");
    assert_eq!(file.len().unwrap(), 10_777);
}

#[test]
fn holes_are_seen() {
    let (_dir, file) = scratch(FileOptions::default());
    file.set_len(1 << 20, Preallocation::Off).unwrap();
    file.write_at(1 << 19, &[1; 4096]).unwrap();
    // The first block of a new file is allocated.
    assert_eq!(file.status(0, 1 << 20).unwrap(), HostExtent { kind: HostKind::Data, len: 4096 });
    let hole = file.status(4096, 1 << 20).unwrap();
    assert_eq!(hole, HostExtent { kind: HostKind::Hole, len: (1 << 19) - 4096 });
    assert_eq!(file.status(1 << 19, 1 << 19).unwrap().kind, HostKind::Data);
    file.write_zeroes(1 << 19, 4096, ZeroMode::MayUnmap).unwrap();
    assert_eq!(file.status(4096, 1 << 20).unwrap().len, 1 << 20);
    file.set_len(2 << 20, Preallocation::Full).unwrap();
    assert!(file.allocated().unwrap().unwrap() >= 1 << 20);
}

#[test]
fn a_directory_and_a_missing_file_are_refused_with_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let err = FileStorage::open(dir.path(), FileOptions::default()).unwrap_err();
    assert!(err.report().contains("regular file"), "{}", err.report());
    let err = FileStorage::open(&dir.path().join("no"), FileOptions::default()).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::NotFound);
    assert!(err.report().ends_with("no': No such file or directory"), "{}", err.report());
}

/// What the kernel says when a disk breaks cannot be had here: its answer is given by hand.
#[test]
fn a_flush_that_failed_is_not_made_good_by_another() {
    let failed = || Err(std::io::Error::from_raw_os_error(libc::EIO));
    let (_dir, file) = scratch(FileOptions::default());
    file.flush().unwrap();
    assert_eq!(file.settle_sync(failed()).unwrap_err().raw_errno(), Some(libc::EIO));
    let again = file.flush().unwrap_err();
    assert_eq!(again.raw_errno(), Some(libc::EIO));
    assert!(again.report().contains("an earlier flush has failed"), "{}", again.report());
    let (_dir, file) = scratch(FileOptions { cache: CacheMode::None, ..FileOptions::default() });
    file.settle_sync(failed()).unwrap_err();
    file.flush().unwrap();
}

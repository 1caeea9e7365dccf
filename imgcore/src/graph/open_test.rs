use super::*;
use crate::storage::CacheMode;

fn write(dir: &Path, name: &str, len: usize) -> String {
    let path = dir.join(name);
    std::fs::write(&path, vec![7u8; len]).unwrap();
    path.to_string_lossy().into_owned()
}

#[test]
fn opens_raw_and_says_what_is_missing_once() {
    let dir = tempfile::tempdir().unwrap();
    let name = write(dir.path(), "a", 1000);
    let node = open(&OpenRequest::file(&name), &OpenOptions::default()).unwrap();
    assert_eq!(node.virtual_size(), 1024);
    let missing = dir.path().join("no").to_string_lossy().into_owned();
    let e = open(&OpenRequest::file(&missing), &OpenOptions::default()).unwrap_err();
    assert_eq!(e.report(), format!("Could not open '{missing}': No such file or directory"));
    let bad = OpenRequest::file(&name).with_driver(Some("foo"));
    let e = open(&bad, &OpenOptions::default()).unwrap_err();
    assert_eq!(e.report(), format!("Could not open '{name}': Unknown driver 'foo'"));
}

#[test]
fn windows() {
    let dir = tempfile::tempdir().unwrap();
    let name = write(dir.path(), "a", 4096);
    let text = format!("driver=raw,offset=512,size=1k,file.filename={name}");
    let spec = crate::opts::ImageSpec::from_options(&text).unwrap();
    let node =
        open(&OpenRequest::from_spec(&spec, &text).unwrap(), &OpenOptions::default()).unwrap();
    assert_eq!(node.virtual_size(), 1024);
    assert_eq!(node.name(), text);
}

#[test]
fn a_writer_excludes_a_stable_reader() {
    let dir = tempfile::tempdir().unwrap();
    let name = write(dir.path(), "a", 4096);
    let options = OpenOptions { cache: CacheMode::Writeback, ..OpenOptions::default() };
    let _writer = open(&OpenRequest::file(&name), &options.clone().writable()).unwrap();
    let source = OpenOptions { purpose: Purpose::Source, ..options };
    let e = open(&OpenRequest::file(&name), &source).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Locked);
    assert_eq!(e.report(), format!("Could not open '{name}': Failed to get shared \"write\" lock"));
    let forced = OpenOptions { sharing: Sharing::Force, ..source };
    assert!(open(&OpenRequest::file(&name), &forced).is_ok());
}

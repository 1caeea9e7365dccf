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

#[test]
fn a_circle_of_backing_files_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    for (name, backing) in [("a", "b"), ("b", "a")] {
        let Some(driver) = format::driver("qcow2") else { return };
        let output = crate::graph::output::Output::new(
            &path(name),
            CacheMode::Unsafe,
            crate::graph::output::Overwrite::Allow,
        );
        let new = crate::graph::create::NewImage {
            driver,
            size: 1 << 20,
            options: &format::CreateOptions::default(),
            backing: Some(BackingRef { name: backing.into(), format: Some("qcow2".into()) }),
            backing_image: None,
        };
        crate::graph::create::create(&new, &output).unwrap();
        output.commit(crate::graph::output::Durability::Fast).unwrap();
    }
    let e = open(&OpenRequest::file(path("a")), &OpenOptions::default()).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Corrupt);
    assert!(e.report().contains("is a circle"), "{}", e.report());
}

#[test]
fn forced_sharing_never_writes() {
    let dir = tempfile::tempdir().unwrap();
    let name = dir.path().join("a.raw");
    std::fs::write(&name, vec![0u8; 4096]).unwrap();
    let request = OpenRequest::file(name.to_string_lossy()).with_driver(Some("raw"));
    let forced = OpenOptions { sharing: Sharing::Force, ..OpenOptions::default() };
    assert!(open(&request, &forced).is_ok());
    let refused = open(&request, &forced.clone().writable()).unwrap_err();
    assert!(refused.report().contains("force-share=on"), "{refused:?}");
    let unlocked = OpenOptions { sharing: Sharing::Off, ..forced };
    assert!(open(&request, &unlocked.writable()).is_ok());
}

//! Every message was observed with qemu-img 10.0.2 (`info --image-opts`, `info json:...`).

use super::*;

fn opts(text: &str) -> ImageSpec {
    ImageSpec::from_options(text).unwrap()
}

fn message(text: &str) -> String {
    let result = match text.strip_prefix("json:") {
        Some(json) => ImageSpec::from_json(json),
        None => ImageSpec::from_options(text),
    };
    result.unwrap_err().message
}

#[test]
fn a_format_over_a_file() {
    let s = opts("driver=qcow2,file.driver=file,file.filename=a,,b,read-only=on");
    assert_eq!(s.driver.as_deref(), Some("qcow2"));
    assert_eq!(s.bottom_path(), Some("a,b"));
    assert_eq!(s.read_only, Some(true));
    assert_eq!(s.file.unwrap().driver.as_deref(), Some("file"));
}

#[test]
fn json_and_list_agree() {
    let json = r#"{"driver":"raw","offset":65536,"size":"512",
        "file":{"driver":"file","filename":"x","locking":"off"}}"#;
    let a = ImageSpec::from_json(json).unwrap();
    let b =
        opts("driver=raw,offset=64k,size=512,file.driver=file,file.filename=x,file.locking=off");
    assert_eq!(a, b);
    assert_eq!((a.offset, a.size), (Some(65536), Some(512)));
}

#[test]
fn backing() {
    assert_eq!(opts("driver=qcow2,file.filename=a").backing, BackingSpec::FromImage);
    let s = opts("driver=qcow2,file.filename=a,backing=");
    assert_eq!(s.backing, BackingSpec::None);
    assert_eq!(s.warnings.len(), 1);
    let s = ImageSpec::from_json(r#"{"driver":"qcow2","file.filename":"a","backing":null}"#);
    assert_eq!(s.unwrap().backing, BackingSpec::None);
    let s = opts("driver=qcow2,file.filename=a,backing.driver=raw,backing.file.filename=b");
    let BackingSpec::Spec(b) = s.backing else { panic!() };
    assert_eq!(b.bottom_path(), Some("b"));
    // Only the format is overridden; the name stays the image's own.
    let s = opts("driver=qcow2,file.filename=a,backing.driver=qcow2");
    let BackingSpec::Spec(b) = s.backing else { panic!() };
    assert!(b.file.is_none());
}

#[test]
fn undecided_until_probed() {
    let mut s = opts("file.filename=a,l2-cache-size=1M");
    assert_eq!(s.undecided.len(), 1);
    assert_eq!(
        s.clone().settle("raw").unwrap_err().message,
        "Block format 'raw' does not support the option 'l2-cache-size'"
    );
    s.settle("qcow2").unwrap();
    assert_eq!(s.other, [("l2-cache-size".to_owned(), "1048576".to_owned())]);
}

#[test]
fn encryption_and_data_file() {
    let s = opts(
        "driver=qcow2,file.filename=a,encrypt.format=luks,encrypt.key-secret=s,data-file.filename=d",
    );
    let e = s.encrypt.unwrap();
    assert_eq!((e.format.as_deref(), e.key_secret.as_deref()), (Some("luks"), Some("s")));
    assert_eq!(s.data_file.unwrap().filename.as_deref(), Some("d"));
}

#[test]
fn refusals() {
    for (text, wanted) in [
        ("a.qcow2", "Cannot find device='a.qcow2' nor node-name='a.qcow2'"),
        ("", "Must specify either driver or file"),
        ("=x", "Must specify either driver or file"),
        ("filename=a.qcow2", "Must specify either driver or file"),
        (
            "file=a.qcow2,file.driver=file",
            "Cannot reference an existing block device with additional options or a new filename",
        ),
        (
            "driver=qcow2,file.filename=a,foo=1",
            "Block format 'qcow2' does not support the option 'foo'",
        ),
        (
            "driver=qcow2,file.filename=a,file.foo=1",
            "Block protocol 'file' doesn't support the option 'foo'",
        ),
        (
            "driver=qcow2,file.filename=a,cache.writeback=off",
            "Block format 'qcow2' does not support the option 'cache.writeback'",
        ),
        ("driver=qcow2,filename=a", "A block device must be specified for \"file\""),
        ("driver=qcow2,file.driver=foo,file.filename=a", "Unknown driver 'foo'"),
        (
            "driver=qcow2,file.driver=qcow2,file.filename=a",
            "A block device must be specified for \"file\"",
        ),
        ("driver=help", "Unknown driver 'help'"),
        ("driver=file", "The 'file' block driver requires a file name"),
        (
            "driver=qcow2,file.filename=a,read-only=foo",
            "Parameter 'read-only' expects 'on' or 'off'",
        ),
        (
            "driver=qcow2,file.filename=a,cache.direct=maybe",
            "Parameter 'cache.direct' expects 'on' or 'off'",
        ),
        ("driver=qcow2,file.filename=a,discard=foo", "Invalid discard option"),
        ("driver=qcow2,file.filename=a,detect-zeroes=foo", "invalid parameter value: foo"),
        ("driver=file,filename=a,aio=foo", "invalid parameter value: foo"),
        ("driver=file,filename=a,locking=foo", "invalid parameter value: foo"),
        ("driver=file,filename=a,pr-manager=x", "No persistent reservation manager with id 'x'"),
        (
            "driver=raw,file.filename=a,offset=1x",
            "Parameter 'offset' expects a non-negative number below 2^64",
        ),
        (
            "driver=qcow2,file.filename=o,backing.driver=raw,backing.file.filename=a,backing.foo=1",
            "Could not open backing file: Block format 'raw' does not support the option 'foo'",
        ),
        ("json:{", "Could not parse the JSON options: JSON parse error, premature EOI"),
        ("json:[]", "Invalid JSON object given"),
        ("json:{\"driver\":\"foo\"}", "Unknown driver 'foo'"),
        (
            "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":5}}",
            "The 'file' block driver requires a file name",
        ),
        (
            "json:{\"driver\":\"raw\",\"file.filename\":\"a\",\"size\":1.5}",
            "Parameter 'size' expects a non-negative number below 2^64",
        ),
    ] {
        assert_eq!(message(text), wanted, "{text}");
    }
}

#[test]
fn no_text_panics() {
    let pieces =
        ["driver", "=", ",", "file", ".", "filename", "backing", "raw", "no", "é", "{", "\""];
    let mut seed = 1u32;
    for _ in 0..20_000 {
        let mut text = String::new();
        for _ in 0..8 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            text.push_str(pieces[(seed >> 16) as usize % pieces.len()]);
        }
        let _ = ImageSpec::from_options(&text);
        let _ = ImageSpec::from_json(&text);
        let _ = crate::opts::filename::parse(&text);
    }
}

#[test]
fn deep_specifications_are_refused() {
    let e = message(&format!("{}filename=x", "file.".repeat(100_000)));
    assert_eq!(e, "Image specification is nested too deeply");
}

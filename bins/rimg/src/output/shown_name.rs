//! The name of an image that was not given as a plain path: the path, where that says all, or a
//! `json:{...}` name with the options that change what the image contains.

use imgcore::opts::filename::{self, Filename};
use imgcore::opts::http::without_credentials;
use imgcore::opts::list::{self, FirstItem};
use imgcore::opts::remote::Remote;
use imgcore::opts::tree::{Flat, Scalar};
use imgcore::opts::{ImageSpec, json};
use serde_json::{Map, Value};

/// Options that select a part of the file, or say how to decrypt it.
const CONTENT: &[&str] = &["offset", "size", "key-secret", "encrypt.format", "encrypt.key-secret"];

/// The name to show for what the user wrote; `format` is what the image turned out to be.
pub fn of(written: &str, image_opts: bool, format: &str) -> String {
    let parsed = if image_opts {
        let items = list::parse(written, FirstItem::ValueOf("file"));
        ImageSpec::from_options(written).map(|spec| (spec, Flat::from_items(&items)))
    } else if let Some(text) = written.strip_prefix("json:") {
        let flat = json::parse(text).and_then(Flat::from_tree);
        ImageSpec::from_json(text).and_then(|spec| flat.map(|f| (spec, f)))
    } else {
        return match filename::parse(written) {
            Ok(Filename::Path(path)) => filename::quote_path(&path),
            Ok(Filename::Protocol { driver, name }) => match Remote::parse(driver, &name) {
                Ok(Some(remote)) => remote.shown(),
                _ => without_credentials(written).into_owned(),
            },
            _ => without_credentials(written).into_owned(),
        };
    };
    match parsed {
        Ok((spec, flat)) => of_spec(&spec, flat, format)
            .unwrap_or_else(|| without_credentials(written).into_owned()),
        Err(_) => without_credentials(written).into_owned(),
    }
}

fn of_spec(spec: &ImageSpec, mut flat: Flat, format: &str) -> Option<String> {
    let bottom = spec.file.as_deref().unwrap_or(spec);
    let driver = bottom.driver.as_deref().unwrap_or_default();
    if Remote::is_driver(driver) {
        let remote =
            Remote::from_options(driver, bottom.filename.as_deref(), &bottom.other).ok()??;
        return CONTENT.iter().all(|name| flat.take(name).is_none()).then(|| remote.shown());
    }
    let path = spec.bottom_path()?;
    let mut top = Map::new();
    for name in CONTENT {
        if let Some(value) = flat.take(name) {
            top.insert((*name).to_owned(), scalar(&value));
        }
    }
    if top.is_empty() {
        return Some(filename::quote_path(path));
    }
    let file = Map::from_iter([
        ("driver".to_owned(), Value::from("file")),
        ("filename".to_owned(), Value::from(path)),
    ]);
    top.insert("driver".to_owned(), Value::from(spec.driver.as_deref().unwrap_or(format)));
    top.insert("file".to_owned(), file.into());
    Some(format!("json:{}", super::json::compact(&top.into())))
}

fn scalar(value: &Scalar) -> Value {
    match value {
        Scalar::Null => Value::Null,
        Scalar::Bool(b) => (*b).into(),
        Scalar::Number(n) => n.parse::<u64>().map_or_else(|_| n.clone().into(), Value::from),
        Scalar::Text(t) => t.clone().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Observed with qemu-img 10.0.2.
    #[test]
    fn names() {
        assert_eq!(of("file:a", false, "raw"), "a");
        assert_eq!(of("file:a:b", false, "raw"), "./a:b");
        assert_eq!(of("a", false, "raw"), "a");
        assert_eq!(of("driver=qcow2,file.filename=a", true, "raw"), "a");
        assert_eq!(
            of(
                "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"a\"}}",
                false,
                "raw"
            ),
            "a"
        );
        assert_eq!(
            of("driver=raw,offset=64k,size=512,file.filename=a", true, "raw"),
            "json:{\"offset\": \"64k\", \"driver\": \"raw\", \"size\": \"512\", \"file\": \
             {\"driver\": \"file\", \"filename\": \"a\"}}"
        );
        assert_eq!(
            of(
                "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"a\"},\
                 \"offset\":65536,\"size\":512}",
                false,
                "raw"
            ),
            "json:{\"offset\": 65536, \"driver\": \"raw\", \"size\": 512, \"file\": \
             {\"driver\": \"file\", \"filename\": \"a\"}}"
        );
    }
}

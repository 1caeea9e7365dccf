//! What a plain file name on a command line or in an image means.
//!
//! A name is a protocol's when a colon comes before the first slash: `nbd:host:1`, `http://x/y`. A
//! file whose name has such a colon is written `./a:b` or `file:a:b`. Names given as
//! `file.filename=` are never read this way: they are paths as they stand.

use super::OptError;
use super::spec::ImageSpec;

/// A file name, understood.
#[derive(Clone, Debug, PartialEq)]
pub enum Filename {
    /// A path in the file system (file or device).
    Path(String),
    /// Another protocol's name, with its prefix: `nbd://host/x`.
    Protocol {
        /// The driver's name: `nbd`, `http`, ...
        driver: &'static str,
        /// The whole name.
        name: String,
    },
    /// `json:{...}`.
    Json(Box<ImageSpec>),
}

/// Prefixes and the drivers that take them.
const PROTOCOLS: &[(&str, &str)] = &[
    ("file", "file"),
    ("host_device", "host_device"),
    ("host_cdrom", "host_cdrom"),
    ("nbd", "nbd"),
    ("nbds", "nbd"),
    ("nbd+tcp", "nbd"),
    ("nbd+unix", "nbd"),
    ("nbds+tcp", "nbd"),
    ("nbds+unix", "nbd"),
    ("http", "http"),
    ("https", "https"),
    ("ftp", "ftp"),
    ("ftps", "ftps"),
    ("ssh", "ssh"),
    ("iscsi", "iscsi"),
    ("iser", "iser"),
    ("nfs", "nfs"),
    ("rbd", "rbd"),
    ("gluster", "gluster"),
    ("gluster+tcp", "gluster"),
    ("gluster+unix", "gluster"),
    ("nvme", "nvme"),
    ("null-co", "null-co"),
    ("null-aio", "null-aio"),
    ("fat", "vvfat"),
    ("blkdebug", "blkdebug"),
    ("blkverify", "blkverify"),
];

/// The prefix before a colon that comes before any slash.
pub fn protocol_prefix(name: &str) -> Option<&str> {
    let at = name.find([':', '/'])?;
    name[at..].starts_with(':').then(|| &name[..at])
}

/// Understands a name.
pub fn parse(name: &str) -> Result<Filename, OptError> {
    if let Some(json) = name.strip_prefix("json:") {
        return Ok(Filename::Json(Box::new(ImageSpec::from_json(json)?)));
    }
    let Some(prefix) = protocol_prefix(name) else {
        return Ok(Filename::Path(name.to_owned()));
    };
    match PROTOCOLS.iter().find(|(p, _)| *p == prefix) {
        Some((_, "file" | "host_device" | "host_cdrom")) => {
            Ok(Filename::Path(name[prefix.len() + 1..].to_owned()))
        }
        Some((_, driver)) => Ok(Filename::Protocol { driver, name: name.to_owned() }),
        None => Err(OptError::new(format!("Unknown protocol '{prefix}'"))),
    }
}

/// How a path is written so that it will not be taken for a protocol: `a:b` becomes `./a:b`.
pub fn quote_path(path: &str) -> String {
    if protocol_prefix(path).is_some() { format!("./{path}") } else { path.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(p: &str) -> Filename {
        Filename::Path(p.into())
    }

    #[test]
    fn names() {
        assert_eq!(parse("a.raw").unwrap(), path("a.raw"));
        assert_eq!(parse("./a:b").unwrap(), path("./a:b"));
        assert_eq!(parse("foo/bar:x").unwrap(), path("foo/bar:x"));
        assert_eq!(parse("file:a:b").unwrap(), path("a:b"));
        assert_eq!(parse("file:///tmp/a").unwrap(), path("///tmp/a"));
        assert_eq!(parse("").unwrap(), path(""));
        assert_eq!(parse("a:b").unwrap_err().message, "Unknown protocol 'a'");
        assert_eq!(parse("raw:a").unwrap_err().message, "Unknown protocol 'raw'");
        assert_eq!(
            parse("nbd://h/x").unwrap(),
            Filename::Protocol { driver: "nbd", name: "nbd://h/x".into() }
        );
        assert!(matches!(
            parse("json:{\"driver\":\"raw\",\"file.filename\":\"a\"}"),
            Ok(Filename::Json(_))
        ));
        assert_eq!(quote_path("a:b"), "./a:b");
        assert_eq!(quote_path("/a:b"), "/a:b");
    }
}

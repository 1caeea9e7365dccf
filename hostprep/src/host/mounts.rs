//! `/proc/self/mountinfo` (proc(5)): what is mounted where, with which options.

use super::Host;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where it is.
    pub point: String,
    /// File system type.
    pub kind: String,
    /// What is mounted.
    pub source: String,
    /// Options of the mount and of the file system, joined.
    pub options: Vec<String>,
}

impl Mount {
    /// The value of `name=value`.
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options.iter().find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
    }
}

/// Undoes the octal escapes of white space and backslash in mountinfo.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(code) = code {
            out.push(char::from(code));
            rest = &rest[at + 4..];
        } else {
            out.push('\\');
            rest = &rest[at + 1..];
        }
    }
    out.push_str(rest);
    out
}

impl Host {
    /// All mounts this process sees, in order.
    pub fn mounts(&self) -> Vec<Mount> {
        let text = self.read("/proc/self/mountinfo").unwrap_or_default();
        let mounts = text.lines().filter_map(|line| {
            let (mount, filesystem) = line.split_once(" - ")?;
            let mut mount = mount.split(' ').skip(4);
            let point = unescape(mount.next()?);
            let mount_options = mount.next()?;
            let mut filesystem = filesystem.split(' ');
            let kind = filesystem.next()?.to_owned();
            let source = unescape(filesystem.next()?);
            let super_options = filesystem.next().unwrap_or("");
            let options = mount_options.split(',').chain(super_options.split(','));
            Some(Mount { point, kind, source, options: options.map(str::to_owned).collect() })
        });
        mounts.collect()
    }
}

//! Where an image of a Ceph cluster is: `rbd:POOL[/NAMESPACE]/IMAGE[@SNAPSHOT][:OPTION=VALUE...]`, and the options of
//! `driver=rbd`.
//!
//! In the name, `id=` is the user, `conf=` the configuration file, and every other option one of that file; a backslash
//! before a character takes its meaning away. Options are those of QEMU's driver: `pool`, `namespace`, `image`,
//! `snapshot`, `user`, `conf`, `server.N.host`, `server.N.port`, `auth-client-required.N`. `key-secret` and `encrypt.*` are
//! refused by name.

use super::OptError;

/// Longest name of a pool, namespace, image or snapshot.
const MAX_NAME: usize = 512;

/// An image of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RbdTarget {
    /// Pool.
    pub pool: String,
    /// Namespace of the pool, where not the default one.
    pub namespace: Option<String>,
    /// Image.
    pub image: String,
    /// Snapshot to read, instead of the present state.
    pub snapshot: Option<String>,
    /// Who asks, without `client.`; the library's default (`admin`) when not given.
    pub user: Option<String>,
    /// Configuration file; the library's default places when not given. Empty: none.
    pub conf: Option<String>,
    /// Further options of the configuration file.
    pub settings: Vec<(String, String)>,
}

/// Cuts at the first of `ends` that has no backslash before it; the end is what was found.
fn part<'a>(text: &'a str, ends: &[char]) -> (String, Option<char>, &'a str) {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        if c == '\\' {
            out.extend(chars.next().map(|(_, c)| c));
        } else if ends.contains(&c) {
            return (out, Some(c), &text[at + c.len_utf8()..]);
        } else {
            out.push(c);
        }
    }
    (out, None, "")
}

impl RbdTarget {
    fn checked(self) -> Result<Self, OptError> {
        let named = [
            ("pool", Some(&self.pool)),
            ("image", Some(&self.image)),
            ("namespace", self.namespace.as_ref()),
            ("snapshot", self.snapshot.as_ref()),
            ("user", self.user.as_ref()),
        ];
        for (what, name) in named {
            let Some(name) = name else { continue };
            if name.is_empty() {
                return Err(OptError::new(format!("Parameter '{what}' is missing")));
            }
            if name.len() > MAX_NAME || name.contains('\0') {
                return Err(OptError::new(format!("the {what} name is too long or not a name")));
            }
        }
        let values = self.settings.iter().flat_map(|(k, v)| [k, v]).chain(&self.conf);
        if values.into_iter().any(|text| text.contains('\0')) {
            return Err(OptError::new("an option of rbd holds a NUL"));
        }
        Ok(self)
    }

    /// From a name.
    pub fn parse(name: &str) -> Result<Self, OptError> {
        let rest = name
            .strip_prefix("rbd:")
            .ok_or_else(|| OptError::new("File name must start with 'rbd:'"))?;
        let (path, end, mut rest) = cut_path(rest);
        let mut target = RbdTarget::default();
        let Some((pool, path)) = path.split_first().filter(|(_, rest)| !rest.is_empty()) else {
            return Err(OptError::new("Pool name is required").hint("rbd:POOL/IMAGE"));
        };
        target.pool.clone_from(pool);
        match path {
            [image] => target.image.clone_from(image),
            [namespace, image] => {
                target.namespace = Some(namespace.clone());
                target.image.clone_from(image);
            }
            _ => return Err(OptError::new("too many slashes in the name of an rbd image")),
        }
        let mut end = end;
        if end == Some('@') {
            let (snapshot, stop, more) = part(rest, &[':']);
            target.snapshot = Some(snapshot);
            (end, rest) = (stop, more);
        }
        while end.is_some() && !rest.is_empty() {
            let (key, stop, more) = part(rest, &['=', ':']);
            if stop != Some('=') {
                return Err(OptError::new(format!("conf option {key} has no value")));
            }
            let (value, stop, more) = part(more, &[':']);
            match key.as_str() {
                "id" => target.user = Some(value),
                "conf" => target.conf = Some(value),
                _ => target.settings.push((key, value)),
            }
            (end, rest) = (stop, more);
        }
        target.checked()
    }

    /// From the options of `driver=rbd`, and its `filename` if there is one.
    pub fn from_options(
        filename: Option<&str>,
        options: &[(String, String)],
    ) -> Result<Self, OptError> {
        if let Some(name) = filename {
            return match options.first() {
                None => RbdTarget::parse(name),
                Some((key, _)) => Err(OptError::new(format!(
                    "'{key}' cannot be given with a file name of rbd: it stands in the name"
                ))),
            };
        }
        let mut target = RbdTarget::default();
        let (mut hosts, mut ports, mut auth) = (Vec::new(), Vec::new(), Vec::new());
        for (key, value) in options {
            let value = value.clone();
            let listed = |prefix: &str, suffix: &str| {
                let inner = key.strip_prefix(prefix)?.strip_suffix(suffix)?;
                inner.parse::<u16>().ok()
            };
            match key.as_str() {
                "pool" => target.pool = value,
                "namespace" => target.namespace = Some(value),
                "image" => target.image = value,
                "snapshot" => target.snapshot = Some(value),
                "user" => target.user = Some(value),
                "conf" => target.conf = Some(value),
                "key-secret" => {
                    return Err(OptError::new("the option 'key-secret' of rbd is not supported")
                        .hint("name the keyring in the configuration file (conf=)"));
                }
                _ if key.starts_with("encrypt.") => {
                    return Err(OptError::new(format!(
                        "the option '{key}' of rbd is not supported"
                    ))
                    .hint("an encrypted image can be opened as raw, and as luks above it"));
                }
                _ => {
                    if let Some(n) = listed("server.", ".host") {
                        hosts.push((n, value));
                    } else if let Some(n) = listed("server.", ".port") {
                        ports.push((n, value));
                    } else if let Some(n) = listed("auth-client-required.", "") {
                        auth.push((n, value));
                    } else {
                        return Err(OptError::new(format!(
                            "Block protocol 'rbd' doesn't support the option '{key}'"
                        )));
                    }
                }
            }
        }
        hosts.sort();
        let monitors = hosts.iter().map(|(n, host)| {
            let port = ports.iter().find(|(of, _)| of == n).map(|(_, port)| port);
            let host = if host.contains(':') && !host.starts_with('[') {
                format!("[{host}]")
            } else {
                host.clone()
            };
            port.map_or(host.clone(), |port| format!("{host}:{port}"))
        });
        let monitors: Vec<String> = monitors.collect();
        if monitors.is_empty() && !ports.is_empty() {
            return Err(OptError::new("Parameter 'server.0.host' is missing"));
        }
        if !monitors.is_empty() {
            target.settings.push(("mon_host".to_owned(), monitors.join(";")));
        }
        auth.sort();
        if !auth.is_empty() {
            let all: Vec<String> = auth.into_iter().map(|(_, a)| a).collect();
            target.settings.push(("auth_client_required".to_owned(), all.join(";")));
        }
        target.checked()
    }

    /// The name that says all of it but what may be secret.
    pub fn name(&self) -> String {
        let quoted = |text: &str| {
            let mut out = String::new();
            for c in text.chars() {
                if "\\/@:=".contains(c) {
                    out.push('\\');
                }
                out.push(c);
            }
            out
        };
        let value = |text: &str| text.replace('\\', "\\\\").replace(':', "\\:");
        let mut name = format!("rbd:{}/", quoted(&self.pool));
        if let Some(namespace) = &self.namespace {
            name.push_str(&quoted(namespace));
            name.push('/');
        }
        name.push_str(&quoted(&self.image));
        if let Some(snapshot) = &self.snapshot {
            name.push('@');
            name.push_str(&value(snapshot));
        }
        if let Some(user) = &self.user {
            name.push_str(&format!(":id={}", value(user)));
        }
        if let Some(conf) = &self.conf {
            name.push_str(&format!(":conf={}", value(conf)));
        }
        for (key, text) in &self.settings {
            let text = if matches!(key.as_str(), "key" | "keyring_key") { "..." } else { text };
            name.push_str(&format!(":{}={}", quoted(key), value(text)));
        }
        name
    }
}

/// The parts of `POOL/[NAMESPACE/]IMAGE`, and how they end.
fn cut_path(mut rest: &str) -> (Vec<String>, Option<char>, &str) {
    let mut all = Vec::new();
    loop {
        let (name, end, more) = part(rest, &['/', '@', ':']);
        all.push(name);
        rest = more;
        if end != Some('/') {
            return (all, end, rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let shown = |text: &str| RbdTarget::parse(text).map_or_else(|e| e.message, |t| t.name());
        for (text, wanted) in [
            ("rbd:p/i", "rbd:p/i"),
            ("rbd:p/n/i@s:id=me:conf=/etc/x.conf", "rbd:p/n/i@s:id=me:conf=/etc/x.conf"),
            ("rbd:p/a\\@b\\:c", "rbd:p/a\\@b\\:c"),
            ("rbd:p/i:mon_host=a\\:1", "rbd:p/i:mon_host=a\\:1"),
            ("rbd:p/i:key=AQ==", "rbd:p/i:key=..."),
            ("rbd:p", "Pool name is required"),
            ("rbd:", "Pool name is required"),
            ("rbd:p/", "Parameter 'image' is missing"),
            ("rbd:/i", "Parameter 'pool' is missing"),
            ("rbd:a/b/c/d", "too many slashes in the name of an rbd image"),
            ("rbd:p/i@", "Parameter 'snapshot' is missing"),
            ("rbd:p/i:conf", "conf option conf has no value"),
        ] {
            assert_eq!(shown(text), wanted, "{text}");
        }
        assert_eq!(RbdTarget::parse("rbd:p/a\\@b").unwrap().image, "a@b");
    }

    #[test]
    fn all_options() {
        let from = |text: &str| {
            let all: Vec<(String, String)> = text
                .split(',')
                .filter_map(|p| p.split_once('='))
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .collect();
            RbdTarget::from_options(None, &all)
        };
        let t = from("pool=p,image=i,snapshot=s,user=u,conf=/c,namespace=n").unwrap();
        assert_eq!(t.name(), "rbd:p/n/i@s:id=u:conf=/c");
        let t = from("pool=p,image=i,server.1.host=b,server.0.host=::1,server.0.port=3").unwrap();
        assert_eq!(t.settings, [("mon_host".to_owned(), "[::1]:3;b".to_owned())]);
        let t = from("pool=p,image=i,auth-client-required.0=none").unwrap();
        assert_eq!(t.settings, [("auth_client_required".to_owned(), "none".to_owned())]);
        let message = |text: &str| from(text).unwrap_err().message;
        assert_eq!(message("image=i"), "Parameter 'pool' is missing");
        assert!(message("pool=p,image=i,key-secret=s").contains("key-secret"));
        assert!(message("pool=p,image=i,encrypt.format=luks").contains("encrypt.format"));
        assert!(message("pool=p,image=i,foo=s").contains("doesn't support the option 'foo'"));
        assert!(message("pool=p,image=i,server.0.port=1").contains("server.0.host"));
    }
}

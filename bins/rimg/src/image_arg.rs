//! From names and specifications on the command line to requests to open.

use imgcore::graph::open::{BackingChoice, DetectZeroes, Discard, OpenRequest, Sharing};
use imgcore::opts::filename::{self, Filename};
use imgcore::opts::spec::{self, BackingSpec, ImageSpec, Locking};
use imgcore::opts::tree::Scalar;
use imgcore::storage::CacheMode;

use crate::failure::Failure;

/// A file name, plain or `json:{...}`, and the format the user gave.
pub fn from_name(name: &str, format: Option<&str>) -> Result<OpenRequest, Failure> {
    let understood = filename::parse(name).map_err(|e| not_opened(name, e.into()))?;
    match understood {
        Filename::Path(path) => Ok(OpenRequest::file(path).with_driver(format)),
        Filename::Protocol { driver, .. } => {
            Err(not_opened(name, Failure::new(format!("Protocol '{driver}' is not supported"))))
        }
        Filename::Json(spec) => {
            let mut request = from_spec(&spec).map_err(|f| not_opened(name, f))?;
            if let Some(format) = format {
                request.driver = Some(format.to_owned());
            }
            Ok(request)
        }
    }
}

/// The argument of a command with `--image-opts`.
pub fn from_options(text: &str) -> Result<(OpenRequest, ImageSpec), Failure> {
    let spec = ImageSpec::from_options(text).map_err(|e| not_opened(text, e.into()))?;
    let request = from_spec(&spec).map_err(|f| not_opened(text, f))?;
    Ok((request, spec))
}

fn not_opened(name: &str, failure: Failure) -> Failure {
    failure.prefix(&format!("Could not open '{name}'"))
}

/// A specification as a request. Formats within formats are understood only where the outer one is
/// raw and adds nothing.
pub fn from_spec(spec: &ImageSpec) -> Result<OpenRequest, Failure> {
    for warning in &spec.warnings {
        eprintln!("warning: {warning}");
    }
    let Some(file) = &spec.file else {
        return bare_file(spec);
    };
    if let Some(driver) = file.driver.as_deref().filter(|d| spec::is_format(d)) {
        let transparent =
            spec.driver.as_deref() == Some("raw") && spec.offset.is_none() && spec.size.is_none();
        if transparent {
            return from_spec(file);
        }
        let outer = spec.driver.as_deref().unwrap_or("a probed format");
        return Err(Failure::new(format!("'{driver}' inside of {outer} is not supported")));
    }
    let mut request = bare_file(file)?;
    request.driver.clone_from(&spec.driver);
    apply(&mut request, spec)?;
    Ok(request)
}

/// A protocol node without a format above it.
fn bare_file(spec: &ImageSpec) -> Result<OpenRequest, Failure> {
    match spec.driver.as_deref() {
        None | Some("file" | "host_device" | "host_cdrom") => {}
        Some(other) => {
            return Err(Failure::new(format!("Protocol '{other}' is not supported")));
        }
    }
    let mut request = OpenRequest::file(spec.filename.clone().unwrap_or_default());
    if spec.driver.is_some() && spec.file.is_none() {
        // The bytes of the file as they are. Overwritten where there is a format above.
        request.driver = Some("raw".to_owned());
    }
    if spec.locking == Some(Locking::Off) {
        request.sharing = Some(Sharing::Force);
    }
    apply_cache(&mut request, spec);
    Ok(request)
}

fn apply(request: &mut OpenRequest, spec: &ImageSpec) -> Result<(), Failure> {
    apply_cache(request, spec);
    request.read_only = spec.read_only;
    if let Some(share) = spec.force_share {
        request.sharing = Some(if share { Sharing::Force } else { Sharing::Locked });
    }
    request.discard = spec.discard.map(|on| if on { Discard::Unmap } else { Discard::Ignore });
    request.detect_zeroes = match spec.detect_zeroes {
        None | Some(spec::DetectZeroes::Off) => DetectZeroes::Off,
        Some(spec::DetectZeroes::On) => DetectZeroes::On,
        Some(spec::DetectZeroes::Unmap) => DetectZeroes::Unmap,
    };
    request.backing = match &spec.backing {
        BackingSpec::FromImage => BackingChoice::Recorded,
        BackingSpec::None => BackingChoice::Nothing,
        BackingSpec::Spec(s) if s.file.is_none() => {
            return Err(Failure::new(
                "Overriding only the format of a backing file is not supported; name the file too: \
                 backing.file.filename=...",
            ));
        }
        BackingSpec::Spec(s) => BackingChoice::Given(Box::new(from_spec(s)?)),
    };
    if let Some(data) = &spec.data_file {
        request.data_file = Some(Box::new(from_spec(data)?));
    }
    let mut option = |name: &str, value: String| request.options.push((name.to_owned(), value));
    if let Some(offset) = spec.offset {
        option("offset", offset.to_string());
    }
    if let Some(size) = spec.size {
        option("size", size.to_string());
    }
    if let Some(e) = &spec.encrypt {
        if let Some(format) = &e.format {
            option("encrypt.format", format.clone());
        }
        if let Some(secret) = &e.key_secret {
            option("encrypt.key-secret", secret.clone());
        }
    }
    request.options.extend(spec.other.iter().cloned());
    // The driver that probing finds refuses what it does not know.
    let text = |s: &Scalar| s.text().to_owned();
    request.options.extend(spec.undecided.iter().map(|(k, v)| (k.clone(), text(v))));
    Ok(())
}

fn apply_cache(request: &mut OpenRequest, spec: &ImageSpec) {
    match (spec.cache_direct, spec.cache_no_flush) {
        (Some(true), _) => request.cache = Some(CacheMode::None),
        (_, Some(true)) => request.cache = Some(CacheMode::Unsafe),
        (Some(false), _) => request.cache = Some(CacheMode::Writeback),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> OpenRequest {
        from_options(text).unwrap().0
    }

    #[test]
    fn names() {
        assert_eq!(from_name("file:a", None).unwrap().filename, "a");
        assert_eq!(
            from_name("a:b", None).unwrap_err().message(),
            "Could not open 'a:b': Unknown protocol 'a'"
        );
        let r = from_name("json:{\"driver\":\"qcow2\",\"file.filename\":\"a\"}", Some("raw"));
        assert_eq!(r.unwrap().driver.as_deref(), Some("raw"));
    }

    #[test]
    fn specifications() {
        let r = options("driver=raw,file.filename=a,offset=1k,file.locking=off,cache.direct=on");
        assert_eq!(r.filename, "a");
        assert_eq!(r.driver.as_deref(), Some("raw"));
        assert_eq!(r.options, [("offset".to_owned(), "1024".to_owned())]);
        assert_eq!(r.sharing, Some(Sharing::Force));
        assert_eq!(r.cache, Some(CacheMode::None));
        let r = options("file.filename=a,l2-cache-size=1M");
        assert_eq!(r.driver, None);
        assert_eq!(r.options, [("l2-cache-size".to_owned(), "1M".to_owned())]);
        let r = options("driver=qcow2,file.filename=a,backing.driver=raw,backing.file.filename=b");
        let BackingChoice::Given(b) = r.backing else { panic!() };
        assert_eq!((b.filename.as_str(), b.driver.as_deref()), ("b", Some("raw")));
        assert_eq!(options("driver=file,filename=a").driver.as_deref(), Some("raw"));
        assert_eq!(
            options("driver=raw,file.driver=qcow2,file.file.filename=a").driver.as_deref(),
            Some("qcow2")
        );
    }
}

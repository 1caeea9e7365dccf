//! From plain data to open descriptors.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::NetBackend;
use super::bridge;
use super::config::{DOWNSCRIPT, TapConfig, TapSource, Vhost};
use super::script::{self, Downscript};
use super::tap::{Queues, Tap, TapOptions};
use crate::{Error, Result};

const VHOST_NET: &str = "/dev/vhost-net";

/// An open back end.
pub struct Opened {
    /// One handle a pair of queues.
    pub queues: Vec<Box<dyn NetBackend>>,
    /// The kernel's virtio-net, one a pair of queues; empty without.
    pub vhost: Vec<File>,
    /// Name of the interface.
    pub interface: String,
    /// For the end.
    pub downscript: Option<Downscript>,
}

/// Opens a back end, and runs its script.
///
/// # Errors
/// Name what is missing and what to do about it.
pub fn tap(config: &TapConfig) -> Result<Opened> {
    let taps = interfaces(config)?;
    let first = taps.first().ok_or_else(|| Error::invalid("a network needs a queue"))?;
    let interface = first.name().to_owned();
    if let Some(bytes) = config.sndbuf {
        first.set_sndbuf(bytes)?;
    }
    let vhost = open_vhost(config, taps.len())?;
    if let Some(up) = &config.script {
        script::run(up, &interface)?;
    }
    let down = config.downscript.as_deref();
    let down = down.filter(|s| *s != Path::new(DOWNSCRIPT) || s.exists());
    let downscript = down.map(|s| Downscript::prepare(s, &interface)).transpose()?;
    let queues = taps.into_iter().map(|t| -> Box<dyn NetBackend> { Box::new(t) }).collect();
    Ok(Opened { queues, vhost, interface, downscript })
}

fn interfaces(config: &TapConfig) -> Result<Vec<Tap>> {
    let header = config.vnet_header;
    match &config.source {
        TapSource::Descriptors(fds) => {
            fds.iter().map(|fd| Tap::from_fd(inherited(*fd, "tap descriptor fd")?)).collect()
        }
        TapSource::Bridge { bridge, helper } => {
            bridge::join(bridge, helper.as_deref(), header).map(|t| vec![t])
        }
        TapSource::Name(name) => {
            let count = usize::from(config.queues.max(1));
            let queues = if count > 1 { Queues::Several } else { Queues::One };
            let mut options = TapOptions { name: name.clone(), header, queues };
            let mut taps = vec![Tap::open(&options)?];
            // All queues are of the interface that the first has made.
            options.name = taps[0].name().to_owned();
            while taps.len() < count {
                taps.push(Tap::open(&options)?);
            }
            Ok(taps)
        }
    }
}

/// A descriptor that whoever started us has left open.
pub fn inherited(fd: i32, what: &str) -> Result<OwnedFd> {
    crate::fd::borrow(fd).try_clone_to_owned().map_err(|e| {
        Error::io(&e)
            .context(format!("{what}={fd}"))
            .hint("The program that starts rkvm must leave this descriptor open")
    })
}

fn open_vhost(config: &TapConfig, count: usize) -> Result<Vec<File>> {
    let Vhost::On(given) = &config.vhost else { return Ok(Vec::new()) };
    if given.is_empty() {
        return (0..count).map(|_| device(VHOST_NET, "vhost_net", "vhost=off")).collect();
    }
    if given.len() != count {
        return Err(Error::invalid(format!(
            "{} vhost descriptors for {count} pairs of queues",
            given.len()
        )));
    }
    given.iter().map(|fd| Ok(File::from(inherited(*fd, "vhostfd")?))).collect()
}

/// Opens one of the kernel's vhost devices.
pub fn device(path: &str, module: &str, instead: &str) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    options.open(path).map_err(|e| {
        let error = Error::io(&e).context(format!("could not open {path}")).at_path(path);
        error.hint(match e.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
                format!("Load the driver: modprobe {module}; or use {instead}")
            }
            _ => format!(
                "Allow the user to open it: chmod 0660 {path} (group kvm); or use {instead}"
            ),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_devices_and_descriptors_are_explained() {
        let e = device("/dev/no-such-vhost", "vhost_net", "vhost=off").unwrap_err();
        assert!(e.hints()[0].contains("modprobe vhost_net"), "{e:?}");
        let config = TapConfig {
            source: TapSource::Descriptors(vec![9999]),
            queues: 1,
            ..TapConfig::default()
        };
        let e = tap(&config).err().unwrap();
        assert!(e.report().contains("fd=9999"), "{}", e.report());
    }

    #[test]
    fn several_queues_are_of_one_interface() {
        let config = TapConfig { queues: 3, ..TapConfig::default() };
        match tap(&config) {
            Ok(o) => assert_eq!((o.queues.len(), o.vhost.len()), (3, 0)),
            Err(e) => eprintln!("SKIPPED several queues: {}", e.report()),
        }
    }
}

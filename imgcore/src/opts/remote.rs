//! What is opened instead of a file, by the names and options of QEMU's protocol drivers.

use super::OptError;
use super::fat::FatTarget;
use super::filter::Shown;
use super::http::HttpTarget;
use super::nbd::NbdTarget;
use super::null::NullTarget;
use super::rbd::RbdTarget;
use super::ssh::SshTarget;
use super::tree::Scalar;

/// The bytes of an image that are not in a file of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remote {
    /// An export of an NBD server.
    Nbd(NbdTarget),
    /// A file on a web server.
    Http(HttpTarget),
    /// A file on a host reached by ssh.
    Ssh(SshTarget),
    /// An image of a Ceph cluster.
    Rbd(RbdTarget),
    /// Nothing.
    Null(NullTarget),
    /// A folder as a FAT disk.
    Fat(FatTarget),
}

impl Remote {
    /// Whether there is such a driver here.
    pub fn is_driver(driver: &str) -> bool {
        matches!(
            driver,
            "nbd" | "http" | "https" | "ssh" | "rbd" | "null-co" | "null-aio" | "vvfat"
        )
    }

    /// From a file name with the driver's prefix. `None`: no such driver here.
    pub fn parse(driver: &str, name: &str) -> Result<Option<Self>, OptError> {
        Ok(Some(match driver {
            "nbd" => Remote::Nbd(NbdTarget::parse(name)?),
            "http" | "https" => Remote::Http(HttpTarget::parse(name)?),
            "ssh" => Remote::Ssh(SshTarget::parse(name)?),
            "rbd" => Remote::Rbd(RbdTarget::parse(name)?),
            "null-co" | "null-aio" => Remote::Null(NullTarget::parse(driver, name)?),
            "vvfat" => Remote::Fat(FatTarget::parse(name)?),
            _ => return Ok(None),
        }))
    }

    /// From the driver's options, in dotted form, and its `filename` if there is one. `None`: no such driver here.
    pub fn from_options(
        driver: &str,
        filename: Option<&str>,
        options: &[(String, Scalar)],
    ) -> Result<Option<Self>, OptError> {
        let text: Vec<(String, String)> =
            options.iter().map(|(key, value)| (key.clone(), value.text().to_owned())).collect();
        Ok(Some(match driver {
            "nbd" => Remote::Nbd(NbdTarget::from_options(filename, &text)?),
            "http" | "https" => Remote::Http(HttpTarget::from_options(driver, filename, &text)?),
            "ssh" => Remote::Ssh(SshTarget::from_options(filename, &text)?),
            "rbd" => Remote::Rbd(RbdTarget::from_options(filename, &text)?),
            "null-co" | "null-aio" => {
                Remote::Null(NullTarget::from_options(driver, filename, options)?)
            }
            "vvfat" => match filename {
                Some(name) => Remote::Fat(FatTarget::parse(name)?),
                None => Remote::Fat(FatTarget::from_options(options)?),
            },
            _ => return Ok(None),
        }))
    }

    /// QEMU's name of the driver.
    pub fn driver(&self) -> &'static str {
        match self {
            Remote::Nbd(_) => "nbd",
            Remote::Http(target) => target.driver(),
            Remote::Ssh(_) => "ssh",
            Remote::Rbd(_) => "rbd",
            Remote::Null(target) => target.driver,
            Remote::Fat(_) => "vvfat",
        }
    }

    /// The name that is shown however it was given; without anything secret.
    pub fn shown(&self) -> Shown {
        match self {
            Remote::Nbd(target) => Shown::Plain(target.uri()),
            Remote::Http(target) => Shown::Plain(target.url.clone()),
            Remote::Ssh(target) => Shown::Plain(target.url()),
            Remote::Rbd(target) => Shown::Plain(target.name()),
            Remote::Null(target) => target.shown(),
            Remote::Fat(target) => target.shown(),
        }
    }
}

//! What is opened instead of a file, by the names and options of QEMU's protocol drivers.

use super::OptError;
use super::http::HttpTarget;
use super::nbd::NbdTarget;

/// The bytes of an image that are not in a file of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remote {
    /// An export of an NBD server.
    Nbd(NbdTarget),
    /// A file on a web server.
    Http(HttpTarget),
}

impl Remote {
    /// Whether there is such a driver here.
    pub fn is_driver(driver: &str) -> bool {
        matches!(driver, "nbd" | "http" | "https")
    }

    /// From a file name with the driver's prefix. `None`: no such driver here.
    pub fn parse(driver: &str, name: &str) -> Result<Option<Self>, OptError> {
        Ok(Some(match driver {
            "nbd" => Remote::Nbd(NbdTarget::parse(name)?),
            "http" | "https" => Remote::Http(HttpTarget::parse(name)?),
            _ => return Ok(None),
        }))
    }

    /// From the driver's options, in dotted form, and its `filename` if there is one. `None`: no such driver here.
    pub fn from_options(
        driver: &str,
        filename: Option<&str>,
        options: &[(String, String)],
    ) -> Result<Option<Self>, OptError> {
        Ok(Some(match driver {
            "nbd" => Remote::Nbd(NbdTarget::from_options(filename, options)?),
            "http" | "https" => Remote::Http(HttpTarget::from_options(driver, filename, options)?),
            _ => return Ok(None),
        }))
    }

    /// The name that is shown however it was given; without anything secret.
    pub fn shown(&self) -> String {
        match self {
            Remote::Nbd(target) => target.uri(),
            Remote::Http(target) => target.url.clone(),
        }
    }
}

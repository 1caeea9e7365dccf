//! The networks made here, one small file each, so that forwards and removal know them later.

use serde::{Deserialize, Serialize};

use super::forward::Forward;
use super::models::Model;
use super::name::{Cidr, Subnet6, check_name};
use crate::change::Action;
use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;

const FOLDER: &str = "/var/lib/rhostprep/networks";

/// A network as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The bridge.
    pub name: String,
    /// What it is.
    pub model: Model,
    /// Its addresses; None for a bridge to the outside.
    pub subnet: Option<Cidr>,
    /// Its IPv6 addresses.
    #[serde(default)]
    pub subnet6: Option<Subnet6>,
    /// Addresses are given out.
    pub dhcp: bool,
    /// Ports forwarded into it.
    pub forwards: Vec<Forward>,
    /// It comes back after a restart, with its forwards: `net restore` makes it again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub persisted: bool,
}

/// The file of a network.
pub fn path_of(name: &str) -> String {
    format!("{FOLDER}/{name}.json")
}

/// Names of all networks made here.
pub fn names(host: &Host) -> Vec<String> {
    let files = host.list(FOLDER).into_iter();
    files.filter_map(|file| Some(file.strip_suffix(".json")?.to_owned())).collect()
}

/// One network.
pub fn load(host: &Host, name: &str) -> Result<Network> {
    check_name(name)?;
    let path = path_of(name);
    let text = host.read(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::usage(format!("{name} was not made by rhostprep"))
            .remedy("`rhostprep net show` lists what was"),
        _ => Error::io("cannot be read", &host.place(&path), error),
    })?;
    serde_json::from_str(&text).map_err(|error| {
        Error::new(ErrorKind::Damaged, format!("the file of the network is damaged: {error}"))
            .at(path)
    })
}

/// The action that writes a network down.
pub fn file(network: &Network) -> Result<Action> {
    let text = serde_json::to_string_pretty(network)
        .map_err(|error| Error::host(format!("the network cannot be written down: {error}")))?;
    Ok(Action::File { path: path_of(&network.name), text: text + "\n", mode: 0o600 })
}

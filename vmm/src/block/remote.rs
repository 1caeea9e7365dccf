//! Disks that are on servers.
//!
//! What a guest can rely on is the same as with a file: a flush is sent to the server and waited for, an error of the
//! server is the guest's error (or stops the machine, as `werror` and `rerror` say), and a connection that breaks is an
//! error too, at once. A server that says nothing at all while a request waits is given up after five minutes.
//!
//! # In the sandbox
//!
//! NBD needs one connection, which is there before the sandbox closes. Connecting again needs rights that are given
//! only to what the command line names ([`redials`]): then `reconnect-delay` says for how many seconds requests
//! wait for a new connection before they fail. Names of hosts are looked up at the start, once ([`look_up`]).
//!
//! Other protocols would need more: web servers want a new connection now and then, with a name to be looked up and
//! certificates to be read, a folder shown as a FAT disk opens files as they are read. They are refused in the sandbox
//! ([`check`]): another process does it better (`rimg serve`, nbdkit), as it can be confined by itself.

use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use imgcore::graph::Node;
use imgcore::graph::open::{BackingChoice, OpenRequest};
use imgcore::opts::nbd::{NbdServer, NbdTarget};
use imgcore::opts::remote::Remote;

use crate::{Error, Result};

/// How long one of several addresses of a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether the process is going to be confined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Confined {
    /// It is not.
    #[default]
    No,
    /// It is: nothing is opened later on.
    Yes,
}

/// Where the bytes of a chain are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// All on this host.
    #[default]
    Here,
    /// Some on a server: whoever moves them talks on a connection.
    Server,
}

/// Everything that a request names, from the image downwards.
fn parts(request: &OpenRequest) -> Vec<&OpenRequest> {
    let mut all = vec![request];
    let mut next = 0;
    while let Some(one) = all.get(next).copied() {
        next += 1;
        all.extend(one.data_file.as_deref());
        all.extend(one.header.as_deref());
        if let BackingChoice::Given(below) = &one.backing {
            all.push(below);
        }
    }
    all
}

/// NBD exports that a request names.
fn targets(request: &OpenRequest) -> impl Iterator<Item = &NbdTarget> {
    parts(request).into_iter().filter_map(|part| match part.remote.as_deref() {
        Some(Remote::Nbd(target)) => Some(target),
        _ => None,
    })
}

/// All NBD servers that a request names.
pub fn servers(request: &OpenRequest) -> impl Iterator<Item = &NbdServer> {
    targets(request).map(|target| &target.server)
}

/// Servers that are connected to again when a connection breaks: those of the request with `reconnect-delay`.
/// Those that images name for their backing files are not among them, whatever the images say.
pub fn redials(request: &OpenRequest) -> impl Iterator<Item = &NbdServer> {
    targets(request).filter(|t| !t.reconnect_delay.is_zero()).map(|target| &target.server)
}

/// The request with an address for the host's name of each server that is connected to again: names cannot be looked
/// up later. Names that people see stay as they are.
///
/// # Errors
/// When there is no such host.
pub fn look_up(request: &OpenRequest) -> Result<OpenRequest> {
    let mut request = request.clone();
    let mut next = Some(&mut request);
    while let Some(part) = next {
        for file in [part.data_file.as_deref_mut(), part.header.as_deref_mut()] {
            file.map_or(Ok(()), look_up_one)?;
        }
        look_up_one(part)?;
        next = match &mut part.backing {
            BackingChoice::Given(below) => Some(below),
            BackingChoice::Recorded | BackingChoice::Nothing => None,
        };
    }
    Ok(request)
}

fn look_up_one(part: &mut OpenRequest) -> Result<()> {
    let Some(Remote::Nbd(target)) = part.remote.as_deref_mut() else { return Ok(()) };
    if target.reconnect_delay.is_zero() {
        return Ok(());
    }
    let shown = target.address();
    let NbdServer::Inet { host, port } = &mut target.server else { return Ok(()) };
    let all: Vec<SocketAddr> = (host.as_str(), *port)
        .to_socket_addrs()
        .map_err(|e| Error::io(&e).context(format!("Failed to resolve address '{shown}'")))?
        .collect();
    let answers = |a: &&SocketAddr| TcpStream::connect_timeout(a, PATIENCE).is_ok();
    let chosen = match &all[..] {
        [_, _, ..] => all.iter().find(answers).or(all.first()),
        one => one.first(),
    };
    if let Some(address) = chosen {
        // The certificate names the host.
        if target.tls.is_some() {
            target.tls_hostname.get_or_insert_with(|| host.clone());
        }
        *host = match address {
            SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("{}%{}", v6.ip(), v6.scope_id()),
            other => other.ip().to_string(),
        };
    }
    Ok(())
}

/// Where the bytes of an opened chain are.
///
/// # Errors
/// When some of them cannot be reached from within the sandbox, or this program does not use such servers.
pub fn check(node: &Node, confined: Confined) -> Result<Place> {
    let mut place = Place::Here;
    for image in node.chain() {
        for storage in image.image().storages() {
            match (storage.protocol(), confined) {
                (None | Some("null-co" | "null-aio"), _) => {}
                (Some("nbd"), _) | (Some(_), Confined::No) => place = Place::Server,
                (Some(protocol), Confined::Yes) => return Err(refusal(image.name(), protocol)),
            }
        }
    }
    Ok(place)
}

fn refusal(name: &str, protocol: &str) -> Error {
    let error = Error::unsupported(format!(
        "'{name}': the sandbox keeps images from being read by '{protocol}' while the guest runs"
    ));
    match protocol {
        "http" | "https" => error.hint(
            "let another process read it: rimg serve -r --socket PATH URL (or nbdkit -U PATH curl url=URL), and use \
             -drive file=nbd+unix:///?socket=PATH,if=virtio,readonly=on; -sandbox off reads it from here",
        ),
        _ => error.hint(
            "let another process do it: rimg serve --socket PATH IMAGE, and use \
             -drive file=nbd+unix:///?socket=PATH,if=virtio; -sandbox off does it from here",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_connected_to_again() {
        let target = |server, seconds| {
            let mut target = NbdTarget::parse("nbd://h").unwrap();
            target.server = server;
            target.reconnect_delay = Duration::from_secs(seconds);
            OpenRequest::remote(Remote::Nbd(target))
        };
        let unix = NbdServer::Unix { path: "/s".into() };
        let inet = NbdServer::Inet { host: "localhost".into(), port: 10 };
        let mut top = target(unix, 0);
        top.backing = BackingChoice::Given(Box::new(target(inet.clone(), 7)));
        top.data_file = Some(Box::new(target(inet.clone(), 0)));
        assert_eq!(servers(&top).count(), 3);
        assert_eq!(redials(&top).collect::<Vec<_>>(), [&inet]);
        let found = look_up(&top).unwrap();
        let [NbdServer::Inet { host, port: 10 }] = &redials(&found).collect::<Vec<_>>()[..] else {
            panic!("{found:?}");
        };
        assert!(host.parse::<std::net::IpAddr>().is_ok_and(|a| a.is_loopback()), "{host}");
        let BackingChoice::Given(below) = &found.backing else { panic!() };
        assert_eq!(below.name(), "nbd://localhost:10", "people see the name");
        assert_eq!(found.data_file, top.data_file);
        // Its certificate has the name too.
        let mut target = NbdTarget::parse("nbds://localhost:10").unwrap();
        target.reconnect_delay = Duration::from_secs(7);
        let found = look_up(&OpenRequest::remote(Remote::Nbd(target))).unwrap();
        let Some(Remote::Nbd(target)) = found.remote.as_deref() else { panic!() };
        assert_eq!(target.host_name(), Some("localhost"));
        assert!(!target.address().starts_with("localhost"), "{}", target.address());
    }
}

//! rtnetlink: links, addresses and routes. One socket, one request at a time, every request acknowledged.

use std::net::IpAddr;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage as Route;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
};
use netlink_packet_route::link::{
    BridgeStpState, InfoBridge, InfoData, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::name::HostAddress;
use crate::error::{Error, Result};

/// A link as far as we need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Number.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Index of its bridge or bond, 0 for none.
    pub master: u32,
    /// Administratively up.
    pub up: bool,
    /// Hardware address.
    pub mac: Vec<u8>,
    /// MTU.
    pub mtu: u32,
    /// `bridge`, `tun`, `veth`, ...; empty for hardware.
    pub kind: String,
}

/// A connection to the kernel of the present network namespace.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

fn failed(what: &str, error: &std::io::Error) -> Error {
    let text = format!("{what}: {error}");
    match error.raw_os_error() {
        Some(libc::EPERM) => Error::host(text).remedy("run as root (CAP_NET_ADMIN)"),
        Some(libc::EOPNOTSUPP) => {
            Error::host(text).remedy("the module for it may be missing: modprobe bridge")
        }
        _ => Error::host(text),
    }
}

impl Netlink {
    /// Opens a socket.
    pub fn open() -> Result<Self> {
        let open = || -> std::io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let socket = open().map_err(|error| failed("netlink cannot be opened", &error))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends a request and collects the answers until the acknowledgement or the end of a dump.
    fn request(&mut self, message: Route, flags: u16) -> std::io::Result<Vec<Route>> {
        let damaged = |text: String| std::io::Error::new(std::io::ErrorKind::InvalidData, text);
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            let mut at = 0;
            while at < bytes.len() {
                let answer = NetlinkMessage::<Route>::deserialize(&bytes[at..])
                    .map_err(|error| damaged(error.to_string()))?;
                let length = usize::try_from(answer.header.length).unwrap_or(0);
                if length == 0 {
                    break;
                }
                // Messages are aligned to four bytes.
                at += length.next_multiple_of(4);
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    _ => {}
                }
            }
        }
    }

    fn acknowledged(&mut self, message: Route, flags: u16, what: &str) -> Result<()> {
        self.request(message, NLM_F_ACK | flags).map(drop).map_err(|error| failed(what, &error))
    }

    /// Like `acknowledged`, but these error numbers are fine too.
    fn tolerant(&mut self, message: Route, flags: u16, what: &str, fine: &[i32]) -> Result<()> {
        match self.request(message, NLM_F_ACK | flags) {
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error().is_some_and(|number| fine.contains(&number)) => {
                Ok(())
            }
            Err(error) => Err(failed(what, &error)),
        }
    }

    /// All links.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        let answers = self
            .request(Route::GetLink(LinkMessage::default()), NLM_F_DUMP)
            .map_err(|error| failed("links cannot be listed", &error))?;
        let links = answers.into_iter().filter_map(|answer| match answer {
            Route::NewLink(message) => Some(link(&message)),
            _ => None,
        });
        Ok(links.collect())
    }

    /// The link of that name, if there is one.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>> {
        Ok(self.links()?.into_iter().find(|link| link.name == name))
    }

    /// The link of that name, or an error.
    pub fn need(&mut self, name: &str) -> Result<Link> {
        self.link(name)?.ok_or_else(|| {
            Error::host(format!("there is no interface {name}"))
                .remedy("`rhostprep net show` lists them")
        })
    }

    /// Makes a bridge.
    pub fn make_bridge(&mut self, name: &str, stp: bool) -> Result<()> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let state = if stp { BridgeStpState::KernelStp } else { BridgeStpState::Disabled };
        // 2 s in hundredths: the least that the standard allows; without spanning tree there is nothing to wait for.
        let delay = if stp { 200 } else { 0 };
        let mut data = vec![InfoBridge::StpState(state)];
        // The kernel refuses a delay below 2 s while spanning tree is on, and takes 0 while it is off.
        data.push(InfoBridge::ForwardDelay(delay));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(data)),
        ]));
        let what = format!("the bridge {name} cannot be made");
        self.acknowledged(Route::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, &what)
    }

    /// Removes a link; one that has gone is fine.
    pub fn remove_link(&mut self, name: &str) -> Result<()> {
        let Some(link) = self.link(name)? else { return Ok(()) };
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        let what = format!("{name} cannot be removed");
        self.tolerant(Route::DelLink(message), 0, &what, &[libc::ENODEV])
    }

    fn set(&mut self, index: u32, attribute: LinkAttribute, what: &str) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(attribute);
        self.acknowledged(Route::SetLink(message), 0, what)
    }

    /// Joins a bridge (0: leaves it).
    pub fn set_master(&mut self, index: u32, master: u32) -> Result<()> {
        self.set(index, LinkAttribute::Controller(master), "the bridge cannot be joined or left")
    }

    /// Sets the hardware address.
    pub fn set_mac(&mut self, index: u32, mac: &[u8]) -> Result<()> {
        self.set(index, LinkAttribute::Address(mac.to_vec()), "the MAC cannot be set")
    }

    /// Sets the MTU.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<()> {
        self.set(index, LinkAttribute::Mtu(mtu), "the MTU cannot be set")
    }

    /// Up or down.
    pub fn set_up(&mut self, index: u32, up: bool) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.change_mask = LinkFlags::Up;
        message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        self.acknowledged(Route::SetLink(message), 0, "the interface cannot be switched")
    }

    /// Addresses of a link, link-local IPv6 ones left out: each link makes its own.
    pub fn addresses(&mut self, index: u32) -> Result<Vec<AddressMessage>> {
        let answers = self
            .request(Route::GetAddress(AddressMessage::default()), NLM_F_DUMP)
            .map_err(|error| failed("addresses cannot be listed", &error))?;
        let own = answers.into_iter().filter_map(|answer| match answer {
            Route::NewAddress(message) if message.header.index == index => Some(message),
            _ => None,
        });
        Ok(own.filter(|message| !link_local(message)).collect())
    }

    /// Adds an address as a message; one that is there is fine.
    pub fn put_address(&mut self, mut message: AddressMessage, index: u32) -> Result<()> {
        message.header.index = index;
        // A label names the old interface; the kernel makes a new one.
        message.attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Label(_)));
        self.tolerant(
            Route::NewAddress(message),
            NLM_F_CREATE | NLM_F_REPLACE,
            "the address cannot be added",
            &[libc::EEXIST],
        )
    }

    /// Adds an address that was this host's on another link a moment ago: nobody else can have it, so the second
    /// of looking for duplicates (RFC 4862 section 5.4), in which it cannot be used, is left out.
    pub fn move_address(&mut self, mut message: AddressMessage, index: u32) -> Result<()> {
        if message.header.family == AddressFamily::Inet6 {
            message.header.flags |= AddressHeaderFlags::Nodad;
            for attribute in &mut message.attributes {
                if let AddressAttribute::Flags(flags) = attribute {
                    *flags |= AddressFlags::Nodad;
                }
            }
        }
        self.put_address(message, index)
    }

    /// Removes an address; one that has gone is fine.
    pub fn drop_address(&mut self, mut message: AddressMessage, index: u32) -> Result<()> {
        message.header.index = index;
        message.attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Label(_)));
        let fine = [libc::EADDRNOTAVAIL, libc::ENODEV];
        self.tolerant(Route::DelAddress(message), 0, "the address cannot be removed", &fine)
    }

    /// Adds an address, an IPv4 one with its broadcast address.
    pub fn add_address(&mut self, index: u32, address: HostAddress) -> Result<()> {
        self.put_address(address_message(address), index)
    }

    /// Removes an address.
    pub fn remove_address(&mut self, index: u32, address: HostAddress) -> Result<()> {
        self.drop_address(address_message(address), index)
    }

    /// Routes over a link that somebody set (not those the kernel makes with an address), on-link ones first.
    pub fn routes(&mut self, index: u32) -> Result<Vec<RouteMessage>> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut ask = RouteMessage::default();
            ask.header.address_family = family;
            let answers = self
                .request(Route::GetRoute(ask), NLM_F_DUMP)
                .map_err(|error| failed("routes cannot be listed", &error))?;
            routes.extend(answers.into_iter().filter_map(|answer| match answer {
                Route::NewRoute(message) if ours(&message, index) => Some(message),
                _ => None,
            }));
        }
        routes.sort_by_key(|route| {
            route.attributes.iter().any(|attribute| {
                matches!(attribute, RouteAttribute::Gateway(_) | RouteAttribute::Via(_))
            })
        });
        Ok(routes)
    }

    /// Adds a route as a message, over another link.
    pub fn put_route(&mut self, message: RouteMessage, index: u32) -> Result<()> {
        self.tolerant(
            Route::NewRoute(told(message, index)),
            NLM_F_CREATE | NLM_F_REPLACE,
            "the route cannot be added",
            &[libc::EEXIST],
        )
    }

    /// Removes a route over a link; one that has gone is fine.
    pub fn drop_route(&mut self, message: RouteMessage, index: u32) -> Result<()> {
        let fine = [libc::ESRCH, libc::ENODEV];
        let message = Route::DelRoute(told(message, index));
        self.tolerant(message, 0, "the route cannot be removed", &fine)
    }
}

/// A route as the kernel is told it, made of one that it reported.
fn told(mut message: RouteMessage, index: u32) -> RouteMessage {
    let mut expires = 0;
    for attribute in &mut message.attributes {
        match attribute {
            RouteAttribute::Oif(old) => *old = index,
            RouteAttribute::CacheInfo(info) => expires = info.expires,
            _ => {}
        }
    }
    message.attributes.retain(|attribute| {
        !matches!(attribute, RouteAttribute::CacheInfo(_) | RouteAttribute::Expires(_))
    });
    // A route of a router advertisement ends by itself: reported in hundredths of a second (USER_HZ), told in
    // seconds.
    if message.header.address_family == AddressFamily::Inet6 && expires > 0 {
        message.attributes.push(RouteAttribute::Expires(expires.div_ceil(100)));
    }
    message.header.flags = netlink_packet_route::route::RouteFlags::empty();
    message
}

fn address_message(address: HostAddress) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.prefix_len = address.prefix;
    message.attributes.push(AddressAttribute::Local(address.address));
    message.attributes.push(AddressAttribute::Address(address.address));
    match address.address {
        IpAddr::V4(own) => {
            message.header.family = AddressFamily::Inet;
            if address.prefix < 31 {
                let last = super::Cidr { address: own, prefix: address.prefix }.broadcast();
                message.attributes.push(AddressAttribute::Broadcast(last));
            }
        }
        IpAddr::V6(_) => message.header.family = AddressFamily::Inet6,
    }
    message
}

/// Whether two messages mean the same address; lifetimes run, so they do not count.
pub fn same_address(one: &AddressMessage, other: &AddressMessage) -> bool {
    address_of(one) == address_of(other)
}

/// Whether two messages mean the same route.
pub fn same_route(one: &RouteMessage, other: &RouteMessage) -> bool {
    let key = |route: &RouteMessage| {
        let kept = route.attributes.iter().filter(|attribute| {
            matches!(
                attribute,
                RouteAttribute::Destination(_)
                    | RouteAttribute::Gateway(_)
                    | RouteAttribute::Priority(_)
                    | RouteAttribute::Table(_)
            )
        });
        let header = &route.header;
        let kept: Vec<RouteAttribute> = kept.cloned().collect();
        (header.address_family, header.destination_prefix_length, header.table, kept)
    };
    key(one) == key(other)
}

fn link_local(message: &AddressMessage) -> bool {
    message.attributes.iter().any(|attribute| match attribute {
        AddressAttribute::Address(IpAddr::V6(address)) => address.is_unicast_link_local(),
        _ => false,
    })
}

/// Whether a route goes over this link only and was set by somebody.
fn ours(message: &RouteMessage, index: u32) -> bool {
    let over = message.attributes.contains(&RouteAttribute::Oif(index));
    let by_kernel = message.header.protocol == netlink_packet_route::route::RouteProtocol::Kernel;
    // RT_TABLE_LOCAL: filled by the kernel.
    let local = message.header.table == 255;
    over && !by_kernel && !local
}

fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        master: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        mac: Vec::new(),
        mtu: 0,
        kind: String::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Controller(master) => link.master = *master,
            LinkAttribute::Address(mac) => link.mac.clone_from(mac),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        link.kind = kind.to_string();
                    }
                }
            }
            _ => {}
        }
    }
    link
}

/// The address of a message with its prefix length.
pub fn address_of(message: &AddressMessage) -> Option<(IpAddr, u8)> {
    // IPv4 has its own address as Local and the peer's (mostly the same) as Address; IPv6 mostly Address only.
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let any = || {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    };
    Some((local.or_else(any)?, message.header.prefix_len))
}

/// A message's bytes.
pub fn emit(message: &impl netlink_packet_core::Emitable) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}

/// An address message from its bytes, by way of a whole packet, as the crate parses those.
pub fn parse_address(bytes: &[u8]) -> Option<AddressMessage> {
    match parse(bytes, libc::RTM_NEWADDR)? {
        Route::NewAddress(message) => Some(message),
        _ => None,
    }
}

/// A route message from its bytes.
pub fn parse_route(bytes: &[u8]) -> Option<RouteMessage> {
    match parse(bytes, libc::RTM_NEWROUTE)? {
        Route::NewRoute(message) => Some(message),
        _ => None,
    }
}

fn parse(bytes: &[u8], kind: u16) -> Option<Route> {
    let length = u32::try_from(bytes.len() + 16).ok()?;
    let mut packet = Vec::with_capacity(bytes.len() + 16);
    packet.extend(length.to_ne_bytes());
    packet.extend(kind.to_ne_bytes());
    packet.extend([0; 10]);
    packet.extend(bytes);
    match NetlinkMessage::<Route>::deserialize(&packet).ok()?.payload {
        NetlinkPayload::InnerMessage(inner) => Some(inner),
        _ => None,
    }
}

//! Requests and replies of SFTP as bytes (draft-ietf-secsh-filexfer-02): a length, a type, a number, fields. Numbers are
//! big-endian, strings have their length before them (section 3).

/// The version that is spoken.
pub(super) const VERSION: u32 = 3;
/// Longest packet that is taken from a server. The protocol asks for 34000 bytes at least; none needs more than what
/// one read asks for and its head.
pub(super) const MAX_PACKET: usize = 1 << 20;

pub(super) const INIT: u8 = 1;
pub(super) const OPEN: u8 = 3;
pub(super) const CLOSE: u8 = 4;
pub(super) const READ: u8 = 5;
pub(super) const WRITE: u8 = 6;
pub(super) const FSTAT: u8 = 8;
pub(super) const FSETSTAT: u8 = 10;
pub(super) const REMOVE: u8 = 13;
pub(super) const REALPATH: u8 = 16;
pub(super) const STAT: u8 = 17;
pub(super) const EXTENDED: u8 = 200;

const IS_VERSION: u8 = 2;
const IS_STATUS: u8 = 101;
const IS_HANDLE: u8 = 102;
const IS_DATA: u8 = 103;
const IS_NAME: u8 = 104;
const IS_ATTRIBUTES: u8 = 105;
const IS_EXTENDED: u8 = 201;

/// How a file is opened (section 6.3).
pub(super) const OPEN_READ: u32 = 1;
pub(super) const OPEN_WRITE: u32 = 2;
pub(super) const OPEN_CREATE: u32 = 8;
pub(super) const OPEN_NEW: u32 = 0x20;

/// Codes of a status (section 7).
pub(super) const STATUS_OK: u32 = 0;
pub(super) const STATUS_EOF: u32 = 1;
pub(super) const STATUS_NO_SUCH_FILE: u32 = 2;
pub(super) const STATUS_PERMISSION_DENIED: u32 = 3;
pub(super) const STATUS_UNSUPPORTED: u32 = 8;

/// Which fields attributes have (section 5).
const HAS_SIZE: u32 = 1;
const HAS_OWNER: u32 = 2;
const HAS_MODE: u32 = 4;
const HAS_TIMES: u32 = 8;

/// A packet that is being put together, without its length.
#[derive(Debug)]
pub(super) struct Packet(Vec<u8>);

impl Packet {
    pub fn new(kind: u8) -> Self {
        Packet(vec![kind])
    }

    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub fn bytes(self, bytes: &[u8]) -> Self {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let mut packet = self.u32(len);
        packet.0.extend_from_slice(bytes);
        packet
    }

    /// Attributes that set a length and nothing else.
    pub fn size(self, size: u64) -> Self {
        self.u32(HAS_SIZE).u64(size)
    }

    /// Attributes that set permissions and nothing else.
    pub fn mode(self, mode: u32) -> Self {
        self.u32(HAS_MODE).u32(mode)
    }

    /// Attributes that set nothing.
    pub fn no_attributes(self) -> Self {
        self.u32(0)
    }

    /// With the length before it, and the number behind the type.
    pub fn finish(self, number: Option<u32>) -> Vec<u8> {
        let more = if number.is_some() { 4 } else { 0 };
        let len = u32::try_from(self.0.len() + more).unwrap_or(u32::MAX);
        let mut all = Vec::with_capacity(self.0.len() + 8);
        all.extend(len.to_be_bytes());
        all.push(self.0[0]);
        if let Some(number) = number {
            all.extend(number.to_be_bytes());
        }
        all.extend_from_slice(&self.0[1..]);
        all
    }
}

/// What is known of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    pub size: Option<u64>,
    pub mode: Option<u32>,
    /// Seconds since 1970.
    pub changed: Option<u32>,
}

/// What a server says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Status {
        code: u32,
        message: String,
    },
    Handle(Vec<u8>),
    Data(Vec<u8>),
    /// The first of some names.
    Name(Vec<u8>),
    Attributes(Attributes),
    Extended(Vec<u8>),
}

/// Bytes of a packet, from front to end.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(self.take(8)?.try_into().ok()?))
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.u32()?).ok()?;
        self.take(len)
    }

    fn attributes(&mut self) -> Option<Attributes> {
        let flags = self.u32()?;
        let has = |flag: u32| flags & flag != 0;
        let size = if has(HAS_SIZE) { Some(self.u64()?) } else { None };
        if has(HAS_OWNER) {
            self.u64()?;
        }
        let mode = if has(HAS_MODE) { Some(self.u32()?) } else { None };
        let changed = if has(HAS_TIMES) {
            self.u32()?;
            Some(self.u32()?)
        } else {
            None
        };
        // What extensions say is not used; it stands last.
        Some(Attributes { size, mode, changed })
    }
}

/// Words of a server, fit for a message: one line, not too long.
fn words(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// The number and the reply in a packet without its length. `None`: not as the protocol wants it.
pub(super) fn reply(packet: &[u8]) -> Option<(u32, Reply)> {
    let mut fields = Fields(packet);
    let kind = *fields.take(1)?.first()?;
    let number = fields.u32()?;
    let reply = match kind {
        IS_STATUS => {
            let code = fields.u32()?;
            // Old servers say no more.
            Reply::Status { code, message: fields.bytes().map(words).unwrap_or_default() }
        }
        // Longer ones are forbidden (section 6.3).
        IS_HANDLE => Reply::Handle(fields.bytes().filter(|h| h.len() <= 256)?.to_vec()),
        IS_DATA => Reply::Data(fields.bytes()?.to_vec()),
        IS_NAME => {
            let count = fields.u32()?;
            Reply::Name(fields.bytes().filter(|_| count > 0)?.to_vec())
        }
        IS_ATTRIBUTES => Reply::Attributes(fields.attributes()?),
        IS_EXTENDED => Reply::Extended(fields.0.to_vec()),
        _ => return None,
    };
    Some((number, reply))
}

/// What a server can do besides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extensions {
    /// `fsync@openssh.com`.
    pub fsync: bool,
    /// `limits@openssh.com`.
    pub limits: bool,
    /// `posix-rename@openssh.com`.
    pub rename: bool,
}

/// The first packet of a server (section 4): its version and extensions.
pub(super) fn version(packet: &[u8]) -> Option<(u32, Extensions)> {
    let mut fields = Fields(packet);
    if fields.take(1)? != [IS_VERSION] {
        return None;
    }
    let version = fields.u32()?;
    let mut all = Extensions::default();
    while !fields.0.is_empty() {
        let (name, value) = (fields.bytes()?, fields.bytes()?);
        match (name, value) {
            (b"fsync@openssh.com", b"1") => all.fsync = true,
            (b"limits@openssh.com", b"1") => all.limits = true,
            (b"posix-rename@openssh.com", b"1") => all.rename = true,
            _ => {}
        }
    }
    Some((version, all))
}

/// The reply to `limits@openssh.com`: longest packet, longest read, longest write (PROTOCOL of OpenSSH, 4.8). Zero: no
/// limit told.
pub(super) fn limits(bytes: &[u8]) -> Option<(u64, u64, u64)> {
    let mut fields = Fields(bytes);
    Some((fields.u64()?, fields.u64()?, fields.u64()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets() {
        let read = Packet::new(READ).bytes(b"ha").u64(7).u32(9).finish(Some(3));
        assert_eq!(
            read,
            [
                0, 0, 0, 23, 5, 0, 0, 0, 3, 0, 0, 0, 2, b'h', b'a', 0, 0, 0, 0, 0, 0, 0, 7, 0, 0,
                0, 9
            ]
        );
        assert_eq!(Packet::new(INIT).u32(3).finish(None), [0, 0, 0, 5, 1, 0, 0, 0, 3]);
    }

    fn packet(kind: u8, number: u32) -> Packet {
        Packet::new(kind).u32(number)
    }

    #[test]
    fn replies() {
        let of = |p: Packet| reply(&p.0);
        assert_eq!(of(packet(IS_DATA, 4).bytes(b"abc")), Some((4, Reply::Data(b"abc".to_vec()))));
        assert_eq!(
            of(packet(IS_STATUS, 5).u32(2).bytes(b"no\n such file").bytes(b"en")),
            Some((5, Reply::Status { code: 2, message: "no such file".into() }))
        );
        assert_eq!(
            of(packet(IS_ATTRIBUTES, 6)
                .u32(HAS_SIZE | HAS_OWNER | HAS_TIMES)
                .u64(9)
                .u64(0)
                .u32(1)
                .u32(2)),
            Some((
                6,
                Reply::Attributes(Attributes { size: Some(9), mode: None, changed: Some(2) })
            ))
        );
        assert_eq!(of(packet(IS_HANDLE, 1).bytes(&[0; 257])), None);
        assert_eq!(of(packet(77, 1)), None);
        // Cut anywhere, there is no reply, or none of more than there was.
        let whole = packet(IS_ATTRIBUTES, 6).u32(15).u64(1).u64(2).u32(3).u64(4).0;
        assert!((0..whole.len()).all(|n| reply(&whole[..n]).is_none()));
        assert_eq!(reply(&[IS_DATA, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0]), None);
    }

    #[test]
    fn versions() {
        let all = Packet::new(IS_VERSION)
            .u32(3)
            .bytes(b"fsync@openssh.com")
            .bytes(b"1")
            .bytes(b"x")
            .bytes(b"2");
        let wanted = Extensions { fsync: true, ..Extensions::default() };
        assert_eq!(version(&all.0), Some((3, wanted)));
        assert_eq!(version(&[IS_VERSION, 0, 0, 0, 3]), Some((3, Extensions::default())));
        assert_eq!(version(&[IS_VERSION, 0, 0, 0, 3, 0]), None);
        assert_eq!(version(&[1, 0, 0, 0, 3]), None);
    }
}

//! One entry of a partition table.

use super::types;

/// What an entry says the partition is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartitionType {
    /// The byte of an MBR.
    Mbr(u8),
    /// The GUID of a GPT, in lower case.
    Gpt(String),
}

impl PartitionType {
    /// What it is called, if it is known here.
    pub fn describe(&self) -> Option<&'static str> {
        match self {
            PartitionType::Mbr(kind) => types::mbr(*kind),
            PartitionType::Gpt(guid) => types::gpt(guid),
        }
    }
}

impl std::fmt::Display for PartitionType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PartitionType::Mbr(kind) => write!(f, "{kind:#04x}"),
            PartitionType::Gpt(guid) => f.write_str(guid),
        }
    }
}

/// Where the entry stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// In the table itself.
    Primary,
    /// The container of the logical ones (MBR).
    Extended,
    /// In the chain inside the container (MBR).
    Logical,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number, as in the names of Linux's devices: from 1; logical ones from 5.
    pub number: u32,
    /// First byte on the disk.
    pub start: u64,
    /// Bytes. May reach beyond the end of the disk.
    pub length: u64,
    /// What it is for.
    pub kind: PartitionType,
    /// Its name (GPT).
    pub name: Option<String>,
    /// Its identifier, as in `PARTUUID=`: a GUID, or the disk's signature and the number.
    pub id: Option<String>,
    /// MBR: marked active. GPT: the attribute `legacy BIOS bootable`.
    pub bootable: bool,
    /// GPT attributes.
    pub attributes: u64,
    /// Where the entry stands.
    pub role: Role,
}

impl Partition {
    /// The first byte behind it.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.length)
    }
}

//! SMBIOS tables (DMTF DSP0134, version 3.0): who made the machine, and what `-smbios` says about it.

use super::SMBIOS;
use super::acpi::checksum;
use crate::Result;
use crate::cpu::Topology;
use crate::num::{len_u64, low16, put_le};

/// Texts of types 0 and 1, as `-smbios` sets them; `None` for the usual ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SmbiosConfig {
    /// Type 0: vendor, version, date.
    pub bios: [Option<String>; 3],
    /// Type 1: manufacturer, product, version, serial, sku, family.
    pub system: [Option<String>; 6],
    /// Type 3 and 4 manufacturer.
    pub chassis: Option<String>,
    /// Type 11: OEM strings.
    pub oem: Vec<String>,
    /// The machine's identity (`-uuid`).
    pub uuid: [u8; 16],
}

/// Structures one after the other.
#[derive(Default)]
struct Tables {
    bytes: Vec<u8>,
    count: u64,
    largest: usize,
}

/// The texts of one structure; numbers start at 1, 0 means none.
#[derive(Default)]
struct Strings(Vec<String>);

impl Strings {
    fn add(&mut self, text: &str) -> u8 {
        let clean: String = text.chars().filter(|c| *c != '\0').collect();
        if clean.is_empty() || self.0.len() > 250 {
            return 0;
        }
        self.0.push(clean);
        u8::try_from(self.0.len()).unwrap_or(0)
    }
}

impl Tables {
    /// Adds a structure; `body` begins behind the header.
    fn add(&mut self, kind: u8, handle: u16, body: &[u8], strings: &Strings) {
        let start = self.bytes.len();
        let len = u8::try_from(body.len() + 4).unwrap_or(u8::MAX);
        self.bytes.extend_from_slice(&[kind, len]);
        self.bytes.extend_from_slice(&handle.to_le_bytes());
        self.bytes.extend_from_slice(body);
        for s in &strings.0 {
            self.bytes.extend_from_slice(s.as_bytes());
            self.bytes.push(0);
        }
        self.bytes.extend_from_slice(if strings.0.is_empty() { &[0, 0] } else { &[0] });
        self.count += 1;
        self.largest = self.largest.max(self.bytes.len() - start);
    }
}

/// Both entry points and all structures, to be stored at [`SMBIOS`].
///
/// # Errors
/// When texts are too long.
pub fn build(config: &SmbiosConfig, topology: &Topology, memory: u64) -> Result<Vec<u8>> {
    let mut t = Tables::default();
    let text =
        |given: &Option<String>, usual: &str| given.clone().unwrap_or_else(|| usual.to_owned());
    bios(&mut t, config, &text);
    system(&mut t, config, &text);
    chassis(&mut t, config, &text);
    for socket in 0..topology.sockets {
        processor(&mut t, socket, topology);
    }
    if !config.oem.is_empty() {
        let mut s = Strings::default();
        let n = config.oem.iter().map(|o| s.add(o)).max().unwrap_or(0);
        t.add(11, 0xe00, &[n], &s);
    }
    memory_structures(&mut t, memory);
    t.add(127, 0x7f00, &[], &Strings::default());
    let mut all = vec![0; 64];
    entry_points(&t, &mut all);
    all.extend_from_slice(&t.bytes);
    if all.len() > super::SMBIOS_LEN {
        return Err(crate::Error::invalid(format!(
            "SMBIOS tables of {} bytes are too large",
            all.len()
        ))
        .hint("Shorten the texts of -smbios"));
    }
    Ok(all)
}

type Text<'a> = &'a dyn Fn(&Option<String>, &str) -> String;

fn bios(t: &mut Tables, config: &SmbiosConfig, text: Text<'_>) {
    let mut s = Strings::default();
    let mut b = [0; 20];
    b[0] = s.add(&text(&config.bios[0], "rkvm"));
    b[1] = s.add(&text(&config.bios[1], env!("CARGO_PKG_VERSION")));
    put_le(&mut b[2..4], 0xe800);
    b[4] = s.add(&text(&config.bios[2], "01/01/2025"));
    // Characteristics are not supported; ACPI, virtual machine.
    b[6] = 8;
    b[14] = 1;
    b[15] = 0x10;
    b[16..20].fill(0xff);
    t.add(0, 0, &b, &s);
}

fn system(t: &mut Tables, config: &SmbiosConfig, text: Text<'_>) {
    let mut s = Strings::default();
    let mut b = [0; 23];
    b[0] = s.add(&text(&config.system[0], "rkvm"));
    b[1] = s.add(&text(&config.system[1], "KVM virtual machine"));
    b[2] = s.add(&text(&config.system[2], ""));
    b[3] = s.add(&text(&config.system[3], ""));
    // The first three fields of an identity are little-endian (7.2.1).
    let u = config.uuid;
    b[4..20].copy_from_slice(&[
        u[3], u[2], u[1], u[0], u[5], u[4], u[7], u[6], u[8], u[9], u[10], u[11], u[12], u[13],
        u[14], u[15],
    ]);
    // Woken by the power switch.
    b[20] = 6;
    b[21] = s.add(&text(&config.system[4], ""));
    b[22] = s.add(&text(&config.system[5], "Virtual Machine"));
    t.add(1, 0x100, &b, &s);
}

fn chassis(t: &mut Tables, config: &SmbiosConfig, text: Text<'_>) {
    let mut s = Strings::default();
    let mut b = [0; 18];
    b[0] = s.add(&text(&config.chassis, "rkvm"));
    // Other; states safe; security unknown.
    b[1] = 1;
    b[5..9].copy_from_slice(&[3, 3, 3, 2]);
    t.add(3, 0x300, &b, &s);
}

fn processor(t: &mut Tables, socket: u32, topology: &Topology) {
    let mut s = Strings::default();
    let mut b = [0; 44];
    b[0] = s.add(&format!("CPU {socket}"));
    // Central processor; family: see the second field.
    b[1] = 3;
    b[2] = 0xfe;
    b[3] = s.add("KVM");
    b[12] = s.add("virtual");
    put_le(&mut b[16..18], 2000);
    put_le(&mut b[18..20], 2000);
    // Populated and enabled; upgrade: other.
    b[20] = 0x41;
    b[21] = 1;
    put_le(&mut b[22..24], 0xffff);
    put_le(&mut b[24..26], 0xffff);
    put_le(&mut b[26..28], 0xffff);
    let threads = topology.cores * topology.threads;
    b[31] = u8::try_from(topology.cores).unwrap_or(0xff);
    b[32] = b[31];
    b[33] = u8::try_from(threads).unwrap_or(0xff);
    // 64-bit capable.
    put_le(&mut b[34..36], 4);
    put_le(&mut b[36..38], 1);
    put_le(&mut b[38..40], topology.cores.into());
    put_le(&mut b[40..42], topology.cores.into());
    put_le(&mut b[42..44], threads.into());
    t.add(4, 0x400 + low16(socket.into()), &b, &s);
}

fn memory_structures(t: &mut Tables, memory: u64) {
    let none = Strings::default();
    let mut array = [0; 19];
    // Other; system memory; multi-bit error correction; one device.
    array[0..3].copy_from_slice(&[1, 3, 6]);
    put_le(&mut array[3..7], 0x8000_0000);
    put_le(&mut array[7..9], 0xfffe);
    put_le(&mut array[9..11], 1);
    put_le(&mut array[11..19], memory);
    t.add(16, 0x1000, &array, &none);
    let mut s = Strings::default();
    let mut d = [0; 36];
    put_le(&mut d[0..2], 0x1000);
    put_le(&mut d[2..4], 0xfffe);
    put_le(&mut d[4..6], 0xffff);
    put_le(&mut d[6..8], 0xffff);
    let mib = memory >> 20;
    put_le(&mut d[8..10], if mib < 0x7fff { mib } else { 0x7fff });
    d[10] = 9;
    d[12] = s.add("DIMM 0");
    // RAM, other.
    d[14] = 7;
    put_le(&mut d[15..17], 2);
    d[19] = s.add("rkvm");
    put_le(&mut d[24..28], if mib < 0x7fff { 0 } else { mib });
    t.add(17, 0x1100, &d, &s);
    let mut m = [0; 27];
    put_le(&mut m[0..4], 0xffff_ffff);
    put_le(&mut m[4..8], 0xffff_ffff);
    put_le(&mut m[8..10], 0x1000);
    m[10] = 1;
    put_le(&mut m[19..27], memory.saturating_sub(1));
    t.add(19, 0x1300, &m, &none);
}

/// 5.2.1 and 5.2.2: the 32-bit one for old kernels, the 64-bit one for the others.
fn entry_points(t: &Tables, all: &mut [u8]) {
    let (address, len) = (SMBIOS + 64, len_u64(t.bytes.len()));
    let e = &mut all[0..31];
    e[0..4].copy_from_slice(b"_SM_");
    e[5] = 31;
    e[6..8].copy_from_slice(&[2, 8]);
    put_le(&mut e[8..10], len_u64(t.largest));
    e[16..21].copy_from_slice(b"_DMI_");
    put_le(&mut e[22..24], len);
    put_le(&mut e[24..28], address);
    put_le(&mut e[28..30], t.count);
    e[30] = 0x28;
    e[21] = checksum(&e[16..31]);
    e[4] = checksum(e);
    let e = &mut all[32..56];
    e[0..5].copy_from_slice(b"_SM3_");
    e[6] = 24;
    e[7..10].copy_from_slice(&[3, 0, 0]);
    e[10] = 1;
    put_le(&mut e[12..16], len);
    put_le(&mut e[16..24], address);
    e[5] = checksum(e);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_can_be_walked() {
        let config = SmbiosConfig {
            system: [Some("Me".into()), None, None, Some("S1".into()), None, None],
            oem: vec!["a".into(), "b".into()],
            uuid: *b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff",
            ..SmbiosConfig::default()
        };
        let topology = Topology { sockets: 2, cpus: 2, max_cpus: 2, ..Topology::default() };
        let all = build(&config, &topology, 6 << 30).unwrap();
        assert_eq!(
            (checksum(&all[..31]), checksum(&all[16..31]), checksum(&all[32..56])),
            (0, 0, 0)
        );
        let (mut rest, mut kinds) = (&all[64..], Vec::new());
        while !rest.is_empty() {
            let len = usize::from(rest[1]);
            kinds.push(rest[0]);
            let text = &rest[len..];
            let end = text.windows(2).position(|w| w == [0, 0]).unwrap() + 2;
            if rest[0] == 1 {
                assert!(text.starts_with(b"Me\0KVM virtual machine\0S1\0"));
                assert_eq!(rest[8..12], [0x33, 0x22, 0x11, 0]);
            }
            rest = &text[end..];
        }
        assert_eq!(kinds, [0, 1, 3, 4, 4, 11, 16, 17, 19, 127]);
        let long = SmbiosConfig { oem: vec!["x".repeat(70_000)], ..config };
        assert!(build(&long, &topology, 1 << 30).is_err());
    }
}

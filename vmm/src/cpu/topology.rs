//! Sockets, cores, threads.
//!
//! The number of a local APIC is made of bit fields (thread, core, socket), each wide enough for its
//! count, so that guests can split it again (Intel SDM volume 3, 9.9.1; AMD APM volume 3, appendix E).

use crate::{Error, Result};

/// How processors are arranged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// vCPUs that are there from the start.
    pub cpus: u32,
    /// vCPUs there can be; `sockets * cores * threads`.
    pub max_cpus: u32,
    /// Sockets.
    pub sockets: u32,
    /// Cores in a socket.
    pub cores: u32,
    /// Threads in a core.
    pub threads: u32,
}

impl Default for Topology {
    fn default() -> Self {
        Topology { cpus: 1, max_cpus: 1, sockets: 1, cores: 1, threads: 1 }
    }
}

/// What a user said; absent parts are worked out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// vCPUs from the start.
    pub cpus: Option<u32>,
    /// vCPUs there can be.
    pub max_cpus: Option<u32>,
    /// Sockets.
    pub sockets: Option<u32>,
    /// Cores in a socket.
    pub cores: Option<u32>,
    /// Threads in a core.
    pub threads: Option<u32>,
}

impl Wanted {
    /// Works out what was not said: sockets first, as QEMU 1.1 did and its documents show. A product
    /// that does not match is corrected by the number of sockets; the text says how.
    pub fn resolve(self) -> Result<(Topology, Option<String>)> {
        for (name, value) in [
            ("cpus", self.cpus),
            ("maxcpus", self.max_cpus),
            ("sockets", self.sockets),
            ("cores", self.cores),
            ("threads", self.threads),
        ] {
            if value == Some(0) {
                return Err(Error::invalid(format!(
                    "Invalid CPU topology: CPU topology parameters must be greater than zero ({name}=0)"
                )));
            }
            if value.is_some_and(|v| v > 65536) {
                return Err(Error::invalid(format!("Invalid CPU topology: {name}= is too large")));
            }
        }
        let threads = self.threads.unwrap_or(1);
        let said = self
            .sockets
            .unwrap_or(1)
            .saturating_mul(self.cores.unwrap_or(1))
            .saturating_mul(threads);
        let cpus = self.cpus.or(self.max_cpus).unwrap_or(said);
        let max_cpus = self.max_cpus.unwrap_or(cpus);
        if max_cpus < cpus {
            return Err(Error::invalid(format!(
                "Invalid CPU topology: maxcpus must be equal to or greater than smp: maxcpus ({max_cpus}) < smp_cpus ({cpus})"
            )));
        }
        let (sockets, cores) = match (self.sockets, self.cores) {
            (Some(s), Some(c)) => (s, c),
            (Some(s), None) => (s, max_cpus.div_ceil(s.saturating_mul(threads)).max(1)),
            (None, c) => {
                let c = c.unwrap_or(1);
                (max_cpus.div_ceil(c.saturating_mul(threads)).max(1), c)
            }
        };
        let product = sockets.saturating_mul(cores).saturating_mul(threads);
        if product == max_cpus {
            return Ok((Topology { cpus, max_cpus, sockets, cores, threads }, None));
        }
        let per_socket = cores.saturating_mul(threads);
        let fixed_sockets = max_cpus.div_ceil(per_socket).max(1);
        let max = fixed_sockets.saturating_mul(per_socket);
        let note = format!(
            "-smp: {sockets} sockets * {cores} cores * {threads} threads make {product} vCPUs, not {max_cpus}; \
             using sockets={fixed_sockets},cores={cores},threads={threads},maxcpus={max}"
        );
        let t = Topology { cpus, max_cpus: max, sockets: fixed_sockets, cores, threads };
        Ok((t, Some(note)))
    }
}

/// Bits that hold the numbers 0 to `count - 1`.
const fn width(count: u32) -> u32 {
    match count {
        0 | 1 => 0,
        n => u32::BITS - (n - 1).leading_zeros(),
    }
}

impl Topology {
    /// Bits of the APIC number that select a thread.
    pub fn thread_bits(&self) -> u32 {
        width(self.threads)
    }

    /// Bits below the socket's number.
    pub fn package_bits(&self) -> u32 {
        width(self.cores) + self.thread_bits()
    }

    /// Socket, core and thread of a vCPU.
    pub fn place(&self, index: u32) -> (u32, u32, u32) {
        let per_socket = self.cores.max(1) * self.threads.max(1);
        let within = index % per_socket;
        (index / per_socket, within / self.threads.max(1), within % self.threads.max(1))
    }

    /// The APIC number of a vCPU.
    pub fn apic_id(&self, index: u32) -> u32 {
        let (socket, core, thread) = self.place(index);
        (socket << self.package_bits()) | (core << self.thread_bits()) | thread
    }

    /// Refuses what the machine cannot have: APIC numbers beyond 254 need interrupt remapping.
    pub fn check(&self, host_max: usize) -> Result<()> {
        let last = self.apic_id(self.max_cpus.saturating_sub(1));
        if last > 254 {
            return Err(Error::unsupported(format!(
                "{} vCPUs in this topology need APIC number {last}; numbers up to 254 are possible",
                self.max_cpus
            ))
            .hint("Use fewer vCPUs, or counts of cores and threads that are powers of two"));
        }
        if usize::try_from(self.cpus).unwrap_or(usize::MAX) > host_max {
            return Err(Error::unsupported(format!(
                "{} vCPUs are more than this host's KVM allows ({host_max})",
                self.cpus
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(cpus: u32, s: u32, c: u32, t: u32) -> Wanted {
        let some = |v: u32| (v != 0).then_some(v);
        Wanted {
            cpus: some(cpus),
            max_cpus: None,
            sockets: some(s),
            cores: some(c),
            threads: some(t),
        }
    }

    #[test]
    fn missing_parts_are_worked_out() {
        let of = |w: Wanted| {
            let (t, note) = w.resolve().unwrap();
            assert_eq!(note, None);
            (t.cpus, t.sockets, t.cores, t.threads)
        };
        assert_eq!(of(wanted(4, 0, 0, 0)), (4, 4, 1, 1));
        assert_eq!(of(wanted(8, 2, 2, 2)), (8, 2, 2, 2));
        assert_eq!(of(wanted(8, 2, 0, 0)), (8, 2, 4, 1));
        assert_eq!(of(wanted(8, 0, 2, 2)), (8, 2, 2, 2));
        assert_eq!(of(wanted(0, 2, 3, 1)), (6, 2, 3, 1));
        assert_eq!(of(Wanted::default()), (1, 1, 1, 1));
    }

    #[test]
    fn a_wrong_product_is_corrected_with_a_line() {
        let (t, note) = wanted(4, 2, 1, 1).resolve().unwrap();
        assert_eq!((t.cpus, t.sockets, t.max_cpus), (4, 4, 4));
        assert!(note.unwrap().contains("using sockets=4,cores=1,threads=1,maxcpus=4"));
        let (t, note) = wanted(5, 1, 2, 2).resolve().unwrap();
        assert_eq!((t.cpus, t.max_cpus, t.sockets), (5, 8, 2));
        assert!(note.is_some());
        assert!(wanted(1, 0, 0, 0).resolve().is_ok());
        let zero = Wanted { cores: Some(0), ..Wanted::default() };
        assert!(zero.resolve().unwrap_err().to_string().contains("greater than zero"));
        let less = Wanted { cpus: Some(4), max_cpus: Some(2), ..Wanted::default() };
        assert!(less.resolve().is_err());
        assert!(wanted(u32::MAX, 0, 0, 0).resolve().is_err());
    }

    #[test]
    fn apic_numbers_leave_room_for_odd_counts() {
        let t = Topology { cpus: 6, max_cpus: 6, sockets: 2, cores: 3, threads: 1 };
        let ids: Vec<u32> = (0..6).map(|i| t.apic_id(i)).collect();
        assert_eq!(ids, [0, 1, 2, 4, 5, 6]);
        let t = Topology { cpus: 8, max_cpus: 8, sockets: 2, cores: 2, threads: 2 };
        assert_eq!((0..8).map(|i| t.apic_id(i)).collect::<Vec<_>>(), (0..8).collect::<Vec<_>>());
        assert_eq!(t.place(5), (1, 0, 1));
        assert!(t.check(4).is_err() && t.check(8).is_ok());
        let big = Topology { cpus: 1, max_cpus: 300, sockets: 100, cores: 3, threads: 1 };
        assert!(big.check(1024).is_err());
    }
}

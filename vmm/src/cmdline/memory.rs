//! `-m`, `-mem-path`, `-mem-prealloc`, `-object memory-backend-*`, `-numa`.

use std::collections::BTreeMap;

use super::builder::Builder;
use super::cpu::ranges;
use super::options::{Options, boolean, number};
use crate::cpu::Topology;
use crate::mem::config::{Backend, DEFAULT_SIZE, MemoryConfig, Node, Sharing, Source};
use crate::{Error, Result};

const MIB: u64 = 1 << 20;

#[derive(Clone, Debug, Default)]
struct NodeSpec {
    mem: Option<u64>,
    memdev: Option<String>,
    cpus: Vec<u32>,
}

/// Everything said about memory.
#[derive(Clone, Debug, Default)]
pub struct MemorySpec {
    size: Option<u64>,
    path: Option<String>,
    prealloc: bool,
    merge: Option<bool>,
    dump: Option<bool>,
    objects: BTreeMap<String, (Backend, u64)>,
    nodes: BTreeMap<u64, NodeSpec>,
    distances: Vec<(u64, u64, u8)>,
    /// `-machine memory-backend=`.
    pub whole: Option<String>,
}

/// `-m 128`, `-m 2G`, `-m size=1G,slots=0`.
pub fn size(b: &mut Builder, text: &str) -> Result<()> {
    let mut o = Options::parse(text, Some("size"));
    let size = o.take_size("size", MIB)?;
    let (slots, max) = (o.take_number("slots")?.unwrap_or(0), o.take_size("maxmem", MIB)?);
    if slots > 0 || max.is_some_and(|m| Some(m) != size) {
        return Err(Error::unsupported("memory hot-plug (slots=, maxmem=) is not supported yet")
            .hint("Give all memory at once: -m SIZE"));
    }
    // Whole MiB, as QEMU rounds up to 8 KiB; the hole and huge pages like them.
    b.memory.size = size.map(|s| s.next_multiple_of(8192)).filter(|s| *s > 0);
    o.finish(&[])
}

/// `-mem-path`.
pub fn path(b: &mut Builder, text: &str) -> Result<()> {
    b.memory.path = Some(text.to_owned());
    Ok(())
}

/// `-mem-prealloc`.
pub fn prealloc(b: &mut Builder, _text: &str) -> Result<()> {
    b.memory.prealloc = true;
    Ok(())
}

/// `-object memory-backend-ram|file|memfd,...`; other objects are refused.
pub fn object(b: &mut Builder, text: &str) -> Result<()> {
    let mut o = Options::parse(text, Some("qom-type"));
    let kind = o.need("qom-type")?;
    let id = match kind.as_str() {
        // The language of rimg's --object.
        "secret" | "secret_keyring" => {
            b.secrets.push(imgcore::opts::secret::parse(text).map_err(Error::from)?);
            return Ok(());
        }
        "memory-backend-ram" | "memory-backend-file" | "memory-backend-memfd" => o.need("id")?,
        // Queues of disks have threads of their own; those who measure them may name them.
        "iothread" => {
            b.iothreads.push(o.need("id")?);
            return o.finish(&[
                ("poll-max-ns", "Leave it out; queues wait in the kernel"),
                ("poll-grow", "Leave it out; queues wait in the kernel"),
                ("poll-shrink", "Leave it out; queues wait in the kernel"),
                ("aio-max-batch", "Leave it out; a batch is what the guest has on its ring"),
                ("thread-pool-min", "Leave it out; threads are started when they are needed"),
                ("thread-pool-max", "Leave it out; a disk has 16 at most"),
            ]);
        }
        "rng-random" | "rng-builtin" => {
            let id = o.need("id")?;
            let file = if kind == "rng-random" { o.take("filename") } else { None };
            b.rngs.insert(id, file.unwrap_or_default().into());
            return o.finish(&[]);
        }
        other => {
            return Err(Error::unsupported(format!("object '{other}' is not supported yet")).hint(
                "memory-backend-ram, -file and -memfd, rng-random, rng-builtin, iothread, secret \
                     and secret_keyring are",
            ));
        }
    };
    let size =
        o.take_size("size", 1)?.ok_or_else(|| Error::invalid("Parameter 'size' is missing"))?;
    let source = match kind.as_str() {
        "memory-backend-file" => Source::File(o.need("mem-path")?.into()),
        "memory-backend-memfd" => {
            let huge = o.take_bool("hugetlb")?.unwrap_or(false);
            let page = o.take_size("hugetlbsize", 1)?;
            Source::Memfd { huge_page: huge.then_some(page.unwrap_or(2 << 20)) }
        }
        _ => Source::Anonymous,
    };
    let shared = o.take_bool("share")?.unwrap_or(false);
    let backend = Backend {
        id: id.clone(),
        source,
        sharing: if shared { Sharing::Shared } else { Sharing::Private },
        prealloc: o.take_bool("prealloc")?.unwrap_or(false),
        merge: o.take_bool("merge")?.unwrap_or(true),
        dump: o.take_bool("dump")?.unwrap_or(true),
    };
    o.finish(&[
        ("host-nodes", "Run rkvm under numactl --membind"),
        ("policy", "Run rkvm under numactl"),
        ("align", "Leave it out"),
        ("pmem", "Leave it out"),
        ("readonly", "Leave it out"),
        ("discard-data", "Leave it out"),
        ("reserve", "Leave it out; memory is not reserved"),
        ("prealloc-threads", "Leave it out; the kernel allocates"),
        ("seal", "Leave it out"),
    ])?;
    if b.memory.objects.insert(id.clone(), (backend, size)).is_some() {
        return Err(Error::invalid(format!("attempt to add duplicate property '{id}' to object")));
    }
    Ok(())
}

/// `-numa node,...` and `-numa dist,...`.
pub fn numa(b: &mut Builder, text: &str) -> Result<()> {
    let mut o = Options::parse(text, Some("type"));
    match o.need("type")?.as_str() {
        "node" => {
            let next = b.memory.nodes.keys().last().map_or(0, |n| n + 1);
            let id = o.take_number("nodeid")?.unwrap_or(next);
            if id > 127 {
                return Err(Error::invalid(format!("Max number of NUMA nodes reached: {id}")));
            }
            let mut node =
                NodeSpec { mem: o.take_size("mem", MIB)?, memdev: o.take("memdev"), cpus: vec![] };
            for list in o.take_all("cpus") {
                node.cpus.extend(ranges("cpus", &list)?);
            }
            if node.mem.is_some() && node.memdev.is_some() {
                return Err(Error::invalid("cannot specify both mem= and memdev="));
            }
            if b.memory.nodes.insert(id, node).is_some() {
                return Err(Error::invalid(format!("Duplicate NUMA nodeid: {id}")));
            }
            o.finish(&[("initiator", "Leave it out")])
        }
        "dist" => {
            let get = |o: &mut Options, k: &str| o.need(k).and_then(|v| number(k, &v));
            let (src, dst, val) = (get(&mut o, "src")?, get(&mut o, "dst")?, get(&mut o, "val")?);
            let val = u8::try_from(val).ok().filter(|v| *v >= 10).ok_or_else(|| {
                Error::invalid(format!(
                    "NUMA distance ({val}) is invalid, it should be between 10 and 255"
                ))
            })?;
            b.memory.distances.push((src, dst, val));
            o.finish(&[])
        }
        other => Err(Error::unsupported(format!("NUMA type '{other}' is not supported yet"))
            .hint("node and dist are")),
    }
}

impl MemorySpec {
    /// `-machine mem-merge=`.
    pub fn set_merge(&mut self, on: bool) {
        self.merge = Some(on);
    }

    /// `-machine dump-guest-core=`.
    pub fn set_dump(&mut self, on: bool) {
        self.dump = Some(on);
    }

    fn backend(&self) -> Backend {
        let mut b = Backend { prealloc: self.prealloc, ..Backend::default() };
        if let Some(p) = &self.path {
            b.source = Source::File(p.into());
        }
        self.with_machine(b)
    }

    fn with_machine(&self, mut b: Backend) -> Backend {
        b.merge &= self.merge.unwrap_or(true);
        b.dump &= self.dump.unwrap_or(true);
        b.prealloc |= self.prealloc;
        b
    }

    fn object(&self, id: &str) -> Result<(Backend, u64)> {
        let (b, size) = self.objects.get(id).ok_or_else(|| {
            Error::invalid(format!("memory backend '{id}' not found"))
                .hint(format!("Add -object memory-backend-ram,id={id},size=..."))
        })?;
        Ok((self.with_machine(b.clone()), *size))
    }

    /// Resolves references and shares out what was not said.
    pub fn finish(self, topology: &Topology) -> Result<MemoryConfig> {
        if self.nodes.is_empty() {
            let Some(id) = &self.whole else {
                return Ok(MemoryConfig::simple(self.size.unwrap_or(DEFAULT_SIZE), self.backend()));
            };
            let (backend, size) = self.object(id)?;
            if self.size.is_some_and(|s| s != size) {
                return Err(Error::invalid(format!(
                    "-m does not agree with the size of memory backend '{id}' ({size} bytes)"
                )));
            }
            return Ok(MemoryConfig::simple(size, backend));
        }
        let size = self.size.unwrap_or(DEFAULT_SIZE);
        let count = u64::try_from(self.nodes.len()).unwrap_or(1);
        let mut nodes = Vec::new();
        for (position, (id, spec)) in (0u64..).zip(&self.nodes) {
            if *id != position {
                return Err(Error::invalid(format!("numa: Node ID missing: {position}")));
            }
            let (backend, bytes) = match (&spec.memdev, spec.mem) {
                (Some(id), _) => self.object(id)?,
                (None, Some(mem)) => (self.backend(), mem),
                // Evenly, in pieces of 8 MiB; the last one takes the rest.
                (None, None)
                    if self.nodes.values().all(|n| n.mem.is_none() && n.memdev.is_none()) =>
                {
                    let share = size / count / (8 * MIB) * (8 * MIB);
                    let last = position + 1 == count;
                    (self.backend(), if last { size - share * (count - 1) } else { share })
                }
                (None, None) => (self.backend(), 0),
            };
            nodes.push(Node { size: bytes, cpus: spec.cpus.clone(), backend });
        }
        let sum: u64 = nodes.iter().map(|n| n.size).sum();
        if sum != size && self.size.is_some() {
            return Err(Error::invalid(format!(
                "total memory for NUMA nodes ({sum:#x}) should equal RAM size ({size:#x})"
            )));
        }
        if nodes.iter().all(|n| n.cpus.is_empty()) {
            for cpu in 0..topology.max_cpus {
                let (socket, ..) = topology.place(cpu);
                let n = nodes.len();
                nodes[socket as usize % n].cpus.push(cpu);
            }
        }
        let mut distances = vec![vec![0; nodes.len()]; nodes.len()];
        for (src, dst, val) in self.distances {
            let place = usize::try_from(src).ok().and_then(|s| distances.get_mut(s));
            let place =
                place.and_then(|row| row.get_mut(usize::try_from(dst).unwrap_or(usize::MAX)));
            *place
                .ok_or_else(|| Error::invalid(format!("-numa dist: no node {src} or {dst}")))? =
                val;
        }
        Ok(MemoryConfig { nodes, numa: true, distances })
    }
}

/// For `-machine`: on or off.
pub fn switch(key: &str, value: &str) -> Result<bool> {
    boolean(key, value)
}

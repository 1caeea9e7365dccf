//! CPUs, caches and memory nodes as sysfs shows them.

use super::Host;
use crate::units::CpuSet;

/// One logical CPU that is online.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpu {
    /// Its number.
    pub id: u32,
    /// `physical_package_id`.
    pub socket: i64,
    /// `core_id`, unique within a socket (and a die).
    pub core: i64,
    /// CPUs that share its core, itself included.
    pub siblings: CpuSet,
    /// Memory node.
    pub node: u32,
}

/// One cache, seen once however many CPUs share it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// 1, 2, 3.
    pub level: u32,
    /// `Data`, `Instruction`, `Unified`.
    pub kind: String,
    /// As sysfs writes it: `32K`.
    pub size: String,
    /// CPUs below it.
    pub cpus: CpuSet,
}

/// One memory node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its number.
    pub id: u32,
    /// CPUs on it.
    pub cpus: CpuSet,
    /// Bytes of memory, 0 when unknown.
    pub memory: u64,
    /// Distance to every node, in the order of the nodes.
    pub distance: Vec<u32>,
}

/// Everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology {
    /// Online CPUs by number.
    pub cpus: Vec<Cpu>,
    /// Caches by level, then first CPU.
    pub caches: Vec<Cache>,
    /// Nodes; a host without NUMA has one with all CPUs.
    pub nodes: Vec<Node>,
}

const CPUS: &str = "/sys/devices/system/cpu";
const NODES: &str = "/sys/devices/system/node";

impl Topology {
    /// Reads sysfs.
    pub fn read(host: &Host) -> Self {
        let online = host.text(&format!("{CPUS}/online")).and_then(|text| CpuSet::parse(&text));
        let online = online.unwrap_or_else(|| numbered(host, CPUS, "cpu"));
        let mut nodes: Vec<Node> = numbered(host, NODES, "node")
            .0
            .into_iter()
            .filter_map(|id| read_node(host, id))
            .collect();
        if nodes.is_empty() {
            let memory = host.meminfo().bytes("MemTotal");
            nodes.push(Node { id: 0, cpus: online.clone(), memory, distance: vec![10] });
        }
        let mut cpus: Vec<Cpu> = online.0.iter().map(|id| read_cpu(host, *id)).collect();
        for cpu in &mut cpus {
            if let Some(node) = nodes.iter().find(|node| node.cpus.contains(cpu.id)) {
                cpu.node = node.id;
            }
        }
        Self { caches: read_caches(host, &cpus), cpus, nodes }
    }

    /// All online CPUs.
    pub fn online(&self) -> CpuSet {
        self.cpus.iter().map(|cpu| cpu.id).collect()
    }

    /// Number of sockets.
    pub fn sockets(&self) -> usize {
        let mut ids: Vec<i64> = self.cpus.iter().map(|cpu| cpu.socket).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.len()
    }

    /// Number of cores.
    pub fn cores(&self) -> usize {
        self.cpus.iter().filter(|cpu| cpu.siblings.0.first() == Some(&cpu.id)).count()
    }

    /// Cores as sets of sibling CPUs, by first CPU.
    pub fn core_sets(&self) -> Vec<CpuSet> {
        let first = |cpu: &&Cpu| cpu.siblings.0.first() == Some(&cpu.id);
        self.cpus.iter().filter(first).map(|cpu| cpu.siblings.clone()).collect()
    }
}

fn numbered(host: &Host, folder: &str, prefix: &str) -> CpuSet {
    let numbers = host.list(folder).into_iter();
    numbers.filter_map(|name| name.strip_prefix(prefix)?.parse().ok()).take(8192).collect()
}

fn read_node(host: &Host, id: u32) -> Option<Node> {
    let folder = format!("{NODES}/node{id}");
    let cpus = CpuSet::parse(&host.text(&format!("{folder}/cpulist"))?)?;
    let info = host.text(&format!("{folder}/meminfo")).unwrap_or_default();
    let memory = info.lines().find_map(|line| {
        let value = line.split_once("MemTotal:")?.1;
        value.split_whitespace().next()?.parse::<u64>().ok()
    });
    let distance = host.text(&format!("{folder}/distance")).unwrap_or_default();
    Some(Node {
        id,
        cpus,
        memory: memory.unwrap_or(0).saturating_mul(1024),
        distance: distance.split_whitespace().filter_map(|word| word.parse().ok()).collect(),
    })
}

fn read_cpu(host: &Host, id: u32) -> Cpu {
    let folder = format!("{CPUS}/cpu{id}/topology");
    let number = |name: &str| -> i64 {
        let text = host.text(&format!("{folder}/{name}"));
        text.and_then(|text| text.parse().ok()).unwrap_or(0)
    };
    let siblings = host
        .text(&format!("{folder}/thread_siblings_list"))
        .and_then(|text| CpuSet::parse(&text))
        .filter(|set| set.contains(id));
    Cpu {
        id,
        socket: number("physical_package_id"),
        core: number("core_id"),
        siblings: siblings.unwrap_or_else(|| [id].into_iter().collect()),
        node: 0,
    }
}

fn read_caches(host: &Host, cpus: &[Cpu]) -> Vec<Cache> {
    let mut caches: Vec<Cache> = Vec::new();
    for cpu in cpus {
        for index in 0..8 {
            let folder = format!("{CPUS}/cpu{}/cache/index{index}", cpu.id);
            let text = |name: &str| host.text(&format!("{folder}/{name}"));
            let Some(level) = text("level").and_then(|level| level.parse().ok()) else { break };
            let shared = text("shared_cpu_list").and_then(|list| CpuSet::parse(&list));
            let shared = shared.unwrap_or_else(|| [cpu.id].into_iter().collect());
            // Every sharer lists the cache; the first one speaks for all.
            if shared.0.first().is_some_and(|first| *first != cpu.id) {
                continue;
            }
            caches.push(Cache {
                level,
                kind: text("type").unwrap_or_default(),
                size: text("size").unwrap_or_default(),
                cpus: shared,
            });
        }
    }
    caches.sort_by(|a, b| {
        (a.level, &a.kind, a.cpus.0.first()).cmp(&(b.level, &b.kind, b.cpus.0.first()))
    });
    caches
}

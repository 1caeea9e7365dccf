//! Memory as the kernel accounts it: `/proc/meminfo`, `/proc/swaps`, hugepage pools, free blocks.

use std::collections::BTreeMap;

use super::Host;

/// `/proc/meminfo` in bytes (the hugepage counters are pages).
#[derive(Debug, Clone, Default)]
pub struct MemInfo(BTreeMap<String, u64>);

impl MemInfo {
    /// A field in bytes, 0 when absent.
    pub fn bytes(&self, field: &str) -> u64 {
        self.0.get(field).copied().unwrap_or(0)
    }

    /// Whether the file had that field.
    pub fn has(&self, field: &str) -> bool {
        self.0.contains_key(field)
    }
}

/// One line of `/proc/swaps`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swap {
    /// File or device.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Bytes in use.
    pub used: u64,
    /// Lives in compressed memory (zram), so it is no second place for data.
    pub zram: bool,
}

/// One pool of hugepages, of the whole host or of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HugePool {
    /// Bytes a page.
    pub page: u64,
    /// Pages in the pool.
    pub total: u64,
    /// Pages nobody holds; some of them may be promised.
    pub free: u64,
    /// Pages promised to mappings but not yet touched.
    pub reserved: u64,
    /// Pages beyond the configured number.
    pub surplus: u64,
}

impl HugePool {
    /// Pages a new guest can have.
    pub fn available(&self) -> u64 {
        self.free.saturating_sub(self.reserved)
    }
}

impl Host {
    /// `/proc/meminfo`.
    pub fn meminfo(&self) -> MemInfo {
        let text = self.read("/proc/meminfo").unwrap_or_default();
        let fields = text.lines().filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            let mut words = value.split_whitespace();
            let number: u64 = words.next()?.parse().ok()?;
            let unit = if words.next() == Some("kB") { 1024 } else { 1 };
            Some((name.trim().to_owned(), number.saturating_mul(unit)))
        });
        MemInfo(fields.collect())
    }

    /// Swap areas in use.
    pub fn swaps(&self) -> Vec<Swap> {
        let text = self.read("/proc/swaps").unwrap_or_default();
        let areas = text.lines().skip(1).filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [name, _, size, used, ..] = words.as_slice() else { return None };
            let kib = |text: &str| text.parse::<u64>().ok().map(|kib| kib.saturating_mul(1024));
            Some(Swap {
                name: (*name).to_owned(),
                size: kib(size)?,
                used: kib(used)?,
                zram: name.starts_with("/dev/zram"),
            })
        });
        areas.collect()
    }

    /// Hugepage pools of the host (`None`) or of a node.
    pub fn huge_pools(&self, node: Option<u32>) -> Vec<HugePool> {
        let folder = match node {
            None => "/sys/kernel/mm/hugepages".to_owned(),
            Some(node) => format!("/sys/devices/system/node/node{node}/hugepages"),
        };
        let pools = self.list(&folder).into_iter().filter_map(|name| {
            let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let field = |field: &str| self.number(&format!("{folder}/{name}/{field}"));
            Some(HugePool {
                page: kib.checked_mul(1024)?,
                total: field("nr_hugepages")?,
                free: field("free_hugepages")?,
                // Nodes have no reservation counter: reservations belong to the whole host.
                reserved: field("resv_hugepages").unwrap_or(0),
                surplus: field("surplus_hugepages").unwrap_or(0),
            })
        });
        let mut pools: Vec<HugePool> = pools.collect();
        pools.sort_by_key(|pool| pool.page);
        pools
    }

    /// Free bytes in blocks of at least `block` bytes, by node (`/proc/buddyinfo`: column n counts free
    /// blocks of 2^n pages of 4 KiB).
    pub fn free_blocks(&self, block: u64) -> BTreeMap<u32, u64> {
        let mut free: BTreeMap<u32, u64> = BTreeMap::new();
        for line in self.read("/proc/buddyinfo").unwrap_or_default().lines() {
            let Some(rest) = line.strip_prefix("Node ") else { continue };
            let Some((node, rest)) = rest.split_once(',') else { continue };
            let Ok(node) = node.trim().parse() else { continue };
            let counts = rest.split_whitespace().skip(2);
            let mut size = 4096_u64;
            let total = free.entry(node).or_default();
            for count in counts {
                if size >= block {
                    let count: u64 = count.parse().unwrap_or(0);
                    *total = total.saturating_add(count.saturating_mul(size));
                }
                size = size.saturating_mul(2);
            }
        }
        free
    }
}

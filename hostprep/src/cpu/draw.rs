//! Sockets, cores, threads, nodes and caches as text.

use std::fmt::Write as _;

use crate::host::Host;
use crate::units::show_size;

/// Draws the host's processors.
pub fn draw(host: &Host) -> String {
    let topology = host.topology();
    let mut out = String::new();
    let info = host.cpuinfo();
    // Writing to a String cannot fail.
    let _ =
        writeln!(out, "{}", if info.model.is_empty() { "unnamed processor" } else { &info.model });
    let threads = topology.core_sets().iter().map(crate::units::CpuSet::len).max().unwrap_or(1);
    let _ = writeln!(
        out,
        "logical CPUs {}, sockets {}, cores {}, threads per core {threads}, NUMA nodes {}",
        topology.cpus.len(),
        topology.sockets(),
        topology.cores(),
        topology.nodes.len(),
    );
    let mut sockets: Vec<i64> = topology.cpus.iter().map(|cpu| cpu.socket).collect();
    sockets.sort_unstable();
    sockets.dedup();
    for socket in sockets {
        let _ = writeln!(out, "socket {socket}");
        for node in &topology.nodes {
            let here =
                topology.cpus.iter().filter(|cpu| cpu.socket == socket && cpu.node == node.id);
            let cores: Vec<_> =
                here.filter(|cpu| cpu.siblings.0.first() == Some(&cpu.id)).collect();
            if cores.is_empty() {
                continue;
            }
            let memory = if node.memory > 0 {
                format!(", {}", show_size(node.memory))
            } else {
                String::new()
            };
            let _ = writeln!(out, "  node {}{memory}", node.id);
            let width = cores.iter().map(|cpu| cpu.siblings.to_string().len()).max().unwrap_or(1);
            // As many cores on a line as fit into 80 columns.
            let fit = (76 / (width + 3)).max(1);
            for row in cores.chunks(fit) {
                out.push_str("    ");
                for cpu in row {
                    let _ = write!(out, "[{:^width$}] ", cpu.siblings.to_string());
                }
                out.truncate(out.trim_end().len());
                out.push('\n');
            }
        }
    }
    for level in 1..=4 {
        let caches: Vec<_> = topology.caches.iter().filter(|cache| cache.level == level).collect();
        let mut kinds: Vec<&str> = caches.iter().map(|cache| cache.kind.as_str()).collect();
        kinds.dedup();
        for kind in kinds {
            let same: Vec<_> = caches.iter().filter(|cache| cache.kind == kind).collect();
            let Some(first) = same.first() else { continue };
            let shared = first.cpus.len();
            let groups = if shared > threads {
                let list: Vec<String> =
                    same.iter().map(|cache| format!("[{}]", cache.cpus)).collect();
                format!(": {}", list.join(" "))
            } else {
                String::new()
            };
            let _ = writeln!(
                out,
                "L{level} {kind} {}, {} of them, {} CPU{} each{groups}",
                first.size,
                same.len(),
                shared,
                if shared == 1 { "" } else { "s" },
            );
        }
    }
    if topology.nodes.len() > 1 {
        let _ = writeln!(out, "distance between nodes");
        for node in &topology.nodes {
            let row: Vec<String> =
                node.distance.iter().map(|number| format!("{number:>4}")).collect();
            let _ = writeln!(out, "  node {:>2}:{}", node.id, row.concat());
        }
    }
    out
}

//! The packet filters of a network: the body of its own nftables table.

use std::fmt::Write as _;

use super::forward::Forward;
use super::models::Model;
use super::registry::Network;

/// Name of our table.
pub fn table_name(bridge: &str) -> String {
    format!("rhostprep_{bridge}")
}

/// The table's body.
pub fn table_body(network: &Network) -> String {
    let mut out = String::new();
    let bridge = &network.name;
    // Writing to a String cannot fail.
    let mut line = |text: &str| {
        let _ = writeln!(out, "{text}");
    };
    let Some(subnet) = network.subnet else { return out };
    let net = format!("{}/{}", subnet.network(), subnet.prefix);
    line("  chain forward {");
    line("    type filter hook forward priority filter; policy accept;");
    line(&format!("    iifname \"{bridge}\" oifname \"{bridge}\" accept"));
    match network.model {
        Model::Isolated => {
            line(&format!("    iifname \"{bridge}\" drop"));
            line(&format!("    oifname \"{bridge}\" drop"));
        }
        Model::Routed | Model::Bridged => {}
        Model::Nat => {
            // Guests open connections; into the network go answers and forwarded ports only.
            line(&format!("    iifname \"{bridge}\" ip saddr {net} accept"));
            line(&format!("    iifname \"{bridge}\" drop"));
            line(&format!("    oifname \"{bridge}\" ct state established,related accept"));
            line(&format!("    oifname \"{bridge}\" ct status dnat accept"));
            line(&format!("    oifname \"{bridge}\" drop"));
        }
    }
    line("  }");
    if network.model == Model::Nat {
        line("  chain postrouting {");
        line("    type nat hook postrouting priority srcnat; policy accept;");
        line(&format!(
            "    ip saddr {net} ip daddr != {{ {net}, 224.0.0.0/4, 255.255.255.255 }} masquerade"
        ));
        line("  }");
        if !network.forwards.is_empty() {
            for (hook, priority, guard) in
                [("prerouting", "dstnat", ""), ("output", "-100", "ip daddr != 127.0.0.0/8 ")]
            {
                line(&format!("  chain {hook} {{"));
                line(&format!("    type nat hook {hook} priority {priority}; policy accept;"));
                for Forward { protocol, port, guest, guest_port } in &network.forwards {
                    line(&format!(
                        "    fib daddr type local {guard}meta nfproto ipv4 {protocol} dport {port} dnat ip to {guest}:{guest_port}"
                    ));
                }
                line("  }");
            }
        }
    }
    out
}

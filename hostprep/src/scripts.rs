//! /etc/qemu-ifup and its like: the guides' scripts with `ip` and `nft` instead of brctl, tunctl, ifconfig and
//! iptables, in plain sh, every expansion quoted.

use crate::change::{Action, Plan};
use crate::error::Result;
use crate::host::Host;
use crate::net::{Cidr, check_name};

/// What the scripts join guests to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// An existing bridge.
    Bridge(String),
    /// A NAT network that the script makes when it is not there.
    Nat {
        /// Its bridge.
        bridge: String,
        /// Its addresses.
        subnet: Cidr,
    },
}

/// A script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// Where it belongs.
    pub path: &'static str,
    /// Contents.
    pub text: String,
}

const TOP: &str = "#!/bin/sh
# Written by rhostprep. Called by the launcher with the name of the tap interface.
set -eu
PATH=/usr/sbin:/usr/bin:/sbin:/bin
if [ -z \"${1:-}\" ]; then
    echo \"Error: no interface specified\" >&2
    exit 1
fi
";

/// Both scripts of a kind.
pub fn scripts(kind: &Kind) -> Result<Vec<Script>> {
    match kind {
        Kind::Bridge(bridge) => {
            check_name(bridge)?;
            Ok(vec![
                Script {
                    path: "/etc/qemu-ifup",
                    text: format!("{TOP}bridge={bridge}\n{BRIDGE_UP}"),
                },
                Script { path: "/etc/qemu-ifdown", text: format!("{TOP}{BRIDGE_DOWN}") },
            ])
        }
        Kind::Nat { bridge, subnet } => {
            check_name(bridge)?;
            let last = u32::from(subnet.broadcast()).saturating_sub(1);
            let top = format!(
                "{TOP}bridge={bridge}\nnetwork={}/{}\ngateway={}\nprefix={}\nrange={},{}\n",
                subnet.network(),
                subnet.prefix,
                subnet.nth(1),
                subnet.prefix,
                subnet.nth(2),
                std::net::Ipv4Addr::from(last),
            );
            Ok(vec![
                Script { path: "/etc/qemu-ifup-NAT", text: format!("{top}{NAT_UP}") },
                Script { path: "/etc/qemu-ifdown-NAT", text: format!("{top}{NAT_DOWN}") },
            ])
        }
    }
}

const BRIDGE_UP: &str = "ip link set dev \"$1\" up
ip link set dev \"$1\" master \"$bridge\"
";

const BRIDGE_DOWN: &str =
    "# The launcher removes taps it made itself; one that has gone is no error.
if ip link show dev \"$1\" >/dev/null 2>&1; then
    ip link set dev \"$1\" nomaster
    ip link set dev \"$1\" down
fi
";

const NAT_UP: &str = "pidfile=/run/qemu-dhcp-$bridge.pid
if ! ip link show dev \"$bridge\" >/dev/null 2>&1; then
    ip link add name \"$bridge\" type bridge stp_state 0 forward_delay 0
fi
ip address replace \"$gateway/$prefix\" dev \"$bridge\"
ip link set dev \"$bridge\" up
echo 1 > /proc/sys/net/ipv4/ip_forward
# One transaction: declared, emptied, filled. Other tables are not touched.
nft -f - <<EOF
table inet qemu_$bridge
delete table inet qemu_$bridge
table inet qemu_$bridge {
  chain postrouting {
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr $network ip daddr != $network masquerade
  }
}
EOF
if ! { [ -s \"$pidfile\" ] && grep -q -- \"--pid-file=$pidfile\" \"/proc/$(cat \"$pidfile\")/cmdline\" 2>/dev/null; }; then
    dnsmasq --strict-order --except-interface=lo --interface=\"$bridge\" \\
        --listen-address=\"$gateway\" --bind-interfaces --dhcp-range=\"$range\" \\
        --conf-file= --pid-file=\"$pidfile\" --dhcp-no-override \\
        --dhcp-leasefile=\"/run/qemu-dhcp-$bridge.leases\"
fi
ip link set dev \"$1\" up
ip link set dev \"$1\" master \"$bridge\"
";

const NAT_DOWN: &str = "pidfile=/run/qemu-dhcp-$bridge.pid
if ip link show dev \"$1\" >/dev/null 2>&1; then
    ip link set dev \"$1\" nomaster
    ip link set dev \"$1\" down
fi
# The network goes with its last guest.
if [ -d \"/sys/class/net/$bridge/brif\" ] && [ -z \"$(ls \"/sys/class/net/$bridge/brif\")\" ]; then
    if [ -s \"$pidfile\" ] && grep -q -- \"--pid-file=$pidfile\" \"/proc/$(cat \"$pidfile\")/cmdline\" 2>/dev/null; then
        kill \"$(cat \"$pidfile\")\"
    fi
    rm -f \"$pidfile\" \"/run/qemu-dhcp-$bridge.leases\"
    ip link delete dev \"$bridge\"
    nft delete table inet \"qemu_$bridge\"
fi
";

/// The plan that installs them.
pub fn install(host: &Host, kind: &Kind) -> Result<Plan> {
    let mut plan = Plan::default();
    for script in scripts(kind)? {
        plan.add(host, Action::File { path: script.path.into(), text: script.text, mode: 0o755 });
    }
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_out() {
        assert!(scripts(&Kind::Bridge("br0; reboot".into())).is_err());
        assert!(scripts(&Kind::Bridge("$(x)".into())).is_err());
        let both = scripts(&Kind::Bridge("br0".into())).unwrap();
        assert!(both[0].text.contains("bridge=br0\n"));
    }
}

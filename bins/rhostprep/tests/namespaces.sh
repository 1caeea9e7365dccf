# Runs in fresh mount and network namespaces (unshare -mn); $1 is the program, $2 the scenario.
# "out" leads to a host "far"; everything that rhostprep keeps lives on tmpfs here.
set -eu
R=$1
PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
mount -t sysfs sysfs /sys
# This machine's own settings are not written to.
mkdir /run/etc-changes
mount -t tmpfs tmpfs /run/etc-changes
mkdir /run/etc-changes/upper /run/etc-changes/work
mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/etc-changes/upper,workdir=/run/etc-changes/work /etc
ip link set lo up
ip link add out type veth peer name outp
ip netns add far
ip link set outp netns far
ip -n far addr add 203.0.113.1/24 dev outp
ip -n far link set outp up
ip addr add 203.0.113.2/24 dev out
ip link set out addrgenmode none
ip link set out up
ip route add default via 203.0.113.1 metric 77
ip route add 198.51.100.0/24 via 203.0.113.1
mkdir -p /run/t

fail() { echo "FAILED: $*"; exit 1; }
# Hides programs of this machine: names.
hide() {
    mkdir -p /run/t/upper /run/t/scratch
    mount -t tmpfs tmpfs /run/t/scratch
    mkdir /run/t/scratch/upper /run/t/scratch/work
    mount -t overlay overlay -o lowerdir=/usr/sbin,upperdir=/run/t/scratch/upper,workdir=/run/t/scratch/work /usr/sbin
    for name; do rm -f "/usr/sbin/$name"; done
}
# A server of leases on the other side.
server() {
    ip netns exec far dnsmasq --conf-file= --interface=outp --bind-interfaces --except-interface=lo \
        --dhcp-range=203.0.113.50,203.0.113.60 --dhcp-leasefile=/run/t/far.leases --pid-file=/run/t/far.pid --user=root
}
# Waits until a command succeeds.
until_true() { n=0; until "$@" >/dev/null 2>&1; do n=$((n + 1)); [ $n -lt ${TRIES:-300} ] || fail "never: $*"; sleep 0.1; done; }
leased() { ip -o -4 addr show dev br0 | grep -q 'inet 203.0.113.[56][0-9]/24'; }
# systemd-networkd and the bus that networkctl talks to it over.
networkd_here() {
    mkdir -p /run/dbus /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp
    chown -R systemd-network:systemd-network /run/systemd/netif
    cat > /run/t/bus.conf <<'S'
<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/></policy></busconfig>
S
    dbus-daemon --config-file=/run/t/bus.conf --fork --nopidfile
    # Devices are not waited for (by way of udev) where /sys cannot be written.
    mount -o remount,ro /sys
    start_networkd
}
start_networkd() {
    /lib/systemd/systemd-networkd >/run/t/networkd 2>&1 </dev/null &
    until_true networkctl --no-pager list
}
# Everything a network change could touch. Processes that have ended and were not waited for yet do not count.
state() {
    ip -o -4 addr | sed 's/valid_lft.*//'; ip -o -6 addr show scope global; ip -o link show type bridge; ip -br link show dev out; ip route show table all
    (cd /run/etc-changes/upper && find . -type f -exec sha256sum {} +)
    nft list ruleset; cat /proc/sys/net/ipv4/ip_forward; { ls /run | grep -v '^t$\|netns\|mount\|etc-changes' || true; }; ps -eo state=,pid=,comm= | grep '^[^Z].*dnsmasq$' | cut -d' ' -f2- || true
}
# Folders and files that persisting makes, whatever is in them.
etc() { find /etc/systemd /etc/network -printf '%p %y %m %T@\n' 2>/dev/null | grep -v '^/etc/systemd/network d\|^/etc/systemd/system d\|^/etc/network/interfaces.d d' | sort; }
# Bound to fail where something of rhostprep does not survive a restart: all that lives in the kernel or in /run goes.
restart() {
    for link; do ip link del "$link" 2>/dev/null || true; done
    nft flush ruleset
    pkill -x dnsmasq || true
    until_true sh -c '! pgrep -x dnsmasq'
    rm -f /run/rhostprep-*
    echo 0 > /proc/sys/net/ipv4/ip_forward
}
entries() { ls /var/lib/rhostprep | grep -c journal; }
lease_script() {
    cat > /run/t/lease <<'S'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr flush dev "$interface"
ip addr add "$ip/24" dev "$interface"; ip route add default via "$router"; echo "$ip" > /run/t/ip
S
    chmod +x /run/t/lease
}
lease() { timeout 30 ip netns exec "$1" udhcpc -i eth0 -t 9 -T 1 -n -q -f -s /run/t/lease >/run/t/udhcpc 2>&1 </dev/null || { cat /run/t/udhcpc; fail "$2: no lease"; }; }
forwarded() { # guest, what
    timeout 10 ip netns exec "$1" busybox nc -l -p 80 -e echo hello </dev/null &
    until_true ip netns exec "$1" sh -c 'grep -q ":0050 " /proc/net/tcp*'
    [ "$(timeout 5 ip netns exec far busybox nc 203.0.113.2 8080 </dev/null)" = hello ] || fail "$2: the forward does not work"
    wait $!
}
same() { state > /run/t/after; diff /run/t/before /run/t/after || fail "$1: not as before"; }
guest() { # name address
    ip netns add "$1"
    ip link add "$1" type veth peer name eth0 netns "$1"
    ip link set "$1" up
    ip -n "$1" link set eth0 up
}
reach() { timeout 5 ip netns exec "$1" ping -q -c1 -W2 "$2" >/dev/null || fail "$1 does not reach $2"; }

state > /run/t/before
case $2 in
nat)
    "$R" net nat virbr0 --subnet 192.168.122.0/24 --dhcp --yes </dev/null >/dev/null
    "$R" net nat virbr0 --subnet 192.168.122.0/24 --dhcp --yes | grep -q 'nothing to do' || fail "not idempotent"
    "$R" net nat other --subnet 192.168.122.128/25 --yes 2>/dev/null && fail "overlap was taken"
    guest g1
    "$R" ifup g1 --bridge virbr0
    lease_script
    lease g1 nat
    reach g1 203.0.113.1
    "$R" net forward "8080 -> $(cat /run/t/ip):80" --yes </dev/null >/dev/null
    timeout 5 ip netns exec g1 busybox nc -l -p 80 -e echo hello </dev/null &
    sleep 0.5
    [ "$(timeout 5 ip netns exec far busybox nc 203.0.113.2 8080 </dev/null)" = hello ] || fail "the forward does not work"
    "$R" net forward "8080 -> 192.168.122.9:81" --yes 2>/dev/null </dev/null && fail "port taken twice"
    ip -n far route add 192.168.122.0/24 via 203.0.113.2
    timeout 3 ip netns exec far ping -q -c1 -W1 "$(cat /run/t/ip)" >/dev/null && fail "guests are open to the outside"
    # A second network keeps forwarding on when the first one goes.
    "$R" net nat virbr1 --subnet 192.168.150.0/24 --yes </dev/null >/dev/null
    "$R" net remove virbr0 >/dev/null
    [ "$(cat /proc/sys/net/ipv4/ip_forward)" = 1 ] || fail "virbr1 lost its forwarding"
    "$R" net remove virbr1 >/dev/null
    ip link del g1
    same nat ;;
isolated)
    "$R" net isolated iso0 --subnet 10.99.0.0/24 --yes </dev/null >/dev/null
    for n in 1 2; do
        guest g$n
        "$R" ifup g$n --bridge iso0
        ip -n g$n addr add 10.99.0.1$n/24 dev eth0
        ip -n g$n route add default via 10.99.0.1
    done
    reach g1 10.99.0.12
    reach g1 10.99.0.1
    echo 1 > /proc/sys/net/ipv4/ip_forward
    timeout 3 ip netns exec g1 ping -q -c1 -W1 203.0.113.1 >/dev/null && fail "isolated guests got out"
    echo 0 > /proc/sys/net/ipv4/ip_forward
    "$R" ifdown g1
    "$R" ifdown gone
    "$R" net remove iso0 >/dev/null
    ip link del g1; ip link del g2
    same isolated ;;
docker)
    # What Docker does: FORWARD drops, its users' chain returns.
    nft -f - <<'S'
table ip filter {
  chain DOCKER-USER { counter return; }
  chain FORWARD { type filter hook forward priority filter; policy drop; jump DOCKER-USER; }
}
S
    state > /run/t/before
    "$R" net nat virbr0 --yes </dev/null >/dev/null
    guest g1
    "$R" ifup g1 --bridge virbr0
    ip -n g1 addr add 192.168.122.7/24 dev eth0
    ip -n g1 route add default via 192.168.122.1
    reach g1 203.0.113.1
    nft list chain ip filter FORWARD | grep -q 'policy drop' || fail "the policy was flipped"
    "$R" net remove virbr0 >/dev/null
    ip link del g1
    # Counters have counted; nothing else may differ.
    sed -i 's/packets [0-9]* bytes [0-9]*/C/' /run/t/before
    state | sed 's/packets [0-9]* bytes [0-9]*/C/' > /run/t/after
    diff /run/t/before /run/t/after || fail "docker: not as before" ;;
legacy)
    # What Docker does where iptables is the old one, which nft does not show.
    iptables-legacy -N DOCKER-USER
    iptables-legacy -P FORWARD DROP
    iptables-legacy -A FORWARD -j DOCKER-USER
    ip6tables-legacy -P FORWARD DROP
    rules() { iptables-legacy -S; ip6tables-legacy -S; }
    rules > /run/t/rules
    state > /run/t/before
    "$R" net nat virbr0 --yes </dev/null >/dev/null
    guest g1
    "$R" ifup g1 --bridge virbr0
    ip -n g1 addr add 192.168.122.7/24 dev eth0
    ip -n g1 route add default via 192.168.122.1
    reach g1 203.0.113.1
    [ "$(iptables-legacy -S DOCKER-USER | grep -c rhostprep:virbr0)" = 2 ] || fail "no rules in DOCKER-USER"
    [ "$(ip6tables-legacy -S FORWARD | grep -c rhostprep:virbr0)" = 2 ] || fail "no rules for IPv6"
    iptables-legacy -S | grep -q -- '-P FORWARD DROP' || fail "the policy was flipped"
    "$R" net remove virbr0 >/dev/null
    ip link del g1
    rules | diff /run/t/rules - || fail "rules stayed"
    same legacy ;;
routed)
    "$R" net routed rt0 --subnet 192.168.77.0/24 --subnet6 2001:db8:77::/64 --dhcp --yes </dev/null >/dev/null
    "$R" net routed rt0 --subnet 192.168.77.0/24 --subnet6 2001:db8:77::/64 --dhcp --yes </dev/null | grep -q 'nothing to do' || fail "not idempotent"
    "$R" net routed rt1 --subnet 192.168.78.0/24 --subnet6 2001:db8:77::/64 --yes 2>/dev/null </dev/null && fail "overlap was taken"
    "$R" net nat n1 --subnet 192.168.78.0/24 --subnet6 2001:db8:78::/64 --yes 2>/dev/null </dev/null && fail "IPv6 behind NAT was taken"
    "$R" net show | grep -q 'network rt0: routed 192.168.77.0/24 2001:db8:77::/64, DHCP' || fail "not shown"
    guest g1
    "$R" ifup g1 --bridge rt0
    # It asks for advertisements when its interface comes up.
    ip -n g1 link set eth0 down
    ip -n g1 link set eth0 up
    ip -n g1 addr add 192.168.77.5/24 dev eth0
    ip -n g1 route add default via 192.168.77.1
    # The others need a route back, as the plan says; guests are reached under their own addresses.
    ip -n far route add 192.168.77.0/24 via 203.0.113.2
    reach g1 203.0.113.1
    reach far 192.168.77.5
    nft list ruleset | grep -q masquerade && fail "a routed network is not translated"
    # A guest makes its own IPv6 address of the advertised prefix.
    until_true sh -c 'ip -n g1 -6 addr show dev eth0 | grep -q "inet6 2001:db8:77:.*dynamic"'
    # Neighbours of forwarded packets are asked for from a link-local address.
    ip -6 addr add fe80::2/64 dev out nodad
    ip -6 addr add 2001:db8:aa::2/64 dev out nodad
    ip -n far addr add 2001:db8:aa::1/64 dev outp nodad
    ip -n far route add 2001:db8:77::/64 via 2001:db8:aa::2
    until_true ip netns exec g1 ping -6 -q -c1 -W2 2001:db8:aa::1
    ip -6 addr flush dev out
    # After a restart what is written down is there, and what the kernel held is not: asked for again it comes back.
    ip link del g1; ip link del rt0; nft delete table inet rhostprep_rt0; rm /run/rhostprep-rt0.up; pkill -x dnsmasq
    echo 0 > /proc/sys/net/ipv4/ip_forward
    until_true sh -c '! pgrep -x dnsmasq'
    "$R" net routed rt0 --subnet 192.168.77.0/24 --subnet6 2001:db8:77::/64 --dhcp --yes </dev/null >/dev/null
    [ -e /sys/class/net/rt0 ] && pgrep -x dnsmasq >/dev/null || fail "not made again"
    "$R" net remove rt0 >/dev/null
    same routed ;;
accept_ra)
    # The only default route of IPv6 comes by advertisement: forwarding must not cost it.
    ip -6 addr add 2001:db8:aa::2/64 dev out nodad
    ip -6 route add default via 2001:db8:aa::1 dev out
    echo 1 > /proc/sys/net/ipv6/conf/out/accept_ra
    state > /run/t/before
    "$R" net routed rt0 --subnet 192.168.77.0/24 --subnet6 2001:db8:77::/64 --yes </dev/null >/dev/null
    [ "$(cat /proc/sys/net/ipv6/conf/out/accept_ra)" = 2 ] || fail "advertisements would be ignored"
    [ "$(cat /proc/sys/net/ipv6/conf/all/forwarding)" = 1 ] || fail "IPv6 is not forwarded"
    "$R" net remove rt0 >/dev/null
    [ "$(cat /proc/sys/net/ipv6/conf/out/accept_ra)" = 1 ] || fail "accept_ra stayed"
    same accept_ra ;;
six)
    ip -6 addr add 2001:db8:aa::2/64 dev out nodad
    ip -6 route add default via 2001:db8:aa::1 dev out metric 55
    ip -6 route add 2001:db8:cc::/48 via 2001:db8:aa::9 dev out
    ip -n far addr add 2001:db8:aa::1/64 dev outp nodad
    state > /run/t/before
    "$R" net bridge br0 --port out --address 2001:db8:bb::5/64 --yes </dev/null >/dev/null
    ip -6 addr show dev br0 | grep -q 2001:db8:aa::2/64 || fail "the address did not move"
    ip -6 addr show dev br0 | grep -q 2001:db8:bb::5/64 || fail "the wanted address is not there"
    ip -6 addr show dev out scope global | grep -q . && fail "the port kept an address"
    ip -6 route show default | grep -q 'via 2001:db8:aa::1 dev br0 metric 55' || fail "the default route did not move"
    ip -6 route show | grep -q '2001:db8:cc::/48 via 2001:db8:aa::9 dev br0' || fail "a route did not move"
    ip -6 route show dev out | grep -v fe80 | grep -q . && fail "a route stayed: $(ip -6 route show dev out)"
    timeout 5 ping -6 -q -c1 -W2 2001:db8:aa::1 >/dev/null || fail "cut off"
    "$R" net show | grep br0 | grep -q 2001:db8:aa::2/64 || fail "not shown"
    "$R" net remove br0 >/dev/null
    until_true sh -c '! ip -6 addr show tentative | grep -q .'
    timeout 5 ping -6 -q -c1 -W2 2001:db8:aa::1 >/dev/null || fail "cut off after removal"
    same six ;;
dhclient | udhcpc | networkd)
    server
    ip addr flush dev out
    case $2 in
    udhcpc) hide dhclient ;;
    networkd)
        hide dhclient udhcpc
        networkd_here ;;
    esac
    state > /run/t/before
    "$R" net bridge br0 --port out --address dhcp --yes </dev/null >/run/t/log || { cat /run/t/log; fail "no bridge"; }
    grep -q "$2" /run/t/log || { cat /run/t/log; fail "another client was taken"; }
    until_true leased
    until_true ping -q -c1 -W2 203.0.113.1
    ip route show default | grep -q 'via 203.0.113.1 dev br0' || fail "no default route"
    "$R" net bridge br0 --port out --address dhcp --yes </dev/null | grep -q 'nothing to do' || fail "not idempotent"
    "$R" net remove br0 >/dev/null
    [ $2 = networkd ] || until_true sh -c "! pgrep -x $2"
    same $2
    # Nobody answers: everything is as it was.
    if [ $2 != networkd ]; then
        ip netns exec far sh -c 'kill $(cat /run/t/far.pid)'
        until_true sh -c '! pgrep -x dnsmasq'
        state > /run/t/before
        "$R" net bridge br0 --port out --address dhcp --yes </dev/null >/dev/null 2>/run/t/log && fail "no lease, and no error"
        grep -q 'everything is as it was' /run/t/log || fail "$(cat /run/t/log)"
        same "$2 without an answer"
    fi ;;
persist)
    rm -f /etc/systemd/network/*
    mkdir -p /etc/systemd/network /run/systemd/netif
    state > /run/t/before
    ls /etc/systemd/network > /run/t/files
    "$R" net bridge br0 --port out --address 203.0.113.2/24 --persist --yes </dev/null >/run/t/log || { cat /run/t/log; fail "no bridge"; }
    "$R" net bridge br0 --port out --address 203.0.113.2/24 --persist --yes </dev/null | grep -q 'nothing to do' || fail "not idempotent"
    # A start of the host: nothing is configured, and systemd-networkd reads what was written.
    ip link del br0
    ip addr flush dev out
    ip link set out down
    networkd_here
    until_true timeout 5 ping -q -c1 -W2 203.0.113.1
    ip -o -4 addr show dev br0 | grep -q 203.0.113.2/24 || fail "no address"
    ip route show default | grep -q 'via 203.0.113.1 dev br0' || fail "the gateway was not kept"
    [ -e /sys/class/net/br0/brif/out ] || fail "the port did not join"
    grep -iE 'unknown|invalid|ignoring' /run/t/networkd | grep -v 'state file' && fail "systemd-networkd does not understand it"
    "$R" net remove br0 >/dev/null
    ls /etc/systemd/network | diff /run/t/files - || fail "files stayed"
    [ -e /sys/class/net/br0 ] && fail "the bridge stayed" || true ;;
restart)
    # systemd and its network manager are here; systemd-networkd makes the bridges, and rhostprep the rest.
    rm -f /etc/systemd/network/*
    mkdir -p /etc/systemd/network /run/systemd/netif /run/systemd/system /run/dbus
    state > /run/t/before
    etc > /run/t/etc
    nat() { "$R" net nat virbr0 --subnet 192.168.122.0/24 --dhcp "$@" --yes </dev/null; }
    # Asked for later, only what is needed for it is added.
    nat >/dev/null
    nat --persist >/run/t/log || { cat /run/t/log; fail "not persisted"; }
    grep -q '^5/5 change /var/lib/rhostprep/networks/virbr0.json' /run/t/log || fail "made anew: $(cat /run/t/log)"
    nat --persist | grep -q 'nothing to do' || fail "not idempotent"
    nat | grep -q 'nothing to do' || fail "not idempotent without --persist"
    "$R" net show | grep -q 'network virbr0: nat 192.168.122.0/24, DHCP, comes back' || fail "not shown"
    "$R" net remove virbr0 >/dev/null
    same "persisted later"; etc | diff /run/t/etc - || fail "persisted later: files"
    nat --persist >/dev/null
    "$R" net forward "8080 -> 192.168.122.140:80" --persist --yes </dev/null >/run/t/log
    grep -q 'comes back after a restart' /run/t/log || fail "not said: $(cat /run/t/log)"
    "$R" net isolated iso0 --subnet 10.99.0.0/24 --persist --yes </dev/null >/dev/null
    "$R" net routed rt0 --subnet 192.168.77.0/24 --yes </dev/null >/dev/null
    if command -v systemd-analyze >/dev/null; then
        systemd-analyze verify /etc/systemd/system/rhostprep-net.service >/run/t/log 2>&1 || fail "the unit: $(cat /run/t/log)"
        grep rhostprep /run/t/log && fail "the unit: $(cat /run/t/log)"
    else
        echo "SKIPPED the unit's syntax: no systemd-analyze"
    fi
    grep -qx 'Wants=rhostprep-net.service' /etc/systemd/system/multi-user.target.d/*.conf || fail "nothing starts the unit"
    entries > /run/t/entries
    restart virbr0 iso0 rt0
    # What the unit does, begun before the manager has made anything.
    start=$(sed -n 's/^ExecStart=//p' /etc/systemd/system/rhostprep-net.service)
    sh -c "$start" >/run/t/restored 2>&1 </dev/null &
    restoring=$!
    sleep 1
    [ -e /run/rhostprep-virbr0.up ] && fail "the manager was not waited for"
    networkd_here
    wait $restoring || { cat /run/t/restored; fail "not restored"; }
    grep -q '^virbr0: made again: packet filters, forwarding, dnsmasq$' /run/t/restored || fail "said $(cat /run/t/restored)"
    grep -q '^iso0: made again: packet filters$' /run/t/restored || fail "said $(cat /run/t/restored)"
    grep -q '^rt0: was made without --persist' /run/t/restored || fail "said $(cat /run/t/restored)"
    [ "$(nft list tables | grep -c rhostprep_)" = 2 ] || fail "tables: $(nft list tables)"
    # A host with the address that is forwarded to.
    works() {
        guest g1
        "$R" ifup g1 --bridge virbr0
        lease g1 "$1"
        reach g1 203.0.113.1
        ip -n g1 addr flush dev eth0
        ip -n g1 addr add 192.168.122.140/24 dev eth0
        ip -n g1 route add default via 192.168.122.1
        forwarded g1 "$1"
        timeout 3 ip netns exec far ping -q -c1 -W1 192.168.122.140 >/dev/null && fail "$1: guests are open to the outside"
        ip link del g1
        ip netns del g1
    }
    lease_script
    # Who knows a way to the guests is still not let in.
    ip -n far route add 192.168.122.0/24 via 203.0.113.2
    works "after a restart"
    "$R" net restore > /run/t/restored || fail "restored again: $?"
    [ "$(grep -c 'is as recorded$' /run/t/restored)" = 2 ] || fail "not idempotent: $(cat /run/t/restored)"
    # Somebody flushes what is not theirs, or takes the bridge away.
    nft flush ruleset
    "$R" net restore virbr0 | grep -qx 'virbr0: made again: packet filters' || fail "filters were not made again"
    ip link del virbr0
    "$R" net restore >/dev/null
    works "after the bridge was deleted"
    "$R" net restore nothere 2>/dev/null && fail "an unknown network"
    entries | diff /run/t/entries - || fail "the journal grows"
    # Everything goes in the order in which it came, and nothing stays.
    "$R" net remove rt0 >/dev/null
    "$R" undo >/dev/null
    "$R" net show | grep -q iso0 && fail "the newest is iso0"
    "$R" undo >/dev/null
    nft list ruleset | grep -q 'dnat ip to' && fail "the forward stayed"
    "$R" undo >/dev/null
    # The daemon that made the bridges keeps them in mind, but not what has gone.
    same "undone one by one after a restart"; etc | diff /run/t/etc - || fail "undone: files" ;;
restart-shared)
    # Nobody manages the network; systemd starts what we write. The first network that is persisted goes first.
    hide NetworkManager
    rm -rf /run/systemd; mkdir -p /run/systemd/system
    mount -t tmpfs tmpfs /etc/netplan 2>/dev/null || true
    rm -f /etc/network/interfaces
    state > /run/t/before
    etc > /run/t/etc
    "$R" net nat n1 --subnet 192.168.91.0/24 --persist --yes </dev/null >/dev/null || fail "no manager, no network"
    "$R" net nat n2 --subnet 192.168.92.0/24 --dhcp --persist --yes </dev/null >/dev/null
    "$R" net nat n3 --subnet 192.168.93.0/24 --yes </dev/null >/dev/null
    "$R" net remove n1 > /run/t/log
    grep -q '^n2 keeps what it shared' /run/t/log || fail "said $(cat /run/t/log)"
    [ "$(cat /proc/sys/net/ipv4/ip_forward)" = 1 ] || fail "n2 lost its forwarding"
    [ -e /etc/systemd/system/rhostprep-net.service ] || fail "n2 lost the unit"
    entries > /run/t/entries
    restart n2 n3
    "$R" net restore --wait 30 > /run/t/log || fail "not restored"
    grep -q '^n2: made again: the bridge, its address 192.168.92.1/24, packet filters, forwarding, dnsmasq$' /run/t/log || fail "said $(cat /run/t/log)"
    "$R" net nat n3 --subnet 192.168.93.0/24 --persist --yes </dev/null >/dev/null
    restart n2 n3
    "$R" net restore >/dev/null
    "$R" net restore >/dev/null
    # Not from here, but undone.
    "$R" status > /run/t/log
    "$R" net remove n2 > /run/t/log
    grep -q '^n3 keeps' /run/t/log || fail "said $(cat /run/t/log)"
    [ "$(cat /proc/sys/net/ipv4/ip_forward)" = 1 ] || fail "n3 lost its forwarding"
    restart n3
    "$R" net remove n3 >/dev/null
    same "removed in the order of making"; etc | diff /run/t/etc - || fail "removed: files"
    # Forwarding that was on for another reason is not in the network's entry: restoring makes one, once.
    echo 1 > /proc/sys/net/ipv4/ip_forward
    "$R" net nat n1 --subnet 192.168.91.0/24 --persist --yes </dev/null >/dev/null
    restart n1
    "$R" net restore | grep -q 'what it shares' || fail "forwarding was not made"
    entries > /run/t/entries
    restart n1
    "$R" net restore >/dev/null
    [ "$(cat /proc/sys/net/ipv4/ip_forward)" = 1 ] || fail "no forwarding"
    entries | diff /run/t/entries - || fail "the journal grows"
    "$R" net remove n1 >/dev/null
    same "forwarding was on"; etc | diff /run/t/etc - || fail "forwarding was on: files"
    # A change that was interrupted is told of, and a damaged record does not keep others from coming back.
    "$R" net nat n1 --subnet 192.168.91.0/24 --persist --yes </dev/null >/dev/null
    echo '{' > /var/lib/rhostprep/networks/a0.json
    restart n1
    "$R" net restore > /run/t/log 2>&1 && fail "a damaged record is no error"
    grep -q 'a0: .*damaged' /run/t/log && grep -q '^n1: made again' /run/t/log || fail "said $(cat /run/t/log)"
    rm /var/lib/rhostprep/networks/a0.json
    "$R" net remove n1 >/dev/null
    same "beside a damaged record"
    # Neither systemd nor ifupdown: nobody would start it.
    rm -rf /run/systemd
    "$R" net nat n1 --subnet 192.168.91.0/24 --persist --yes 2>/run/t/log </dev/null && fail "nobody starts it at boot"
    grep -q 'remedy: leave --persist away' /run/t/log || fail "$(cat /run/t/log)"
    umount /usr/sbin ;;
restart-ifupdown)
    # A host without systemd: ifupdown makes the bridge, and runs what stands in its stanza.
    rm -rf /run/systemd /etc/network
    mkdir -p /etc/network/interfaces.d /etc/network/if-pre-up.d /etc/network/if-up.d /etc/network/if-down.d /etc/network/if-post-down.d
    echo 'source /etc/network/interfaces.d/*' > /etc/network/interfaces
    mount -t tmpfs tmpfs /etc/netplan 2>/dev/null || true
    state > /run/t/before
    etc > /run/t/etc
    "$R" net nat virbr0 --dhcp --persist --yes </dev/null >/dev/null || fail "no network"
    "$R" net forward "8080 -> 192.168.122.140:80" --yes </dev/null >/run/t/log
    grep -q 'it comes back' /run/t/log || fail "not said"
    [ -e /etc/systemd/system/rhostprep-net.service ] && fail "a unit without systemd"
    restart virbr0
    # bridge-utils makes the bridge before ifup does the rest.
    ip link add virbr0 type bridge
    ifup=${RHOSTPREP_PARSERS:-/none}/sbin/ifup
    ifdown=${RHOSTPREP_PARSERS:-/none}/sbin/ifdown
    if [ -x "$ifup" ]; then
        mkdir -p /run/network
        "$ifup" virbr0 > /run/t/log 2>&1 || fail "ifup: $(cat /run/t/log)"
    else
        echo "SKIPPED ifup itself: no RHOSTPREP_PARSERS; its commands are run instead"
        ip addr add 192.168.122.1/24 dev virbr0
        ip link set virbr0 up
        sed -n 's/^ *post-up //p' /etc/network/interfaces.d/rhostprep-virbr0 > /run/t/up
        sed -n 's/^ *pre-down //p' /etc/network/interfaces.d/rhostprep-virbr0 > /run/t/down
        sh -e /run/t/up > /run/t/log || fail "post-up: $(cat /run/t/log)"
    fi
    grep -q '^virbr0: made again: packet filters, forwarding, dnsmasq$' /run/t/log || fail "said $(cat /run/t/log)"
    nft list ruleset | grep -q '192.168.122.140:80' || fail "no forward"
    if [ -x "$ifdown" ]; then "$ifdown" virbr0 > /run/t/log 2>&1 || fail "ifdown: $(cat /run/t/log)"; else sh -e /run/t/down; fi
    until_true sh -c '! pgrep -x dnsmasq'
    rm -rf /run/network
    ip link del virbr0
    "$R" net remove virbr0 >/dev/null
    same restart-ifupdown; etc | diff /run/t/etc - || fail "restart-ifupdown: files" ;;
grub)
    # Real grub-mkconfig and grub-script-check, unpacked below $RHOSTPREP_PARSERS, over /usr and /etc of this namespace;
    # /boot is on a real disk, as grub-probe asks which.
    mount -t overlay overlay -o lowerdir=$RHOSTPREP_PARSERS/usr:/usr /usr
    mount -t overlay overlay -o lowerdir=$RHOSTPREP_PARSERS/etc:/etc,upperdir=/run/etc-changes/upper,workdir=/run/etc-changes/work /etc
    rm -f /etc/grub.d/30_* /etc/grub.d/20_*
    mkdir -p "$3/boot/grub" /etc/default
    mount --bind "$3/boot" /boot
    echo kernel > /boot/vmlinuz-6.1.0-test
    echo ramdisk > /boot/initrd.img-6.1.0-test
    printf 'GRUB_DEFAULT=0\nGRUB_CMDLINE_LINUX_DEFAULT="quiet isolcpus=7"\nGRUB_CMDLINE_LINUX="x=\\"a b\\""\n' > /etc/default/grub
    grub-mkconfig -o /boot/grub/grub.cfg 2>/run/t/log || { cat /run/t/log; fail "grub-mkconfig does not work here"; }
    boot() { find /boot /etc/default -type f -exec sha256sum {} +; stat -c '%n %a %u %g %Y' /boot/grub/grub.cfg /etc/default/grub; }
    boot > /run/t/boot
    "$R" apply --boot-option iommu=pt --boot-option isolcpus=2-3 --yes </dev/null >/run/t/log 2>&1 || { cat /run/t/log; fail "apply"; }
    grub-script-check /boot/grub/grub.cfg || fail "GRUB does not read its menu"
    [ "$(grep -c '^[[:space:]]*linux.*iommu=pt' /boot/grub/grub.cfg)" -ge 2 ] || fail "not in every entry"
    grep '^[[:space:]]*linux' /boot/grub/grub.cfg | grep -q isolcpus=7 && fail "the old value wins"
    "$R" apply --boot-option iommu=pt --boot-option isolcpus=2-3 --yes </dev/null | grep -q 'nothing to do' || fail "not idempotent"
    "$R" undo >/dev/null
    boot | diff /run/t/boot - || fail "grub: not as before" ;;
bad)
    apply() { "$R" apply --sysctl net.ipv4.ip_forward=1 --sysctl net.ipv4.ip_default_ttl=65 --yes </dev/null >/dev/null 2>/run/t/log; }
    said() { grep -q "$1" /run/t/log || fail "$2: $(cat /run/t/log)"; }
    unchanged() { [ "$(cat /proc/sys/net/ipv4/ip_default_ttl)" = 64 ] || fail "$1: a value stayed"; same "$1"; }
    mkdir -p /etc/sysctl.d
    state > /run/t/before
    mount -t tmpfs -o ro tmpfs /etc/sysctl.d
    apply && fail "a read-only place was written to"
    said 'Read-only file system.*everything is as it was' "read-only /etc"; said 'remedy:' "read-only /etc"
    unchanged "read-only /etc"
    umount /etc/sysctl.d
    # Two pages: the first takes what fills it, and nothing of ours fits.
    mount -t tmpfs -o size=8k tmpfs /etc/sysctl.d
    head -c 8192 /dev/zero > /etc/sysctl.d/full
    apply && fail "a full disk was written to"
    said 'No space left.*everything is as it was' "full disk"
    [ "$(ls -A /etc/sysctl.d)" = full ] || fail "full disk: left $(ls -A /etc/sysctl.d)"
    unchanged "full disk"
    umount /etc/sysctl.d
    mount -t tmpfs -o size=8k tmpfs /var/lib
    head -c 8192 /dev/zero > /var/lib/full
    apply && fail "changed without a journal"
    said 'No space left' "no room for the journal"
    unchanged "no room for the journal"
    umount /var/lib
    mount -t tmpfs -o ro tmpfs /var/lib
    apply && fail "changed without a journal"
    said 'without a journal nothing is changed' "read-only journal"
    unchanged "read-only journal"
    umount /var/lib
    # An interface that is not there, and one that vanishes while it is a port.
    "$R" net bridge br0 --port nothere --yes 2>/run/t/log </dev/null && fail "no interface, no error"
    said 'there is no interface nothere' "no interface"
    ip link add gone type veth peer name gone2
    ip addr add 198.18.0.1/24 dev gone
    "$R" net bridge br0 --port gone --yes </dev/null >/dev/null
    ip link del gone
    "$R" net remove br0 >/dev/null || fail "a port that vanished keeps the bridge"
    same "an interface that vanished"
    # A name of 16 characters, and one that is none.
    "$R" net tap sixteen_letters_ --yes 2>/run/t/log </dev/null && fail "a long name was taken"
    said '16 characters, the kernel takes 15' "long name"
    "$R" net bridge 'br0;reboot' --yes 2>/run/t/log </dev/null && fail "a bad name was taken"
    "$R" net nat n0 --subnet 203.0.113.0/25 --yes 2>/run/t/log </dev/null && fail "an overlap was taken"
    said 'overlaps 203.0.113.0/24' "overlap"; said 'remedy: use 192.168' "overlap"
    # Tools that are not installed.
    hide nft dnsmasq
    "$R" net nat n0 --subnet 192.168.99.0/24 --dhcp --yes 2>/run/t/log </dev/null && fail "no dnsmasq, no error"
    said 'remedy:.*dnsmasq' "no dnsmasq"
    "$R" net nat n0 --subnet 192.168.99.0/24 --yes 2>/run/t/log </dev/null && fail "no nft, no error"
    said 'everything is as it was' "no nft"; said 'remedy:.*nftables' "no nft"
    umount /usr/sbin
    same "missing tools" ;;
no-client)
    hide dhclient udhcpc
    "$R" net bridge br0 --port out --address dhcp --yes </dev/null 2>/run/t/log && fail "no client, and no error"
    grep -q 'remedy:.*isc-dhcp-client' /run/t/log || fail "no remedy: $(cat /run/t/log)"
    same no-client ;;
bridge)
    mac=$(cat /sys/class/net/out/address)
    [ -z "$("$R" net bridge br0 --port out --dry-run </dev/null | grep -x done)" ] && same "dry run"
    "$R" net bridge br0 --port out --yes </dev/null >/dev/null
    ip -o -4 addr show dev br0 | grep -q 203.0.113.2/24 || fail "the address did not move"
    ip -o -4 addr show dev out | grep -q . && fail "the port kept an address"
    ip route show | grep -q 'default via 203.0.113.1 dev br0 metric 77' || fail "the default route did not move"
    ip route show | grep -q '198.51.100.0/24 via 203.0.113.1 dev br0' || fail "a route did not move"
    [ "$(cat /sys/class/net/br0/address)" = "$mac" ] || fail "the bridge has another MAC"
    timeout 5 ping -q -c1 -W2 203.0.113.1 >/dev/null || fail "cut off"
    "$R" net bridge br0 --port out --yes </dev/null | grep -q 'nothing to do' || fail "not idempotent"
    "$R" net tap tap0 --bridge br0 --owner 0 --yes </dev/null >/dev/null
    [ -e /sys/class/net/br0/brif/tap0 ] || fail "the tap is not on the bridge"
    "$R" net tap a_name_that_is_too_long --yes 2>/dev/null </dev/null && fail "long name taken"
    "$R" net remove br0 >/dev/null
    timeout 5 ping -q -c1 -W2 203.0.113.1 >/dev/null || fail "cut off after removal"
    same bridge ;;
rollback)
    "$R" net bridge br0 --port out --confirm-within 1 --yes </dev/null >/dev/null
    [ -e /sys/class/net/br0 ] || fail "no bridge"
    sleep 3
    [ -e /sys/class/net/br0 ] && fail "it did not roll back"
    same rollback
    "$R" net bridge br0 --port out --confirm-within 2 --yes </dev/null >/dev/null
    "$R" net confirm >/dev/null
    sleep 3
    [ -e /sys/class/net/br0 ] || fail "it rolled back although confirmed"
    # The present connection decides by itself that a confirmation is needed.
    "$R" net remove br0 >/dev/null
    SSH_CONNECTION="203.0.113.1 5000 203.0.113.2 22" "$R" net bridge br0 --port out --yes </dev/null | grep -q 'net confirm' || fail "no guard for the SSH connection"
    "$R" net confirm >/dev/null
    "$R" net remove br0 >/dev/null
    sleep 1
    same rollback2 ;;
killed)
    for ms in 2 4 6 8 10 12 14 16 18 20 23 26 30 35 40 50 60 80; do
        timeout -s KILL "$(printf '0.%03d' $ms)" "$R" net nat virbr0 --dhcp --yes </dev/null >/dev/null 2>&1 || true
        "$R" undo </dev/null >/dev/null 2>&1 || true
        same "killed after $ms ms"
        timeout -s KILL "$(printf '0.%03d' $ms)" "$R" net bridge br0 --port out --yes </dev/null >/dev/null 2>&1 || true
        "$R" undo </dev/null >/dev/null 2>&1 || true
        same "bridge killed after $ms ms"
    done ;;
every-call)
    # Killed at the n-th call of each system call that changes something or waits for a program, for every n. strace
    # counts each kind of call by itself.
    calls="wait4 waitid poll write rename unlink mkdir ioctl fsync fdatasync ftruncate fchmod sendto clone3 clone vfork"
    deaths=0
    kill_at() { # n, command...: true when it came to its end
        n=$1; shift
        # A shell of its own says that somebody was killed, to nobody.
        bash -c 'strace -qqq -o /dev/null -e trace=$0 -e inject=$0:signal=KILL:when=$1 "${@:2}" </dev/null; exit $?' \
            "$call" $n "$R" "$@" >/dev/null 2>&1
    }
    each() { # what, command...
        what=$1; shift
        for call in $calls; do
            n=1
            until kill_at $n "$@"; do
                deaths=$((deaths + 1))
                [ $n -lt 1500 ] || fail "$what does not end"
                "$R" undo </dev/null >/run/t/log 2>&1 || grep -q 'nothing to undo' /run/t/log || fail "$what, undo after $call $n: $(cat /run/t/log)"
                same "$what killed at $call $n"
                n=$((n + 1))
            done
            "$R" undo </dev/null >/dev/null
            same "$what undone"
        done
    }
    mkdir -p /etc/sysctl.d /run/systemd/system
    state > /run/t/before
    each nat net nat virbr0 --dhcp --persist --yes
    each bridge net bridge br0 --port out --yes
    each sysctl apply --sysctl net.ipv4.ip_forward=1 --memlock 1G --yes
    # Making a network again is no change of its own: killed anywhere, it can be done again, or the network undone.
    rm -rf /etc/systemd/system/multi-user.target.d
    state > /run/t/before
    # Numbers of interfaces and processes are new ones each time, and so is the MAC.
    shape() { state | sed 's/^[0-9]*: //; s/link.ether [^ ]*//; s/^ *[0-9]* dnsmasq/dnsmasq/'; }
    up() {
        "$R" net nat virbr0 --dhcp --persist --yes </dev/null >/dev/null
        "$R" net forward "8080 -> 192.168.122.140:80" --yes </dev/null >/dev/null
        shape > /run/t/up
    }
    up
    for call in $calls; do
        at=1
        restart virbr0
        until kill_at $at net restore; do
            deaths=$((deaths + 1))
            [ $at -lt 1500 ] || fail "restoring does not end"
            if [ $((at % 2)) = 0 ]; then
                "$R" net remove virbr0 >/dev/null || fail "not removed, killed at $call $at"
                same "restoring killed at $call $at, removed"
                up
            else
                "$R" net restore >/dev/null || fail "not restored, killed at $call $at"
                shape | diff /run/t/up - || fail "restoring killed at $call $at"
            fi
            restart virbr0
            at=$((at + 1))
        done
        shape | diff /run/t/up - || fail "restored"
    done
    "$R" net remove virbr0 >/dev/null
    same "restored and removed"
    echo "$deaths deaths"
    [ $deaths -gt 150 ] || fail "only $deaths places to die" ;;
scripts)
    mkdir -p /run/t/etc
    # dnsmasq changes to the user nobody.
    echo 'root:x:0:0::/root:/bin/sh' > /run/t/etc/passwd
    echo 'nobody:x:65534:65534::/:/bin/false' >> /run/t/etc/passwd
    printf 'root:x:0:\nnogroup:x:65534:\n' > /run/t/etc/group
    mount --bind /run/t/etc /etc
    "$R" scripts --nat --install --yes </dev/null >/dev/null
    "$R" scripts --bridge br7 --install --yes </dev/null >/dev/null
    "$R" scripts --nat --install --yes </dev/null | grep -q 'nothing to do' || fail "not idempotent"
    guest g1
    /etc/qemu-ifup-NAT g1 >/dev/null 2>&1 </dev/null
    /etc/qemu-ifup-NAT g1 >/dev/null 2>&1 </dev/null
    [ "$(pgrep -xc dnsmasq)" = 1 ] || fail "dnsmasq runs $(pgrep -xc dnsmasq) times"
    ip -n g1 addr add 192.168.122.7/24 dev eth0
    ip -n g1 route add default via 192.168.122.1
    reach g1 203.0.113.1
    /etc/qemu-ifdown-NAT g1
    sleep 0.3
    ip link show virbr0 >/dev/null 2>&1 && fail "virbr0 stayed"
    ip link add br7 type bridge
    /etc/qemu-ifup g1
    [ -e /sys/class/net/br7/brif/g1 ] || fail "qemu-ifup did not attach"
    /etc/qemu-ifdown g1
    /etc/qemu-ifup 2>/dev/null && fail "no interface, no error"
    ip link del br7; ip link del g1
    echo 0 > /proc/sys/net/ipv4/ip_forward
    "$R" undo >/dev/null; "$R" undo >/dev/null
    [ "$(echo $(ls /etc))" = "group passwd" ] || fail "undo left $(ls /etc)"
    same scripts ;;
esac
echo PASSED

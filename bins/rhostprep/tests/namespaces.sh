# Runs in fresh mount and network namespaces (unshare -mn); $1 is the program, $2 the scenario.
# "out" leads to a host "far"; everything that rhostprep keeps lives on tmpfs here.
set -eu
R=$1
PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
mount -t sysfs sysfs /sys
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
# Everything a network change could touch.
state() {
    ip -o -4 addr; ip -o link show type bridge; ip -br link show dev out; ip route show table all
    nft list ruleset; cat /proc/sys/net/ipv4/ip_forward; { ls /run | grep -v '^t$\|netns\|mount' || true; }; pgrep -x dnsmasq || true
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
    cat > /run/t/lease <<'S'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/24" dev "$interface"; ip route add default via "$router"; echo "$ip" > /run/t/ip
S
    chmod +x /run/t/lease
    timeout 20 ip netns exec g1 udhcpc -i eth0 -t 5 -T 1 -n -q -f -s /run/t/lease >/run/t/udhcpc 2>&1 </dev/null || { cat /run/t/udhcpc; fail "no lease"; }
    reach g1 203.0.113.1
    "$R" net forward "8080 -> $(cat /run/t/ip):80" --yes </dev/null >/dev/null
    timeout 5 ip netns exec g1 busybox nc -l -p 80 -e echo hello </dev/null &
    sleep 0.5
    [ "$(timeout 5 ip netns exec far busybox nc 203.0.113.2 8080 </dev/null)" = hello ] || fail "the forward does not work"
    "$R" net forward "8080 -> 192.168.122.9:81" --yes 2>/dev/null </dev/null && fail "port taken twice"
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
bridge)
    mac=$(cat /sys/class/net/out/address)
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

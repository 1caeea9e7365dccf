# Runs in the machine of `reboot`, once at each start: a network is made and persisted, is there after a restart and
# after nftables is restarted and reloaded, is removed, and does not come back.
PATH=/usr/local/bin:/usr/sbin:/usr/bin
export SYSTEMD_PAGER=cat SYSTEMD_COLORS=0
start=$(($(cat /starts 2>/dev/null || echo 0) + 1))
echo $start > /starts
fail() { echo "FAILED: $*"; journalctl -b -u rhostprep-net | tail -n 20; exit 1; }
until_true() { n=0; until "$@" >/dev/null 2>&1; do n=$((n + 1)); [ $n -lt 600 ] || fail "never: $*"; sleep 0.2; done; }
ip link add out type veth peer name outp
ip netns add far
ip link set outp netns far
ip -n far addr add 203.0.113.1/24 dev outp
ip -n far link set outp up
ip addr add 203.0.113.2/24 dev out
ip link set out up
ip route add default via 203.0.113.1
cat > /tmp/lease <<'S'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/24" dev "$interface"; ip route add default via "$router"; echo "$ip" > /tmp/ip
S
chmod +x /tmp/lease
works() { # what
    ip netns add g1
    ip link add g1 type veth peer name eth0 netns g1
    ip link set g1 up
    ip -n g1 link set eth0 address 52:54:00:11:22:33
    ip -n g1 link set eth0 up
    rhostprep ifup g1 --bridge virbr0 || fail "$1: ifup"
    timeout 90 ip netns exec g1 udhcpc -i eth0 -t 60 -T 1 -n -q -f -s /tmp/lease >/tmp/udhcpc 2>&1 || fail "$1: no lease: $(cat /tmp/udhcpc)"
    timeout 20 ip netns exec g1 ping -q -c1 -W10 203.0.113.1 >/dev/null || fail "$1: the guest does not reach the other side"
    ip -n g1 addr add 192.168.122.140/24 dev eth0
    timeout 60 ip netns exec g1 busybox nc -l -p 80 -e echo hello &
    until_true ip netns exec g1 sh -c 'grep -q ":0050 " /proc/net/tcp*'
    [ "$(timeout 30 ip netns exec far busybox nc 203.0.113.2 8080)" = hello ] || fail "$1: the forward does not work"
    wait $!
    ip link del g1
    ip netns del g1
}
ours() { nft list tables | grep -qx 'table inet rhostprep_virbr0'; }
# A reload while the unit still starts is one with that start.
settled() { ours && systemctl is-active rhostprep-net; }
case $start in
1)
    find /etc -not -name '*.journal' | sort > /before
    rhostprep net nat virbr0 --subnet 192.168.122.0/24 --dhcp --persist --yes >/tmp/log || fail "nat: $(cat /tmp/log)"
    rhostprep net forward '8080 -> 192.168.122.140:80' --yes >/tmp/log || fail "forward: $(cat /tmp/log)"
    works "made"
    cp /tmp/ip /ip ;;
2)
    until_true systemctl is-active rhostprep-net
    ours || fail "no filters"
    [ "$(systemctl show -P Result rhostprep-net)" = success ] || fail "the unit failed"
    journalctl -b -u rhostprep-net | grep 'virbr0: made again: packet filters, forwarding, dnsmasq' || fail "not made again"
    works "after a restart"
    diff /ip /tmp/ip || fail "the guest has another address"
    rhostprep net restore | grep -qx 'virbr0: is as recorded' || fail "not idempotent"
    daemon=$(pgrep -x dnsmasq)
    systemctl restart nftables
    until_true settled
    systemctl reload nftables
    until_true settled
    works "after nftables was restarted and reloaded"
    [ "$(pgrep -x dnsmasq)" = "$daemon" ] || fail "dnsmasq was stopped" ;;
3)
    until_true systemctl is-active rhostprep-net
    works "after a second restart"
    [ "$(ls /var/lib/rhostprep | grep -c journal)" = 2 ] || fail "the journal grows"
    rhostprep net remove virbr0 >/dev/null || fail "not removed"
    find /etc -not -name '*.journal' | sort | diff /before - || fail "files stayed"
    ip link show virbr0 >/dev/null 2>&1 && fail "the bridge stayed"
    ours && fail "filters stayed"
    pgrep -x dnsmasq >/dev/null && fail "dnsmasq stayed"
    [ "$(cat /proc/sys/net/ipv4/ip_forward)" = 0 ] || fail "forwarding stayed" ;;
4)
    until_true systemctl is-active multi-user.target
    ip link show virbr0 >/dev/null 2>&1 && fail "the bridge is back"
    ours && fail "filters are back"
    systemctl cat rhostprep-net >/dev/null 2>&1 && fail "the unit is back" ;;
esac
echo "START $start PASSED"

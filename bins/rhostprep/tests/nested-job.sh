# Runs in the nested host (real kvm_amd, loadable modules), started by `nested`: modules, parameters, hugepages,
# hugetlbfs, KSM, THP, sysctls, swap, a cpuset partition, interrupts and a boot entry are changed for real, seen in
# force, undone, and everything is as before.
R=/payload/rhostprep
PATH=/bin:/sbin
mkdir -p /var /etc && mount -t tmpfs t /var && mount -t tmpfs t /etc && mkdir -p /var/lib
printf 'root:x:0:\nkvm:x:108:\n' > /etc/group
mount -t cgroup2 cgroup2 /sys/fs/cgroup
modprobe -r tun
fail() { echo "FAILED: $*"; exit 1; }
state() {
    find /etc /var /boot /sys/fs/cgroup -type d -not -path '/var/lib*'
    find /etc /boot -type f -exec md5sum {} + 2>/dev/null | sort
    ls -l /dev/kvm
    lsmod | awk 'NR > 1 {print $1}' | sort
    cat /sys/module/kvm_amd/parameters/* /proc/sys/vm/swappiness /sys/kernel/mm/ksm/run \
        /sys/kernel/mm/hugepages/hugepages-*/nr_hugepages /sys/kernel/mm/transparent_hugepage/enabled
    cat /sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages
    cat /sys/fs/cgroup/cgroup.subtree_control /proc/irq/*/smp_affinity_list
    cat /proc/mounts /proc/swaps
}
same() { state > /tmp/after; diff /tmp/before /tmp/after || fail "$1: not as before"; }

# A host with systemd-boot: the system partition is FAT, as it must be.
mkdir -p /run /boot /mnt/swap
for kind in vfat nls_cp437 nls_ascii xfs btrfs; do modprobe $kind; done
if [ -e /payload/vfat.img.gz ]; then
    gunzip -c /payload/vfat.img.gz > /tmp/esp.img
    mount -t vfat -o loop /tmp/esp.img /boot || fail "no FAT"
fi
mkdir -p /boot/loader/entries
echo 'default l1.conf' > /boot/loader/loader.conf
printf 'title L1\nlinux /vmlinux\noptions quiet isolcpus=7\n' > /boot/loader/entries/l1.conf
state > /tmp/before

echo "== everything at once"
set="--module tun --module vhost_net --module kvm_amd --param nested=0 --kvm-access --hugepages 2M=16 \
    --hugetlbfs /tmp/deep/huge=2M --ksm on --ksm pages_to_scan=200 --sysctl vm.swappiness=7 --thp never --memlock 1G \
    --irq-affinity 0"
$R check --only kvm.run >/dev/null || fail "KVM does not run"
$R apply --yes $set > /tmp/log 2>&1 || { cat /tmp/log; fail "apply"; }
$R apply --yes $set | grep -q 'nothing to do' || fail "not idempotent: $($R plan $set)"
[ "$(cat /sys/module/kvm_amd/parameters/nested)" = 0 ] || fail "nested is still on"
[ "$(cat /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages)" = 16 ] || fail "hugepages"
[ "$(cat /sys/kernel/mm/ksm/run) $(cat /sys/kernel/mm/ksm/pages_to_scan)" = "1 200" ] || fail "KSM"
lsmod | grep -q '^tun ' || fail "tun is not loaded"
[ -e /dev/vhost-net ] || fail "vhost_net is not loaded"
grep -q ' /tmp/deep/huge hugetlbfs ' /proc/mounts || fail "hugetlbfs is not mounted"
[ "$(stat -c %a:%g /dev/kvm)" = 660:108 ] || fail "rights of /dev/kvm"
$R check --only kvm.run,dev.tun >/dev/null || fail "KVM or tap does not work after the change"
$R undo >/dev/null || fail "undo"
same everything

echo "== hugepages of a node, and more than there can be"
$R apply --yes --hugepages 2M=32@0 >/dev/null || fail "hugepages of node 0"
[ "$(cat /sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages)" = 32 ] || fail "node 0"
$R undo >/dev/null && same "hugepages of a node"
dd if=/dev/zero of=/tmp/fill bs=1M count=900 2>/dev/null
$R apply --yes --hugepages 2M=1250 >/dev/null 2>/tmp/log && fail "1250 of 2 MiB came"
grep -q 'everything is as it was' /tmp/log || fail "$(cat /tmp/log)"
same "too many hugepages"
rm /tmp/fill

for kind in ext4 xfs btrfs; do
    [ -e /payload/$kind.img.gz ] || continue
    echo "== swap on $kind"
    gunzip -c /payload/$kind.img.gz > /tmp/$kind.img
    mount -t $kind -o loop /tmp/$kind.img /mnt/swap || fail "no $kind"
    state > /tmp/before
    $R apply --yes --swap /mnt/swap/file=24M >/dev/null || fail "swap on $kind"
    grep -q '^/mnt/swap/file .*file.*24[45][0-9][0-9]' /proc/swaps || fail "not in use: $(cat /proc/swaps)"
    $R apply --yes --swap /mnt/swap/file=24M | grep -q 'nothing to do' || fail "swap on $kind is not idempotent"
    $R undo >/dev/null || fail "undo of swap on $kind"
    [ -e /mnt/swap/file ] && fail "the swap file stayed"
    same "swap on $kind"
    $R apply --yes --swap /mnt/swap/file=4G >/dev/null 2>&1 && fail "4 GiB fit on $kind"
    same "too large a swap file on $kind"
    umount /mnt/swap && rm /tmp/$kind.img
done
echo "== a swap partition"
truncate -s 32M /tmp/part.img && echo contents > /tmp/head && dd if=/tmp/head of=/tmp/part.img conv=notrunc 2>/dev/null
losetup /dev/loop7 /tmp/part.img || fail "no loop device"
state > /tmp/before; sum=$(md5sum < /tmp/part.img)
$R apply --yes --swap /dev/loop7 >/dev/null || fail "swap partition"
grep -q '^/dev/loop7 .*partition' /proc/swaps || fail "the partition is not in use"
$R undo >/dev/null || fail "undo of the swap partition"
same "swap partition"; sync
[ "$(md5sum < /tmp/part.img)" = "$sum" ] || fail "the partition has other contents"
losetup -d /dev/loop7; state > /tmp/before

echo "== a cpuset partition"
$R apply --yes --isolate 1 --cpuset >/dev/null || fail "cpuset partition"
$R apply --yes --isolate 1 --cpuset | grep -q 'nothing to do' || fail "cpuset is not idempotent"
[ "$(cat /sys/fs/cgroup/rhostprep/cpuset.cpus.partition)" = isolated ] || fail "no partition"
[ "$(cat /sys/fs/cgroup/cpuset.cpus.effective)" = 0 ] || fail "others may use CPU 1"
( echo $$ ; exec sh -c 'echo $$ > /sys/fs/cgroup/rhostprep/cgroup.procs; exec sleep 1000' ) >/dev/null & held=$!
until grep -q . /sys/fs/cgroup/rhostprep/cgroup.procs; do usleep 10000; done
$R undo 2>/tmp/log && fail "a group with a process was removed"
grep -q 'cgroup.procs' /tmp/log || fail "no remedy: $(cat /tmp/log)"
kill $held; wait $held 2>/dev/null
$R undo >/dev/null || fail "undo of the partition"
same "cpuset partition"

echo "== killed at any time"
set="--module tun --module kvm_amd --param nested=0 --hugepages 2M=16 --hugetlbfs /tmp/deep/huge=2M --ksm on \
    --sysctl vm.swappiness=7 --thp never --isolate 1"
for ms in 02 05 10 15 20 30 40 60 80 120 160; do
    ( $R apply --yes $set >/dev/null 2>&1 & p=$!; usleep ${ms}000; kill -9 $p 2>/dev/null; wait $p 2>/dev/null )
    $R undo >/tmp/log 2>&1 || grep -q 'nothing to undo' /tmp/log || fail "undo after $ms ms: $(cat /tmp/log)"
    same "killed after $ms ms"
done

echo "== the kernel line"
$R apply --yes --isolate 1 --irq-affinity 0 >/dev/null || fail "boot entry"
$R apply --yes --isolate 1 --irq-affinity 0 | grep -q 'nothing to do' || fail "boot entry is not idempotent"
options=$(sed -n 's/^options //p' /boot/loader/entries/l1.conf)
$R undo >/dev/null || fail "undo of the boot entry"
same "boot entry"
echo "L1-OPTIONS $options"
echo PASSED

# Runs in the nested host (real kvm_amd, loadable modules): modules, parameters, hugepages, hugetlbfs, KSM, THP,
# sysctls are changed for real, seen in force, undone, and everything is as before. Needs a static rhostprep:
#   run-l1.sh -f rhostprep -f nested-job.sh 'sh /payload/nested-job.sh'
R=/payload/rhostprep
mkdir -p /var && mount -t tmpfs t /var && mount -t tmpfs t /etc && mkdir -p /var/lib
state() {
    find /etc /var -not -path '/var/lib*'
    lsmod | awk 'NR > 1 {print $1}' | sort
    cat /sys/module/kvm_amd/parameters/nested /proc/sys/vm/swappiness /sys/kernel/mm/ksm/run \
        /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages /sys/kernel/mm/transparent_hugepage/enabled
    cat /proc/mounts /proc/swaps
}
fail() { echo "FAILED: $*"; exit 1; }
set="--module tun --module kvm_amd --param nested=0 --hugepages 2M=16 --hugetlbfs /tmp/deep/huge=2M --ksm on --sysctl vm.swappiness=7 --thp never"
state > /tmp/before
$R check --only kvm.run >/dev/null || fail "KVM does not run"
$R apply --yes $set > /tmp/log || { cat /tmp/log; fail "apply"; }
$R apply --yes $set | grep -q 'nothing to do' || fail "not idempotent"
[ "$(cat /sys/module/kvm_amd/parameters/nested)" = 0 ] || fail "nested is still on"
[ "$(cat /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages)" = 16 ] || fail "hugepages"
lsmod | grep -q '^tun ' || fail "tun is not loaded"
grep -q ' /tmp/deep/huge hugetlbfs ' /proc/mounts || fail "hugetlbfs is not mounted"
$R check --only kvm.run,dev.tun >/dev/null || fail "KVM or tap does not work after the change"
$R undo >/dev/null || fail "undo"
state > /tmp/after
diff /tmp/before /tmp/after || fail "not as before"
# Killed at any time, then undone.
for ms in 02 05 10 15 20 30 40 60 80; do
    ( $R apply --yes $set >/dev/null 2>&1 & p=$!; usleep ${ms}000; kill -9 $p 2>/dev/null; wait $p 2>/dev/null )
    $R undo >/dev/null 2>&1
    state > /tmp/after
    diff /tmp/before /tmp/after || fail "killed after $ms ms: not as before"
done
echo PASSED

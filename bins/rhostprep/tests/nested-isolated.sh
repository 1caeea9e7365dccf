# Runs in the outer machine after a start with the kernel line that rhostprep has written.
R=/payload/rhostprep
fail() { echo "FAILED: $*"; exit 1; }
[ "$(cat /sys/devices/system/cpu/isolated)" = 1 ] || fail "CPU 1 is not isolated: $(cat /proc/cmdline)"
[ "$(cat /sys/devices/system/cpu/nohz_full)" = 1 ] || fail "CPU 1 has a tick"
$R check --only cpu.isolation,cpu.isolation-sane,kvm.run --color never
code=$?
[ $code -lt 2 ] || fail "check ends with $code"
$R check --only cpu.isolation -v | grep -q 'CPU.*1' || fail "the check does not see it"
echo PASSED

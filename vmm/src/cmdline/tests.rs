//! Command lines and the machines they mean.

use std::path::PathBuf;

use super::*;
use crate::block::config::{Aio, OnError, Persistence, WriteAccess, WriteCache};
use crate::block::throttle::Limit;
use crate::chardev::config::{
    CharKind, FileMode, Protocol, Role, Sharing, Signals, SocketAddress, Wait,
};
use crate::control::MonitorMode;
use crate::machine::config::{DeviceKind, OnReset};
use crate::net::config::TapSource;

fn run(line: &str) -> Run {
    let args: Vec<&str> = line.split_whitespace().collect();
    match parse(&args).unwrap() {
        Parsed::Run(r) => *r,
        Parsed::Show(t) => panic!("shows {t}"),
    }
}

fn refused(line: &str) -> String {
    let args: Vec<&str> = line.split_whitespace().collect();
    let e = parse(&args).err().unwrap_or_else(|| panic!("accepted: {line}"));
    format!("{} | {}", e.report(), e.hints().join(" | "))
}

#[test]
fn memory_in_all_spellings() {
    let size = |m: &str| run(&format!("-kernel k {m}")).machine.memory.size();
    assert_eq!(size(""), 128 << 20);
    for m in ["-m 128", "-m 128m", "-m 128M", "-m size=128", "-m size=128M", "--m 128"] {
        assert_eq!(size(m), 128 << 20, "{m}");
    }
    assert_eq!((size("-m 2G"), size("-m 1024"), size("-m 8096")), (2 << 30, 1 << 30, 8096 << 20));
    assert!(refused("-kernel k -m 1G,slots=2,maxmem=4G").contains("hot-plug"));
    assert!(refused("-kernel k -m lots").contains("expects a size"));
    let huge = run("-kernel k -mem-path /dev/hugepages -mem-prealloc -machine mem-merge=off");
    let b = &huge.machine.memory.nodes[0].backend;
    assert!(b.prealloc && !b.merge && matches!(b.source, crate::mem::config::Source::File(_)));
}

#[test]
fn numa_in_both_spellings() {
    let m = run("-kernel k -m 1G -smp 4 -numa node,mem=512,cpus=0-1 -numa node,mem=512,cpus=2-3 -numa dist,src=0,dst=1,val=30").machine.memory;
    assert!(m.numa);
    assert_eq!((m.nodes.len(), m.nodes[1].cpus.clone(), m.distance(1, 0)), (2, vec![2, 3], 30));
    let m = run("-kernel k -m 1G -object memory-backend-memfd,id=a,size=512M,share=on -object memory-backend-ram,id=b,size=512M -numa node,memdev=a -numa node,memdev=b -smp 2,sockets=2").machine.memory;
    assert_eq!((m.nodes[0].backend.id.as_str(), m.nodes[1].cpus.clone()), ("a", vec![1]));
    assert!(refused("-kernel k -m 1G -numa node,mem=512").contains("should equal RAM size"));
    assert!(refused("-kernel k -numa node,memdev=x").contains("'x' not found"));
    assert!(refused("-kernel k -numa dist,src=0,dst=1,val=5").contains("between 10 and 255"));
}

#[test]
fn processors() {
    let r = run("-kernel k -cpu qemu64,+vmx,-svm,pdpe1gb=on -smp 4,sockets=4,cores=1,threads=1");
    assert_eq!(r.machine.cpu.flags.len(), 3);
    assert_eq!(r.machine.topology.sockets, 4);
    let r = run("-kernel k -smp 4,sockets=2,cores=1,threads=1");
    assert!(r.warnings[0].contains("using sockets=4"), "{:?}", r.warnings);
    let r = run("-kernel k -smp 2 -vcpu-pin vcpu=1,cpus=0-1+3");
    assert_eq!(r.machine.pin, [vec![], vec![0, 1, 3]]);
    assert!(refused("-kernel k -vcpu-pin vcpu=1,cpus=0").contains("no vCPU"));
    assert!(refused("-kernel k -cpu host,+nope").contains("nope"));
    assert!(
        matches!(parse(&["-cpu", "?"]).unwrap(), Parsed::Show(t) if t.contains("Nehalem") && !t.contains("  base "))
    );
    assert!(matches!(parse(&["-M", "?"]).unwrap(), Parsed::Show(_)));
}

#[test]
fn disks() {
    let r = run(
        "-kernel k -drive file=my,,file.img,if=virtio,media=disk,cache=writethrough,format=qcow2,serial=x -drive file=b,if=virtio,index=0,readonly=on",
    );
    let drives: Vec<_> = r
        .machine
        .devices
        .iter()
        .filter_map(|d| match &d.kind {
            DeviceKind::Blk { drive, .. } => Some(drive),
            _ => None,
        })
        .collect();
    assert_eq!(drives[0].image.filename, "my,file.img");
    assert_eq!(drives[0].write_cache, WriteCache::Writethrough);
    assert_eq!(drives[1].access, WriteAccess::ReadOnly);
    for (line, aio) in [
        ("-drive file=a,if=virtio", Aio::Auto),
        ("-drive file=a,if=virtio,aio=threads,cache=none", Aio::Threads),
        ("-drive file=a,if=virtio,aio=io_uring", Aio::Ring),
        ("-drive file=a,if=virtio,aio=native,cache=none", Aio::Native),
        ("-drive file=a,if=virtio,aio=native,cache.direct=on", Aio::Native),
        (
            "-blockdev driver=file,filename=a,aio=io_uring,node-name=f -blockdev driver=raw,file=f,node-name=n -device virtio-blk-pci,drive=n",
            Aio::Ring,
        ),
        (
            "-blockdev driver=raw,node-name=n,cache.direct=on,file.driver=file,file.filename=a,file.aio=native -device virtio-blk-pci,drive=n",
            Aio::Native,
        ),
    ] {
        let r = run(&format!("-kernel k {line}"));
        let Some(DeviceKind::Blk { drive, .. }) = r.machine.devices.first().map(|d| &d.kind) else {
            panic!("{line}: no disk")
        };
        assert_eq!(drive.aio, aio, "{line}");
        assert!(!r.warnings.iter().any(|w| w.contains("aio")), "{line}: {:?}", r.warnings);
    }
    let r = run(
        "-kernel k -drive file=a,if=none,id=d0 -device virtio-blk-pci,drive=d0,num-queues=2,addr=0x5",
    );
    assert_eq!(r.machine.devices[0].slot, Some(5));
    for (line, what) in [
        ("-kernel k -drive file=a", "if=ide is not supported yet"),
        ("-kernel k a.img", "if=virtio"),
        ("-kernel k -hda a", "-hda: not supported yet"),
        ("-kernel k -drive file=a,if=virtio,throttling.bps=1", "throttling.bps"),
        ("-kernel k -drive file=a,if=virtio,bps=1,bps_rd=1", "at the same time"),
        ("-kernel k -drive file=a,if=virtio,iops_size=1", "requires an iops"),
        ("-kernel k -drive file=a,if=virtio,detect-zeroes=unmap", "discard operation"),
        ("-kernel k -drive file=a,if=virtio,aio=native", "requires cache.direct=on"),
        ("-kernel k -drive file=a,if=virtio,aio=posix", "invalid aio option 'posix'"),
        (
            "-kernel k -blockdev driver=file,filename=a,aio=native,node-name=f -device virtio-blk-pci,drive=f",
            "requires cache.direct=on",
        ),
        ("-kernel k -drive file=a,if=virtio,werror=pause", "'pause' invalid write error action"),
        ("-kernel k -drive file=a,if=virtio,rerror=enospc", "'enospc' invalid read error action"),
        ("-kernel k -drive file=a,if=virtio,l2-cache-size=1M", "Give format="),
        (
            "-kernel k -drive file=a,if=virtio,format=raw,l2-cache-size=1M",
            "does not support the option",
        ),
        ("-kernel k -drive file=a,if=virtio,media=cdrom,readonly=off", "CD"),
        ("-kernel k -blockdev driver=file,filename=a", "'node-name' must be specified"),
        ("-kernel k -blockdev driver=file,filename=a,node-name=1a", "Invalid node-name"),
        (
            "-kernel k -blockdev driver=raw,file=b,node-name=a -device virtio-blk-pci,drive=a",
            "Cannot find device='b'",
        ),
        (
            "-kernel k -blockdev driver=raw,file=a,node-name=a -device virtio-blk-pci,drive=a",
            "below itself",
        ),
        (
            "-kernel k -blockdev driver=throttle,file=b,node-name=a -blockdev driver=file,filename=x,node-name=b -device virtio-blk-pci,drive=a",
            "driver=throttle is not supported yet",
        ),
        (
            "-kernel k -snapshot -blockdev driver=file,filename=a,node-name=n",
            "-snapshot does not work",
        ),
        (
            "-kernel k -drive file=a,if=none,id=d -device virtio-blk-pci,drive=d,queue-size=3",
            "queue-size=3",
        ),
        (
            "-kernel k -drive file=a,if=none,id=d -device virtio-blk-pci,drive=d,logical_block_size=1000",
            "logical_block_size=1000",
        ),
        ("-kernel k -drive file=a,if=virtio,nonsense=1", "Invalid parameter 'nonsense'"),
        ("-kernel k -drive file=a,if=virtio,cache=fast", "invalid cache option"),
        ("-kernel k -drive file=a,if=none,id=x", "no -device uses it"),
        ("-kernel k -device virtio-blk-pci,drive=x", "can't find value 'x'"),
        ("-kernel k -drive file=a,if=virtio,id=x -drive file=b,if=virtio,id=x", "Duplicate ID"),
    ] {
        assert!(refused(line).contains(what), "{line}: {}", refused(line));
    }
}

fn disk(line: &str) -> (crate::block::Drive, crate::virtio::blk::BlkConfig) {
    let r = run(line);
    let found = r.machine.devices.into_iter().find_map(|d| match d.kind {
        DeviceKind::Blk { drive, shown, .. } => Some((*drive, shown)),
        _ => None,
    });
    found.unwrap()
}

#[test]
fn drives_with_everything() {
    use imgcore::graph::open::{BackingChoice, DetectZeroes, Discard, Sharing};
    use imgcore::storage::CacheMode;
    let (d, shown) = disk(
        "-kernel k -drive file=a,if=virtio,format=qcow2,snapshot=on,cache=none,discard=unmap,detect-zeroes=unmap,werror=stop,rerror=ignore,bps=1000,bps_max=2000,bps_max_length=3,throttling.iops-read=5,group=g,file.locking=off,l2-cache-size=2M",
    );
    assert_eq!(
        (d.persistence, d.write_error, d.read_error),
        (Persistence::Temporary, OnError::Stop, OnError::Ignore)
    );
    assert_eq!((d.image.cache, d.write_cache), (Some(CacheMode::None), WriteCache::Writeback));
    assert_eq!(
        (d.image.discard, d.image.detect_zeroes),
        (Some(Discard::Unmap), DetectZeroes::Unmap)
    );
    assert_eq!(d.image.sharing, Some(Sharing::Off));
    assert_eq!(d.image.options, [("l2-cache-size".to_owned(), "2097152".to_owned())]);
    let t = d.throttling.unwrap();
    assert_eq!((t.group.as_str(), t.limits.requests[1].average), ("g", 5));
    assert_eq!(t.limits.bytes[0], Limit { average: 1000, burst: 2000, burst_length: 3 });
    assert_eq!(shown.discard, crate::virtio::blk::Offer::Yes);
    for (words, cache, write_cache) in [
        ("cache=directsync", CacheMode::None, WriteCache::Writethrough),
        ("cache=writethrough", CacheMode::Writeback, WriteCache::Writethrough),
        ("cache=unsafe", CacheMode::Unsafe, WriteCache::Writeback),
        ("cache.direct=on,cache.writeback=off", CacheMode::None, WriteCache::Writethrough),
        ("media=disk", CacheMode::Writeback, WriteCache::Writeback),
    ] {
        let (d, _) = disk(&format!("-kernel k -drive file=a,if=virtio,{words}"));
        assert_eq!((d.image.cache, d.write_cache), (Some(cache), write_cache), "{words}");
        assert_eq!((d.write_error, d.persistence), (OnError::StopWhenFull, Persistence::Permanent));
    }
    assert_eq!(
        disk("-kernel k -snapshot -drive file=a,if=virtio").0.persistence,
        Persistence::Temporary
    );
    let (d, _) = disk("-kernel k -snapshot -drive file=a,if=virtio,snapshot=off,media=cdrom");
    assert_eq!((d.persistence, d.access), (Persistence::Permanent, WriteAccess::ReadOnly));
    let nodes = "-blockdev driver=file,filename=top.q,node-name=f,cache.direct=on -blockdev driver=file,filename=b.raw,node-name=bf -blockdev driver=raw,file=bf,node-name=b";
    let (d, shown) = disk(&format!(
        "-kernel k {nodes} -blockdev driver=qcow2,file=f,backing=b,node-name=top,discard=unmap,auto-read-only=on -device virtio-blk-pci,drive=top,write-cache=off,queue-size=128,logical_block_size=4k,serial=s"
    ));
    assert_eq!((d.image.filename.as_str(), d.image.driver.as_deref()), ("top.q", Some("qcow2")));
    assert_eq!(
        (d.image.cache, d.write_cache, d.access),
        (Some(CacheMode::None), WriteCache::Writethrough, WriteAccess::Auto)
    );
    assert!(matches!(&d.image.backing, BackingChoice::Given(b) if b.filename == "b.raw"));
    assert_eq!(
        (shown.queue_size, shown.logical_block, shown.physical_block, d.serial.as_str()),
        (128, 4096, 4096, "s")
    );
    let (d, _) = disk(
        r#"-kernel k -blockdev {"driver":"qcow2","node-name":"j","read-only":true,"backing":null,"file":{"driver":"file","filename":"x,y"}} -device virtio-blk-pci,drive=j"#,
    );
    assert_eq!((d.image.filename.as_str(), d.access), ("x,y", WriteAccess::ReadOnly));
    assert_eq!((d.image.backing, d.write_error), (BackingChoice::Nothing, OnError::StopWhenFull));
}

#[test]
fn networks_by_vlan_and_by_name() {
    let net = |r: &Run| {
        r.machine
            .devices
            .iter()
            .filter_map(|d| match &d.kind {
                DeviceKind::Net { shown, tap } => {
                    let TapSource::Name(name) = &tap.source else { return None };
                    Some((shown.mac, name.clone(), tap.script.clone()))
                }
                _ => None,
            })
            .collect::<Vec<_>>()
    };
    let r = run(
        "-kernel k -net nic,vlan=0,macaddr=52:54:00:12:34:01,model=virtio -net tap,vlan=0,ifname=tap0",
    );
    assert_eq!(
        net(&r),
        [([0x52, 0x54, 0, 0x12, 0x34, 1], "tap0".into(), Some("/etc/qemu-ifup".into()))]
    );
    let r = run(
        "-kernel k -netdev tap,id=n0,ifname=t0,script=no,downscript=no -device virtio-net-pci,netdev=n0,mac=52:54:00:00:00:09,bus=pci.0,addr=0x3",
    );
    assert_eq!(net(&r), [([0x52, 0x54, 0, 0, 0, 9], "t0".into(), None)]);
    let r = run("-kernel k -nic tap,model=virtio,ifname=t1,script=no");
    assert_eq!(net(&r)[0].1, "t1");
    for (line, what) in [
        ("-kernel k -net nic -net tap", "e1000"),
        ("-kernel k -net nic,model=virtio -net user", "'user' is not supported yet"),
        ("-kernel k -net nic,model=virtio", "no back end"),
        ("-kernel k -net tap", "no card"),
        ("-kernel k -net nic,model=virtio,macaddr=1:2 -net tap", "invalid MAC"),
        ("-kernel k -net nic,model=virtio -net tap,vhostfd=3", "not valid without vhost"),
        ("-kernel k -net nic,model=virtio -net tap,fd=3,ifname=x", "invalid with fd="),
        ("-kernel k -net nic,model=virtio -net tap,fd=a", "fd=a"),
        ("-kernel k -net nic,model=virtio -net tap,fd=3:4", "fd="),
        ("-kernel k -net nic,model=virtio -net tap,queues=0", "1 to 64"),
        ("-kernel k -net nic,model=virtio -net bridge,ifname=x", "invalid with br="),
        ("-kernel k -netdev user,id=u", "'user' is not supported yet"),
        ("-kernel k -netdev vde,id=u", "'vde' is not supported yet"),
        ("-kernel k -netdev socket,id=u", "'socket' is not supported yet"),
        ("-kernel k -nic user,model=virtio", "'user' is not supported yet"),
        ("-kernel k -device vhost-vsock-pci", "guest-cid"),
        ("-kernel k -netdev tap,id=n -device virtio-net-pci,netdev=n,host_mtu=5", "host_mtu=5"),
    ] {
        assert!(refused(line).contains(what), "{line}: {}", refused(line));
    }
}

#[test]
fn networks_with_everything() {
    use crate::net::config::{Vhost, VnetHeader};
    let all = |line: &str| {
        let r = run(line);
        let found: Vec<_> = r
            .machine
            .devices
            .into_iter()
            .filter_map(|d| match d.kind {
                DeviceKind::Net { shown, tap } => Some((shown, tap)),
                _ => None,
            })
            .collect();
        (found, r.warnings)
    };
    let (nics, warnings) = all(
        "-kernel k -netdev tap,fds=3:4,id=n,vhost=on,vhostfds=5:6 -device virtio-net-pci,netdev=n,mq=on,host_mtu=9000,vectors=6",
    );
    assert_eq!(nics[0].1.source, TapSource::Descriptors(vec![3, 4]));
    assert_eq!((nics[0].1.queues, &nics[0].1.vhost), (2, &Vhost::On(vec![5, 6])));
    assert_eq!((nics[0].0.mtu, &nics[0].1.script), (9000, &None));
    assert!(warnings.iter().any(|w| w.contains("vectors=6")), "{warnings:?}");
    let (nics, warnings) = all(
        "-kernel k -netdev tap,queues=4,id=n,script=no,vnet_hdr=off,sndbuf=1M -device virtio-net-pci,netdev=n",
    );
    assert_eq!((nics[0].1.queues, nics[0].1.vnet_header), (1, VnetHeader::Off));
    assert_eq!(nics[0].1.sndbuf, Some(1 << 20));
    assert!(warnings.iter().any(|w| w.contains("mq=on")), "{warnings:?}");
    let (nics, _) =
        all("-kernel k -netdev bridge,br=virbr0,helper=/h,id=n -device virtio-net-pci,netdev=n");
    assert_eq!(
        nics[0].1.source,
        TapSource::Bridge { bridge: "virbr0".into(), helper: Some("/h".into()) }
    );
    let (nics, _) = all("-kernel k -nic bridge,model=virtio");
    assert!(matches!(&nics[0].1.source, TapSource::Bridge { bridge, .. } if bridge == "br0"));
    assert_eq!(nics[0].1.downscript, None);
    let (nics, warnings) = all(
        "-kernel k -nic tap,model=virtio -nic tap,model=virtio,mac=52:54:00:12:34:56 -nic tap,model=virtio -nic tap,model=virtio,mac=52:54:00:12:34:56",
    );
    let last: Vec<u8> = nics.iter().map(|n| n.0.mac[5]).collect();
    assert_eq!(last, [0x57, 0x56, 0x58, 0x56]);
    assert!(warnings.iter().any(|w| w.contains("52:54:00:12:34:56")), "{warnings:?}");
    let r = run("-kernel k -device vhost-vsock-pci,guest-cid=0x10");
    assert_eq!(r.machine.devices[0].kind, DeviceKind::Vsock { cid: 16, vhost: None });
}

#[test]
fn consoles_and_the_rest() {
    let r = run("-kernel k -nographic");
    assert_eq!(r.machine.chardevs.len(), 1);
    let (label, config) = &r.machine.chardevs[0];
    assert_eq!((label.as_str(), config.sharing), ("serial0", Sharing::Mux));
    assert_eq!(config.kind, CharKind::Stdio { signals: Signals::Pass });
    assert_eq!((r.machine.serial[0].as_str(), r.machine.monitors.len()), ("serial0", 1));
    assert_eq!(run("-kernel k -display none -serial none").machine.serial.len(), 0);
    let r = run("-kernel k -nographic -serial file:log -serial null -no-reboot -balloon virtio");
    let log = CharKind::File { path: "log".into(), mode: FileMode::Truncate, input: None };
    assert_eq!(r.machine.chardevs[0].1.kind, log);
    assert_eq!(r.machine.serial, ["serial0", "serial1"]);
    assert_eq!(r.machine.monitors[0].chardev, "compat_monitor0", "the monitor gets stdio");
    assert_eq!(r.machine.on_reset, OnReset::End);
    assert_eq!(r.machine.devices.len(), 1);
    assert_eq!(run("-kernel k -nogr").machine.serial.len(), 1, "the beginning of a name is enough");
    let r = run(
        "-kernel k -initrd a,,b,c -uuid 00112233-4455-6677-8899-aabbccddeeff -rtc base=2006-06-17T16:01:21",
    );
    assert_eq!(r.machine.kernel.initrds, [PathBuf::from("a,b"), "c".into()]);
    assert_eq!(r.machine.smbios.uuid[15], 0xff);
    assert_eq!(r.machine.rtc, crate::machine::config::RtcBase::Date(1_150_560_081));
    let r = run(
        "-enable-kvm -M pc-1.0 -kernel k -device pvpanic -device isa-debug-exit,iobase=0xf4,iosize=0x04",
    );
    assert_eq!((r.machine.pvpanic, r.machine.debug_exit), (true, Some(0xf4)));
}

#[test]
fn monitors_and_character_devices() {
    let r = run(
        "-kernel k -display none -serial tcp::4444,server,nowait -monitor telnet:127.0.0.1:5555,server=on,wait=off -qmp unix:/tmp/q,server=on",
    );
    let socket = |i: usize| match &r.machine.chardevs[i].1.kind {
        CharKind::Socket(s) => s.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(socket(0).address, SocketAddress::Tcp(String::new(), 4444));
    assert_eq!(socket(0).role, Role::Server(Wait::Off));
    assert_eq!((socket(1).protocol, socket(2).role), (Protocol::Telnet, Role::Server(Wait::On)));
    let modes: Vec<MonitorMode> = r.machine.monitors.iter().map(|m| m.mode).collect();
    assert_eq!(modes, [MonitorMode::Human, MonitorMode::Control { pretty: false }]);
    let r = run(
        "-kernel k -nodefaults -display none -chardev socket,id=c,host=::1,port=9,reconnect=2,nodelay=on -mon c,mode=control,pretty=on -chardev ringbuf,id=r,size=4K,logfile=l -serial chardev:r -S -echr 0x14",
    );
    let CharKind::Socket(s) = &r.machine.chardevs[0].1.kind else { panic!() };
    assert!(s.nodelay && s.role == Role::Client(Some(std::time::Duration::from_secs(2))));
    assert_eq!(r.machine.chardevs[1].1.kind, CharKind::Ring(4096));
    assert!(r.machine.start_paused && r.machine.escape == 0x14);
    let r = run("-kernel k -nographic -qmp unix:q,server=on,wait=off");
    assert_eq!(r.machine.monitors.len(), 2, "the human monitor stays behind Ctrl-a c");
    for (line, what) in [
        ("-kernel k -serial chardev:x", "'x' not found"),
        ("-kernel k -nographic -monitor stdio", "multiple character devices"),
        ("-kernel k -chardev stdio,id=a -serial chardev:a -mon a", "mux=on"),
        ("-kernel k -monitor unix:x,wait=off", "server=on"),
        ("-kernel k -monitor unix:x,server=on,reconnect=1", "incompatible"),
        ("-kernel k -serial tcp:host", "HOST:PORT"),
        ("-kernel k -serial tcp::99999", "HOST:PORT"),
        ("-kernel k -serial vc", "'vc'"),
        ("-kernel k -serial /dev/ttyS0", "socat"),
        ("-kernel k -serial nonsense", "not a valid char driver"),
        ("-kernel k -chardev socket,id=c,path=x,tls-creds=t", "tls-creds"),
        ("-kernel k -chardev ringbuf,id=c,size=1000", "power of two"),
        ("-kernel k -chardev spicevmc,id=c", "spicevmc"),
        ("-kernel k -chardev null,id=c -chardev null,id=c", "Duplicate ID"),
        ("-kernel k -mon chardev=c,mode=x", "unknown monitor mode"),
    ] {
        assert!(refused(line).contains(what), "{line}: {}", refused(line));
    }
}

#[test]
fn the_process_around_the_machine() {
    let r = run(
        "-kernel k -display none -daemonize -pidfile p -runas 107:108 -name guest=g,process=vm,debug-threads=on -msg timestamp=on -D log -action panic=pause,shutdown=pause,reboot=shutdown",
    );
    assert_eq!(r.process.foreground, process::Foreground::Daemonize);
    assert_eq!(r.process.run_as, Some(process::RunAs::Ids(107, 108)));
    assert_eq!(r.process.process_name.as_deref(), Some("vm"));
    assert!(r.process.messages.timestamp && r.machine.name.as_deref() == Some("g"));
    assert_eq!(r.machine.on_panic, crate::machine::config::OnPanic::Pause);
    for (line, what) in [
        ("-kernel k -daemonize -nographic", "cannot be used with -daemonize"),
        ("-kernel k -daemonize -monitor stdio", "cannot use stdio with -daemonize"),
        ("-kernel k -runas 1:x", "UID:GID"),
        ("-kernel k -action panic=dance", "pause"),
        ("-kernel k -run-with chroot=/x", "chroot"),
    ] {
        assert!(refused(line).contains(what), "{line}: {}", refused(line));
    }
}

#[test]
fn nothing_is_silently_ignored() {
    for (line, what) in [
        ("-kernel k -vnc :0", "VNC is not supported yet"),
        ("-kernel k -no-acpi", "-no-acpi: not supported yet"),
        ("-kernel k -frobnicate", "invalid option"),
        ("-kernel k -parallel pty", "-parallel none"),
        ("-kernel k -no-", "could be"),
        ("-kernel k -m", "requires an argument"),
        ("-m 1G", "-kernel"),
        ("-kernel k -device e1000", "'e1000' is not supported yet"),
        ("-kernel k -M accel=tcg", "accelerator"),
        ("-kernel k -rtc driftfix=slew", "driftfix=slew"),
    ] {
        assert!(refused(line).contains(what), "{line}: {}", refused(line));
    }
    for o in table::TABLE {
        assert_eq!(table::TABLE.iter().filter(|p| p.name == o.name).count(), 1, "{}", o.name);
        assert_eq!(table::find(o.name).unwrap().name, o.name);
    }
    assert!(pages::help().contains("-daemonize"));
}

#[test]
fn every_property_of_a_disk_works_or_is_named() {
    let disk = |more: &str| {
        format!(
            "-kernel k -drive file=a,if=none,id=d,format=raw -device virtio-blk-pci,drive=d{more}"
        )
    };
    let shown = |more: &str| {
        let r = run(&disk(more));
        match &r.machine.devices[0].kind {
            DeviceKind::Blk { shown, queues, .. } => (shown.clone(), *queues, r.warnings.clone()),
            other => panic!("{other:?}"),
        }
    };
    // With the values that QEMU has when nothing is said.
    let usual = "account-failed=auto account-invalid=auto aer=off any_layout=on ats=off bootindex=1 config-wce=on \
        disable-legacy=auto disable-modern=off discard=on discard_granularity=4294967295 event_idx=on \
        indirect_desc=on ioeventfd=on iommu_platform=off max-discard-sectors=4194303 \
        max-write-zeroes-sectors=4194303 min_io_size=0 modern-pio-notify=off multifunction=off \
        num-queues=65535 opt_io_size=0 packed=off page-per-vq=off queue-size=256 \
        report-discard-granularity=on request-merging=on rerror=auto scsi=off seg-max-adjust=on \
        share-rw=off vectors=3 werror=auto write-cache=auto write-zeroes=on";
    for one in usual.split_whitespace() {
        shown(&format!(",{one}"));
    }
    let refusals = "acpi-index=1 aer=on ats=on backend_defaults=on class=1 cyls=1 disable-modern=on event_idx=off \
        failover_pair_id=x heads=1 indirect_desc=off ioeventfd=off iommu_platform=on lcyls=1 lheads=1 lsecs=1 \
        multifunction=on packed=on page-per-vq=on queue_reset=on request-merging=off romfile=x rombar=2 \
        romsize=1 scsi=on secs=1 seg-max-adjust=off share-rw=on iothread=io0 account-failed=off \
        disable-legacy=on report-discard-granularity=off";
    for one in refusals.split_whitespace() {
        let said = refused(&disk(&format!(",{one}")));
        let (name, _) = one.split_once('=').unwrap();
        assert!(said.contains(name) && !said.contains("Invalid parameter"), "{one}: {said}");
    }
    let (config, queues, _) = shown(
        ",logical_block_size=4k,physical_block_size=16k,min_io_size=16k,opt_io_size=1M,discard_granularity=64k,\
         max-discard-sectors=2048,max-write-zeroes-sectors=1024,queue-size=64,num-queues=3",
    );
    assert_eq!((config.logical_block, config.physical_block), (4096, 16_384));
    assert_eq!(
        (config.min_io, config.opt_io, config.discard_granularity),
        (16_384, 1 << 20, 65_536)
    );
    assert_eq!((config.max_discard, config.max_zeroes), (2048, 1024));
    assert_eq!((config.queue_size, queues), (64, Some(3)));
    for (more, what) in [
        ("min_io_size=100", "min_io_size=100"),
        ("min_io_size=33554432", "65535 times"),
        ("logical_block_size=4k,opt_io_size=512", "opt_io_size=512"),
        ("discard_granularity=1000", "discard_granularity=1000"),
        ("max-discard-sectors=0", "max-discard-sectors=0"),
        ("max-write-zeroes-sectors=4194305", "4194304 sectors"),
        ("logical_block_size=4194304", "2 MiB"),
        ("nonsense=1", "Invalid parameter 'nonsense'"),
    ] {
        let said = refused(&disk(&format!(",{more}")));
        assert!(said.contains(what), "{more}: {said}");
    }
    let (_, _, warnings) = shown(",iothread=io0 -object iothread,id=io0");
    assert!(warnings.iter().any(|w| w.contains("iothread=io0")), "{warnings:?}");
    // As libvirt writes it.
    let line = [
        "-kernel",
        "k",
        "-blockdev",
        r#"{"driver":"nbd","server":{"type":"unix","path":"/s"},"node-name":"s","read-only":false,"reconnect-delay":3}"#,
        "-blockdev",
        r#"{"node-name":"f","driver":"qcow2","file":"s","backing":null}"#,
        "-device",
        r#"{"driver":"virtio-blk-pci","bus":"pci.0","addr":"0x4","drive":"f","id":"virtio-disk0","bootindex":1,"share-rw":false,"write-cache":"on","min_io_size":4096}"#,
    ];
    let Parsed::Run(r) = parse(&line).unwrap() else { panic!() };
    let device = &r.machine.devices[0];
    assert_eq!((device.id.as_str(), device.slot), ("virtio-disk0", Some(4)));
    let DeviceKind::Blk { drive, shown, .. } = &device.kind else { panic!() };
    assert_eq!(shown.min_io, 4096);
    assert_eq!(crate::block::remote::redials(&drive.image).count(), 1);
    assert!(parse(&["-device", "{\"driver\":"]).is_err());
}

#[test]
fn disks_on_servers() {
    use crate::block::remote::{Confined, redials, servers};
    let drive = |words: &str| {
        let r = run(&format!("-kernel k {words}"));
        match &r.machine.devices[0].kind {
            DeviceKind::Blk { drive, .. } => (**drive).clone(),
            other => panic!("{other:?}"),
        }
    };
    for (words, name, again) in [
        ("-drive file=nbd:h:10:exportname=e,if=virtio", "nbd:h:10:exportname=e", 0),
        ("-drive file=nbd://h/e,if=virtio,format=raw", "nbd://h/e", 0),
        ("-drive file=nbd://h/e,if=virtio,file.reconnect-delay=5", "nbd://h:10809/e", 1),
        (
            "-drive if=virtio,format=qcow2,file.driver=nbd,file.path=/s,file.export=e",
            "nbd+unix:///e?socket=/s",
            0,
        ),
        (
            "-blockdev driver=nbd,node-name=n,host=h,port=7,reconnect-delay=1 \
             -blockdev driver=qcow2,node-name=q,file=n -device virtio-blk-pci,drive=q",
            "nbd://h:7",
            1,
        ),
    ] {
        let drive = drive(words);
        assert_eq!(drive.image.name(), name, "{words}");
        assert_eq!(redials(&drive.image).count(), again, "{words}");
        assert_eq!((servers(&drive.image).count(), drive.confined), (1, Confined::Yes));
    }
    assert_eq!(drive("-drive file=nbd://h,if=virtio -sandbox off").confined, Confined::No);
    assert!(refused("-kernel k -drive if=virtio").contains("'file' is missing"));
    assert!(refused("-kernel k -drive file=nbd://h,if=virtio,file.nope=1").contains("nope"));
}

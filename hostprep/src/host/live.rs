//! The probe of the running machine. Each method opens, asks and closes; none leaves a trace.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;

use super::facts::{Cpuid, FsFact, Identity, Probe, Stat, VcpuRun};

/// `_IOR(0xAF, 0x00, __u64)`: linux/vhost.h
const VHOST_GET_FEATURES: libc::c_ulong = 0x8008_AF00;
/// `_IOW('T', 202, int)`: linux/if_tun.h
const TUNSETIFF: libc::c_ulong = 0x4004_54CA;

/// Asks this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct LiveProbe;

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

fn open_rw(path: &str) -> Result<File, i32> {
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
}

impl Probe for LiveProbe {
    fn run_vcpu(&self) -> VcpuRun {
        super::vcpu::run()
    }

    fn kvm_extension(&self, capability: u32) -> Option<i32> {
        let file = open_rw("/dev/kvm").ok()?;
        // SAFETY: KVM_CHECK_EXTENSION (_IO(0xAE, 0x03)) takes a plain number and touches no memory of ours.
        Some(unsafe { libc::ioctl(file.as_raw_fd(), 0xAE03, libc::c_ulong::from(capability)) })
    }

    fn identity(&self) -> Identity {
        let mut groups = vec![0; 4096];
        // SAFETY: the buffer holds as many group numbers as the call is told.
        let count = unsafe { libc::getgroups(4096, groups.as_mut_ptr()) };
        groups.truncate(usize::try_from(count).unwrap_or(0));
        // SAFETY: these calls have no arguments and always succeed.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        groups.push(gid);
        Identity { uid, groups }
    }

    #[cfg(target_arch = "x86_64")]
    fn cpuid(&self) -> Option<Cpuid> {
        use std::arch::x86_64::__cpuid;
        let one = __cpuid(1);
        let extended =
            if __cpuid(0x8000_0000).eax >= 0x8000_0001 { __cpuid(0x8000_0001).ecx } else { 0 };
        let hypervisor = if one.ecx >> 31 == 1 {
            let leaf = __cpuid(0x4000_0000);
            let bytes: Vec<u8> =
                [leaf.ebx, leaf.ecx, leaf.edx].iter().flat_map(|part| part.to_le_bytes()).collect();
            String::from_utf8_lossy(&bytes).trim_end_matches('\0').trim().to_owned()
        } else {
            String::new()
        };
        Some(Cpuid { vmx: one.ecx >> 5 & 1 == 1, svm: extended >> 2 & 1 == 1, hypervisor })
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn cpuid(&self) -> Option<Cpuid> {
        None
    }

    fn stat(&self, _path: &str) -> Option<Stat> {
        None
    }

    fn open_device(&self, path: &str) -> Result<(), i32> {
        open_rw(path).map(drop)
    }

    fn make_tap(&self) -> Result<(), i32> {
        let file = open_rw("/dev/net/tun")?;
        // struct ifreq is 40 bytes: 16 of name, then flags (linux/if.h). The kernel fills in the %d.
        let mut request = [0_u8; 40];
        request[..7].copy_from_slice(b"rhpr%d\0");
        // IFF_TAP | IFF_NO_PI
        request[16..18].copy_from_slice(&0x1002_u16.to_ne_bytes());
        // SAFETY: the request is as large as struct ifreq and lives through the call. The interface is not
        // persistent: it goes with the descriptor at the end of this function.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
        if result < 0 { Err(errno()) } else { Ok(()) }
    }

    fn vhost_features(&self, path: &str) -> Result<u64, i32> {
        let file = open_rw(path)?;
        let mut features = 0_u64;
        // SAFETY: the kernel writes eight bytes to `features`, which lives through the call.
        let result =
            unsafe { libc::ioctl(file.as_raw_fd(), VHOST_GET_FEATURES, &raw mut features) };
        if result < 0 { Err(errno()) } else { Ok(features) }
    }

    fn filesystem(&self, path: &str) -> Option<FsFact> {
        let name = CString::new(path).ok()?;
        // SAFETY: zero is a valid value of this plain struct.
        let mut buffer: libc::statfs = unsafe { std::mem::zeroed() };
        // SAFETY: the name is a C string and the buffer is of the type the call fills.
        if unsafe { libc::statfs(name.as_ptr(), &raw mut buffer) } != 0 {
            return None;
        }
        let block = u64::try_from(buffer.f_bsize).unwrap_or(0);
        let free = buffer.f_bavail.saturating_mul(block);
        Some(FsFact { magic: buffer.f_type, free, direct: direct(path) })
    }

    fn landlock_abi(&self) -> Result<i32, i32> {
        // SAFETY: with LANDLOCK_CREATE_RULESET_VERSION (1) the pointer must be null and the size 0.
        let version = unsafe {
            libc::syscall(
                libc::SYS_landlock_create_ruleset,
                std::ptr::null::<libc::c_void>(),
                0_usize,
                1_u32,
            )
        };
        if version < 0 { Err(errno()) } else { i32::try_from(version).map_err(|_| libc::ERANGE) }
    }

    fn io_uring(&self) -> Result<(), i32> {
        // struct io_uring_params is 120 bytes; zeros ask for the defaults.
        let mut parameters = [0_u64; 15];
        // SAFETY: the parameters are as large as the kernel's struct and live through the call.
        let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 2_u32, parameters.as_mut_ptr()) };
        if fd < 0 {
            return Err(errno());
        }
        let fd = i32::try_from(fd).map_err(|_| libc::EBADF)?;
        // SAFETY: the descriptor was just given to us and nobody else has it.
        unsafe { libc::close(fd) };
        Ok(())
    }

    fn acl(&self, path: &str) -> Option<Vec<u8>> {
        let name = CString::new(path).ok()?;
        let mut buffer = vec![0_u8; 4096];
        // SAFETY: both names are C strings and the buffer is as long as the call is told.
        let length = unsafe {
            libc::getxattr(
                name.as_ptr(),
                c"system.posix_acl_access".as_ptr(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
            )
        };
        buffer.truncate(usize::try_from(length).ok()?);
        Some(buffer)
    }
}

/// Whether a file in this folder (any file that is there) can be opened with `O_DIRECT`.
fn direct(path: &str) -> Option<bool> {
    let file = std::fs::read_dir(path)
        .ok()?
        .take(256)
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.symlink_metadata().is_ok_and(|meta| meta.is_file()))?;
    let opened = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(file);
    match opened {
        Ok(_) => Some(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Some(false),
        Err(_) => None,
    }
}

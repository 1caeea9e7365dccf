//! A ring on real files. A host without io_uring skips these tests, loudly.

use std::os::unix::fs::FileExt;

use super::*;
use crate::mem::{Backend, MemoryConfig, build};
use vm_memory::{Bytes, GuestAddress};

fn ring() -> Option<Ring> {
    match Ring::new() {
        Ok(ring) => Some(ring),
        Err(e) => {
            eprintln!("SKIPPED io_uring: {}", e.report());
            None
        }
    }
}

fn all(ring: &mut Ring) -> Vec<Done> {
    let mut done = Vec::new();
    while ring.in_flight() > 0 {
        ring.wait().unwrap();
        done.extend(ring.reap());
    }
    done
}

fn guest(memory: &Arc<Memory>, spans: &[(u64, u64)]) -> Buffers {
    let spans = spans.iter().map(|s| (GuestAddress(s.0), s.1));
    let pieces = GuestPieces::gather(memory, spans).unwrap();
    Buffers::guest(memory, &pieces, 0, pieces.len()).unwrap()
}

#[test]
fn a_batch_of_everything() {
    let Some(mut ring) = ring() else { return };
    let file = tempfile::tempfile().unwrap();
    let content: Vec<u8> = (0..100_000u32).map(|n| n.to_le_bytes()[1]).collect();
    file.write_all_at(&content, 0).unwrap();
    let fd = file.as_raw_fd();
    let memory = Arc::new(build(&MemoryConfig::simple(1 << 20, Backend::default())).unwrap());
    memory.write_slice(&[9; 0x9000], GuestAddress(0)).unwrap();
    let read = |offset, buffers| Task::Transfer {
        fd,
        offset,
        direction: Direction::Read,
        durable: Durable::Later,
        buffers,
    };
    // Past the end of the file there are zeroes.
    ring.push(1, read(512, guest(&memory, &[(0x1001, 3000), (0x5000, 1096)]))).unwrap();
    ring.push(2, read(99_840, guest(&memory, &[(0x7000, 512)]))).unwrap();
    ring.push(3, Task::Sync(fd)).unwrap();
    ring.submit().unwrap();
    let mut done = all(&mut ring);
    done.sort_by_key(|d| d.token);
    assert_eq!(done.iter().map(|d| d.token).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(done.iter().all(|d| d.result.is_ok()), "{done:?}");
    let bytes = |at, len| {
        let mut b = vec![0; len];
        memory.read_slice(&mut b, GuestAddress(at)).unwrap();
        b
    };
    assert_eq!([bytes(0x1001, 3000), bytes(0x5000, 1096)].concat(), content[512..4608]);
    assert_eq!(bytes(0x7000, 160), content[99_840..]);
    assert_eq!(bytes(0x70a0, 353), [vec![0; 352], vec![9]].concat());

    let mut own = AlignedBuf::new(512);
    own.bytes().fill(7);
    let buffers = Buffers::own(own);
    let direction = Direction::Write;
    let write = Task::Transfer { fd, offset: 8192, direction, durable: Durable::Now, buffers };
    ring.push(4, write).unwrap();
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    ring.push(5, Task::Fallocate { fd, mode, offset: 4096, len: 4096 }).unwrap();
    let done = all(&mut ring);
    assert!(done.iter().all(|d| d.result.is_ok()), "{done:?}");
    let mut now = vec![0; 12288];
    file.read_exact_at(&mut now, 0).unwrap();
    assert_eq!(now[..4096], content[..4096]);
    assert_eq!(now[4096..8192], [0; 4096]);
    assert_eq!(now[8192..8704], [7; 512]);
    assert_eq!(ring.room(), index(ENTRIES.into()));
}

#[test]
fn errors_come_back_and_memory_of_others_is_refused() {
    let Some(mut ring) = ring() else { return };
    let memory = Arc::new(build(&MemoryConfig::simple(1 << 20, Backend::default())).unwrap());
    let other = Arc::new(build(&MemoryConfig::simple(1 << 20, Backend::default())).unwrap());
    let pieces = GuestPieces::gather(&memory, [(GuestAddress(0), 512)].into_iter()).unwrap();
    assert!(Buffers::guest(&other, &pieces, 0, 512).is_none());
    let read_only = std::fs::File::open("/proc/self/exe").unwrap();
    let buffers = guest(&memory, &[(0, 512)]);
    let (fd, direction, durable) = (read_only.as_raw_fd(), Direction::Write, Durable::Later);
    ring.push(8, Task::Transfer { fd, offset: 0, direction, durable, buffers }).unwrap();
    let done = all(&mut ring);
    assert_eq!(done[0].token, 8);
    assert_eq!(done[0].result.as_ref().unwrap_err().raw_os_error(), Some(libc::EBADF));
}

#[test]
fn a_ring_opens_nothing() {
    let Some(mut ring) = ring() else { return };
    let path = c"/proc/self/exe";
    let open = opcode::OpenAt::new(Fd(libc::AT_FDCWD), path.as_ptr()).build().user_data(1);
    // SAFETY: the path is a constant.
    unsafe { ring.ring.submission().push(&open) }.unwrap();
    ring.ring.submitter().submit_and_wait(1).unwrap();
    let answer = ring.ring.completion().next().unwrap().result();
    assert_eq!(answer, -libc::EACCES);
}

#[test]
fn a_full_ring_says_so_and_what_is_left_is_waited_for() {
    let Some(mut ring) = ring() else { return };
    let file = tempfile::tempfile().unwrap();
    let memory = Arc::new(build(&MemoryConfig::simple(1 << 20, Backend::default())).unwrap());
    let task = |n: u64| Task::Transfer {
        fd: file.as_raw_fd(),
        offset: n * 512,
        direction: Direction::Write,
        durable: Durable::Later,
        buffers: guest(&memory, &[(0, 512)]),
    };
    for n in 0..ENTRIES {
        ring.push(index(n.into()), task(n.into())).unwrap();
    }
    assert!(ring.push(0, task(0)).is_err());
    ring.submit().unwrap();
    drop(ring);
    assert_eq!(file.metadata().unwrap().len(), u64::from(ENTRIES) * 512);
}

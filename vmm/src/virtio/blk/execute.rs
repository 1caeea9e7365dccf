//! Carrying requests out.

use std::sync::Arc;

use super::request::{Malformed, Request, parse};
use crate::block::{BlockBackend, Unmap};
use crate::mem::Memory;
use crate::num::{index, len_u64, low32};
use crate::virtio::{Broken, Chain};

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// Data are moved in pieces of this size at most, whatever the guest asks for.
const BOUNCE: usize = 1 << 20;

/// Carries requests out, one at a time.
pub struct Executor {
    backend: Arc<dyn BlockBackend>,
    id: [u8; 20],
    bounce: Vec<u8>,
}

/// A request that was carried out.
struct Done {
    status: u8,
    /// Bytes written to the guest, without the status.
    written: u64,
}

impl Executor {
    /// Over `backend`, with a serial number.
    pub fn new(backend: Arc<dyn BlockBackend>, serial: &str) -> Self {
        let mut id = [0; 20];
        let n = serial.len().min(id.len());
        id[..n].copy_from_slice(&serial.as_bytes()[..n]);
        Executor { backend, id, bounce: Vec::new() }
    }

    /// Does all of a request; returns how many bytes were written to the guest.
    pub fn serve(&mut self, memory: &Memory, chain: &Chain) -> Result<u32, Broken> {
        let done = match parse(memory, chain, self.backend.len() / 512 * 512) {
            Ok(request) => self.execute(memory, chain, &request),
            Err(Malformed::NoStatus) => {
                return Err(Broken("a block request has no room for its status".into()));
            }
            Err(Malformed::Error) => Done { status: IO_ERROR, written: 0 },
            Err(Malformed::Unsupported) => Done { status: UNSUPPORTED, written: 0 },
        };
        let at = chain.writable_len() - 1;
        chain.write(memory, at, &[done.status]).map_err(|_| {
            Broken("the status of a block request lies outside guest memory".into())
        })?;
        // Drivers expect the status to be covered whenever data were written in full.
        Ok(low32((done.written + 1).min(u64::from(u32::MAX))))
    }

    fn execute(&mut self, memory: &Memory, chain: &Chain, request: &Request) -> Done {
        let simple = |ok: bool| Done { status: if ok { OK } else { IO_ERROR }, written: 0 };
        match request {
            Request::Read { at, len } => {
                let ok = self.read(memory, chain, *at, *len);
                Done { status: if ok { OK } else { IO_ERROR }, written: if ok { *len } else { 0 } }
            }
            Request::Write { .. } | Request::WriteZeroes(_) | Request::Discard(_)
                if self.backend.read_only() =>
            {
                simple(false)
            }
            Request::Write { at, len } => simple(self.write(memory, chain, *at, *len)),
            Request::Flush => simple(self.backend.flush().is_ok()),
            Request::GetId { len } => {
                let n = index(*len);
                let ok = chain.write(memory, 0, &self.id[..n]).is_ok();
                Done { status: if ok { OK } else { IO_ERROR }, written: if ok { *len } else { 0 } }
            }
            Request::Discard(all) => {
                simple(all.iter().all(|s| self.backend.discard(s.at, s.len).is_ok()))
            }
            Request::WriteZeroes(all) => simple(all.iter().all(|s| {
                let unmap = if s.unmap { Unmap::Allowed } else { Unmap::Keep };
                self.backend.write_zeroes(s.at, s.len, unmap).is_ok()
            })),
            Request::Unknown(_) => Done { status: UNSUPPORTED, written: 0 },
        }
    }

    fn buffer(&mut self, len: u64) -> usize {
        let n = index(len).min(BOUNCE);
        if self.bounce.len() < n {
            self.bounce.resize(n, 0);
        }
        n
    }

    fn read(&mut self, memory: &Memory, chain: &Chain, at: u64, len: u64) -> bool {
        let mut done = 0;
        while done < len {
            let n = self.buffer(len - done);
            let buf = &mut self.bounce[..n];
            if self.backend.read(at + done, buf).is_err() || chain.write(memory, done, buf).is_err()
            {
                return false;
            }
            done += len_u64(n);
        }
        true
    }

    fn write(&mut self, memory: &Memory, chain: &Chain, at: u64, len: u64) -> bool {
        let mut done = 0;
        while done < len {
            let n = self.buffer(len - done);
            let buf = &mut self.bounce[..n];
            // Data begin behind the header.
            if chain.read(memory, 16 + done, buf).is_err()
                || self.backend.write(at + done, buf).is_err()
            {
                return false;
            }
            done += len_u64(n);
        }
        true
    }
}

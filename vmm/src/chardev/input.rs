//! From a file descriptor to the guest, with the Ctrl-a keys on the way.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::eventfd::EventFd;

use crate::devices::serial::Serial;
use crate::{Error, Result};

/// The escape key: Ctrl-a.
const ESCAPE: u8 = 1;

/// What a key after Ctrl-a asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// `x`: end the machine.
    Quit,
    /// `h`, `?`: list the keys.
    Help,
    /// `c`: to the monitor and back.
    Monitor,
    /// `b`: a break on the serial line.
    Break,
    /// `s`: write disks' data back.
    Flush,
    /// `t`: time stamps on the console.
    Timestamps,
}

/// Splits keys from characters.
#[derive(Debug, Default)]
pub struct Keys {
    escaped: bool,
}

impl Keys {
    /// One byte: a character for the guest, a key, or nothing yet.
    pub fn feed(&mut self, byte: u8) -> (Option<u8>, Option<Key>) {
        if !std::mem::take(&mut self.escaped) {
            if byte == ESCAPE {
                self.escaped = true;
                return (None, None);
            }
            return (Some(byte), None);
        }
        match byte {
            b'x' => (None, Some(Key::Quit)),
            b'h' | b'?' => (None, Some(Key::Help)),
            b'c' => (None, Some(Key::Monitor)),
            b'b' => (None, Some(Key::Break)),
            b's' => (None, Some(Key::Flush)),
            b't' => (None, Some(Key::Timestamps)),
            ESCAPE => (Some(ESCAPE), None),
            _ => (None, None),
        }
    }
}

/// A running thread.
#[derive(Debug)]
pub struct InputThread {
    thread: Option<JoinHandle<()>>,
    stop: EventFd,
}

fn event() -> Result<EventFd> {
    EventFd::new(libc::EFD_NONBLOCK)
        .map_err(|e| Error::io(&e).context("cannot create an event descriptor"))
}

impl InputThread {
    /// Carries characters from `input` to `serial`. With `on_key`, Ctrl-a is the escape key.
    pub fn start(
        input: OwnedFd,
        serial: Arc<Serial>,
        on_key: Option<Box<dyn Fn(Key) + Send>>,
    ) -> Result<Self> {
        let (stop, room) = (event()?, event()?);
        let clone = |e: &EventFd| e.try_clone().map_err(|e| Error::io(&e));
        let (stop_inner, room_inner) = (clone(&stop)?, clone(&room)?);
        serial.notify_room(Box::new(move || {
            let _ = room.write(1);
        }));
        let carry = Carry {
            input: File::from(input),
            serial,
            on_key,
            keys: Keys::default(),
            waiting: Vec::new(),
        };
        let thread = std::thread::Builder::new()
            .name("serial-input".into())
            .spawn(move || carry.run(&stop_inner, &room_inner))
            .map_err(|e| Error::io(&e).context("cannot start the thread for input"))?;
        Ok(InputThread { thread: Some(thread), stop })
    }
}

impl Drop for InputThread {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(t) = self.thread.take() {
            let _ = t.join();
        }
    }
}

struct Carry {
    input: File,
    serial: Arc<Serial>,
    on_key: Option<Box<dyn Fn(Key) + Send>>,
    keys: Keys,
    waiting: Vec<u8>,
}

impl Carry {
    fn run(mut self, stop: &EventFd, room: &EventFd) {
        loop {
            let listen =
                if self.waiting.len() < 4096 { PollFlags::POLLIN } else { PollFlags::empty() };
            let mut set = [
                PollFd::new(crate::fd::of(stop), PollFlags::POLLIN),
                PollFd::new(crate::fd::of(room), PollFlags::POLLIN),
                PollFd::new(self.input.as_fd(), listen),
            ];
            match poll(&mut set, PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                Err(_) => return,
                Ok(_) => {}
            }
            let flags = set.map(|p| p.revents().unwrap_or(PollFlags::empty()));
            if flags[0].contains(PollFlags::POLLIN) {
                return;
            }
            if flags[1].contains(PollFlags::POLLIN) {
                let _ = room.read();
            }
            if !flags[2].is_empty() && !self.take_input(flags[2]) {
                // The other side is gone. What it has sent still goes in, as there is room.
                self.push();
                if self.waiting.is_empty() {
                    return;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
                continue;
            }
            self.push();
        }
    }

    /// False at the end of input.
    fn take_input(&mut self, flags: PollFlags) -> bool {
        if !flags.contains(PollFlags::POLLIN) {
            return !flags
                .intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL);
        }
        let mut buf = [0; 256];
        let n = match self.input.read(&mut buf) {
            Ok(0) => return false,
            Ok(n) => n,
            Err(e) => return e.kind() == std::io::ErrorKind::Interrupted,
        };
        let Some(on_key) = &self.on_key else {
            self.waiting.extend_from_slice(&buf[..n]);
            return true;
        };
        for byte in &buf[..n] {
            let (character, key) = self.keys.feed(*byte);
            self.waiting.extend(character);
            match key {
                Some(Key::Break) => self.serial.receive_break(),
                Some(key) => on_key(key),
                None => {}
            }
        }
        true
    }

    fn push(&mut self) {
        if !self.waiting.is_empty() {
            let n = self.serial.receive(&self.waiting);
            self.waiting.drain(..n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::Device;
    use crate::devices::Captured;
    use crate::irq::NoLine;
    use std::io::Write;
    use std::sync::Mutex;

    #[test]
    fn keys_are_split_from_characters() {
        let mut k = Keys::default();
        let all: Vec<_> = b"a\x01xb\x01\x01\x01q".iter().map(|b| k.feed(*b)).collect();
        let characters: Vec<u8> = all.iter().filter_map(|(c, _)| *c).collect();
        let keys: Vec<Key> = all.iter().filter_map(|(_, k)| *k).collect();
        assert_eq!((characters.as_slice(), keys.as_slice()), (&b"ab\x01"[..], &[Key::Quit][..]));
    }

    #[test]
    fn characters_reach_the_port_however_small_its_room() {
        let serial = Arc::new(Serial::new(Arc::new(NoLine), Box::new(Captured::default())));
        let (reader, mut writer) = std::io::pipe().unwrap();
        let keys = Arc::new(Mutex::new(Vec::new()));
        let seen = keys.clone();
        let on_key: Box<dyn Fn(Key) + Send> = Box::new(move |k| seen.lock().unwrap().push(k));
        let thread = InputThread::start(reader.into(), serial.clone(), Some(on_key)).unwrap();
        writer.write_all(b"hello\x01h world").unwrap();
        let mut got = Vec::new();
        for _ in 0..5000 {
            let mut b = [0];
            serial.read(5, &mut b);
            if b[0] & 1 == 1 {
                serial.read(0, &mut b);
                got.push(b[0]);
            } else if got.len() == 11 {
                break;
            } else {
                std::thread::sleep(std::time::Duration::from_micros(200));
            }
        }
        assert_eq!(got, b"hello world");
        assert_eq!(*keys.lock().unwrap(), [Key::Help]);
        drop(thread);
    }
}

//! A character device: what front ends hold on to.
//!
//! Output goes through a queue of at most [`QUEUE`] bytes, which the device's thread (see `carrier`)
//! empties as fast as the other side reads. A guest that finds the queue full waits at most
//! [`PATIENCE`] for the reader to take something; a reader that took nothing meanwhile counts as stuck,
//! and output is dropped at once until it reads again. So a reader that is merely slow loses nothing, and
//! one that has stopped delays a vCPU once, not at each byte.
//!
//! While the queue is empty, bytes are written at once, by whoever has them, as far as the descriptor takes
//! them: most output needs no other thread to wake up.
//!
//! Lock order: the front ends' list is never locked together with the state; front ends are called
//! without any lock held.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::carrier::{Carrier, OnKey};
use super::config::{CharConfig, Sharing};
use super::keys::Keys;
use super::transport::{self, Opened, Standard};
use crate::devices::Output;
use crate::{Error, Result};

/// Most bytes that wait for a reader.
pub const QUEUE: usize = 64 << 10;
/// How long a guest waits for a reader that takes nothing.
pub const PATIENCE: Duration = Duration::from_millis(100);
/// Front ends of one shared device.
const MOST_FRONTS: usize = 4;

/// What happens to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CharEvent {
    /// Somebody is there now.
    Opened,
    /// Nobody is there any more.
    Closed,
    /// A break on the line.
    Break,
    /// Input of a shared device now comes here.
    FocusIn,
    /// Input of a shared device now goes elsewhere.
    FocusOut,
}

/// A device of the guest, or a monitor, in front of a character device.
pub trait FrontEnd: Send + Sync {
    /// Characters arrive; returns how many were taken. The others come again after [`Waker::wake`].
    fn receive(&self, bytes: &[u8]) -> usize;
    /// Something happened.
    fn event(&self, _event: CharEvent) {}
}

/// How long a writer waits for a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Up to [`PATIENCE`]: guests.
    Brief,
    /// Until the reader takes it or is gone: monitors, which answer that reader only.
    UntilGone,
}

/// What output goes through.
#[derive(Default)]
pub(super) enum Sink {
    /// Nowhere.
    #[default]
    None,
    /// The queue, emptied by the thread.
    Queue,
    /// A file, which never makes anybody wait.
    File(File),
    /// The last bytes are kept.
    Ring { bytes: VecDeque<u8>, most: usize },
}

/// Time stamps at the beginning of lines.
#[derive(Clone, Copy, Debug)]
struct Stamps {
    start: Instant,
    line_begins: bool,
}

/// A descriptor that takes bytes without making anybody wait.
pub(super) struct Direct {
    file: File,
    /// Others share it and rely on its blocking: it is asked before each write.
    ask: bool,
}

impl Direct {
    /// Another handle of a connection's output.
    pub fn of(output: &File) -> Option<Self> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        let flags = fcntl(output, FcntlArg::F_GETFL).ok()?;
        let ask = !OFlag::from_bits_truncate(flags).contains(OFlag::O_NONBLOCK);
        Some(Direct { file: output.try_clone().ok()?, ask })
    }

    /// Writes what is taken at once; returns how many bytes. Errors are left to the thread, which meets
    /// them too.
    fn write(&mut self, bytes: &[u8]) -> usize {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        if self.ask {
            let mut set = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)];
            let ready = poll(&mut set, PollTimeout::ZERO).is_ok_and(|n| n > 0);
            if !ready || set[0].revents() != Some(PollFlags::POLLOUT) {
                return 0;
            }
        }
        // A pipe that is writable takes a page without blocking.
        self.file.write(&bytes[..bytes.len().min(4096)]).unwrap_or(0)
    }
}

#[derive(Default)]
pub(super) struct State {
    pub sink: Sink,
    pub out: VecDeque<u8>,
    /// To be written to while the queue is empty.
    pub direct: Option<Direct>,
    pub connected: bool,
    stuck: bool,
    /// Raised whenever the reader took something.
    progress: u64,
    pub stopping: bool,
    pub filename: String,
    log: Option<File>,
    stamps: Option<Stamps>,
}

pub(super) struct Shared {
    pub label: String,
    pub state: Mutex<State>,
    room: Condvar,
    pub wake: EventFd,
    pub fronts: Mutex<Vec<Arc<dyn FrontEnd>>>,
}

impl Shared {
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn fronts(&self) -> Vec<Arc<dyn FrontEnd>> {
        self.fronts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The reader took something, came, or went: writers look again.
    pub fn moved(&self, state: &mut State) {
        state.stuck = false;
        state.progress += 1;
        self.room.notify_all();
    }

    pub fn ring(&self) {
        // An event descriptor of our own at less than its maximum can always be written.
        let _ = self.wake.write(1);
    }

    /// Switches time stamps; true when they are on now.
    pub fn toggle_stamps(&self) -> bool {
        let mut state = self.lock();
        state.stamps = match state.stamps {
            None => Some(Stamps { start: Instant::now(), line_begins: true }),
            Some(_) => None,
        };
        state.stamps.is_some()
    }
}

/// Wakes a device's thread when its front end has room again.
#[derive(Clone)]
pub struct Waker(Arc<Shared>);

impl Waker {
    /// There is room.
    pub fn wake(&self) {
        self.0.ring();
    }
}

/// A character device.
pub struct Chardev {
    shared: Arc<Shared>,
    sharing: Sharing,
    waiting: Mutex<Option<Opened>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Chardev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chardev").field("label", &self.shared.label).finish_non_exhaustive()
    }
}

impl Chardev {
    /// Opens the back end. Its thread starts with [`Chardev::start`].
    ///
    /// # Errors
    /// Names the device, what could not be opened, and what to do.
    pub fn open(
        label: &str,
        config: &CharConfig,
        standard: &mut Standard,
        notice: &mut dyn FnMut(&str),
    ) -> Result<Arc<Self>> {
        let explain = |e: Error| e.context(format!("chardev {label}"));
        let mut opened = transport::open(&config.kind, standard, label, notice).map_err(explain)?;
        let log = config.log.as_ref().map(transport::open_log).transpose().map_err(explain)?;
        let wake = EventFd::new(libc::EFD_NONBLOCK)
            .map_err(|e| Error::io(&e).context("cannot create an event descriptor"))?;
        let state = State {
            sink: std::mem::take(&mut opened.sink),
            connected: opened.link.is_some(),
            filename: opened.filename.clone(),
            log,
            ..State::default()
        };
        let shared = Arc::new(Shared {
            label: label.to_owned(),
            state: Mutex::new(state),
            room: Condvar::new(),
            wake,
            fronts: Mutex::default(),
        });
        Ok(Arc::new(Chardev {
            shared,
            sharing: config.sharing,
            waiting: Mutex::new(Some(opened)),
            thread: Mutex::default(),
        }))
    }

    /// Its name.
    pub fn label(&self) -> &str {
        &self.shared.label
    }

    /// What it is connected to, as `info chardev` shows it.
    pub fn filename(&self) -> String {
        if self.sharing == Sharing::Mux {
            "mux".into()
        } else {
            self.shared.lock().filename.clone()
        }
    }

    /// Whether somebody in this machine uses it.
    pub fn in_use(&self) -> bool {
        !self.shared.fronts().is_empty()
    }

    /// Connects a front end.
    ///
    /// # Errors
    /// When another one has it, and it is not shared.
    pub fn attach(&self, front: Arc<dyn FrontEnd>) -> Result<()> {
        let mut fronts = self.shared.fronts.lock().unwrap_or_else(PoisonError::into_inner);
        let most = if self.sharing == Sharing::Mux { MOST_FRONTS } else { 1 };
        if fronts.len() >= most {
            return Err(Error::invalid(format!("Device '{}' is in use", self.shared.label)).hint(
                format!("Give -chardev id={} mux=on to share it (4 at most)", self.shared.label),
            ));
        }
        fronts.push(front);
        Ok(())
    }

    /// Takes bytes for the other side.
    pub fn writer(&self, patience: Patience) -> Writer {
        Writer { shared: self.shared.clone(), patience }
    }

    /// For front ends whose room is limited.
    pub fn waker(&self) -> Waker {
        Waker(self.shared.clone())
    }

    /// Starts the thread that carries bytes, where there is something to carry. `on_key` is asked for
    /// keys that concern the machine; `escape` is the escape character of shared devices.
    pub fn start(&self, escape: u8, on_key: OnKey) -> Result<()> {
        let Some(opened) = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take()
        else {
            return Ok(());
        };
        if !matches!(self.shared.lock().sink, Sink::Queue) {
            return Ok(());
        }
        let keys = (self.sharing == Sharing::Mux).then(|| Keys::new(escape));
        let carrier = Carrier::new(self.shared.clone(), opened, keys, on_key);
        let name: String = format!("chr-{}", self.shared.label).chars().take(15).collect();
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || carrier.run())
            .map_err(|e| Error::io(&e).context("cannot start the thread of a character device"))?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    /// Tells the thread to end.
    pub(super) fn begin_stop(&self) {
        {
            let mut state = self.shared.lock();
            state.stopping = true;
            self.shared.moved(&mut state);
        }
        self.shared.ring();
    }

    /// Ends the thread, after what waits was sent as far as the other side takes it.
    pub fn stop(&self) {
        self.begin_stop();
        if let Some(t) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = t.join();
        }
    }

    /// Takes up to `most` bytes out of a ring.
    ///
    /// # Errors
    /// When it is none.
    pub fn read_ring(&self, most: usize) -> Result<Vec<u8>> {
        match &mut self.shared.lock().sink {
            Sink::Ring { bytes, .. } => {
                let n = most.min(bytes.len());
                Ok(bytes.drain(..n).collect())
            }
            _ => Err(Error::invalid(format!("{} is not a ringbuf device", self.shared.label))),
        }
    }
}

impl Drop for Chardev {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Takes bytes for the other side of a character device.
#[derive(Clone)]
pub struct Writer {
    shared: Arc<Shared>,
    patience: Patience,
}

impl Output for Writer {
    fn put(&mut self, bytes: &[u8]) {
        let mut state = self.shared.lock();
        if let Some(log) = &mut state.log {
            // A full disk must not stop the guest.
            let _ = log.write_all(bytes);
        }
        let stamped = state.stamps.is_some().then(|| stamp(&mut state, bytes));
        let bytes = stamped.as_deref().unwrap_or(bytes);
        match &mut state.sink {
            Sink::None => {}
            Sink::File(file) => {
                // As above.
                let _ = file.write_all(bytes);
            }
            Sink::Ring { bytes: ring, most } => {
                ring.extend(bytes);
                let over = ring.len().saturating_sub(*most);
                ring.drain(..over);
            }
            Sink::Queue => self.queue(state, bytes),
        }
    }
}

impl Writer {
    fn queue(&self, mut state: MutexGuard<'_, State>, mut bytes: &[u8]) {
        if state.out.is_empty()
            && let Some(direct) = &mut state.direct
        {
            bytes = &bytes[direct.write(bytes)..];
        }
        while state.connected && !bytes.is_empty() {
            let n = QUEUE.saturating_sub(state.out.len()).min(bytes.len());
            if n > 0 {
                let was_empty = state.out.is_empty();
                state.out.extend(&bytes[..n]);
                bytes = &bytes[n..];
                if was_empty {
                    self.shared.ring();
                }
                continue;
            }
            if state.stuck || state.stopping {
                return;
            }
            let before = state.progress;
            let room = &self.shared.room;
            if self.patience == Patience::UntilGone {
                state = room.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state = room.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner).0;
            if state.progress == before {
                state.stuck = true;
            }
        }
    }
}

/// The bytes with the time before each line.
fn stamp(state: &mut State, bytes: &[u8]) -> Vec<u8> {
    let Some(stamps) = &mut state.stamps else { return bytes.to_vec() };
    let mut out = Vec::with_capacity(bytes.len());
    for b in bytes {
        if std::mem::take(&mut stamps.line_begins) {
            let t = stamps.start.elapsed();
            let s = t.as_secs();
            let text = format!(
                "[{:02}:{:02}:{:02}.{:03}] ",
                s / 3600,
                s / 60 % 60,
                s % 60,
                t.subsec_millis()
            );
            out.extend_from_slice(text.as_bytes());
        }
        out.push(*b);
        stamps.line_begins = *b == b'\n';
    }
    out
}

//! The thread of a character device: it connects, reads for the front end that has the focus, and
//! writes what is in the queue.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::device::{CharEvent, Direct, FrontEnd, Shared};
use super::keys::{Key, Keys};
use super::telnet::{self, Telnet};
use super::transport::{Link, Opened, Source};

/// Asked for keys that concern the machine: quit and flush.
pub type OnKey = Arc<dyn Fn(Key) + Send + Sync>;

/// How long the last output may take when the machine ends.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How often a terminal that nobody has open is looked at, and a front end without room is asked again.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Bytes taken at a time. Pipes take as much without blocking whenever they say that they are writable.
const PIECE: usize = 4096;

pub(super) struct Carrier {
    shared: Arc<Shared>,
    source: Source,
    link: Option<Link>,
    telnet: Option<Telnet>,
    /// Commands of TELNET that go out before anything else.
    greeting: Vec<u8>,
    keys: Option<Keys>,
    on_key: OnKey,
    /// Which front end input goes to.
    focus: usize,
    /// Read, and not taken yet; by front end.
    pending: Vec<Vec<u8>>,
    /// When to connect again.
    redial_at: Option<Instant>,
    stop_at: Option<Instant>,
}

/// What the poll said.
#[derive(Default)]
struct Ready {
    accept: bool,
    read: bool,
    write: bool,
    hung_up: bool,
}

impl Carrier {
    pub fn new(shared: Arc<Shared>, opened: Opened, keys: Option<Keys>, on_key: OnKey) -> Self {
        Carrier {
            shared,
            telnet: opened.telnet.then(Telnet::default),
            greeting: Vec::new(),
            source: opened.source,
            link: opened.link,
            keys,
            on_key,
            focus: 0,
            pending: Vec::new(),
            redial_at: None,
            stop_at: None,
        }
    }

    pub fn run(mut self) {
        match self.link.take() {
            Some(link) => self.connected(link),
            None => self.gone(),
        }
        while !self.finished() {
            let Some(ready) = self.wait() else { return };
            if ready.accept
                && let Some(link) = self.source.accept(&self.shared.label)
            {
                self.connected(link);
            }
            if self.redial_at.is_some_and(|t| t <= Instant::now()) {
                self.redial();
            }
            if let Source::Pty { .. } = self.source {
                self.look_at_terminal(ready.hung_up);
            }
            if ready.read || (ready.hung_up && self.link.is_some()) {
                self.read();
            }
            if ready.write {
                self.write();
            }
            self.deliver();
        }
    }

    /// True when the machine ends and nothing can be sent any more.
    fn finished(&mut self) -> bool {
        let state = self.shared.lock();
        if !state.stopping {
            return false;
        }
        let end = *self.stop_at.get_or_insert_with(|| Instant::now() + LAST_WORDS);
        state.out.is_empty() || !state.connected || Instant::now() >= end
    }

    fn wait(&self) -> Option<Ready> {
        let (stopping, want_out) = {
            let state = self.shared.lock();
            (state.stopping, !state.out.is_empty() || !self.greeting.is_empty())
        };
        let listening = self.link.is_none() && !stopping;
        let waiting: usize = self.pending.iter().map(Vec::len).sum();
        let want_in = waiting < PIECE && !stopping;
        let mut fds = vec![PollFd::new(crate::fd::of(&self.shared.wake), PollFlags::POLLIN)];
        // Positions in the list; 0 is the wake-up, which means "not in the list" here.
        let (mut at_listener, mut at_in, mut at_out) = (0, 0, 0);
        if listening && let Some(l) = self.source.listener() {
            at_listener = fds.len();
            fds.push(PollFd::new(l, PollFlags::POLLIN));
        }
        let mut dozing = waiting > 0;
        if let Some(link) = &self.link {
            if want_in && let Some(input) = &link.input {
                at_in = fds.len();
                fds.push(PollFd::new(input.as_fd(), PollFlags::POLLIN));
            }
            if want_out && let Some(output) = &link.output {
                at_out = fds.len();
                fds.push(PollFd::new(output.as_fd(), PollFlags::POLLOUT));
            }
        } else {
            dozing |= matches!(self.source, Source::Pty { .. });
        }
        let timers = [
            dozing.then_some(LOOK_AGAIN),
            self.redial_at.map(|t| t.saturating_duration_since(Instant::now())),
            self.stop_at.map(|t| t.saturating_duration_since(Instant::now())),
        ];
        let timeout = timers.into_iter().flatten().min().map_or(PollTimeout::NONE, |d| {
            PollTimeout::try_from(d + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Err(nix::errno::Errno::EINTR) => return Some(Ready::default()),
            // Without poll nothing can be carried; output is dropped from here on.
            Err(_) => return None,
            Ok(_) => {}
        }
        let flags = |at: usize| match at {
            0 => PollFlags::empty(),
            at => fds[at].revents().unwrap_or(PollFlags::empty()),
        };
        let ended = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
        let ready = Ready {
            accept: !flags(at_listener).is_empty(),
            read: flags(at_in).contains(PollFlags::POLLIN),
            write: !flags(at_out).is_empty(),
            hung_up: flags(at_in).intersects(ended),
        };
        let _ = self.shared.wake.read();
        Some(ready)
    }

    fn connected(&mut self, link: Link) {
        self.redial_at = None;
        {
            let mut state = self.shared.lock();
            state.filename = link.filename.clone();
            state.connected = true;
            // Datagrams are better filled, TELNET's bytes are not the guest's.
            let plain = self.telnet.is_none() && !matches!(self.source, Source::Datagrams);
            state.direct = link.output.as_ref().filter(|_| plain).and_then(Direct::of);
            if self.telnet.is_some() {
                self.telnet = Some(Telnet::default());
                self.greeting = telnet::GREETING.to_vec();
            }
            self.shared.moved(&mut state);
        }
        self.link = Some(link);
        // Of a shared device only the one with the focus begins to talk.
        if let Some(front) = self.front() {
            front.event(CharEvent::Opened);
        }
    }

    /// Nobody is connected (any more).
    fn gone(&mut self) {
        let was_there = self.link.take().is_some();
        {
            let mut state = self.shared.lock();
            state.connected = false;
            state.direct = None;
            state.out.clear();
            if let Some(name) = self.source.waiting_name() {
                state.filename = name;
            }
            self.shared.moved(&mut state);
        }
        self.redial_at = self.source.redial_after().map(|d| Instant::now() + d);
        if was_there {
            // What was sent before the end still counts, as far as there is room for it.
            self.deliver();
            self.pending.clear();
            for front in self.shared.fronts() {
                front.event(CharEvent::Closed);
            }
        }
    }

    fn redial(&mut self) {
        match self.source.dial() {
            Some(link) => self.connected(link),
            None => self.redial_at = self.source.redial_after().map(|d| Instant::now() + d),
        }
    }

    /// A pseudo terminal says by a hang-up that nobody has its other side open.
    fn look_at_terminal(&mut self, hung_up: bool) {
        if hung_up {
            self.read();
            if self.link.is_some() {
                self.gone();
            }
        } else if self.link.is_none()
            && let Some(link) = self.source.terminal()
        {
            self.connected(link);
        }
    }

    fn read(&mut self) {
        let Some(input) = self.link.as_mut().and_then(|l| l.input.as_mut()) else { return };
        let mut buf = [0; PIECE];
        match input.read(&mut buf) {
            Ok(0) => self.end_of_input(),
            Ok(n) => self.take(&buf[..n]),
            Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
            // A datagram that nobody wanted comes back as an error of the next call.
            Err(e)
                if e.kind() == ErrorKind::ConnectionRefused
                    && matches!(self.source, Source::Datagrams) => {}
            Err(_) => self.end_of_input(),
        }
    }

    /// Output may still be wanted where it has a descriptor of its own (standard output, a pipe).
    fn end_of_input(&mut self) {
        match &mut self.link {
            Some(link) if matches!(self.source, Source::Fixed) => link.input = None,
            _ => self.gone(),
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        let (data, breaks) = match &mut self.telnet {
            None => (bytes.to_vec(), 0),
            Some(t) => {
                let got = t.receive(bytes);
                (got.data, got.breaks)
            }
        };
        for _ in 0..breaks {
            if let Some(front) = self.front() {
                front.event(CharEvent::Break);
            }
        }
        let Some(mut keys) = self.keys else {
            self.keep(&data);
            return;
        };
        for byte in data {
            let (character, key) = keys.feed(byte);
            self.keys = Some(keys);
            self.keep(character.as_slice());
            if let Some(key) = key {
                self.press(key, &keys);
            }
        }
    }

    fn press(&mut self, key: Key, keys: &Keys) {
        match key {
            Key::Help => self.say(&keys.help()),
            Key::Quit => {
                self.say("rkvm: Terminated\r\n");
                (self.on_key)(key);
            }
            Key::Flush => (self.on_key)(key),
            Key::Timestamps => {
                self.shared.toggle_stamps();
            }
            Key::Break => {
                if let Some(front) = self.front() {
                    front.event(CharEvent::Break);
                }
            }
            Key::Switch => {
                let fronts = self.shared.fronts();
                if fronts.len() > 1 {
                    fronts[self.focus].event(CharEvent::FocusOut);
                    self.focus = (self.focus + 1) % fronts.len();
                    fronts[self.focus].event(CharEvent::FocusIn);
                }
            }
        }
    }

    fn say(&self, text: &str) {
        self.shared.lock().out.extend(text.as_bytes());
    }

    fn front(&self) -> Option<Arc<dyn FrontEnd>> {
        self.shared.fronts().get(self.focus).cloned()
    }

    /// Characters for whoever has the focus now.
    fn keep(&mut self, bytes: &[u8]) {
        if self.pending.len() <= self.focus {
            self.pending.resize(self.focus + 1, Vec::new());
        }
        self.pending[self.focus].extend_from_slice(bytes);
    }

    fn deliver(&mut self) {
        let fronts = self.shared.fronts();
        for (i, waiting) in self.pending.iter_mut().enumerate().filter(|(_, w)| !w.is_empty()) {
            match fronts.get(i) {
                Some(front) => {
                    let n = front.receive(waiting).min(waiting.len());
                    waiting.drain(..n);
                }
                None => waiting.clear(),
            }
        }
    }

    fn write(&mut self) {
        let Some(output) = self.link.as_mut().and_then(|l| l.output.as_mut()) else { return };
        let piece: Vec<u8> = {
            let state = self.shared.lock();
            state.out.iter().take(PIECE).copied().collect()
        };
        let sent = if !self.greeting.is_empty() {
            output.write(&self.greeting).map(|n| {
                self.greeting.drain(..n);
                0
            })
        } else if self.telnet.is_some() {
            send_escaped(output, &piece)
        } else {
            output.write(&piece)
        };
        match sent {
            Ok(n) if n > 0 || piece.is_empty() || !self.greeting.is_empty() => {
                let mut state = self.shared.lock();
                let n = n.min(state.out.len());
                state.out.drain(..n);
                self.shared.moved(&mut state);
            }
            Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
            _ if matches!(self.source, Source::Datagrams) => self.shared.lock().out.clear(),
            _ => self.gone(),
        }
    }
}

/// Sends a piece with 255s doubled; returns how many bytes of the piece went out.
fn send_escaped(output: &mut File, piece: &[u8]) -> std::io::Result<usize> {
    let first_special = piece.iter().position(|b| *b == 255).unwrap_or(piece.len());
    if first_special > 0 {
        return output.write(&piece[..first_special]);
    }
    // Two bytes that must not be torn apart: a socket that takes one takes the other soon.
    let doubled = telnet::escape(&piece[..1]);
    let mut at = 0;
    while at < doubled.len() {
        match output.write(&doubled[at..]) {
            Ok(0) => return Ok(0),
            Ok(n) => at += n,
            Err(e) if at > 0 && e.kind() == ErrorKind::WouldBlock => {
                let mut set = [PollFd::new(output.as_fd(), PollFlags::POLLOUT)];
                if poll(&mut set, PollTimeout::from(1000u16)).unwrap_or(0) == 0 {
                    return Err(e);
                }
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(1)
}

impl Drop for Carrier {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.connected = false;
        state.direct = None;
        self.shared.moved(&mut state);
    }
}

/// Whether a terminal's other side is open: it does not say that it is hung up.
pub(super) fn terminal_open(fd: &impl AsFd) -> bool {
    let mut set = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    match poll(&mut set, PollTimeout::ZERO) {
        Ok(_) => !set[0].revents().is_some_and(|r| r.contains(PollFlags::POLLHUP)),
        Err(_) => false,
    }
}

/// Descriptors that must not block are switched so; those shared with other programs are left alone.
pub(super) fn set_nonblocking(fd: &(impl AsFd + AsRawFd)) -> std::io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

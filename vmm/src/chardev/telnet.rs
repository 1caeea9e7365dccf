//! TELNET as a server that wants single characters (RFC 854; options of RFC 856, 857, 858).

const IAC: u8 = 255;
const DONT: u8 = 254;
const DO: u8 = 253;
const WONT: u8 = 252;
const WILL: u8 = 251;
const SB: u8 = 250;
const SE: u8 = 240;
const BREAK: u8 = 243;
const BINARY: u8 = 0;
const ECHO: u8 = 1;
const SUPPRESS_GO_AHEAD: u8 = 3;

/// What a server says first: it echoes, works character by character, and passes all eight bits.
pub const GREETING: [u8; 12] =
    [IAC, WILL, ECHO, IAC, WILL, SUPPRESS_GO_AHEAD, IAC, WILL, BINARY, IAC, DO, BINARY];

/// Where in a command the stream is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Data,
    Command,
    Option,
    Subnegotiation,
    SubnegotiationCommand,
}

/// Takes commands out of what a client sends.
#[derive(Clone, Copy, Debug, Default)]
pub struct Telnet(State);

/// What a piece of a stream held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Characters.
    pub data: Vec<u8>,
    /// How many breaks were sent.
    pub breaks: usize,
}

impl Telnet {
    /// Takes a piece of the stream apart. Answers to options are not needed: what we want was said at the
    /// start, and clients that want something else keep to themselves.
    pub fn receive(&mut self, bytes: &[u8]) -> Received {
        let mut got = Received::default();
        for &b in bytes {
            self.0 = match (self.0, b) {
                (State::Data, IAC) => State::Command,
                (State::Data, _) => {
                    got.data.push(b);
                    State::Data
                }
                (State::Command, IAC) => {
                    got.data.push(IAC);
                    State::Data
                }
                (State::Command, WILL | WONT | DO | DONT) => State::Option,
                (State::Command, SB) => State::Subnegotiation,
                (State::Command, BREAK) => {
                    got.breaks += 1;
                    State::Data
                }
                (State::Command | State::Option, _) => State::Data,
                (State::Subnegotiation, IAC) => State::SubnegotiationCommand,
                (State::SubnegotiationCommand, SE) => State::Data,
                (State::Subnegotiation | State::SubnegotiationCommand, _) => State::Subnegotiation,
            };
        }
        got
    }
}

/// Characters as a client gets them: a byte 255 is doubled.
pub fn escape(bytes: &[u8]) -> Vec<u8> {
    let mut all = Vec::with_capacity(bytes.len());
    for &b in bytes {
        all.push(b);
        if b == IAC {
            all.push(IAC);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_taken_out_wherever_the_stream_is_cut() {
        let stream =
            [b'a', IAC, DO, ECHO, b'b', IAC, IAC, IAC, BREAK, IAC, SB, 24, 1, IAC, SE, b'c'];
        for cut in 0..stream.len() {
            let mut t = Telnet::default();
            let mut got = t.receive(&stream[..cut]);
            let rest = t.receive(&stream[cut..]);
            got.data.extend(rest.data);
            assert_eq!((got.data.as_slice(), got.breaks + rest.breaks), (&b"ab\xffc"[..], 1));
        }
        assert_eq!(escape(b"a\xff"), b"a\xff\xff");
    }
}

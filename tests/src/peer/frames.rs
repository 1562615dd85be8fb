// SPDX-License-Identifier: Apache-2.0
//! HTTP/2 frame by frame (RFC 9113, section 4.1), for peers that keep to no library's manners.
//!
//! Header blocks are written without compression and read only as far as "is it 200".

use std::fmt;

/// `connection preface` of a client: RFC 9113, section 3.4.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frame types: RFC 9113, section 6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Bytes of a stream.
    Data = 0,
    /// A header block, or its beginning.
    Headers = 1,
    /// Obsolete.
    Priority = 2,
    /// The end of a stream by force.
    RstStream = 3,
    /// What the sender is ready for.
    Settings = 4,
    /// A request that the server makes up.
    PushPromise = 5,
    /// Are you there?
    Ping = 6,
    /// No new streams.
    GoAway = 7,
    /// The sender takes more bytes.
    WindowUpdate = 8,
    /// More of a header block.
    Continuation = 9,
    /// Anything else.
    Other = 255,
}

impl Kind {
    fn of(byte: u8) -> Self {
        let known = [
            Self::Data,
            Self::Headers,
            Self::Priority,
            Self::RstStream,
            Self::Settings,
            Self::PushPromise,
            Self::Ping,
            Self::GoAway,
            Self::WindowUpdate,
            Self::Continuation,
        ];
        known.get(usize::from(byte)).copied().unwrap_or(Self::Other)
    }
}

/// The stream ends here (DATA, HEADERS).
pub const END_STREAM: u8 = 1;
/// An answer (SETTINGS, PING).
pub const ACK: u8 = 1;
/// The header block is complete (HEADERS, CONTINUATION).
pub const END_HEADERS: u8 = 4;

/// Settings: RFC 9113, section 6.5.2.
pub mod setting {
    /// Streams that the other side may have open.
    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    /// Window of every stream.
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
}

/// Error codes: RFC 9113, section 7.
pub mod code {
    /// All is well.
    pub const NO_ERROR: u32 = 0;
    /// Something else than the protocol says.
    pub const PROTOCOL_ERROR: u32 = 1;
    /// More bytes than were allowed.
    pub const FLOW_CONTROL_ERROR: u32 = 3;
    /// The request was not looked at.
    pub const REFUSED_STREAM: u32 = 7;
    /// Not wanted any more.
    pub const CANCEL: u32 = 8;
    /// Too much of something.
    pub const ENHANCE_YOUR_CALM: u32 = 11;
}

/// One frame.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its type.
    pub kind: Kind,
    /// Its flags.
    pub flags: u8,
    /// Its stream; zero is the connection.
    pub stream: u32,
    /// What is in it.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Any frame.
    #[must_use]
    pub fn new(kind: Kind, flags: u8, stream: u32, payload: impl Into<Vec<u8>>) -> Self {
        Self { kind, flags, stream, payload: payload.into() }
    }

    /// SETTINGS with these values.
    #[must_use]
    pub fn settings(values: &[(u16, u32)]) -> Self {
        let value = |&(name, value): &(u16, u32)| {
            let (name, value) = (name.to_be_bytes(), value.to_be_bytes());
            name.into_iter().chain(value)
        };
        Self::new(Kind::Settings, 0, 0, values.iter().flat_map(value).collect::<Vec<u8>>())
    }

    /// DATA.
    #[must_use]
    pub fn data(stream: u32, bytes: &[u8]) -> Self {
        Self::new(Kind::Data, 0, stream, bytes)
    }

    /// HEADERS with the whole block.
    #[must_use]
    pub fn headers(stream: u32, block: Vec<u8>) -> Self {
        Self::new(Kind::Headers, END_HEADERS, stream, block)
    }

    /// A block in pieces of `size` bytes: HEADERS and CONTINUATION.
    #[must_use]
    pub fn pieces(stream: u32, block: &[u8], size: usize) -> Vec<Self> {
        let count = block.chunks(size).count();
        let piece = |(at, piece): (usize, &[u8])| {
            let kind = if at == 0 { Kind::Headers } else { Kind::Continuation };
            let flags = if at + 1 == count { END_HEADERS } else { 0 };
            Self::new(kind, flags, stream, piece)
        };
        block.chunks(size).enumerate().map(piece).collect()
    }

    /// RST_STREAM.
    #[must_use]
    pub fn reset(stream: u32, code: u32) -> Self {
        Self::new(Kind::RstStream, 0, stream, code.to_be_bytes())
    }

    /// GOAWAY: streams above `last` were not looked at.
    #[must_use]
    pub fn goaway(last: u32, code: u32) -> Self {
        Self::new(Kind::GoAway, 0, 0, [last.to_be_bytes(), code.to_be_bytes()].concat())
    }

    /// PING.
    #[must_use]
    pub fn ping(number: u64) -> Self {
        Self::new(Kind::Ping, 0, 0, number.to_be_bytes())
    }

    /// WINDOW_UPDATE.
    #[must_use]
    pub fn window(stream: u32, bytes: u32) -> Self {
        Self::new(Kind::WindowUpdate, 0, stream, bytes.to_be_bytes())
    }

    /// The same with one more flag.
    #[must_use]
    pub fn with(mut self, flag: u8) -> Self {
        self.flags |= flag;
        self
    }

    /// True if it has the flag.
    #[must_use]
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// A number in the payload, such as the code of RST_STREAM (at 0) or of GOAWAY (at 4).
    #[must_use]
    pub fn number(&self, at: usize) -> Option<u32> {
        Some(u32::from_be_bytes(*self.payload.get(at..)?.first_chunk()?))
    }

    /// True for a header block whose status is 200.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        // Changes of the table's size may come first: RFC 7541, section 6.3.
        let mut block = self.payload.iter().skip_while(|&&byte| byte & 0xe0 == 0x20);
        self.kind == Kind::Headers && block.next() == Some(&0x88)
    }

    /// As it is sent.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let length = u32::try_from(self.payload.len()).unwrap_or(u32::MAX).to_be_bytes();
        let mut bytes = length[1..].to_vec();
        bytes.extend([self.kind as u8, self.flags]);
        bytes.extend(self.stream.to_be_bytes());
        bytes.extend(&self.payload);
        bytes
    }

    /// Takes the first frame out of `bytes`, if it is complete.
    pub(super) fn take(bytes: &mut Vec<u8>) -> Option<Self> {
        let &[high, middle, low, kind, flags, a, b, c, d] = bytes.first_chunk::<9>()?;
        let length = usize::try_from(u32::from_be_bytes([0, high, middle, low])).ok()?;
        let payload = bytes.get(9..9 + length)?.to_vec();
        bytes.drain(..9 + length);
        Some(Self { kind: Kind::of(kind), flags, stream: u32::from_be_bytes([a & 0x7f, b, c, d]), payload })
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.payload.get(..16).unwrap_or(&self.payload);
        let length = self.payload.len();
        write!(f, "{:?} flags {} stream {} {length} bytes {shown:02x?}", self.kind, self.flags, self.stream)
    }
}

/// A header field as it is: RFC 7541, section 6.2.2.
#[must_use]
pub fn field(name: &str, value: &str) -> Vec<u8> {
    let mut block = vec![0];
    for text in [name, value] {
        length(&mut block, text.len());
        block.extend(text.as_bytes());
    }
    block
}

/// A length with a prefix of seven bits: RFC 7541, section 5.1.
fn length(block: &mut Vec<u8>, mut value: usize) {
    const PREFIX: usize = 127;
    if value < PREFIX {
        block.push(u8::try_from(value).unwrap_or_default());
        return;
    }
    block.push(127);
    value -= PREFIX;
    while value >= 128 {
        block.push(u8::try_from(value % 128).unwrap_or_default() | 128);
        value /= 128;
    }
    block.push(u8::try_from(value).unwrap_or_default());
}

/// The block of a CONNECT request.
#[must_use]
pub fn connect(authority: &str) -> Vec<u8> {
    [field(":method", "CONNECT"), field(":authority", authority)].concat()
}

/// The block of an answer.
#[must_use]
pub fn status(code: u16) -> Vec<u8> {
    field(":status", &code.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_back_as_it_was() {
        let frames = [
            Frame::settings(&[(4, 1), (3, 100)]),
            Frame::data(1, b"hello").with(END_STREAM),
            Frame::goaway(7, 11),
            Frame::window(0, 1),
        ];
        let mut bytes: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
        bytes.extend([0, 0, 9]);
        for frame in &frames {
            assert_eq!(Frame::take(&mut bytes).as_ref(), Some(frame));
        }
        assert_eq!(Frame::take(&mut bytes), None, "half a frame is none");
        assert_eq!(frames[2].number(4), Some(11));
    }

    #[test]
    fn a_block_in_pieces_ends_once() {
        let pieces = Frame::pieces(3, &connect("10.0.0.1:80"), 1);
        assert_eq!(pieces[0].kind, Kind::Headers);
        assert!(pieces[1..].iter().all(|piece| piece.kind == Kind::Continuation));
        assert_eq!(pieces.iter().filter(|piece| piece.has(END_HEADERS)).count(), 1);
        assert!(pieces.last().is_some_and(|piece| piece.has(END_HEADERS)));
    }

    #[test]
    fn long_values_have_long_lengths() {
        let block = field("a", &"x".repeat(400));
        assert_eq!(block[..6], [0, 1, b'a', 127, 0x91, 2]);
    }
}

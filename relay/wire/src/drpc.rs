//! dRPC: one call over one byte stream. Frames, packets made of frames, and error bodies.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Longest packet body that is put together.
pub const LONGEST_PACKET: usize = 4 << 20;
/// Longest frame body that is sent.
const LONGEST_FRAME: usize = 64 << 10;
/// Longest header: a control byte and three varints of ten bytes.
const LONGEST_HEADER: usize = 31;
/// Error code of a call that the other side does not know.
pub const UNIMPLEMENTED: u64 = 12;

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Starts a call; the body is its path.
    Invoke,
    /// A message of the call.
    Message,
    /// Ends the call with a code and a text.
    Error,
    /// The caller gave up.
    Cancel,
    /// Ends the call.
    Close,
    /// Nothing more will be sent; the other side may go on.
    CloseSend,
    /// Key and value pairs ahead of the invocation.
    Metadata,
    /// A number that this version does not know.
    Other(u8),
}

impl Kind {
    fn number(self) -> u8 {
        match self {
            Self::Invoke => 1,
            Self::Message => 2,
            Self::Error => 3,
            Self::Cancel => 4,
            Self::Close => 5,
            Self::CloseSend => 6,
            Self::Metadata => 7,
            Self::Other(number) => number & 0x3f,
        }
    }
}

impl From<u8> for Kind {
    fn from(number: u8) -> Self {
        match number {
            1 => Self::Invoke,
            2 => Self::Message,
            3 => Self::Error,
            4 => Self::Cancel,
            5 => Self::Close,
            6 => Self::CloseSend,
            7 => Self::Metadata,
            other => Self::Other(other),
        }
    }
}

/// Why a stream of frames cannot be read on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A number ran over ten bytes or 64 bits.
    #[error("the peer sent a dRPC number that is too long")]
    Varint,
    /// A packet is longer than [`LONGEST_PACKET`].
    #[error("the peer sent a dRPC packet of more than 4 MiB")]
    TooLong,
    /// Packet numbers went backwards.
    #[error("the peer sent a dRPC packet out of order (id monotonicity violation)")]
    Order,
    /// The frames of one packet disagree.
    #[error("the peer changed the kind of a dRPC packet half-way")]
    KindChanged,
    /// A packet of a kind that may not be skipped.
    #[error("the peer sent a dRPC packet of the unknown kind {0}")]
    UnknownKind(u8),
    /// An error packet too short for its code.
    #[error("the peer sent a dRPC error without a code")]
    ErrorBody,
}

/// Writes a number as dRPC does.
pub fn put_varint(out: &mut impl BufMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// Reads a number from the front of `bytes`: the value and its length, `None` when bytes are missing.
pub fn read_varint(bytes: &[u8]) -> Result<Option<(u64, usize)>, Error> {
    let mut value = 0;
    for (index, byte) in bytes.iter().enumerate() {
        let part = u64::from(byte & 0x7f);
        if index > 9 || (index == 9 && part > 1) {
            return Err(Error::Varint);
        }
        value |= part << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(Some((value, index + 1)));
        }
    }
    if bytes.len() > 9 {
        return Err(Error::Varint);
    }
    Ok(None)
}

/// A part of a packet, as it goes over the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Kind of the whole packet.
    pub kind: Kind,
    /// Number of the call on its connection; 1 here, where a stream carries one call.
    pub stream: u64,
    /// Number of the packet.
    pub message: u64,
    /// Whether this is the packet's last frame.
    pub done: bool,
    /// Whether a receiver may skip a kind it does not know.
    pub control: bool,
    /// The body.
    pub body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Appends the bytes.
    pub fn encode(&self, out: &mut impl BufMut) {
        let kind = self.kind.number() << 1;
        out.put_u8(kind | u8::from(self.done) | u8::from(self.control) << 7);
        put_varint(out, self.stream);
        put_varint(out, self.message);
        put_varint(out, self.body.len() as u64);
        out.put_slice(self.body);
    }

    /// Reads a frame from the front of `bytes`: the frame and its length, `None` when bytes are missing.
    pub fn decode(bytes: &'a [u8]) -> Result<Option<(Self, usize)>, Error> {
        let Some(&control) = bytes.first() else {
            return Ok(None);
        };
        let mut at = 1;
        let mut numbers = [0; 3];
        for number in &mut numbers {
            match read_varint(&bytes[at..])? {
                Some((value, length)) => {
                    *number = value;
                    at += length;
                }
                None => return Ok(None),
            }
        }
        let [stream, message, length] = numbers;
        if length > LONGEST_PACKET as u64 {
            return Err(Error::TooLong);
        }
        let Some(body) = bytes[at..].get(..length as usize) else {
            return Ok(None);
        };
        let frame = Self {
            kind: Kind::from(control >> 1 & 0x3f),
            stream,
            message,
            done: control & 1 != 0,
            control: control & 0x80 != 0,
            body,
        };
        Ok(Some((frame, at + body.len())))
    }
}

/// A whole packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// What it is.
    pub kind: Kind,
    /// Number of the call on its connection.
    pub stream: u64,
    /// Number of the packet.
    pub message: u64,
    /// Whether any of its frames had the control flag.
    pub control: bool,
    /// The body.
    pub body: Bytes,
}

/// Numbers and cuts the packets of one direction of a call.
#[derive(Debug, Default)]
pub struct Encoder {
    sent: u64,
}

impl Encoder {
    /// An encoder whose first packet has number 1.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a packet.
    pub fn put(&mut self, kind: Kind, body: &[u8], out: &mut impl BufMut) {
        self.sent += 1;
        let mut rest = body;
        loop {
            let (part, after) = rest.split_at(rest.len().min(LONGEST_FRAME));
            let frame = Frame {
                kind,
                stream: 1,
                message: self.sent,
                done: after.is_empty(),
                control: kind == Kind::Cancel,
                body: part,
            };
            frame.encode(out);
            if after.is_empty() {
                return;
            }
            rest = after;
        }
    }
}

/// Puts the packets of one direction of a call together.
#[derive(Debug, Default)]
pub struct Decoder {
    input: BytesMut,
    /// The smallest packet number still allowed.
    least: (u64, u64),
    partial: Option<Partial>,
}

#[derive(Debug)]
struct Partial {
    kind: Kind,
    control: bool,
    body: BytesMut,
}

impl Decoder {
    /// A decoder at the start of a call.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes, cut anywhere.
    pub fn push(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// Whether nothing is left of what was pushed.
    pub fn is_empty(&self) -> bool {
        self.input.is_empty() && self.partial.is_none()
    }

    /// The next whole packet; `None` when bytes are missing.
    pub fn next_packet(&mut self) -> Result<Option<Packet>, Error> {
        while let Some((frame, length)) = Frame::decode(&self.input)? {
            let id = (frame.stream, frame.message);
            if id < self.least {
                return Err(Error::Order);
            }
            if id > self.least {
                self.partial = None;
                self.least = id;
            }
            let header = length - frame.body.len();
            let (kind, done, control) = (frame.kind, frame.done, frame.control);
            let mut body = self.input.split_to(length);
            body.advance(header);
            let packet = match self.partial.take() {
                Some(partial) if partial.kind != kind => return Err(Error::KindChanged),
                Some(mut partial) => {
                    if partial.body.len() + body.len() > LONGEST_PACKET {
                        return Err(Error::TooLong);
                    }
                    partial.body.extend_from_slice(&body);
                    partial.control |= control;
                    partial
                }
                None => Partial {
                    kind,
                    control,
                    body,
                },
            };
            if !done {
                self.partial = Some(packet);
                continue;
            }
            self.least = (id.0, id.1.saturating_add(1));
            match packet.kind {
                Kind::Other(_) if packet.control => {}
                Kind::Other(number) => return Err(Error::UnknownKind(number)),
                kind => {
                    return Ok(Some(Packet {
                        kind,
                        stream: id.0,
                        message: id.1,
                        control: packet.control,
                        body: packet.body.freeze(),
                    }));
                }
            }
        }
        if self.input.len() > LONGEST_PACKET + LONGEST_HEADER {
            return Err(Error::TooLong);
        }
        Ok(None)
    }
}

/// Body of an error packet.
pub fn error_body(code: u64, text: &str) -> Bytes {
    let mut body = BytesMut::with_capacity(8 + text.len());
    body.put_u64(code);
    body.put_slice(text.as_bytes());
    body.freeze()
}

/// Code and text of an error packet.
pub fn parse_error_body(mut body: &[u8]) -> Result<(u64, String), Error> {
    let code = body.try_get_u64().map_err(|_| Error::ErrorBody)?;
    Ok((code, String::from_utf8_lossy(body).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_cut_into_frames_and_put_together_again() {
        let body: Vec<u8> = (0..70_000u32).map(|n| n as u8).collect();
        let mut bytes = BytesMut::new();
        Encoder::new().put(Kind::Message, &body, &mut bytes);
        assert_eq!(bytes[0], 0x04);
        let mut decoder = Decoder::new();
        for piece in bytes.chunks(999) {
            decoder.push(piece);
        }
        let packet = decoder.next_packet().unwrap().unwrap();
        assert_eq!(packet.body, body);
        assert_eq!(decoder.next_packet(), Ok(None));
    }

    #[test]
    fn a_packet_number_comes_only_once() {
        let mut decoder = Decoder::new();
        decoder.push(&[5, 1, 1, 0, 5, 1, 1, 0]);
        assert!(decoder.next_packet().unwrap().is_some());
        assert_eq!(decoder.next_packet(), Err(Error::Order));
    }

    #[test]
    fn unknown_kinds_are_skipped_only_with_the_control_flag() {
        let mut decoder = Decoder::new();
        decoder.push(&[0x80 | 9 << 1 | 1, 1, 1, 0, 5, 1, 2, 0]);
        assert_eq!(decoder.next_packet().unwrap().unwrap().kind, Kind::Message);
        decoder.push(&[9 << 1 | 1, 1, 3, 0]);
        assert_eq!(decoder.next_packet(), Err(Error::UnknownKind(9)));
    }

    #[test]
    fn lengths_and_numbers_are_bounded() {
        assert_eq!(read_varint(&[0xff; 10]), Err(Error::Varint));
        assert_eq!(read_varint(&[0x80; 9]), Ok(None));
        let mut head = vec![5, 1, 1];
        put_varint(&mut head, LONGEST_PACKET as u64 + 1);
        assert_eq!(Frame::decode(&head), Err(Error::TooLong));
    }

    #[test]
    fn error_bodies_carry_code_and_text() {
        let body = error_body(UNIMPLEMENTED, "no");
        assert_eq!(parse_error_body(&body), Ok((12, "no".to_owned())));
        assert_eq!(parse_error_body(&[0; 7]), Err(Error::ErrorBody));
    }
}

//! The 12-byte header in front of every yamux frame.

use super::Error;

/// Opens a stream, or asks for a ping's answer.
pub const SYN: u16 = 1;
/// Acknowledges a stream, or answers a ping.
pub const ACK: u16 = 2;
/// Ends the sender's half of a stream.
pub const FIN: u16 = 4;
/// Gives a stream up.
pub const RST: u16 = 8;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A body follows, as long as the length field says.
    Data = 0,
    /// The length field is added to the receiver's sending window.
    Window = 1,
    /// The length field is an opaque number that the answer repeats.
    Ping = 2,
    /// The length field is the reason for the end of the session.
    GoAway = 3,
}

/// A frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub kind: Kind,
    /// [`SYN`], [`ACK`], [`FIN`], [`RST`].
    pub flags: u16,
    /// The stream; 0 for the session as a whole.
    pub stream: u32,
    /// Body length or number, by kind.
    pub length: u32,
}

impl Header {
    /// Bytes of a header.
    pub const LENGTH: usize = 12;

    /// The bytes.
    pub fn encode(&self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[1] = self.kind as u8;
        bytes[2..4].copy_from_slice(&self.flags.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.stream.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    /// Reads a header.
    pub fn decode(bytes: &[u8; Self::LENGTH]) -> Result<Self, Error> {
        let [version, kind, f0, f1, s0, s1, s2, s3, l0, l1, l2, l3] = *bytes;
        if version != 0 {
            return Err(Error::Protocol("unknown version"));
        }
        Ok(Self {
            kind: match kind {
                0 => Kind::Data,
                1 => Kind::Window,
                2 => Kind::Ping,
                3 => Kind::GoAway,
                _ => return Err(Error::Protocol("unknown frame type")),
            },
            flags: u16::from_be_bytes([f0, f1]),
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            length: u32::from_be_bytes([l0, l1, l2, l3]),
        })
    }
}

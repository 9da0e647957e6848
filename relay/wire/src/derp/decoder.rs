//! Cuts a byte stream into frames, however it was split on the way.

use bytes::{Buf, BytesMut};

use super::frame::{Frame, is_client_info, is_known};
use super::{HEADER_LEN, MAX_PACKET};
use crate::{Error, Result};

/// Most body bytes of a frame; longer ones are an error before any of the body is kept.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of the client's introduction.
    pub client_info: usize,
    /// Of any other frame.
    pub frame: usize,
}

impl Default for Limits {
    /// What Coder's relay takes: 256 KiB to introduce oneself, 1 MiB afterwards.
    fn default() -> Self {
        Self {
            client_info: 256 << 10,
            frame: 1 << 20,
        }
    }
}

/// Reads frames out of pushed bytes. After an error the stream is lost: close the connection.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
    /// Body bytes of an unknown frame still to be thrown away.
    skip: usize,
    limits: Limits,
}

impl Decoder {
    /// A decoder with the usual limits.
    pub fn new() -> Self {
        Self::default()
    }

    /// A decoder with other limits.
    pub fn with_limits(limits: Limits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// Takes bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Where a reader may append bytes itself, to save the copy of [`push`](Self::push).
    pub fn buffer_mut(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next whole frame; `None` when more bytes are needed. Packets above [`MAX_PACKET`] are an error.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator would end at the first missing byte"
    )]
    pub fn next(&mut self) -> Result<Option<Frame>> {
        self.skip_unknown();
        let Some(&[kind, a, b, c, d]) = self.buffer.first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let len = u32::from_be_bytes([a, b, c, d]) as usize;
        let limit = if is_client_info(kind) {
            self.limits.client_info
        } else {
            self.limits.frame
        };
        if len > limit {
            return Err(Error::Long {
                what: "a DERP frame",
                limit,
                have: len,
            });
        }
        if !is_known(kind) {
            self.buffer.advance(HEADER_LEN);
            self.skip = len;
            self.skip_unknown();
            return Ok(Some(Frame::Unknown(kind)));
        }
        if self.buffer.len() < HEADER_LEN + len {
            self.buffer.reserve(HEADER_LEN + len - self.buffer.len());
            return Ok(None);
        }
        self.buffer.advance(HEADER_LEN);
        let frame = Frame::decode(kind, self.buffer.split_to(len).freeze())?;
        match &frame {
            Frame::SendPacket { packet, .. }
            | Frame::RecvPacket { packet, .. }
            | Frame::ForwardPacket { packet, .. }
                if packet.len() > MAX_PACKET =>
            {
                Err(Error::Long {
                    what: "a relayed packet",
                    limit: MAX_PACKET,
                    have: packet.len(),
                })
            }
            _ => Ok(Some(frame)),
        }
    }

    fn skip_unknown(&mut self) {
        let len = self.skip.min(self.buffer.len());
        self.buffer.advance(len);
        self.skip -= len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::NodePublic;

    #[test]
    fn an_announced_giant_is_refused_before_its_body_comes() {
        let mut decoder = Decoder::new();
        decoder.push(&[0x04, 0xff, 0xff, 0xff, 0xff]);
        assert!(matches!(decoder.next(), Err(Error::Long { .. })));
        let mut decoder = Decoder::new();
        decoder.push(&[0x02, 0x00, 0x05, 0x00, 0x00]);
        assert!(matches!(
            decoder.next(),
            Err(Error::Long { limit: 262_144, .. })
        ));
    }

    #[test]
    fn a_packet_above_the_limit_is_refused() {
        let mut bytes = BytesMut::new();
        let key = NodePublic::from_bytes([1; 32]);
        super::super::put_send_packet(&mut bytes, &key, &vec![0; MAX_PACKET]);
        let mut decoder = Decoder::new();
        decoder.push(&bytes);
        assert!(
            matches!(decoder.next(), Ok(Some(Frame::SendPacket { packet, .. })) if packet.len() == MAX_PACKET)
        );
        bytes.clear();
        super::super::put_send_packet(&mut bytes, &key, &vec![0; MAX_PACKET + 1]);
        decoder.push(&bytes);
        assert!(matches!(decoder.next(), Err(Error::Long { .. })));
    }

    #[test]
    fn an_unknown_frame_is_skipped_byte_by_byte() {
        let mut decoder = Decoder::new();
        let mut frames = Vec::new();
        for byte in [0x7f, 0, 0, 0, 3, b'a', b'b', b'c', 0x06, 0, 0, 0, 0] {
            decoder.push(&[byte]);
            frames.extend(decoder.next().expect("well-formed"));
        }
        assert_eq!(frames, [Frame::Unknown(0x7f), Frame::KeepAlive]);
    }

    #[test]
    fn a_short_body_is_an_error() {
        for bytes in [
            &[0x04, 0, 0, 0, 1, 9][..],
            &[0x12, 0, 0, 0, 2, 1, 1],
            &[0x07, 0, 0, 0, 0],
        ] {
            let mut decoder = Decoder::new();
            decoder.push(bytes);
            assert!(
                matches!(decoder.next(), Err(Error::Short { .. })),
                "{bytes:?}"
            );
        }
    }
}

//! The messages of WireGuard, as bytes (WireGuard paper, §5.4). What is parsed here is of the right
//! kind and length; whether it is authentic is found out elsewhere.

/// Bytes in front of what a data message carries.
pub(super) const DATA_HEAD: usize = 16;

/// Bytes of the messages whose length is always the same.
pub(super) const INITIATION: usize = 148;
pub(super) const RESPONSE: usize = 92;
pub(super) const COOKIE_REPLY: usize = 64;

/// The first message of a handshake.
#[derive(Debug, Clone, Copy)]
pub(super) struct Initiation<'a> {
    pub(super) bytes: &'a [u8; INITIATION],
}

/// The second message of a handshake.
#[derive(Debug, Clone, Copy)]
pub(super) struct Response<'a> {
    pub(super) bytes: &'a [u8; RESPONSE],
}

/// What an end under load answers: a handshake has to prove that its sender gets what is sent to it.
#[derive(Debug, Clone, Copy)]
pub(super) struct CookieReply<'a> {
    pub(super) bytes: &'a [u8; COOKIE_REPLY],
}

/// A sealed packet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Data<'a> {
    /// The session, by its receiver's number for it.
    pub(super) receiver: u32,
    pub(super) counter: u64,
    /// Ciphertext and tag.
    pub(super) sealed: &'a [u8],
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Message<'a> {
    Initiation(Initiation<'a>),
    Response(Response<'a>),
    CookieReply(CookieReply<'a>),
    Data(Data<'a>),
}

impl<'a> Message<'a> {
    /// `None` for what is no message of WireGuard.
    pub(super) fn parse(datagram: &'a [u8]) -> Option<Self> {
        let (kind, _) = datagram.split_first_chunk()?;
        match *kind {
            Initiation::TYPE => Some(Self::Initiation(Initiation {
                bytes: datagram.try_into().ok()?,
            })),
            Response::TYPE => Some(Self::Response(Response {
                bytes: datagram.try_into().ok()?,
            })),
            CookieReply::TYPE => Some(Self::CookieReply(CookieReply {
                bytes: datagram.try_into().ok()?,
            })),
            Data::TYPE => Data::parse(datagram).map(Self::Data),
            _ => None,
        }
    }
}

impl<'a> Initiation<'a> {
    pub(super) const TYPE: [u8; 4] = [1, 0, 0, 0];

    pub(super) fn sender(self) -> u32 {
        u32::from_le_bytes(part(self.bytes, 4))
    }

    pub(super) fn ephemeral(self) -> [u8; 32] {
        part(self.bytes, 8)
    }

    /// The initiator's public key, encrypted.
    pub(super) fn encrypted_static(self) -> &'a [u8] {
        &self.bytes[40..88]
    }

    pub(super) fn encrypted_timestamp(self) -> &'a [u8] {
        &self.bytes[88..116]
    }
}

impl<'a> Response<'a> {
    pub(super) const TYPE: [u8; 4] = [2, 0, 0, 0];

    pub(super) fn sender(self) -> u32 {
        u32::from_le_bytes(part(self.bytes, 4))
    }

    pub(super) fn receiver(self) -> u32 {
        u32::from_le_bytes(part(self.bytes, 8))
    }

    pub(super) fn ephemeral(self) -> [u8; 32] {
        part(self.bytes, 12)
    }

    pub(super) fn encrypted_nothing(self) -> &'a [u8] {
        &self.bytes[44..60]
    }
}

impl<'a> CookieReply<'a> {
    pub(super) const TYPE: [u8; 4] = [3, 0, 0, 0];

    pub(super) fn receiver(self) -> u32 {
        u32::from_le_bytes(part(self.bytes, 4))
    }

    pub(super) fn nonce(self) -> [u8; 24] {
        part(self.bytes, 8)
    }

    pub(super) fn encrypted_cookie(self) -> &'a [u8] {
        &self.bytes[32..]
    }
}

impl<'a> Data<'a> {
    pub(super) const TYPE: [u8; 4] = [4, 0, 0, 0];

    /// `None` for anything but a data message.
    pub(super) fn parse(datagram: &'a [u8]) -> Option<Self> {
        if datagram.len() < super::OVERHEAD || datagram[..4] != Self::TYPE {
            return None;
        }
        let (head, sealed) = datagram.split_first_chunk::<DATA_HEAD>()?;
        Some(Self {
            receiver: u32::from_le_bytes(part(head, 4)),
            counter: u64::from_le_bytes(part(head, 8)),
            sealed,
        })
    }

    /// What stands in front of a sealed packet.
    pub(super) fn head(receiver: u32, counter: u64) -> [u8; DATA_HEAD] {
        let mut head = [0; DATA_HEAD];
        head[..4].copy_from_slice(&Self::TYPE);
        head[4..8].copy_from_slice(&receiver.to_le_bytes());
        head[8..].copy_from_slice(&counter.to_le_bytes());
        head
    }
}

/// The `N` bytes that begin at `at`, which are there.
fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&bytes[at..at + N]);
    part
}

//! What parent and helper say to each other: one request or reply a message, descriptors beside
//! it. Both ends are the same program, so a message that does not parse ends the conversation.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Ipv6Addr;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// The most descriptors in one message.
pub(super) const MAX_DESCRIPTORS: usize = 64;
const MAX_MESSAGE: usize = 4096;

/// A step of the set-up that a test can let fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// Entering a network namespace with the capabilities the process has.
    NetworkNamespace = 1,
    /// Entering a user namespace and a network namespace of its own.
    UserNamespace,
    /// Opening `/dev/net/tun`.
    OpenDevice,
    /// Making the interface.
    MakeInterface,
    /// Taking and giving large UDP super-packets.
    UdpOffload,
    /// Taking and giving super-packets at all.
    Offload,
    /// Giving the interface its addresses and routes.
    Configure,
}

impl Step {
    const ALL: [Self; 7] = [
        Self::NetworkNamespace,
        Self::UserNamespace,
        Self::OpenDevice,
        Self::MakeInterface,
        Self::UdpOffload,
        Self::Offload,
        Self::Configure,
    ];
}

/// Steps that fail although the system would let them succeed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Faults(pub(super) Vec<(Step, u8)>);

impl Faults {
    pub(super) fn check(&self, step: Step) -> Result<(), rustix::io::Errno> {
        match self.0.iter().find(|(faulty, _)| *faulty == step) {
            Some((_, errno)) => Err(rustix::io::Errno::from_raw_os_error(i32::from(*errno))),
            None => Ok(()),
        }
    }
}

/// What the stack needs to know to be set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setup {
    /// Devices that are wanted; where there is no private namespace, one is made.
    pub(super) devices: u8,
    pub(super) mtu: u16,
    pub(super) receive_window: u32,
    pub(super) tcp_offload: bool,
    pub(super) udp_offload: bool,
    pub(super) faults: Faults,
    pub(super) addresses: Vec<Ipv6Addr>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    Setup(Setup),
    Sockets(u8),
    /// The device, the peer behind it, and the largest packet to that peer.
    SetRoute(u8, Ipv6Addr, u16),
    /// The device and the peer that is behind it no longer.
    RemoveRoute(u8, Ipv6Addr),
    /// What a stream may hold at most that was received and not read, in bytes.
    SetReceive(u32),
}

/// Where the device was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a namespace that holds nothing else.
    PrivateNamespace,
    /// In the namespace relay itself lives in.
    OwnNamespace,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    /// The devices are beside it, one at least.
    Ready {
        place: Place,
        tcp_offload: bool,
        udp_offload: bool,
        /// Streams may carry data in their first packet.
        early_data: bool,
        /// What is not as good as it could be, a line each.
        notes: String,
    },
    /// The sockets are beside it.
    Sockets,
    Done,
    Failed {
        errno: i32,
        reason: String,
    },
}

impl Request {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64);
        match self {
            Self::Setup(setup) => {
                bytes.extend_from_slice(&[1, setup.devices]);
                bytes.extend_from_slice(&setup.mtu.to_be_bytes());
                bytes.extend_from_slice(&setup.receive_window.to_be_bytes());
                bytes.push(u8::from(setup.tcp_offload) | u8::from(setup.udp_offload) << 1);
                bytes.push(setup.faults.0.len() as u8);
                for (step, errno) in &setup.faults.0 {
                    bytes.extend_from_slice(&[*step as u8, *errno]);
                }
                for address in &setup.addresses {
                    bytes.extend_from_slice(&address.octets());
                }
            }
            Self::Sockets(count) => bytes.extend_from_slice(&[2, *count]),
            Self::SetRoute(device, address, mtu) => {
                bytes.extend_from_slice(&[3, *device]);
                bytes.extend_from_slice(&mtu.to_be_bytes());
                bytes.extend_from_slice(&address.octets());
            }
            Self::RemoveRoute(device, address) => {
                bytes.extend_from_slice(&[4, *device]);
                bytes.extend_from_slice(&address.octets());
            }
            Self::SetReceive(most) => {
                bytes.push(5);
                bytes.extend_from_slice(&most.to_be_bytes());
            }
        }
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, mut rest) = bytes.split_first()?;
        let request = match kind {
            1 => {
                let [devices] = take(&mut rest)?;
                let mtu = u16::from_be_bytes(take(&mut rest)?);
                let receive_window = u32::from_be_bytes(take(&mut rest)?);
                let [flags, faults] = take(&mut rest)?;
                let faults = (0..faults)
                    .map(|_| {
                        let [step, errno] = take(&mut rest)?;
                        let step = Step::ALL.into_iter().find(|known| *known as u8 == step)?;
                        Some((step, errno))
                    })
                    .collect::<Option<_>>()?;
                let addresses = rest
                    .chunks(16)
                    .map(|chunk| <[u8; 16]>::try_from(chunk).ok().map(Ipv6Addr::from))
                    .collect::<Option<_>>()?;
                rest = &[];
                Self::Setup(Setup {
                    devices,
                    mtu,
                    receive_window,
                    tcp_offload: flags & 1 != 0,
                    udp_offload: flags & 2 != 0,
                    faults: Faults(faults),
                    addresses,
                })
            }
            2 => Self::Sockets(u8::from_be_bytes(take(&mut rest)?)),
            3 => {
                let [device] = take(&mut rest)?;
                let mtu = u16::from_be_bytes(take(&mut rest)?);
                Self::SetRoute(device, take::<16>(&mut rest)?.into(), mtu)
            }
            4 => {
                let [device] = take(&mut rest)?;
                Self::RemoveRoute(device, take::<16>(&mut rest)?.into())
            }
            5 => Self::SetReceive(u32::from_be_bytes(take(&mut rest)?)),
            _ => return None,
        };
        rest.is_empty().then_some(request)
    }
}

impl Reply {
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Ready {
                place,
                tcp_offload,
                udp_offload,
                early_data,
                notes,
            } => {
                let own = u8::from(*place == Place::OwnNamespace);
                let flags = [*tcp_offload, *udp_offload, *early_data]
                    .into_iter()
                    .zip(1..)
                    .fold(own, |flags, (set, bit)| flags | u8::from(set) << bit);
                [&[1, flags], notes.as_bytes()].concat()
            }
            Self::Sockets => vec![2],
            Self::Done => vec![3],
            Self::Failed { errno, reason } => {
                [&[4][..], &errno.to_be_bytes(), reason.as_bytes()].concat()
            }
        }
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, mut rest) = bytes.split_first()?;
        Some(match kind {
            1 => {
                let [flags] = take(&mut rest)?;
                Self::Ready {
                    place: if flags & 1 != 0 {
                        Place::OwnNamespace
                    } else {
                        Place::PrivateNamespace
                    },
                    tcp_offload: flags & 2 != 0,
                    udp_offload: flags & 4 != 0,
                    early_data: flags & 8 != 0,
                    notes: String::from_utf8_lossy(rest).into_owned(),
                }
            }
            2 => Self::Sockets,
            3 => Self::Done,
            4 => Self::Failed {
                errno: i32::from_be_bytes(take(&mut rest)?),
                reason: String::from_utf8_lossy(rest).into_owned(),
            },
            _ => return None,
        })
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*head)
}

/// Sends one message, with descriptors beside it.
pub(super) fn send(
    socket: BorrowedFd<'_>,
    message: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let message = &message[..message.len().min(MAX_MESSAGE)];
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(
            socket,
            &[IoSlice::new(message)],
            &mut control,
            SendFlags::NOSIGNAL,
        )
    })?;
    Ok(())
}

/// Receives one message and what came beside it. An empty message is the end.
pub(super) fn receive(
    socket: BorrowedFd<'_>,
    flags: RecvFlags,
) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut message = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut message)],
            &mut control,
            flags | RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    message.truncate(received.bytes);
    let mut descriptors = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            descriptors.extend(rights);
        }
    }
    Ok((message, descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_replies_survive_the_way() {
        let address: Ipv6Addr = "fd7a:115c:a1e0::7".parse().unwrap();
        for request in [
            Request::Setup(Setup {
                devices: 3,
                mtu: 8920,
                receive_window: 4 << 20,
                tcp_offload: true,
                udp_offload: false,
                faults: Faults(vec![(Step::OpenDevice, 13)]),
                addresses: vec![address, Ipv6Addr::LOCALHOST],
            }),
            Request::Sockets(32),
            Request::SetRoute(2, address, 1420),
            Request::RemoveRoute(1, address),
            Request::SetReceive(16 << 20),
        ] {
            assert_eq!(Request::decode(&request.encode()), Some(request));
        }
        for reply in [
            Reply::Ready {
                place: Place::OwnNamespace,
                tcp_offload: true,
                udp_offload: true,
                early_data: true,
                notes: "a\nb".into(),
            },
            Reply::Sockets,
            Reply::Done,
            Reply::Failed {
                errno: 13,
                reason: "no".into(),
            },
        ] {
            assert_eq!(Reply::decode(&reply.encode()), Some(reply));
        }
    }

    #[test]
    fn cut_off_messages_are_refused() {
        let whole = Request::SetRoute(0, Ipv6Addr::LOCALHOST, 1280).encode();
        for end in 0..whole.len() {
            assert_eq!(Request::decode(&whole[..end]), None);
        }
        assert_eq!(Request::decode(&[9]), None);
        assert_eq!(Reply::decode(&[]), None);
    }
}

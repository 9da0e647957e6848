//! The stack, as the loop sees it: the kernel's behind a TUN device, or relay's own.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Instant;

use relay_tcp::{Bursts, PacketSink};
use tokio::sync::mpsc;

use super::driver::Router;
use crate::Error;
use crate::endpoint::StackChoice;
use crate::stack::{
    self, Injection, KernelStack, NetHelper, StackOptions, Streams, Tun, UserLoop, UserOptions,
};

/// Bytes of packets beyond which the room for them is given back.
const KEPT: usize = 512 << 10;

/// Where the packets of streams come from and go to.
pub(super) enum Local {
    Kernel(Tun, KernelStack),
    User(Box<UserLoop>, Made),
}

/// A stack, and how streams of it are opened.
pub(super) struct Opened {
    pub(super) local: Local,
    pub(super) streams: Streams,
    /// Why it is not the kernel's, where that was not asked for.
    pub(super) instead: Option<String>,
}

impl Local {
    /// Opens the stack that is wanted, or the one that can be had.
    pub(super) fn open(
        choice: StackChoice,
        helper: NetHelper,
        addresses: &[Ipv6Addr],
        options: StackOptions,
    ) -> Result<Opened, Error> {
        let instead = match choice {
            StackChoice::User => None,
            StackChoice::Kernel | StackChoice::Auto => {
                match stack::start(helper, addresses, options) {
                    Ok((tun, kernel)) => {
                        return Ok(Opened {
                            local: Self::Kernel(tun, kernel.clone()),
                            streams: Streams::Kernel(kernel),
                            instead: None,
                        });
                    }
                    Err(error) if choice == StackChoice::Kernel => return Err(error),
                    Err(error) => Some(stack::instead_of_kernel(error)),
                }
            }
        };
        let (user, streams) = stack::open_user(UserOptions {
            addresses: addresses.to_vec(),
            udp_receive_buffer: options.udp_receive_buffer,
            between_relays: false,
        });
        Ok(Opened {
            local: Self::User(Box::new(user), Made::default()),
            streams: Streams::User(streams),
            instead,
        })
    }

    /// Makes `to`, where packets have `mtu` bytes at most, reachable.
    pub(super) fn add_route(&mut self, to: Ipv6Addr, mtu: u16) -> Result<(), Error> {
        match self {
            Self::Kernel(_, stack) => stack.add_route(to, mtu).map_err(|source| Error::System {
                what: "setting the route to a host in the tunnel",
                source,
            }),
            Self::User(user, _) => {
                user.set_peer_mtu(Instant::now(), to, mtu);
                Ok(())
            }
        }
    }

    /// Where packets appear that the stack wants written later.
    pub(super) fn injections(&self) -> mpsc::UnboundedReceiver<Injection> {
        match self {
            Self::Kernel(_, stack) => stack.injections(),
            // Its packets wait in itself.
            Self::User(..) => mpsc::unbounded_channel().1,
        }
    }

    /// Waits until there is something to read, or to do. For ever where `device_failed`.
    pub(super) fn readable(&self, device_failed: bool) -> impl Future<Output = ()> + Send {
        let (tun, user) = match self {
            Self::Kernel(tun, _) => (Some(tun).filter(|_| !device_failed), None),
            Self::User(user, _) => (None, Some(user.readable())),
        };
        async move {
            match (tun, user) {
                (Some(tun), _) => drop(tun.readable().await),
                (_, Some(user)) => user.await,
                (None, None) => std::future::pending().await,
            }
        }
    }

    /// Takes packets for streams.
    pub(super) fn take(&mut self, now: Instant, packets: &[&[u8]]) {
        match self {
            Self::Kernel(tun, _) => {
                if let Err(error) = tun.write_batch(packets) {
                    tracing::debug!(%error, "writing to the TUN device");
                }
            }
            Self::User(user, _) => user.handle_packets(now, packets.iter().copied()),
        }
    }

    /// Gives memory back that is not in use.
    pub(super) fn release(&mut self) {
        if let Self::User(user, made) = self {
            user.release();
            *made = Made::default();
        }
    }

    /// When the stack wants to be called next.
    pub(super) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        match self {
            Self::Kernel(..) => None,
            Self::User(user, _) => user.poll_timeout(now).map(|(at, _)| at),
        }
    }
}

/// One turn of relay's own TCP. True when it made packets, or was not done.
pub(super) fn turn(
    user: &mut UserLoop,
    made: &mut Made,
    router: &mut Router<'_>,
    now: Instant,
) -> bool {
    let sent = user.turn(now, made);
    let mut from = 0;
    for &end in &made.ends {
        router.send(&made.bytes[from..end]);
        from = end;
    }
    made.clear();
    sent.packets > 0 || user.is_pending()
}

/// The packets of a turn, which are routed, and translated where they stand for IPv4, one by one.
#[derive(Default)]
pub(super) struct Made {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Made {
    fn clear(&mut self) {
        if self.bytes.capacity() > KEPT {
            *self = Self::default();
        }
        self.bytes.clear();
        self.ends.clear();
    }
}

impl PacketSink for Made {
    fn packet(&mut self, length: usize, write: &mut dyn FnMut(&mut [u8])) {
        let start = self.bytes.len();
        self.bytes.resize(start + length, 0);
        self.ends.push(start + length);
        write(&mut self.bytes[start..]);
    }
}

impl Bursts for Made {
    fn burst_to(&mut self, _peer: IpAddr) -> &mut dyn PacketSink {
        self
    }
}

//! The few rtnetlink requests the helper makes: link, addresses, routes.

use std::net::Ipv6Addr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// Bytes of the header of a message.
const HEADER: usize = 16;

const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;

const REQUEST: u16 = 0x01;
const ACKNOWLEDGE: u16 = 0x04;
const REPLACE: u16 = 0x100;
const EXCLUSIVE: u16 = 0x200;
const CREATE: u16 = 0x400;
/// The kernel's answer to a request, 0 or an error number inside.
const ERROR: u16 = 2;

const LINK_MTU: u16 = 4;
const LINK_QUEUE: u16 = 13;
const LINK_GSO_MAX_SIZE: u16 = 41;
const ADDRESS: u16 = 1;
const LOCAL_ADDRESS: u16 = 2;
const ROUTE_DESTINATION: u16 = 1;
const ROUTE_DEVICE: u16 = 4;
const ROUTE_PRIORITY: u16 = 6;
const ROUTE_METRICS: u16 = 8;
const METRIC_MTU: u16 = 2;
const METRIC_ADVERTISED_MSS: u16 = 8;

const INTERFACE_UP: u32 = 1;
const NO_DUPLICATE_DETECTION: u8 = 0x02;
const IPV6: u8 = 10;
const MAIN_TABLE: u8 = 254;
const STATIC: u8 = 4;
const UNICAST: u8 = 1;
const LOCAL: u8 = 2;

/// Headers of IPv6 and TCP: a segment's payload is at most this much smaller than its packet.
const TCP_OVERHEAD: u16 = 60;

/// A route to the device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Route {
    pub(super) prefix: (Ipv6Addr, u8),
    /// The largest packet sent.
    pub(super) mtu: u16,
    /// The largest packet that may be received.
    pub(super) largest: u16,
    /// Whether a route that is there already gives way, or fails this one.
    pub(super) replace: bool,
    /// Of several routes of a prefix the lowest counts; the kernel's usual one if 0.
    pub(super) priority: u32,
}

/// A conversation with the kernel about the namespace it was opened in.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub(super) fn open() -> Result<Self, Errno> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    pub(super) fn up(&mut self, index: u32) -> Result<(), Errno> {
        self.call(NEW_LINK, 0, &link(index, INTERFACE_UP))
    }

    pub(super) fn set_mtu(&mut self, index: u32, mtu: u16) -> Result<(), Errno> {
        self.set_link(index, LINK_MTU, u32::from(mtu))
    }

    pub(super) fn set_queue(&mut self, index: u32, packets: u32) -> Result<(), Errno> {
        self.set_link(index, LINK_QUEUE, packets)
    }

    pub(super) fn set_gso_max_size(&mut self, index: u32, bytes: u32) -> Result<(), Errno> {
        self.set_link(index, LINK_GSO_MAX_SIZE, bytes)
    }

    fn set_link(&mut self, index: u32, attribute: u16, value: u32) -> Result<(), Errno> {
        let mut body = link(index, 0);
        push(&mut body, attribute, &value.to_ne_bytes());
        self.call(NEW_LINK, 0, &body)
    }

    pub(super) fn add_address(&mut self, index: u32, address: Ipv6Addr) -> Result<(), Errno> {
        let mut body = vec![IPV6, 128, NO_DUPLICATE_DETECTION, 0];
        body.extend_from_slice(&index.to_ne_bytes());
        push(&mut body, LOCAL_ADDRESS, &address.octets());
        push(&mut body, ADDRESS, &address.octets());
        self.call(NEW_ADDRESS, CREATE | REPLACE, &body)
    }

    /// Routes a prefix to the device. Packets are at most `mtu` long; what peers are told they may
    /// send follows `largest`, so that a stream can grow when a larger packet is proven later.
    pub(super) fn set_route(&mut self, index: u32, new: Route) -> Result<(), Errno> {
        let Route {
            prefix,
            mtu,
            largest,
            replace,
            priority,
        } = new;
        let mut body = route(prefix);
        push(&mut body, ROUTE_DEVICE, &index.to_ne_bytes());
        push(&mut body, ROUTE_PRIORITY, &priority.to_ne_bytes());
        let mut metrics = Vec::new();
        push(&mut metrics, METRIC_MTU, &u32::from(mtu).to_ne_bytes());
        let segment = u32::from(largest.saturating_sub(TCP_OVERHEAD));
        push(&mut metrics, METRIC_ADVERTISED_MSS, &segment.to_ne_bytes());
        push(&mut body, ROUTE_METRICS, &metrics);
        let existing = if replace { REPLACE } else { EXCLUSIVE };
        self.call(NEW_ROUTE, CREATE | existing, &body)
    }

    pub(super) fn remove_route(&mut self, index: u32, prefix: (Ipv6Addr, u8)) -> Result<(), Errno> {
        let mut body = route(prefix);
        push(&mut body, ROUTE_DEVICE, &index.to_ne_bytes());
        self.call(DELETE_ROUTE, 0, &body)
    }

    /// Whether packets to `address` are taken by this namespace.
    pub(super) fn is_local(&mut self, address: Ipv6Addr) -> Result<bool, Errno> {
        let mut body = vec![0; 12];
        (body[0], body[1]) = (IPV6, 128);
        push(&mut body, ROUTE_DESTINATION, &address.octets());
        self.send(GET_ROUTE, 0, &body)?;
        let answer = self.receive()?;
        Ok(answer.kind == NEW_ROUTE && answer.body.get(7) == Some(&LOCAL))
    }

    fn call(&mut self, kind: u16, flags: u16, body: &[u8]) -> Result<(), Errno> {
        self.send(kind, ACKNOWLEDGE | flags, body)?;
        loop {
            let answer = self.receive()?;
            if let (ERROR, Some(code)) = (answer.kind, answer.body.first_chunk()) {
                return match i32::from_ne_bytes(*code) {
                    0 => Ok(()),
                    error => Err(Errno::from_raw_os_error(-error)),
                };
            }
        }
    }

    fn send(&mut self, kind: u16, flags: u16, body: &[u8]) -> Result<(), Errno> {
        self.sequence += 1;
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&(REQUEST | flags).to_ne_bytes());
        message.extend_from_slice(&self.sequence.to_ne_bytes());
        message.extend_from_slice(&0u32.to_ne_bytes());
        message.extend_from_slice(body);
        rustix::net::send(&self.socket, &message, SendFlags::empty())?;
        Ok(())
    }

    /// The next message that answers the last request.
    fn receive(&mut self) -> Result<Answer, Errno> {
        let mut message = vec![0; 1024];
        loop {
            let (length, _) =
                rustix::net::recv(&self.socket, &mut message[..], RecvFlags::empty())?;
            let sequence = self.sequence.to_ne_bytes();
            if length >= HEADER && message[8..12] == sequence {
                message.truncate(length);
                return Ok(Answer {
                    kind: u16::from_ne_bytes([message[4], message[5]]),
                    body: message.split_off(HEADER),
                });
            }
        }
    }
}

struct Answer {
    kind: u16,
    body: Vec<u8>,
}

fn link(index: u32, flags: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend_from_slice(&index.to_ne_bytes());
    body.extend_from_slice(&flags.to_ne_bytes());
    body.extend_from_slice(&flags.to_ne_bytes());
    body
}

fn route((address, length): (Ipv6Addr, u8)) -> Vec<u8> {
    let mut body = vec![IPV6, length, 0, 0, MAIN_TABLE, STATIC, 0, UNICAST];
    body.extend_from_slice(&0u32.to_ne_bytes());
    push(&mut body, ROUTE_DESTINATION, &address.octets());
    body
}

fn push(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = 4 + value.len();
    body.extend_from_slice(&(length as u16).to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

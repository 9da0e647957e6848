//! Answers to pings: ICMPv6 (RFC 4443 §4.2) and ICMP (RFC 792).

use std::net::IpAddr;

use crate::checksum::Sum;
use crate::emit::{PacketSink, finish_ip, ip_header};
use crate::segment::{Ecn, Ip};

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// Answers an echo request; returns whether `ip` was one.
pub(super) fn answer(ip: &Ip<'_>, sink: &mut dyn PacketSink) -> bool {
    let (request, reply) = match (ip.protocol, ip.destination) {
        (ICMPV6, IpAddr::V6(_)) => (128, 129),
        (ICMP, IpAddr::V4(_)) => (8, 0),
        _ => return false,
    };
    let message = ip.payload;
    let sum = |bytes: &[u8], from, to| {
        let sum = Sum::default();
        let sum = match ip.protocol {
            ICMPV6 => sum.pseudo(from, to, ICMPV6, bytes.len()),
            _ => sum,
        };
        sum.add(bytes).finish()
    };
    if message.len() < 8
        || message[..2] != [request, 0]
        || sum(message, ip.source, ip.destination) != [0, 0]
    {
        return false;
    }
    let mut header = [0; 40];
    let length = ip_header(
        &mut header,
        ip.destination,
        ip.source,
        ip.protocol,
        Ecn::NotCapable,
    );
    sink.packet(length + message.len(), &mut |packet| {
        packet[..length].copy_from_slice(&header[..length]);
        packet[length..].copy_from_slice(message);
        packet[length] = reply;
        packet[length + 2..length + 4].copy_from_slice(&[0, 0]);
        let checksum = sum(&packet[length..], ip.destination, ip.source);
        packet[length + 2..length + 4].copy_from_slice(&checksum);
        finish_ip(packet, length);
    });
    true
}

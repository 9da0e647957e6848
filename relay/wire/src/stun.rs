//! STUN binding: how a node learns its public address. Source: coder_wire.md §7.6, coder_live.md §2.11, RFC 8489.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::{Error, Result};

/// UDP port of STUN servers unless a map says otherwise.
pub const DEFAULT_PORT: u16 = 3478;
/// Identity of a request; its response carries the same.
pub type TxId = [u8; 12];

const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const HEADER_LEN: usize = 20;
const REQUEST: u16 = 0x0001;
const RESPONSE: u16 = 0x0101;
const MAPPED_ADDRESS: u16 = 0x0001;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
/// The number of XOR-MAPPED-ADDRESS before RFC 5389; old servers send it still.
const XOR_MAPPED_ADDRESS_OLD: u16 = 0x8020;
const SOFTWARE: u16 = 0x8022;
const FINGERPRINT: u16 = 0x8028;
const FINGERPRINT_LEN: usize = 8;
const FINGERPRINT_XOR: u32 = 0x5354_554e;
/// What Tailscale's servers expect a client to call itself.
const SOFTWARE_NAME: &[u8; 8] = b"tailnode";

/// True when a packet looks like STUN. Disco and WireGuard packets do not.
pub fn is_stun(packet: &[u8]) -> bool {
    packet.len() >= HEADER_LEN && packet[0] & 0b1100_0000 == 0 && packet[4..8] == COOKIE
}

/// A binding request of 40 bytes.
pub fn request(tx: TxId) -> Vec<u8> {
    let attributes = 4 + SOFTWARE_NAME.len() + FINGERPRINT_LEN;
    let mut packet = header(REQUEST, attributes, &tx);
    put_attribute(&mut packet, SOFTWARE, SOFTWARE_NAME);
    let fingerprint = fingerprint(&packet);
    put_attribute(&mut packet, FINGERPRINT, &fingerprint.to_be_bytes());
    packet
}

/// Reads a binding request. A fingerprint may be missing, but must be right.
pub fn parse_request(packet: &[u8]) -> Result<TxId> {
    let message = Message::parse(packet)?;
    if message.kind != REQUEST {
        return Err(Error::Not("a STUN binding request"));
    }
    for attribute in message.attributes() {
        let (kind, value, offset) = attribute?;
        if kind == FINGERPRINT && value != fingerprint(&packet[..offset]).to_be_bytes() {
            return Err(Error::Not(
                "a STUN binding request with a right fingerprint",
            ));
        }
    }
    Ok(message.tx)
}

/// The response to a request that came from `source`.
pub fn response(tx: TxId, source: SocketAddr) -> Vec<u8> {
    let port = (source.port() ^ u16::from_be_bytes([COOKIE[0], COOKIE[1]])).to_be_bytes();
    let mut value = Vec::with_capacity(20);
    match source.ip().to_canonical() {
        IpAddr::V4(ip) => {
            value.extend_from_slice(&[0, 1, port[0], port[1]]);
            value.extend(
                ip.octets()
                    .iter()
                    .zip(COOKIE)
                    .map(|(byte, mask)| byte ^ mask),
            );
        }
        IpAddr::V6(ip) => {
            value.extend_from_slice(&[0, 2, port[0], port[1]]);
            value.extend(
                ip.octets()
                    .iter()
                    .zip(mask(&tx))
                    .map(|(byte, mask)| byte ^ mask),
            );
        }
    }
    let mut packet = header(RESPONSE, 4 + value.len(), &tx);
    put_attribute(&mut packet, XOR_MAPPED_ADDRESS, &value);
    packet
}

/// Reads a binding response: which request it answers and the address seen. IPv4-mapped addresses, which dual-stack
/// servers send, come out as IPv4.
pub fn parse_response(packet: &[u8]) -> Result<(TxId, SocketAddr)> {
    let message = Message::parse(packet)?;
    if message.kind != RESPONSE {
        return Err(Error::Not("a STUN binding response"));
    }
    let mut plain = None;
    for attribute in message.attributes() {
        let (kind, value, _) = attribute?;
        match kind {
            XOR_MAPPED_ADDRESS | XOR_MAPPED_ADDRESS_OLD => {
                let address =
                    address(value, &mask(&message.tx)).ok_or(Error::Not("a STUN address"))?;
                return Ok((message.tx, address));
            }
            MAPPED_ADDRESS => plain = plain.or(address(value, &[0; 16])),
            _ => {}
        }
    }
    let address = plain.ok_or(Error::Not("a STUN response with an address"))?;
    Ok((message.tx, address))
}

/// A message whose header was checked. Bytes behind the declared length are ignored.
struct Message<'a> {
    kind: u16,
    tx: TxId,
    body: &'a [u8],
}

impl<'a> Message<'a> {
    fn parse(packet: &'a [u8]) -> Result<Self> {
        if !is_stun(packet) {
            return Err(Error::Not("a STUN packet"));
        }
        let len = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
        let need = HEADER_LEN + len;
        let body = packet.get(HEADER_LEN..need);
        let mut tx = [0; 12];
        tx.copy_from_slice(&packet[8..HEADER_LEN]);
        Ok(Self {
            kind: u16::from_be_bytes([packet[0], packet[1]]),
            tx,
            body: body.ok_or(Error::Short {
                what: "a STUN packet",
                need,
                have: packet.len(),
            })?,
        })
    }

    /// Kind, value and offset in the packet of each attribute.
    fn attributes(&self) -> impl Iterator<Item = Result<(u16, &'a [u8], usize)>> + use<'a> {
        let body = self.body;
        let mut at = 0;
        std::iter::from_fn(move || {
            let rest = body.get(at..).filter(|rest| !rest.is_empty())?;
            let Some(&[k0, k1, l0, l1]) = rest.first_chunk() else {
                at = body.len();
                return Some(Err(Error::Short {
                    what: "a STUN attribute",
                    need: 4,
                    have: rest.len(),
                }));
            };
            let len = usize::from(u16::from_be_bytes([l0, l1]));
            let offset = HEADER_LEN + at;
            at += 4 + len.next_multiple_of(4);
            let short = Error::Short {
                what: "a STUN attribute",
                need: 4 + len,
                have: rest.len(),
            };
            let value = rest.get(4..4 + len).ok_or(short);
            if value.is_err() {
                at = body.len();
            }
            Some(value.map(|value| (u16::from_be_bytes([k0, k1]), value, offset)))
        })
    }
}

fn header(kind: u16, attributes: usize, tx: &TxId) -> Vec<u8> {
    let mut packet = Vec::with_capacity(HEADER_LEN + attributes);
    packet.extend_from_slice(&kind.to_be_bytes());
    packet.extend_from_slice(&u16::try_from(attributes).unwrap_or(u16::MAX).to_be_bytes());
    packet.extend_from_slice(&COOKIE);
    packet.extend_from_slice(tx);
    packet
}

fn put_attribute(packet: &mut Vec<u8>, kind: u16, value: &[u8]) {
    packet.extend_from_slice(&kind.to_be_bytes());
    packet.extend_from_slice(&u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes());
    packet.extend_from_slice(value);
}

fn fingerprint(before: &[u8]) -> u32 {
    crc32fast::hash(before) ^ FINGERPRINT_XOR
}

fn mask(tx: &TxId) -> [u8; 16] {
    let mut mask = [0; 16];
    mask[..4].copy_from_slice(&COOKIE);
    mask[4..].copy_from_slice(tx);
    mask
}

fn address(value: &[u8], mask: &[u8; 16]) -> Option<SocketAddr> {
    let &[_, family, p0, p1, ref ip @ ..] = value else {
        return None;
    };
    let port = u16::from_be_bytes([p0 ^ mask[0], p1 ^ mask[1]]);
    let ip = match family {
        1 => {
            let mut bytes = *ip.first_chunk::<4>()?;
            bytes
                .iter_mut()
                .zip(mask)
                .for_each(|(byte, mask)| *byte ^= mask);
            IpAddr::from(bytes)
        }
        2 => {
            let mut bytes = *ip.first_chunk::<16>()?;
            bytes
                .iter_mut()
                .zip(mask)
                .for_each(|(byte, mask)| *byte ^= mask);
            Ipv6Addr::from(bytes).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_back_and_a_wrong_fingerprint_refused() {
        let mut packet = request([7; 12]);
        assert_eq!(parse_request(&packet), Ok([7; 12]));
        assert_eq!(parse_request(&header(REQUEST, 0, &[7; 12])), Ok([7; 12]));
        packet[39] ^= 1;
        assert!(parse_request(&packet).is_err());
        assert!(parse_response(&request([7; 12])).is_err());
    }

    #[test]
    fn a_mapped_address_comes_out_as_ipv4() {
        let mut packet = header(RESPONSE, 24, &[7; 12]);
        let mapped: Ipv6Addr = "::ffff:192.0.2.9".parse().expect("an address");
        let mut value = vec![0, 2, 0x12 ^ 0x21, 0x34 ^ 0x12];
        value.extend(
            mapped
                .octets()
                .iter()
                .zip(mask(&[7; 12]))
                .map(|(byte, mask)| byte ^ mask),
        );
        put_attribute(&mut packet, XOR_MAPPED_ADDRESS, &value);
        let source = "192.0.2.9:4660".parse().expect("an address");
        assert_eq!(parse_response(&packet), Ok(([7; 12], source)));
    }

    #[test]
    fn an_attribute_that_runs_over_the_end_is_an_error() {
        let mut packet = header(RESPONSE, 8, &[7; 12]);
        packet.extend_from_slice(&[0x80, 0x22, 0, 9, 1, 2, 3, 4]);
        assert!(matches!(parse_response(&packet), Err(Error::Short { .. })));
    }
}

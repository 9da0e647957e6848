//! What benchmarks call of the packet code that is private otherwise. No part of the API.

use std::io::IoSlice;

use super::coalesce::Merger;
use super::packet::TCP;
use super::segment::{VnetHeader, cut};

/// Cuts a TCP super-packet with `headers` bytes of headers, as the kernel hands it out, into packets
/// of `size` bytes of payload, gives each to `each`, and returns their number. The super-packet is
/// overwritten.
pub fn cut_tcp(
    packet: &mut [u8],
    headers: usize,
    size: usize,
    each: &mut dyn FnMut(&[u8]),
) -> usize {
    cut(packet, VnetHeader::train(TCP, headers, size), each)
}

/// Gives the pieces of each write that `packets` take to `write`, neighbours of one flow merged.
pub fn coalesce(packets: &[&[u8]], write: &mut dyn FnMut(&[IoSlice<'_>])) {
    let mut merger = Merger {
        tcp: true,
        udp: true,
    };
    // Only `write` fails, and this one cannot.
    let _ = merger.write_all(packets, &mut |pieces| {
        write(pieces);
        Ok(())
    });
}

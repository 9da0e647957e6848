//! Bytes that come twice. The kernel gives the program the whole of a packet of which a part came
//! before, and the program finds out what is new by a sequence number in a place that is no
//! promise. So a TCP made by hand sends such packets through the engine.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{PATIENCE, carry, pair, pattern, tun};
use crate::sockmap::driver::Driver;

/// Of a net for trials of network devices (RFC 2544), in a namespace where nothing else is.
const OURS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 252);
const PEER_PORT: u16 = 40_000;
const FIRST: u32 = 0xffff_ff80;

const IP_HEADER: usize = 20;
const TCP_HEADER: usize = 20;
const PROTO_TCP: u8 = 6;
const SYN: u8 = 2;
const ACK: u8 = 16;
const PUSH: u8 = 8;

/// What is sent, by the places of its bytes, and how much of the stream has come then: in order,
/// partly old, with a gap, and filling the gap with what was before and what is after it.
const SEGMENTS: [(std::ops::Range<usize>, usize); 6] = [
    (0..100, 100),
    (50..150, 150),
    (170..190, 150),
    (140..180, 190),
    (20..190, 190),
    (190..250, 250),
];

/// Sends them. Every byte has to arrive once.
pub(super) fn run(driver: &Driver) -> Result<(), String> {
    let failed = |error: io::Error| format!("the trial with bytes that come twice fails ({error})");
    let (b, mut far) = pair().map_err(failed)?;
    let device = tun::open(OURS, MASK).map_err(|error| {
        format!("its trial needs a TUN device in a network namespace of its own ({error})")
    })?;
    let listener = TcpListener::bind((OURS, 0)).map_err(failed)?;
    let mut peer = Peer {
        device,
        port: listener.local_addr().map_err(failed)?.port(),
        theirs: 0,
    };
    peer.connect().map_err(failed)?;
    let (a, _) = listener.accept().map_err(failed)?;
    let (order, _outcome) = carry(driver, a, b)?;
    let got = peer.send_all(&mut far).map_err(|error| {
        format!("bytes that came twice hold up what comes after them ({error})")
    })?;
    drop(order);
    let is_right = got
        .iter()
        .enumerate()
        .all(|(place, byte)| *byte == pattern(place));
    if is_right {
        Ok(())
    } else {
        Err("this kernel sends on twice what came twice".to_owned())
    }
}

/// The TCP made by hand.
struct Peer {
    device: File,
    /// Where it is connected to.
    port: u16,
    /// What the kernel sends next.
    theirs: u32,
}

impl Peer {
    fn connect(&mut self) -> io::Result<()> {
        self.send(FIRST, SYN, &[])?;
        let (sequence, _) = self.answer(|flags, _| flags & (SYN | ACK) == SYN | ACK)?;
        self.theirs = sequence.wrapping_add(1);
        self.send(FIRST.wrapping_add(1), ACK, &[])
    }

    /// Sends all segments, each when what came before has arrived at the far end.
    fn send_all(&mut self, far: &mut TcpStream) -> io::Result<Vec<u8>> {
        let start = FIRST.wrapping_add(1);
        let mut got = Vec::new();
        for (places, then) in SEGMENTS {
            let bytes: Vec<u8> = places.clone().map(pattern).collect();
            self.send(start.wrapping_add(places.start as u32), ACK | PUSH, &bytes)?;
            // Even what waits behind a gap is answered, by a confirmation of what was before it.
            let expected = start.wrapping_add(then as u32);
            self.answer(|_, acked| acked == expected)?;
            let before = got.len();
            got.resize(then, 0);
            far.read_exact(&mut got[before..])?;
        }
        Ok(got)
    }

    /// Waits for a packet of the connection; gives its sequence number and what it confirms.
    fn answer(&mut self, is_it: impl Fn(u8, u32) -> bool) -> io::Result<(u32, u32)> {
        let deadline = Instant::now() + PATIENCE;
        let mut packet = [0; 2048];
        loop {
            match self.device.read(&mut packet) {
                Ok(length) => {
                    let Some(tcp) = packet[..length].get(IP_HEADER..IP_HEADER + TCP_HEADER) else {
                        continue;
                    };
                    let word = |at: usize| {
                        u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]])
                    };
                    let is_ours = packet[0] == 0x45
                        && packet[9] == PROTO_TCP
                        && word(0) == u32::from(self.port) << 16 | u32::from(PEER_PORT);
                    if is_ours && is_it(tcp[13], word(8)) {
                        return Ok((word(4), word(8)));
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    wait(&self.device, deadline)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn send(&mut self, sequence: u32, flags: u8, bytes: &[u8]) -> io::Result<()> {
        let acked = if flags & ACK == 0 { 0 } else { self.theirs };
        let mut tcp = Vec::with_capacity(TCP_HEADER + bytes.len());
        tcp.extend(PEER_PORT.to_be_bytes());
        tcp.extend(self.port.to_be_bytes());
        tcp.extend(sequence.to_be_bytes());
        tcp.extend(acked.to_be_bytes());
        tcp.extend([(TCP_HEADER as u8 / 4) << 4, flags]);
        tcp.extend(u16::MAX.to_be_bytes());
        tcp.extend([0; 4]);
        tcp.extend(bytes);
        let length = tcp.len() as u16;
        let mut pseudo = Vec::from(PEER.octets());
        pseudo.extend(OURS.octets());
        pseudo.extend([0, PROTO_TCP]);
        pseudo.extend(length.to_be_bytes());
        pseudo.extend(&tcp);
        tcp[16..18].copy_from_slice(&checksum(&pseudo).to_be_bytes());

        let mut packet = vec![0x45, 0];
        packet.extend((IP_HEADER as u16 + length).to_be_bytes());
        packet.extend([0, 0, 0, 0, 64, PROTO_TCP, 0, 0]);
        packet.extend(PEER.octets());
        packet.extend(OURS.octets());
        let sum = checksum(&packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(tcp);
        self.device.write_all(&packet)
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| {
        let low = word.get(1).copied().unwrap_or_default();
        u32::from(u16::from_be_bytes([word[0], low]))
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Waits until the device can be read.
fn wait(device: &File, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left < Duration::from_millis(1) {
        return Err(ErrorKind::TimedOut.into());
    }
    let left = Timespec::try_from(left).map_err(io::Error::other)?;
    poll(&mut [PollFd::new(device, PollFlags::IN)], Some(&left))?;
    Ok(())
}

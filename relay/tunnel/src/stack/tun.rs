//! The packet side of the stack: reads from and writes to the TUN device in batches.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::coalesce::Merger;
use super::kernel::{Shared, lock};
use super::packet::{self, IPV6_HEADER, MIN_MTU};
use super::segment::{VNET_HEADER, VnetHeader, cut};
use super::{Injection, Offloads};

/// The largest packet of the device, and its note.
const BUFFER: usize = VNET_HEADER + 65_535 + IPV6_HEADER;

/// The TUN device. It belongs to the one loop that moves packets.
#[derive(Debug)]
pub struct Tun {
    device: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
    shared: Arc<Shared>,
    merger: Merger,
}

impl Tun {
    pub(super) fn new(device: OwnedFd, shared: Arc<Shared>, merger: Merger) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` stays open and the same until it is dropped, which the `AsyncFd`
        // that owns it does last.
        let device = unsafe { AsyncFd::register_with_interest(device, Interest::READABLE) }?;
        Ok(Self {
            device,
            buffer: vec![0; BUFFER],
            shared,
            merger,
        })
    }

    /// The offloads that the kernel granted, those of the UDP socket as they were asked for.
    pub fn offloads(&self, wanted: Offloads) -> Offloads {
        Offloads {
            tun_tcp: self.merger.tcp,
            tun_udp: self.merger.udp,
            ..wanted
        }
    }

    /// Waits until a packet can be read.
    pub async fn readable(&self) -> io::Result<()> {
        // Whether it stays readable is for `try_read` to find out.
        self.device.readable().await?.retain_ready();
        Ok(())
    }

    /// One read of the device: gives one packet, or each packet a super-packet is cut into, to
    /// `each` and returns their number. `WouldBlock` when there is nothing left.
    pub fn try_read(&mut self, each: &mut dyn FnMut(&[u8])) -> io::Result<usize> {
        let buffer = &mut self.buffer;
        let length = self.device.try_io(Interest::READABLE, |device| {
            Ok(rustix::io::retry_on_intr(|| {
                rustix::io::read(device, &mut buffer[..])
            })?)
        })?;
        let Some((note, packet)) = self.buffer[..length].split_first_chunk_mut() else {
            return Ok(0);
        };
        let note = VnetHeader::from_bytes(*note);
        if packet.len() < IPV6_HEADER || packet[0] >> 4 != 6 {
            return Ok(0);
        }
        let largest = note.largest(packet.len());
        if largest > MIN_MTU {
            let mtu = self.shared.ways.get(packet::address(packet, 24));
            if largest > usize::from(mtu) {
                let answer = packet::too_big_for(packet, mtu);
                self.shared.inject(Injection::ToTun(answer));
                return Ok(0);
            }
        }
        if let Some(rewriter) = &self.shared.rewriter {
            lock(rewriter).outward(packet, note.is_finished());
        }
        Ok(cut(packet, note, each))
    }

    /// Gives packets to the kernel, neighbours of one flow as one super-packet. Packets the kernel
    /// does not take are lost, as on any network.
    pub fn write_batch(&mut self, packets: &[&[u8]]) -> io::Result<()> {
        let Some(rewriter) = &self.shared.rewriter else {
            return self.write_merged(packets);
        };
        let mut rewritten: Vec<Vec<u8>> = packets.iter().map(|packet| packet.to_vec()).collect();
        let mut rewriter = lock(rewriter);
        for packet in &mut rewritten {
            rewriter.inward(packet);
        }
        drop(rewriter);
        let packets: Vec<&[u8]> = rewritten.iter().map(Vec::as_slice).collect();
        self.write_merged(&packets)
    }

    fn write_merged(&mut self, packets: &[&[u8]]) -> io::Result<()> {
        let device = self.device.get_ref();
        let mut write = |pieces: &[IoSlice<'_>]| {
            rustix::io::retry_on_intr(|| rustix::io::writev(device, pieces)).map(drop)
        };
        Ok(self.merger.write_all(packets, &mut write)?)
    }
}

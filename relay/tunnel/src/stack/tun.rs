//! The packet side of the stack: reads from and writes to the TUN device in batches.

use std::io;

/// The TUN device. It belongs to the one loop that moves packets.
#[derive(Debug)]
pub struct Tun {}

impl Tun {
    /// Waits until a packet can be read.
    pub async fn readable(&self) -> io::Result<()> {
        std::future::pending().await
    }

    /// One read of the device: gives one packet, or each packet a super-packet is cut into, to
    /// `each` and returns their number. `WouldBlock` when there is nothing left.
    pub fn try_read(&mut self, _each: &mut dyn FnMut(&[u8])) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Gives packets to the kernel, neighbours of one flow as one super-packet.
    pub fn write_batch(&mut self, _packets: &[&[u8]]) -> io::Result<()> {
        Ok(())
    }
}

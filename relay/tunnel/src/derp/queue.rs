//! Packets on their way to a relay: bounded, the newest win.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use relay_wire::derp;
use relay_wire::keys::NodePublic;
use tokio::sync::Notify;

/// Most bytes that wait. As much as a few bursts of the fastest stream.
const BYTES: usize = 1 << 20;
/// Packets that waited longer have been sent again by whoever wanted them to arrive.
const STALE: Duration = Duration::from_secs(5);
/// Frames are put together in pieces of this size.
const PIECE: usize = 64 << 10;

#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    more: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    pieces: VecDeque<(Instant, Bytes)>,
    /// The newest frames, still growing, and when the first of them came.
    open: BytesMut,
    opened: Option<Instant>,
    bytes: usize,
}

impl Queue {
    pub(super) fn push(&self, node: &NodePublic, packet: &[u8]) {
        let mut waiting = self.lock();
        let before = waiting.open.len();
        derp::put_send_packet(&mut waiting.open, node, packet);
        waiting.bytes += waiting.open.len() - before;
        waiting.opened.get_or_insert_with(Instant::now);
        if waiting.open.len() >= PIECE {
            waiting.seal();
        }
        while waiting.bytes > BYTES
            && let Some((_, oldest)) = waiting.pieces.pop_front()
        {
            waiting.bytes -= oldest.len();
        }
        drop(waiting);
        self.more.notify_one();
    }

    /// Waits for frames and takes those that were put together.
    pub(super) async fn pop(&self) -> Bytes {
        loop {
            let more = self.more.notified();
            if let Some(piece) = self.try_pop() {
                return piece;
            }
            more.await;
        }
    }

    fn try_pop(&self) -> Option<Bytes> {
        let mut waiting = self.lock();
        loop {
            if waiting.pieces.is_empty() {
                waiting.seal();
            }
            let (since, piece) = waiting.pieces.pop_front()?;
            waiting.bytes -= piece.len();
            if since.elapsed() < STALE {
                return Some(piece);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing in here can panic halfway through a change.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn seal(&mut self) {
        if let Some(since) = self.opened.take() {
            let piece = self.open.split().freeze();
            self.pieces.push_back((since, piece));
        }
    }
}

#[cfg(test)]
mod tests {
    use relay_wire::derp::{Decoder, Frame};
    use relay_wire::keys::NodePrivate;

    use super::*;

    #[tokio::test]
    async fn frames_come_out_in_order_and_together() {
        let queue = Queue::default();
        let node = NodePrivate::from_bytes([1; 32]).public();
        for byte in 0..3 {
            queue.push(&node, &[byte; 10]);
        }
        let mut decoder = Decoder::new();
        decoder.push(&queue.pop().await);
        for byte in 0..3 {
            match decoder.next().unwrap().unwrap() {
                Frame::SendPacket { packet, .. } => assert_eq!(packet[..], [byte; 10]),
                frame => panic!("{frame:?}"),
            }
        }
        assert!(queue.try_pop().is_none());
    }

    #[tokio::test]
    async fn the_newest_win_when_too_many_wait() {
        let queue = Queue::default();
        let node = NodePrivate::from_bytes([1; 32]).public();
        for number in 0..4000_u32 {
            let mut packet = [0; 1000];
            packet[..4].copy_from_slice(&number.to_be_bytes());
            queue.push(&node, &packet);
        }
        let mut decoder = Decoder::new();
        while let Some(piece) = queue.try_pop() {
            decoder.push(&piece);
        }
        let mut numbers = Vec::new();
        while let Some(Frame::SendPacket { packet, .. }) = decoder.next().unwrap() {
            numbers.push(u32::from_be_bytes(packet[..4].try_into().unwrap()));
        }
        assert_eq!(numbers.last(), Some(&3999));
        assert!(
            numbers.len() > 900 && numbers.len() < 1100,
            "{}",
            numbers.len()
        );
        assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]));
    }
}

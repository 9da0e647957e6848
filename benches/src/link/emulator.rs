//! The thread between two devices: what enters one leaves the other later, or never.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::Link;

/// A running emulator; stopped when dropped.
#[derive(Debug)]
pub(super) struct Emulator {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Emulator {
    pub(super) fn start(link: Link, near: File, far: File) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let ended = stop.clone();
        let thread = thread::Builder::new().name("link".into()).spawn(move || {
            let mut ways = [Way::new(link, 0x9e37_79b9), Way::new(link, 0x7f4a_7c15)];
            while !ended.load(Ordering::Relaxed) {
                if turn(&mut ways, [&near, &far]).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn turn(ways: &mut [Way; 2], devices: [&File; 2]) -> io::Result<()> {
    let now = Instant::now();
    let due = ways.iter().filter_map(Way::next_due).min();
    let wait = due.map_or(Duration::from_millis(100), |due| {
        due.saturating_duration_since(now)
    });
    let mut watched = devices.map(|device| PollFd::new(device.as_fd(), PollFlags::POLLIN));
    ppoll(&mut watched, Some(TimeSpec::from_duration(wait)), None)?;
    let ready = watched.map(|fd| fd.any().unwrap_or(false));
    for (from, way) in ways.iter_mut().enumerate() {
        let (mut source, mut target) = (devices[from], devices[1 - from]);
        if ready[from] {
            way.take(&mut source)?;
        }
        way.give(&mut target, Instant::now());
    }
    Ok(())
}

/// One direction.
struct Way {
    link: Link,
    queue: VecDeque<(Instant, Vec<u8>)>,
    spare: Vec<Vec<u8>>,
    /// When the last packet taken has left the bottleneck.
    free_at: Instant,
    random: u64,
}

/// Longest queue at the bottleneck; what would wait longer is dropped.
const LONGEST_WAIT: Duration = Duration::from_millis(60);
const LARGEST_PACKET: usize = 2048;

impl Way {
    fn new(link: Link, seed: u64) -> Self {
        let free_at = Instant::now();
        Self {
            link,
            queue: VecDeque::new(),
            spare: Vec::new(),
            free_at,
            random: seed,
        }
    }

    fn next_due(&self) -> Option<Instant> {
        self.queue.front().map(|(due, _)| *due)
    }

    fn take(&mut self, source: &mut impl Read) -> io::Result<()> {
        loop {
            let mut packet = self.spare.pop().unwrap_or_else(|| vec![0; LARGEST_PACKET]);
            packet.resize(LARGEST_PACKET, 0);
            match source.read(&mut packet) {
                Ok(length) => {
                    packet.truncate(length);
                    self.enqueue(packet, Instant::now());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.spare.push(packet);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn enqueue(&mut self, packet: Vec<u8>, now: Instant) {
        let start = self.free_at.max(now);
        if self.lost() || start - now > LONGEST_WAIT {
            self.spare.push(packet);
            return;
        }
        let sending = self.link.rate.map_or(Duration::ZERO, |rate| {
            Duration::from_secs_f64(packet.len() as f64 * 8.0 / rate as f64)
        });
        self.free_at = start + sending;
        self.queue
            .push_back((self.free_at + self.link.rtt / 2, packet));
    }

    /// xorshift64*: good enough to drop packets by, and the same in every run.
    fn lost(&mut self) -> bool {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let draw = self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11;
        (draw as f64 / (1_u64 << 53) as f64) < self.link.loss
    }

    fn give(&mut self, target: &mut impl Write, now: Instant) {
        while let Some((due, _)) = self.queue.front() {
            if *due > now {
                return;
            }
            if let Some((_, packet)) = self.queue.pop_front() {
                // A full device queue loses the packet, as a full router would.
                let _ = target.write(&packet);
                self.spare.push(packet);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(loss: f64, rate: Option<u64>) -> Way {
        Way::new(
            Link {
                rtt: Duration::from_millis(40),
                loss,
                rate,
            },
            7,
        )
    }

    #[test]
    fn a_packet_leaves_after_half_the_round_trip() {
        let mut way = way(0.0, None);
        let (now, mut out) = (Instant::now(), Vec::new());
        way.enqueue(vec![1; 100], now);
        way.give(&mut out, now + Duration::from_millis(19));
        assert!(out.is_empty());
        way.give(&mut out, now + Duration::from_millis(21));
        assert_eq!(out, vec![1; 100]);
    }

    #[test]
    fn the_rate_spaces_packets_and_a_full_queue_drops() {
        let mut way = way(0.0, Some(8_000_000));
        let now = Instant::now();
        for _ in 0..100 {
            way.enqueue(vec![0; 1000], now);
        }
        // 1 ms a packet: those that would wait more than 60 ms are gone.
        assert!((60..=62).contains(&way.queue.len()), "{}", way.queue.len());
        let gap = way.queue[1].0 - way.queue[0].0;
        assert!(gap.abs_diff(Duration::from_millis(1)) < Duration::from_micros(5));
    }

    #[test]
    fn about_the_asked_share_is_lost() {
        let mut way = way(0.01, None);
        let lost = (0..100_000).filter(|_| way.lost()).count();
        assert!((800..1200).contains(&lost), "{lost}");
    }
}

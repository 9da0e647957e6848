//! One direction of a path: rate, queue, delay, faults.

use std::time::Duration;

use relay_tcp::Instant;

/// A small generator of numbers that look random (SplitMix64).
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    /// True in `share` of the cases.
    pub fn chance(&mut self, share: f64) -> bool {
        share > 0.0 && ((self.next() >> 11) as f64) < share * (1_u64 << 53) as f64
    }
}

#[derive(Debug, Clone)]
pub struct PathOptions {
    /// Bytes per second; zero: no limit.
    pub rate: u64,
    /// Bytes the queue in front of the rate holds.
    pub queue: u64,
    pub delay: Duration,
    /// A random addition to each packet's delay, which reorders.
    pub jitter: Duration,
    pub loss: f64,
    pub duplicate: f64,
    pub corrupt: f64,
    /// Share of packets that take a detour, and how long it is.
    pub reorder: f64,
    pub detour: Duration,
    /// Packets larger than this vanish.
    pub mtu: usize,
    /// Packets that find this many bytes queued are marked instead, if they can be.
    pub mark_above: Option<u64>,
}

impl Default for PathOptions {
    fn default() -> Self {
        Self {
            rate: 0,
            queue: 256 << 10,
            delay: Duration::from_millis(10),
            jitter: Duration::ZERO,
            loss: 0.0,
            duplicate: 0.0,
            corrupt: 0.0,
            reorder: 0.0,
            detour: Duration::from_millis(3),
            mtu: usize::MAX,
            mark_above: None,
        }
    }
}

/// Megabits per second as bytes per second.
pub const fn mbit(megabits: u64) -> u64 {
    megabits * 125_000
}

pub struct Path {
    pub options: PathOptions,
    random: Random,
    busy_until: Instant,
    pub sent: u64,
    pub sent_bytes: u64,
    pub lost: u64,
    pub overflowed: u64,
    pub marked: u64,
    /// The largest number of bytes that were queued.
    pub deepest: u64,
    /// Packets that vanish whatever else is said, counted from one.
    pub drop: Vec<u64>,
}

impl Path {
    pub fn new(options: PathOptions, seed: u64) -> Self {
        Self {
            options,
            random: Random(seed),
            busy_until: Instant::ZERO,
            sent: 0,
            sent_bytes: 0,
            lost: 0,
            overflowed: 0,
            marked: 0,
            deepest: 0,
            drop: Vec::new(),
        }
    }

    pub fn send(
        &mut self,
        now: Instant,
        mut packet: Vec<u8>,
        arrive: &mut dyn FnMut(Instant, Vec<u8>),
    ) {
        let options = &self.options;
        self.sent += 1;
        self.sent_bytes += packet.len() as u64;
        if packet.len() > options.mtu
            || self.drop.contains(&self.sent)
            || self.random.chance(options.loss)
        {
            self.lost += 1;
            return;
        }
        let mut at = now;
        if options.rate > 0 {
            let start = self.busy_until.max(now);
            let waiting =
                (start.since(now).as_nanos() * u128::from(options.rate) / 1_000_000_000) as u64;
            if waiting + packet.len() as u64 > options.queue {
                self.overflowed += 1;
                return;
            }
            self.deepest = self.deepest.max(waiting);
            if options.mark_above.is_some_and(|limit| waiting > limit) && packet[1] >> 4 & 3 != 0 {
                packet[1] |= 0x30;
                self.marked += 1;
            }
            let nanos = packet.len() as u128 * 1_000_000_000 / u128::from(options.rate);
            at = start + Duration::from_nanos(nanos as u64);
            self.busy_until = at;
        }
        at += options.delay;
        if !options.jitter.is_zero() {
            at += Duration::from_nanos(self.random.below(options.jitter.as_nanos() as u64));
        }
        if self.random.chance(options.reorder) {
            at += options.detour;
        }
        if self.random.chance(options.duplicate) {
            arrive(
                at + Duration::from_micros(self.random.below(2000)),
                packet.clone(),
            );
        }
        if self.random.chance(options.corrupt) {
            let place = self.random.below(packet.len() as u64) as usize;
            packet[place] ^= 1 << self.random.below(8);
        }
        arrive(at, packet);
    }
}

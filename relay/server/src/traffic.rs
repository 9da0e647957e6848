//! How many bytes each port of each agent moved lately through this server's proxy, and all of an
//! agent's tunnels as it tells.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use relay_engine::Moved;
use uuid::Uuid;

use crate::state::Shared;

/// Slots of a meter's memory.
pub(crate) const SLOTS: usize = 60;
/// What one slot counts.
pub(crate) const SLOT: Duration = Duration::from_secs(2);
/// With more meters than this, those without recent traffic are forgotten.
const MANY: usize = 1024;
/// Bits of a slot that count bytes; those above say which slot of time it is.
const COUNT: u32 = 40;

/// What one slot of a whole agent's tunnels counts: agents tell as often.
pub(crate) const REPORT: Duration = Duration::from_secs(30);
/// How often connections are looked at that count by themselves.
const SAMPLE: Duration = Duration::from_secs(1);

/// The meters of all ports, and of agents' tunnels.
#[derive(Default)]
pub(crate) struct Traffic {
    meters: Mutex<HashMap<(Uuid, u16), Arc<Meter>>>,
    tunnels: Mutex<HashMap<Uuid, Tunnels>>,
}

/// Counts the bytes of one port, in both directions together. Nothing runs while nothing moves.
#[derive(Debug)]
pub(crate) struct Meter {
    start: Instant,
    slot: Duration,
    slots: [AtomicU64; SLOTS],
    streams: Mutex<Vec<Weak<Stream>>>,
}

/// A connection that counts by itself; the meter has all of it by the time it is dropped.
#[derive(Debug)]
pub(crate) struct Stream {
    meter: Arc<Meter>,
    pub(crate) moved: Moved,
    metered: AtomicU64,
}

/// What an agent told of all its tunnels.
struct Tunnels {
    meter: Meter,
    connections: u64,
    told: Instant,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Traffic {
    /// The meter of a port; whoever moves bytes holds it and adds them.
    pub(crate) fn meter(&self, agent: Uuid, port: u16) -> Arc<Meter> {
        let mut meters = lock(&self.meters);
        if let Some(meter) = meters.get(&(agent, port)) {
            return Arc::clone(meter);
        }
        if meters.len() >= MANY {
            meters.retain(|_, meter| Arc::strong_count(meter) > 1 || meter.is_active());
        }
        let meter = Arc::new(Meter::new(SLOT));
        meters.insert((agent, port), Arc::clone(&meter));
        meter
    }

    /// Bytes per slot of a port, oldest first; `None` when nothing moved lately.
    pub(crate) fn history(&self, agent: Uuid, port: u16) -> Option<[u64; SLOTS]> {
        lock(&self.meters).get(&(agent, port))?.history()
    }

    /// An agent tells what all its tunnels moved since it told last, and how many connections did.
    pub(crate) fn report(&self, agent: Uuid, bytes: u64, connections: u64) {
        let mut all = lock(&self.tunnels);
        if all.len() >= MANY && !all.contains_key(&agent) {
            all.retain(|_, tunnels| tunnels.meter.is_active());
        }
        let tunnels = all.entry(agent).or_insert_with(|| Tunnels {
            meter: Meter::new(REPORT),
            connections,
            told: Instant::now(),
        });
        // What is told now was moved before.
        let before = tunnels.meter.now().saturating_sub(1);
        tunnels.meter.add_at(before, bytes);
        (tunnels.connections, tunnels.told) = (connections, Instant::now());
    }

    /// Bytes per slot of an agent's tunnels, and how many connections moved some of late; `None`
    /// when nothing moved lately.
    pub(crate) fn tunnels(&self, agent: Uuid) -> Option<([u64; SLOTS], u64)> {
        let all = lock(&self.tunnels);
        let tunnels = all.get(&agent)?;
        let fresh = tunnels.told.elapsed() < REPORT * 3;
        let connections = if fresh { tunnels.connections } else { 0 };
        Some((tunnels.meter.history()?, connections))
    }

    fn sample(&self) {
        for meter in lock(&self.meters).values() {
            lock(&meter.streams).retain(|stream| {
                let stream = stream.upgrade();
                stream.inspect(|stream| stream.sample()).is_some()
            });
        }
    }
}

/// Looks at connections that count by themselves, until the server stops.
pub(crate) async fn sample(state: Shared) {
    loop {
        tokio::time::sleep(SAMPLE).await;
        state.traffic.sample();
    }
}

impl Stream {
    /// Takes over what was moved since the last look.
    fn sample(&self) {
        let now = self.moved.a_to_b() + self.moved.b_to_a();
        let before = self.metered.swap(now, Ordering::Relaxed);
        if now > before {
            self.meter.add(now - before);
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.sample();
    }
}

impl Meter {
    fn new(slot: Duration) -> Self {
        Self {
            start: Instant::now(),
            slot,
            slots: [const { AtomicU64::new(0) }; SLOTS],
            streams: Mutex::default(),
        }
    }

    /// Counts bytes that were moved just now.
    pub(crate) fn add(&self, bytes: u64) {
        self.add_at(self.now(), bytes);
    }

    /// A connection that counts by itself; it is looked at while it lasts.
    pub(crate) fn stream(self: &Arc<Self>) -> Arc<Stream> {
        let stream = Arc::new(Stream {
            meter: Arc::clone(self),
            moved: Moved::default(),
            metered: AtomicU64::new(0),
        });
        lock(&self.streams).push(Arc::downgrade(&stream));
        stream
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_secs() / self.slot.as_secs() + 1
    }

    fn history(&self) -> Option<[u64; SLOTS]> {
        let history = self.history_at(self.now());
        history.iter().any(|bytes| *bytes > 0).then_some(history)
    }

    fn slot(&self, time: u64) -> &AtomicU64 {
        &self.slots[(time % SLOTS as u64) as usize]
    }

    fn add_at(&self, time: u64, bytes: u64) {
        let mark = mark(time);
        let next = |found: u64| {
            let before = if found >> COUNT == mark {
                found & mask()
            } else {
                0
            };
            Some((mark << COUNT) | (before + bytes).min(mask()))
        };
        // The closure always gives a value, so this does not fail.
        let _ = self
            .slot(time)
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }

    /// The newest slot is still being filled, so it is left out.
    fn history_at(&self, time: u64) -> [u64; SLOTS] {
        std::array::from_fn(|index| {
            let age = (SLOTS - index) as u64;
            let Some(then) = time.checked_sub(age) else {
                return 0;
            };
            // The oldest slot shares its place with the newest one.
            let found = self.slot(then).load(Ordering::Relaxed);
            if found >> COUNT == mark(then) {
                found & mask()
            } else {
                0
            }
        })
    }

    fn is_active(&self) -> bool {
        self.history_at(self.now()).iter().any(|bytes| *bytes > 0)
    }
}

fn mark(time: u64) -> u64 {
    time & (u64::MAX >> COUNT)
}

fn mask() -> u64 {
    (1 << COUNT) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_found_in_their_slot_until_they_are_old() {
        let traffic = Traffic::default();
        let meter = traffic.meter(Uuid::nil(), 8080);
        meter.add_at(100, 5);
        meter.add_at(100, 6);
        meter.add_at(101, 7);
        let history = meter.history_at(102);
        assert_eq!(history[SLOTS - 2..], [11, 7]);
        assert_eq!(history.iter().sum::<u64>(), 18);
        assert_eq!(meter.history_at(101)[SLOTS - 1], 11);
        assert_eq!(meter.history_at(159)[0..4], [0, 11, 7, 0]);
        assert_eq!(meter.history_at(162).iter().sum::<u64>(), 0);
    }

    #[test]
    fn a_slot_used_again_starts_at_zero() {
        let meter = Traffic::default().meter(Uuid::nil(), 1);
        meter.add_at(7, 100);
        meter.add_at(7 + SLOTS as u64, 1);
        assert_eq!(meter.history_at(8 + SLOTS as u64)[SLOTS - 1], 1);
    }

    #[test]
    fn what_an_agent_tells_is_seen_until_it_is_old() {
        let (traffic, agent) = (Traffic::default(), Uuid::new_v4());
        assert!(traffic.tunnels(agent).is_none());
        traffic.report(agent, 0, 2);
        assert!(traffic.tunnels(agent).is_none(), "nothing moved");
        traffic.report(agent, 70, 3);
        let all = lock(&traffic.tunnels);
        let tunnels = &all[&agent];
        assert_eq!(tunnels.meter.history_at(1)[SLOTS - 1], 70);
        assert_eq!(tunnels.connections, 3);
    }

    #[test]
    fn ports_are_counted_apart() {
        let traffic = Traffic::default();
        let agent = Uuid::new_v4();
        traffic.meter(agent, 1).add_at(1, 9);
        assert!(Arc::ptr_eq(
            &traffic.meter(agent, 1),
            &traffic.meter(agent, 1)
        ));
        assert_eq!(traffic.history(agent, 2), None);
        assert_eq!(traffic.history(Uuid::new_v4(), 1), None);
    }
}

//! How many bytes each port of each agent moved lately through this server's proxy.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

/// Slots of a meter's memory.
pub(crate) const SLOTS: usize = 60;
/// What one slot counts.
pub(crate) const SLOT: Duration = Duration::from_secs(2);
/// With more meters than this, those without recent traffic are forgotten.
const MANY: usize = 1024;
/// Bits of a slot that count bytes; those above say which slot of time it is.
const COUNT: u32 = 40;

/// The meters of all ports.
pub(crate) struct Traffic {
    start: Instant,
    meters: Mutex<HashMap<(Uuid, u16), Arc<Meter>>>,
}

/// Counts the bytes of one port, in both directions together. Nothing runs while nothing moves.
#[derive(Debug)]
pub(crate) struct Meter {
    start: Instant,
    slots: [AtomicU64; SLOTS],
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            meters: Mutex::default(),
        }
    }
}

impl Traffic {
    fn lock(&self) -> MutexGuard<'_, HashMap<(Uuid, u16), Arc<Meter>>> {
        self.meters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The meter of a port; whoever moves bytes holds it and adds them.
    pub(crate) fn meter(&self, agent: Uuid, port: u16) -> Arc<Meter> {
        let mut meters = self.lock();
        if let Some(meter) = meters.get(&(agent, port)) {
            return Arc::clone(meter);
        }
        if meters.len() >= MANY {
            meters.retain(|_, meter| Arc::strong_count(meter) > 1 || meter.is_active());
        }
        let meter = Arc::new(Meter {
            start: self.start,
            slots: [const { AtomicU64::new(0) }; SLOTS],
        });
        meters.insert((agent, port), Arc::clone(&meter));
        meter
    }

    /// Bytes per slot of a port, oldest first; `None` when nothing moved lately.
    pub(crate) fn history(&self, agent: Uuid, port: u16) -> Option<[u64; SLOTS]> {
        let meter = self.lock().get(&(agent, port)).cloned()?;
        let history = meter.history_at(meter.now());
        history.iter().any(|bytes| *bytes > 0).then_some(history)
    }
}

impl Meter {
    /// Counts bytes that were moved just now.
    pub(crate) fn add(&self, bytes: usize) {
        self.add_at(self.now(), bytes as u64);
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_secs() / SLOT.as_secs() + 1
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

//! Which peers take data in the first packet of a stream, and whether the way to them is so long
//! that it pays to wait for that data.

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// On a shorter way nobody notices a round trip, and everybody would notice a wait.
pub(super) const LONG: Duration = Duration::from_millis(4);
/// On a short way early data is only sent to a peer that took a stream so lately: a stream without
/// it can be dialled again when the peer is lost, one with it cannot.
const LATELY: Duration = Duration::from_secs(1);
/// The part of the round trip that may be spent to save it.
const SHARE: u32 = 16;
const LONGEST_WAIT: Duration = Duration::from_millis(5);

/// How a stream's first bytes may travel with its first packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EarlyData {
    /// How long it pays to wait for them; zero on a short way: send what is there already.
    pub wait: Duration,
    /// How many fit.
    pub room: usize,
}

/// The peers that take early data, by address, and the round trip to each where it is known.
#[derive(Debug, Clone, Default)]
pub(super) struct Early(Arc<Mutex<HashMap<Ipv6Addr, Known>>>);

#[derive(Debug, Clone, Copy, Default)]
struct Known {
    rtt: Option<Duration>,
    /// When a stream was taken last.
    taken: Option<Instant>,
}

impl Early {
    /// A peer came or changed.
    pub(super) fn set(&self, addresses: &[Ipv6Addr], takes: bool) {
        let mut peers = self.lock();
        for address in addresses {
            if takes {
                peers.entry(*address).or_default();
            } else {
                peers.remove(address);
            }
        }
    }

    /// The peer is reached another way, and so long is it.
    pub(super) fn moved(&self, addresses: &[Ipv6Addr], rtt: Option<Duration>) {
        let mut peers = self.lock();
        for address in addresses {
            if let Some(known) = peers.get_mut(address) {
                known.rtt = rtt;
            }
        }
    }

    /// Something took so long to be answered. The round trip is not longer than that.
    pub(super) fn answered(&self, address: Ipv6Addr, after: Duration) {
        if let Some(known) = self.lock().get_mut(&address) {
            known.rtt = Some(known.rtt.map_or(after, |rtt| rtt.min(after)));
        }
    }

    /// The peer took a stream.
    pub(super) fn took(&self, address: Ipv6Addr, now: Instant) {
        if let Some(known) = self.lock().get_mut(&address) {
            known.taken = Some(now);
        }
    }

    /// Whether this peer takes early data.
    pub(super) fn takes(&self, address: Ipv6Addr) -> bool {
        self.lock().contains_key(&address)
    }

    /// How long to wait for early data to this peer; nothing when none should be sent.
    pub(super) fn wait(&self, address: Ipv6Addr, now: Instant) -> Option<Duration> {
        let known = *self.lock().get(&address)?;
        let rtt = known.rtt?;
        if rtt >= LONG {
            return Some((rtt / SHARE).min(LONGEST_WAIT));
        }
        let lately = known.taken.is_some_and(|at| now < at + LATELY);
        lately.then_some(Duration::ZERO)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Ipv6Addr, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_long_way_to_a_peer_that_takes_it_is_waited_for() {
        let (early, peer, now) = (Early::default(), Ipv6Addr::LOCALHOST, Instant::now());
        let ms = Duration::from_millis;
        early.answered(peer, ms(80));
        assert_eq!((early.takes(peer), early.wait(peer, now)), (false, None));
        early.set(&[peer], true);
        assert_eq!((early.takes(peer), early.wait(peer, now)), (true, None));
        early.moved(&[peer], Some(ms(32)));
        assert_eq!(early.wait(peer, now), Some(ms(2)));
        early.set(&[peer], true);
        assert_eq!(early.wait(peer, now), Some(ms(2)), "still the same peer");
        early.moved(&[peer], Some(ms(400)));
        assert_eq!(early.wait(peer, now), Some(LONGEST_WAIT));
        early.answered(peer, ms(3));
        assert_eq!(early.wait(peer, now), None);
        early.took(peer, now);
        assert_eq!(early.wait(peer, now), Some(Duration::ZERO));
        assert_eq!(early.wait(peer, now + LATELY), None);
        early.set(&[peer], false);
        assert!(!early.takes(peer));
    }
}

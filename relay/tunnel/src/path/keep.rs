//! Keeps the address in use: asks it when it is silent, leaves it when it is lost, moves to better ones, and proves
//! which sizes pass.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::BASE_MTU;
use super::candidate::Candidate;
use super::core::{Core, InFlight, Purpose};
use super::mtu::ladder;
use super::peer::{ASK_AFTER, Best, COMPARE, HEARTBEAT, Peer, TRUST};

/// Unanswered heartbeats that end a path although something is heard on it.
const MISSED: u32 = 4;
/// Pause between questions to a silent path.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// Questions without an answer before packets go through the relay as well.
const DOUBTED: u32 = 2;
/// Questions without an answer before the path is left.
const LOST: u32 = 5;
/// Rounds in which the sizes that are not proven yet are tried.
const SIZE_ROUNDS: u32 = 3;
/// Unanswered pings of the size in use, with small ones answered, after which the size is given up.
const TOO_LARGE: u32 = 3;
/// Pause after a heartbeat without an answer before it is repeated.
const REPEAT: Duration = Duration::from_secs(1);

impl Peer {
    /// Asks a silent path whether it lives, and leaves it when it does not.
    pub(super) fn question(&mut self, core: &mut Core, now: Instant) {
        let rtt = self
            .best_candidate()
            .map_or(Duration::ZERO, |candidate| candidate.rtt);
        let Some(best) = &mut self.best else { return };
        if best.silent_since.is_none() || now < best.next_ask {
            return;
        }
        if best.asked >= LOST {
            return self.leave(core, now);
        }
        if best.asked >= DOUBTED {
            best.doubted = true;
        }
        best.asked += 1;
        // A far peer's answers take their time.
        best.next_ask = now + ASK_AGAIN.max(rtt / 2);
        self.ping_best(core, now);
    }

    pub(super) fn heartbeat(&mut self, core: &mut Core, now: Instant) {
        let Some(best) = &mut self.best else { return };
        if now < best.next_heartbeat {
            return;
        }
        if best.unanswered >= MISSED && now >= best.trusted_until {
            return self.leave(core, now);
        }
        if best.unanswered >= DOUBTED {
            best.doubted = true;
        }
        // The answer puts the next one off; without one it comes soon.
        best.next_heartbeat = now + REPEAT;
        self.ping_best(core, now);
    }

    /// A small ping, and one as large as the packets that go there.
    fn ping_best(&mut self, core: &mut Core, now: Instant) {
        let mtu = self
            .best_candidate()
            .map_or(BASE_MTU, |candidate| candidate.mtu);
        let Some(best) = &mut self.best else { return };
        best.unanswered += 1;
        let addr = best.addr;
        if mtu > BASE_MTU {
            if best.large_unanswered >= TOO_LARGE && best.small_answered >= TOO_LARGE - 1 {
                best.large_unanswered = 0;
                best.size_rounds = 0;
                best.next_sizes = now;
                if let Some(candidate) = self.candidate(addr, now) {
                    candidate.mtu = BASE_MTU;
                    candidate.proven = None;
                }
                self.tell(core, now);
            } else {
                best.large_unanswered += 1;
                self.ping(core, addr, Purpose::Mtu(mtu), now);
            }
        }
        self.ping(core, addr, Purpose::Path, now);
    }

    /// The direct path is over; the relay takes over and everything is tried anew.
    pub(super) fn leave(&mut self, core: &mut Core, now: Instant) {
        let Some(best) = self.best.take() else { return };
        if let Some(candidate) = self.candidate(best.addr, now) {
            candidate.last_pong = None;
            candidate.settle = None;
        }
        for candidate in &mut self.candidates {
            candidate.last_asked = None;
        }
        let next = self
            .candidates
            .iter()
            .filter(|c| c.answered_within(now, TRUST))
            .reduce(|a, b| if b.is_preferred_to(a) { b } else { a })
            .map(|candidate| candidate.addr);
        if let Some(addr) = next {
            self.adopt(addr, core, now);
            if let Some(best) = &mut self.best {
                // Its answer is old: use the relay as well until it has answered again.
                best.doubted = true;
                best.silent_since = Some(now);
                best.next_ask = now;
            }
        }
        self.look_soon(core, now);
        self.tell(core, now);
    }

    /// Sending to `addr` failed.
    pub(super) fn failed(&mut self, addr: SocketAddr, core: &mut Core, now: Instant) {
        if self.best.as_ref().is_some_and(|best| best.addr == addr) {
            self.leave(core, now);
        }
    }

    /// What an answer means when `addr` is in use.
    pub(super) fn confirm(
        &mut self,
        addr: SocketAddr,
        ping: InFlight,
        core: &mut Core,
        now: Instant,
    ) {
        let mtu = self
            .best_candidate()
            .map_or(BASE_MTU, |candidate| candidate.mtu);
        let Some(best) = self.best.as_mut().filter(|best| best.addr == addr) else {
            return;
        };
        match ping.purpose {
            Purpose::Mtu(size) if size >= mtu => {
                best.large_unanswered = 0;
                best.small_answered = 0;
            }
            Purpose::Mtu(_) | Purpose::Small => {}
            Purpose::Path | Purpose::Asked => best.small_answered += 1,
        }
        best.trusted_until = now + TRUST;
        best.unanswered = 0;
        best.next_heartbeat = now + HEARTBEAT;
        best.silent_since = None;
        best.asked = 0;
        best.doubted = false;
        best.last_heard = now;
        if best.large_unanswered > 0 {
            // Small packets pass, large ones may not: find out soon.
            best.next_heartbeat = now + ASK_AFTER;
            core.wake_at(best.next_heartbeat);
        }
    }

    /// Whether the path should move to `addr`, which has just answered.
    pub(super) fn choose(&mut self, addr: SocketAddr, core: &mut Core, now: Instant) {
        let trusted = self.is_trusted(now);
        let Some(new) = self.candidates.iter().find(|c| c.addr == addr) else {
            return;
        };
        match self.best_candidate() {
            Some(old) if old.addr == addr => return,
            Some(old) if trusted && !new.is_clearly_better_than(old) => return,
            _ => {}
        }
        if self.proves_sizes() && self.told_mtu > BASE_MTU && new.proven.is_none() {
            // Packets in flight are large already: find out what passes there before they go there.
            let wait = (new.rtt * 2).clamp(Duration::from_millis(10), Duration::from_millis(100));
            let top = ladder(addr, core.config.max_mtu).last().unwrap_or(BASE_MTU);
            if new.settle.is_none() && top > BASE_MTU {
                if let Some(candidate) = self.candidate(addr, now) {
                    candidate.settle = Some(now + wait);
                }
                core.wake_at(now + wait);
                self.ping_sizes(addr, core, now);
                return;
            }
        }
        if new.settle.is_some_and(|at| now < at) && !self.is_fully_proven(new, core) {
            return;
        }
        self.adopt(addr, core, now);
    }

    fn is_fully_proven(&self, candidate: &Candidate, core: &Core) -> bool {
        ladder(candidate.addr, core.config.max_mtu).all(|mtu| mtu <= candidate.mtu)
    }

    /// Takes addresses into use whose sizes had their time.
    pub(super) fn settle(&mut self, core: &mut Core, now: Instant) {
        let due = |c: &Candidate| c.settle.is_some_and(|at| at <= now);
        let due: Vec<SocketAddr> = self
            .candidates
            .iter()
            .filter(|c| due(c))
            .map(|c| c.addr)
            .collect();
        for addr in due {
            if let Some(candidate) = self.candidate(addr, now) {
                candidate.proven.get_or_insert(now);
                candidate.settle = None;
            }
            self.choose(addr, core, now);
            self.tell(core, now);
        }
    }

    fn adopt(&mut self, addr: SocketAddr, core: &mut Core, now: Instant) {
        if let Some(candidate) = self.candidate(addr, now) {
            candidate.settle = None;
        }
        self.best = Some(Best {
            addr,
            trusted_until: now + TRUST,
            next_heartbeat: now + HEARTBEAT,
            unanswered: 0,
            silent_since: None,
            asked: 0,
            next_ask: now,
            last_heard: now,
            doubted: false,
            large_unanswered: 0,
            small_answered: 0,
            size_rounds: 0,
            next_sizes: now,
        });
        self.next_round = now + COMPARE;
        self.rounds = 0;
        self.tried = false;
        core.wake_at(now);
    }

    pub(super) fn sizes_wanted(&self, core: &Core, best: &Best) -> bool {
        self.proves_sizes()
            && best.size_rounds < SIZE_ROUNDS
            && self
                .best_candidate()
                .is_some_and(|c| !self.is_fully_proven(c, core))
    }

    pub(super) fn prove_sizes(&mut self, core: &mut Core, now: Instant) {
        let Some(best) = &self.best else { return };
        if !self.sizes_wanted(core, best) || now < best.next_sizes {
            return;
        }
        let addr = best.addr;
        if let Some(best) = &mut self.best {
            best.size_rounds += 1;
            best.next_sizes = now + REPEAT * best.size_rounds;
        }
        self.ping_sizes(addr, core, now);
    }

    fn ping_sizes(&mut self, addr: SocketAddr, core: &mut Core, now: Instant) {
        let proven = self
            .candidates
            .iter()
            .find(|c| c.addr == addr)
            .map_or(BASE_MTU, |c| c.mtu);
        for mtu in ladder(addr, core.config.max_mtu).filter(|mtu| *mtu > proven) {
            self.ping(core, addr, Purpose::Mtu(mtu), now);
        }
    }
}

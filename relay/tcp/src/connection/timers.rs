//! What happens when time passes.

use std::time::Duration;

use super::{CloseReason, Connection, State, Timer};
use crate::recovery::Alarm;
use crate::time::Instant;

/// The probing of a closed window (RFC 9293 §3.8.6.1).
#[derive(Debug, Clone, Copy)]
pub(super) struct Persist {
    at: Instant,
    probes: u32,
    /// The window is open, and too small to be used without need; the next time it is used.
    open: bool,
    overrides: bool,
}

impl Persist {
    /// The peer opened its window.
    pub(super) fn opened(&mut self) {
        self.open = true;
    }

    /// Whether the timer passed, so that a small window is used; once.
    pub(super) fn take_override(&mut self) -> bool {
        std::mem::take(&mut self.overrides)
    }
}

impl Connection {
    /// When [`handle_timeout`](Self::handle_timeout) (or, for [`Timer::Pacing`] and
    /// [`Timer::DelayedAck`], [`poll_transmit`](Self::poll_transmit)) is to be called next if
    /// nothing happens before, and why. Ask after transmitting.
    pub fn poll_timeout(&mut self) -> Option<(Instant, Timer)> {
        if self.state == State::Closed {
            return None;
        }
        self.arm_persist();
        let alarm = self.recovery.alarm().map(|(at, alarm)| {
            let timer = match alarm {
                Alarm::Reordering => Timer::Reordering,
                Alarm::Probe => Timer::TailProbe,
                Alarm::Timeout => Timer::Retransmission,
            };
            (at, timer)
        });
        let candidates = [
            self.handshake.due.map(|at| (at, Timer::Handshake)),
            alarm,
            self.persist.map(|persist| (persist.at, Timer::Persist)),
            self.paced_until.map(|at| (at, Timer::Pacing)),
            self.ack_due.delayed_until.map(|at| (at, Timer::DelayedAck)),
            self.keepalive_at().map(|at| (at, Timer::Keepalive)),
            self.linger.map(|at| (at, Timer::Linger)),
        ];
        candidates.into_iter().flatten().min_by_key(|&(at, _)| at)
    }

    /// Does what is due at `now`; packets that follow from it come from
    /// [`poll_transmit`](Self::poll_transmit).
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.linger.is_some_and(|at| at <= now) {
            self.finish(CloseReason::Finished);
        }
        if self.state == State::Closed {
            return;
        }
        self.check_handshake(now);
        match self.recovery.alarmed(now) {
            Some(Alarm::Probe) => self.tail_probe = true,
            Some(Alarm::Timeout) if self.is_given_up(now, self.recovery.progress) => {
                return self.give_up();
            }
            _ => {}
        }
        self.check_persist(now);
        self.check_keepalive(now);
    }

    fn check_handshake(&mut self, now: Instant) {
        let waits = self.handshake.due.is_some_and(|due| due <= now);
        let longest = self.user_timeout.min(self.config.open_timeout);
        if waits && now.since(self.handshake.started) >= longest {
            self.give_up();
        }
    }

    /// Sets the timer that probes a closed window while data waits and nothing is on its way that
    /// would be answered.
    fn arm_persist(&mut self) {
        let waits = self.may_send()
            && self.recovery.next() < self.buffer.end()
            && self.recovery.is_idle()
            && self.paced_until.is_none();
        if !waits {
            self.persist = None;
            return;
        }
        if self.persist.is_none() {
            self.persist = Some(Persist {
                at: self.last_moment() + self.recovery.rtt.rto(),
                probes: 0,
                open: false,
                overrides: false,
            });
        }
    }

    /// When this connection was busy last.
    fn last_moment(&self) -> Instant {
        self.last_heard.max(self.recovery.progress)
    }

    fn check_persist(&mut self, now: Instant) {
        let Some(mut persist) = self.persist.filter(|persist| persist.at <= now) else {
            return;
        };
        if self.is_given_up(now, self.last_heard) {
            return self.give_up();
        }
        persist.probes += 1;
        let wait = self
            .recovery
            .rtt
            .rto()
            .saturating_mul(1 << persist.probes.min(16));
        persist.at = now + wait.min(self.config.rto_max);
        let usable = self.send_edge > self.recovery.next();
        persist.overrides = usable;
        self.empty_probe = !usable;
        self.persist = Some(persist);
    }

    fn keepalive_at(&self) -> Option<Instant> {
        let keepalive = self.config.keepalive?;
        let is_idle = self.recovery.is_idle() && self.persist.is_none();
        if !is_idle || !self.state.is_synchronized() || self.state == State::TimeWait {
            return None;
        }
        let asked = keepalive.interval * self.keepalive_probes;
        Some(self.last_moment() + keepalive.idle + asked)
    }

    fn check_keepalive(&mut self, now: Instant) {
        let (Some(at), Some(keepalive)) = (self.keepalive_at(), self.config.keepalive) else {
            return;
        };
        if at > now {
            return;
        }
        if self.keepalive_probes >= keepalive.probes {
            return self.give_up();
        }
        self.keepalive_probes += 1;
        self.empty_probe = true;
    }

    fn is_given_up(&self, now: Instant, since: Instant) -> bool {
        let patience = self.user_timeout;
        patience != Duration::MAX && now.since(since) >= patience
    }

    /// The peer is silent for too long: the connection ends, and the peer is told in case it
    /// listens (RFC 9293 §3.8.3).
    fn give_up(&mut self) {
        if self.state != State::SynSent {
            self.reset = Some(self.recovery.next());
        }
        self.finish(CloseReason::TimedOut);
    }
}

//! What the congestion control is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// A control that counts losses.
#[derive(Debug, Default)]
struct Counting {
    lost: Arc<AtomicUsize>,
}

impl Congestion for Counting {
    fn window(&self) -> u64 {
        1 << 20
    }

    fn pacing_rate(&self) -> Option<u64> {
        None
    }

    fn reduction_target(&self) -> Option<u64> {
        None
    }

    fn on_sent(&mut self, _: Instant, _: u64, _: u64, _: bool) {}

    fn on_lost(&mut self, _: &Lost) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    fn on_ack(&mut self, _: &Ack) {}

    fn on_congestion(&mut self, _: Instant, _: Signal, _: u64) {}

    fn on_recovered(&mut self, _: Instant) {}

    fn on_timeout(&mut self, _: Instant, _: u64) {}

    fn undo(&mut self, _: Instant) {}

    fn set_mss(&mut self, _: u64) {}
}

fn ack(now: Instant, edge: u64, sacked: &[(u64, u64)]) -> AckInput<'_> {
    AckInput {
        now,
        edge,
        sacked,
        duplicate: None,
        echo: None,
        is_bare: true,
        congested: false,
    }
}

/// A retransmission and what was sent before it arrive in one burst, which takes two acknowledgements
/// to be told.
#[test]
fn acknowledgements_that_come_together_are_judged_once() {
    let control = Counting::default();
    let lost = Arc::clone(&control.lost);
    let rtt = Rtt::new(Duration::from_millis(200), Duration::from_secs(1));
    let mut recovery = Recovery::new(rtt, Box::new(control), 0, 10, true);
    let at = Instant::from_millis;
    for _ in 0..5 {
        recovery.sent(at(0), 10);
    }
    recovery.acknowledged(&ack(at(20), 0, &[(10, 50)]));
    recovery.judge(at(20));
    assert_eq!(lost.load(Ordering::Relaxed), 1);
    for _ in 0..5 {
        recovery.sent(at(21), 10);
    }
    let (id, sent) = recovery.first_lost().expect("a loss");
    recovery.resent(at(30), id, sent.length());
    recovery.acknowledged(&ack(at(51), 50, &[]));
    recovery.acknowledged(&ack(at(51), 50, &[(60, 100)]));
    recovery.judge(at(51));
    assert_eq!(lost.load(Ordering::Relaxed), 2, "only the sixth");
}

//! Proportional rate reduction (RFC 6937bis): how much may be sent for each acknowledgement while
//! a loss is repaired, so that the window comes down evenly.

/// The counts of one recovery.
#[derive(Debug, Clone, Default)]
pub(crate) struct Prr {
    delivered: u64,
    sent: u64,
    /// Bytes in flight when the recovery began.
    flight: u64,
    window: u64,
}

impl Prr {
    /// Begins a recovery with `flight` bytes not acknowledged. The first segment of `mss` bytes may
    /// be sent again at once, also where a timer and no acknowledgement told the loss.
    pub(crate) fn start(flight: u64, in_flight: u64, mss: u64) -> Self {
        Self {
            delivered: 0,
            sent: 0,
            flight: flight.max(1),
            window: in_flight + mss,
        }
    }

    /// Counts an acknowledgement. `safe`: it moved the edge and told no new loss.
    pub(crate) fn acknowledged(
        &mut self,
        bytes: u64,
        in_flight: u64,
        threshold: u64,
        mss: u64,
        safe: bool,
    ) {
        self.delivered += bytes;
        let mut room = if in_flight > threshold {
            let share = u128::from(self.delivered) * u128::from(threshold);
            let share = share.div_ceil(u128::from(self.flight)) as u64;
            share.saturating_sub(self.sent)
        } else {
            let mut room = self.delivered.saturating_sub(self.sent).max(bytes);
            if safe {
                room += mss;
            }
            room.min(threshold.saturating_sub(in_flight))
        };
        if self.sent == 0 {
            // The first retransmission goes out whatever the count says.
            room = room.max(mss);
        }
        self.window = in_flight + room;
    }

    pub(crate) fn sent(&mut self, bytes: u64) {
        self.sent += bytes;
    }

    /// The congestion window.
    pub(crate) fn window(&self) -> u64 {
        self.window
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_comes_down_in_proportion() {
        // Figure of RFC 6937bis: 20 segments in flight, one lost, threshold half of it.
        let mut prr = Prr::start(20, 19, 1);
        let (mut in_flight, mut sent) = (19_u64, 0);
        for _ in 0..19 {
            in_flight -= 1;
            prr.acknowledged(1, in_flight, 10, 1, false);
            let count = prr.window().saturating_sub(in_flight);
            prr.sent(count);
            in_flight += count;
            sent += count;
        }
        assert_eq!(sent, 10);
        assert_eq!(in_flight, 10);
    }
}

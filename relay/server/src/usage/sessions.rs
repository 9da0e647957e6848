//! Sessions of one visitor with one app (coder_facts §2.13): short ones are rolled up, long ones
//! reported one by one, open ones again at each flush. No I/O and no clock of its own.

/// Sessions up to this long are rolled up, and the length of what they are rolled up into, seconds.
pub const WINDOW: u64 = 60;

/// A number that names an open session until its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionId(usize);

/// What is to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// The number of a long session, under which it is reported again while it is open; `None`
    /// for what is rolled up, which is told once.
    pub long: Option<u64>,
    /// Start, seconds since 1970.
    pub start: u64,
    /// End, or the moment of the report while it goes on.
    pub end: u64,
    /// Requests.
    pub requests: u64,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    serial: u64,
    start: u64,
}

/// Collects sessions between flushes.
#[derive(Debug, Default)]
pub struct Sessions {
    open: Vec<Option<Open>>,
    free: Vec<usize>,
    ended: Vec<Report>,
    serial: u64,
    used: bool,
}

impl Sessions {
    /// A session begins at `now`, seconds since 1970.
    pub fn begin(&mut self, now: u64) -> SessionId {
        self.serial += 1;
        self.used = true;
        let session = Some(Open {
            serial: self.serial,
            start: now,
        });
        let place = self.free.pop().unwrap_or_else(|| {
            self.open.push(None);
            self.open.len() - 1
        });
        self.open[place] = session;
        SessionId(place)
    }

    /// It ends.
    pub fn end(&mut self, id: SessionId, now: u64) {
        let Some(session) = self.open.get_mut(id.0).and_then(Option::take) else {
            return;
        };
        self.free.push(id.0);
        let end = now.max(session.start);
        if end - session.start > WINDOW {
            self.ended.push(session.report(end));
            return;
        }
        let start = session.start / WINDOW * WINDOW;
        let end = (end / WINDOW + 1) * WINDOW;
        let same =
            |found: &&mut Report| found.long.is_none() && (found.start, found.end) == (start, end);
        // The newest is nearly always the one.
        match self.ended.iter_mut().rev().find(same) {
            Some(rolled) => rolled.requests += 1,
            None => self.ended.push(Report {
                long: None,
                start,
                end,
                requests: 1,
            }),
        }
    }

    /// What is to be stored at `now`. Ended sessions are told once, those that last longer than the
    /// window also while they are open; short ones when their minutes are over.
    pub fn flush(&mut self, now: u64) -> Vec<Report> {
        let mut reports = Vec::new();
        self.ended.retain(|report| {
            let waits = report.long.is_none() && report.end > now;
            if !waits {
                reports.push(*report);
            }
            waits
        });
        let open = self.open.iter().flatten();
        let long = open.filter(|session| now.saturating_sub(session.start) > WINDOW);
        reports.extend(long.map(|session| session.report(now)));
        reports
    }

    /// What is to be stored when nothing can be told later.
    pub fn finish(&mut self, now: u64) -> Vec<Report> {
        for place in 0..self.open.len() {
            self.end(SessionId(place), now);
        }
        std::mem::take(&mut self.ended)
    }

    /// Whether a session was open since the last call.
    pub fn take_used(&mut self) -> bool {
        std::mem::take(&mut self.used) || self.is_open()
    }

    fn is_open(&self) -> bool {
        self.free.len() < self.open.len()
    }

    /// Whether there is nothing to tell, now or later.
    pub fn is_idle(&self) -> bool {
        !self.is_open() && self.ended.is_empty()
    }
}

impl Open {
    fn report(&self, end: u64) -> Report {
        Report {
            long: Some(self.serial),
            start: self.start,
            end,
            requests: 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn short_sessions_of_a_minute_become_one_report() {
        let mut sessions = Sessions::default();
        for start in [1, 2, 3] {
            let id = sessions.begin(start);
            assert!(sessions.is_open());
            sessions.end(id, start + 5);
        }
        assert!(!sessions.is_open() && !sessions.is_idle());
        assert_eq!(sessions.flush(30), []);
        let rolled = Report {
            long: None,
            start: 0,
            end: 60,
            requests: 3,
        };
        assert_eq!(sessions.flush(60), [rolled]);
        assert!(sessions.is_idle());
        assert_eq!(sessions.flush(120), []);
    }

    #[test]
    fn nothing_is_lost_at_the_end() {
        let mut sessions = Sessions::default();
        let (short, long) = (sessions.begin(600), sessions.begin(500));
        sessions.end(short, 601);
        let _ = long;
        let mut last = sessions.finish(610);
        last.sort_by_key(|report| report.start);
        let told: Vec<_> = last.iter().map(|r| (r.start, r.end, r.requests)).collect();
        assert_eq!(told, [(500, 610, 1), (600, 660, 1)]);
        assert!(sessions.is_idle());
    }

    #[test]
    fn a_clock_that_goes_back_makes_no_long_session() {
        let mut sessions = Sessions::default();
        let id = sessions.begin(1000);
        assert_eq!(sessions.flush(10), []);
        sessions.end(id, 10);
        let ends: Vec<_> = sessions.flush(2000).iter().map(|r| r.end).collect();
        assert_eq!(ends, [1020]);
    }

    proptest! {
        /// Whatever comes when, each session is counted once, and the places are used again.
        #[test]
        fn every_session_is_counted_once(
            steps in proptest::collection::vec((0_u64..200, any::<bool>(), 0_usize..4), 1..200),
        ) {
            let mut sessions = Sessions::default();
            let (mut now, mut begun) = (0, 0);
            let mut open = Vec::new();
            let mut told = std::collections::BTreeMap::new();
            for (pause, flush, which) in steps {
                now += pause;
                if open.len() > 3 || (which > 1 && !open.is_empty()) {
                    sessions.end(open.swap_remove(which % open.len()), now);
                } else {
                    open.push(sessions.begin(now));
                    begun += 1;
                }
                let reports = if flush { sessions.flush(now) } else { Vec::new() };
                for report in reports {
                    prop_assert!(report.start < report.end && report.end <= now);
                    told.insert((report.long, report.start, report.end), report.requests);
                }
            }
            prop_assert!(sessions.open.len() <= 4);
            for report in sessions.finish(now) {
                told.insert((report.long, report.start, report.end), report.requests);
            }
            let mut long = std::collections::BTreeSet::new();
            let mut short = 0;
            for ((serial, _, _), requests) in told {
                match serial {
                    Some(serial) => drop(long.insert(serial)),
                    None => short += requests,
                }
            }
            prop_assert_eq!(long.len() as u64 + short, begun);
        }
    }
}

//! Which segments are on their way: one record for each that is not acknowledged, in the order of
//! positions, and beside it the order in which they were sent.
//!
//! Each step costs the same however long the window is: an acknowledgement touches only what it
//! tells anew.

use std::collections::{BTreeSet, VecDeque};

use super::rate::Stamp;
use crate::ranges::Ranges;
use crate::time::Instant;

/// What is known of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// On its way, as far as is known.
    InFlight,
    /// Believed lost, and not sent again yet.
    Lost,
    /// The peer holds it, beyond a gap.
    Sacked,
}

/// A segment that was sent and is not acknowledged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// When it was sent last.
    pub(crate) time: Instant,
    pub(crate) fate: Fate,
    /// Whether it was sent more than once.
    pub(crate) retransmitted: bool,
    pub(crate) stamp: Stamp,
}

impl Sent {
    pub(crate) fn length(&self) -> u64 {
        self.end - self.start
    }
}

/// The records.
#[derive(Debug, Default)]
pub(crate) struct Scoreboard {
    sent: VecDeque<Sent>,
    /// Id of the first record; ids count up by one.
    first: u64,
    /// Time and id of transmissions, oldest first. An entry whose record tells another time or
    /// fate is out of date.
    order: VecDeque<(Instant, u64)>,
    lost: BTreeSet<u64>,
    sacked: Ranges,
    in_flight: u64,
    sacked_segments: usize,
    news: Vec<(u64, u64)>,
}

impl Scoreboard {
    /// Records a first transmission. Positions follow each other.
    pub(crate) fn push(&mut self, start: u64, end: u64, time: Instant, stamp: Stamp) {
        let id = self.first + self.sent.len() as u64;
        self.sent.push_back(Sent {
            start,
            end,
            time,
            fate: Fate::InFlight,
            retransmitted: false,
            stamp,
        });
        self.order.push_back((time, id));
        self.in_flight += end - start;
    }

    /// Records that a segment was sent again.
    pub(crate) fn retransmit(&mut self, id: u64, time: Instant, stamp: Stamp) {
        let Some(sent) = Self::record(&mut self.sent, self.first, id) else {
            return;
        };
        match sent.fate {
            Fate::Lost => self.in_flight += sent.length(),
            Fate::InFlight => {}
            Fate::Sacked => return,
        }
        sent.fate = Fate::InFlight;
        sent.time = time;
        sent.retransmitted = true;
        sent.stamp = stamp;
        self.lost.remove(&id);
        self.order.push_back((time, id));
    }

    /// Takes out what lies below `position`, and adds what was not reported before to `delivered`.
    pub(crate) fn acknowledge(&mut self, position: u64, delivered: &mut Vec<Sent>) {
        while let Some(sent) = self.sent.front_mut() {
            if sent.start >= position {
                break;
            }
            let part = Sent {
                end: sent.end.min(position),
                ..*sent
            };
            match sent.fate {
                Fate::InFlight => self.in_flight -= part.length(),
                Fate::Sacked if sent.end <= position => self.sacked_segments -= 1,
                Fate::Lost | Fate::Sacked => {}
            }
            if sent.fate != Fate::Sacked {
                delivered.push(part);
            }
            if sent.end > position {
                sent.start = position;
                break;
            }
            self.sent.pop_front();
            self.lost.remove(&self.first);
            self.first += 1;
        }
        self.sacked.remove_below(position);
        self.forget_stale();
    }

    /// Marks what lies in `start..end` as held by the peer, and adds what is new to `delivered`.
    pub(crate) fn sack(&mut self, start: u64, end: u64, delivered: &mut Vec<Sent>) {
        let mut news = std::mem::take(&mut self.news);
        self.sacked
            .insert(start, end, |from, to| news.push((from, to)));
        for (from, to) in news.drain(..) {
            let mut index = self.sent.partition_point(|sent| sent.end <= from);
            while let Some(sent) = self.sent.get_mut(index) {
                if sent.start >= to {
                    break;
                }
                if sent.fate != Fate::Sacked && self.sacked.covers(sent.start, sent.end) {
                    delivered.push(*sent);
                    match sent.fate {
                        Fate::InFlight => self.in_flight -= sent.length(),
                        _ => _ = self.lost.remove(&(self.first + index as u64)),
                    }
                    sent.fate = Fate::Sacked;
                    self.sacked_segments += 1;
                }
                index += 1;
            }
        }
        self.news = news;
    }

    /// The longest-ago transmission that is in flight.
    pub(crate) fn oldest_sent(&mut self) -> Option<(u64, Sent)> {
        self.forget_stale();
        let &(_, id) = self.order.front()?;
        self.get(id).map(|sent| (id, *sent))
    }

    /// Believes a segment lost.
    pub(crate) fn lose(&mut self, id: u64) -> Option<Sent> {
        let sent = Self::record(&mut self.sent, self.first, id)?;
        if sent.fate != Fate::InFlight {
            return None;
        }
        let before = *sent;
        sent.fate = Fate::Lost;
        self.in_flight -= sent.length();
        self.lost.insert(id);
        Some(before)
    }

    /// Takes back that segments are lost.
    pub(crate) fn unlose(&mut self) {
        for id in std::mem::take(&mut self.lost) {
            if let Some(sent) = Self::record(&mut self.sent, self.first, id) {
                sent.fate = Fate::InFlight;
                self.in_flight += sent.length();
                self.order.push_back((sent.time, id));
            }
        }
        self.order.make_contiguous().sort_unstable();
    }

    /// Believes that the peer holds nothing beyond gaps any more (RFC 2018 §8).
    pub(crate) fn forget_sacks(&mut self) {
        self.sacked.clear();
        self.sacked_segments = 0;
        for (index, sent) in self.sent.iter_mut().enumerate() {
            if sent.fate == Fate::Sacked {
                sent.fate = Fate::Lost;
                self.lost.insert(self.first + index as u64);
            }
        }
    }

    /// Cuts records longer than `length`, and believes those in flight among them lost: the path
    /// does not carry them any more.
    pub(crate) fn cut(&mut self, length: u64) {
        let old = std::mem::take(&mut self.sent);
        let (mut sent, mut lost) = (VecDeque::with_capacity(old.len()), BTreeSet::new());
        for record in old {
            let mut start = record.start;
            let too_long = record.length() > length;
            while start < record.end {
                let end = record.end.min(start + length);
                let mut part = Sent {
                    start,
                    end,
                    ..record
                };
                if too_long && part.fate == Fate::InFlight {
                    part.fate = Fate::Lost;
                    self.in_flight -= part.length();
                }
                if part.fate == Fate::Lost {
                    lost.insert(self.first + sent.len() as u64);
                }
                sent.push_back(part);
                start = end;
            }
        }
        self.sacked_segments = sent.iter().filter(|sent| sent.fate == Fate::Sacked).count();
        self.order = sent
            .iter()
            .enumerate()
            .filter(|(_, sent)| sent.fate == Fate::InFlight)
            .map(|(index, sent)| (sent.time, self.first + index as u64))
            .collect();
        self.order.make_contiguous().sort_unstable();
        (self.sent, self.lost) = (sent, lost);
    }

    /// The lowest segment that is lost and not sent again.
    pub(crate) fn first_lost(&self) -> Option<(u64, Sent)> {
        let &id = self.lost.first()?;
        self.get(id).map(|sent| (id, *sent))
    }

    /// The first and the last segment that the peer is not known to hold.
    pub(crate) fn first_missing(&self) -> Option<(u64, Sent)> {
        let index = self
            .sent
            .iter()
            .position(|sent| sent.fate != Fate::Sacked)?;
        Some((self.first + index as u64, self.sent[index]))
    }

    pub(crate) fn last_missing(&self) -> Option<(u64, Sent)> {
        let index = self
            .sent
            .iter()
            .rposition(|sent| sent.fate != Fate::Sacked)?;
        Some((self.first + index as u64, self.sent[index]))
    }

    /// Ids of all segments in flight for which `holds` is true.
    pub(crate) fn in_flight_where(&self, holds: impl Fn(&Sent) -> bool) -> Vec<u64> {
        let with_id = (self.first..).zip(&self.sent);
        with_id
            .filter(|(_, sent)| sent.fate == Fate::InFlight && holds(sent))
            .map(|(id, _)| id)
            .collect()
    }

    /// How many segments in flight `holds` is true for.
    pub(crate) fn count_in_flight(&self, holds: impl Fn(&Sent) -> bool) -> usize {
        let in_flight = self.sent.iter().filter(|sent| sent.fate == Fate::InFlight);
        in_flight.filter(|sent| holds(sent)).count()
    }

    /// The first record.
    pub(crate) fn front(&self) -> Option<&Sent> {
        self.sent.front()
    }

    /// Bytes on their way.
    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Whether everything sent is acknowledged.
    pub(crate) fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// Segments not acknowledged.
    pub(crate) fn len(&self) -> usize {
        self.sent.len()
    }

    /// Whether a segment waits to be sent again.
    pub(crate) fn has_lost(&self) -> bool {
        !self.lost.is_empty()
    }

    /// Segments that the peer holds beyond gaps.
    pub(crate) fn sacked_segments(&self) -> usize {
        self.sacked_segments
    }

    fn get(&self, id: u64) -> Option<&Sent> {
        self.sent
            .get(usize::try_from(id.checked_sub(self.first)?).ok()?)
    }

    fn record(sent: &mut VecDeque<Sent>, first: u64, id: u64) -> Option<&mut Sent> {
        sent.get_mut(usize::try_from(id.checked_sub(first)?).ok()?)
    }

    fn forget_stale(&mut self) {
        while let Some(&(time, id)) = self.order.front() {
            let is_current = self
                .get(id)
                .is_some_and(|sent| sent.time == time && sent.fate == Fate::InFlight);
            if is_current {
                return;
            }
            self.order.pop_front();
        }
        if self.sent.is_empty() {
            // There may be thousands of idle connections.
            self.sent = VecDeque::new();
            self.order = VecDeque::new();
            self.news = Vec::new();
        }
    }
}

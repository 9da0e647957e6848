//! Accept on demand as a state machine without I/O: which connections wait for the application to
//! be dialled, which wait for their handshake, and which are known to be open. Time comes in as an
//! argument; what the two sides of a pair are is up to the caller.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet};
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use relay_tcp::{Replays, Seen};

use super::packet::{Flow, Parsed, early_data, parse, without_data};

/// How long a dialled application waits for the peer to finish its handshake.
pub(super) const PAIR_TIMEOUT: Duration = Duration::from_secs(20);
/// Connections of one peer that may wait at a time; the peer repeats the SYN of any further one.
pub(super) const MAX_WAITING_PER_PEER: usize = 2048;
/// Open connections that are remembered. One that is not is dialled once more if its SYN comes
/// again, which costs time and nothing else.
const MAX_OPEN: usize = 65_536;

/// Names one wait of one flow, so that a late decision cannot meet a later connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket(u64);

/// What becomes of a SYN.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum OnSyn {
    /// The kernel knows the connection.
    Pass,
    /// A new wait began: dial the application.
    Dial(Ticket),
    /// Its connection waits already.
    Held,
    /// The peer has too many waiting.
    Drop,
}

/// What becomes of a RST.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum OnReset {
    /// The kernel may know the connection.
    Pass,
    /// The kernel never saw the connection.
    Swallow,
}

#[derive(Debug)]
enum Wait<P> {
    /// The application is being dialled; the SYN waits here.
    Held { syn: Vec<u8> },
    /// The SYN went to the kernel; the dialled side waits for its counterpart.
    Released { pair: P, since: Instant },
}

#[derive(Debug)]
struct Waiting<P> {
    ticket: Ticket,
    wait: Wait<P>,
}

/// All connections into the namespace that have not ended, as far as their packets tell.
#[derive(Debug)]
pub(super) struct Accepts<P> {
    waiting: HashMap<Flow, Waiting<P>>,
    per_peer: HashMap<Ipv6Addr, usize>,
    open: HashSet<Flow>,
    replays: Replays<RandomState>,
    /// When the clock of `replays` began.
    started: Instant,
    next: u64,
}

impl<P> Default for Accepts<P> {
    fn default() -> Self {
        Self {
            waiting: HashMap::new(),
            per_peer: HashMap::new(),
            open: HashSet::new(),
            replays: Replays::default(),
            started: Instant::now(),
            next: 0,
        }
    }
}

impl<P> Accepts<P> {
    /// A SYN arrived. `listening` says whether the kernel would take it.
    pub(super) fn syn(
        &mut self,
        flow: Flow,
        packet: &[u8],
        listening: bool,
        now: Instant,
    ) -> OnSyn {
        if let Some(waiting) = self.waiting.get_mut(&flow) {
            return match &mut waiting.wait {
                // The newest one: the peer may have given the first attempt up silently. If it has
                // not, it repeats the SYN without the data.
                Wait::Held { syn } => {
                    if !repeats(packet, syn) {
                        syn.clear();
                        syn.extend_from_slice(packet);
                    }
                    OnSyn::Held
                }
                Wait::Released { .. } => OnSyn::Pass,
            };
        }
        if self.open.contains(&flow) {
            if listening {
                // The peer may have had this connection reset long ago, so its data counts.
                return match self.note(flow, packet, now) {
                    None | Some(Seen::New) => OnSyn::Pass,
                    Some(Seen::Before | Seen::Unknown) => OnSyn::Drop,
                };
            }
            self.open.remove(&flow);
        }
        if self.is_replay(flow, packet, now) {
            return OnSyn::Drop;
        }
        let count = self.per_peer.entry(flow.source).or_default();
        if *count >= MAX_WAITING_PER_PEER {
            return OnSyn::Drop;
        }
        *count += 1;
        self.next += 1;
        let ticket = Ticket(self.next);
        let wait = Wait::Held {
            syn: packet.to_vec(),
        };
        self.waiting.insert(flow, Waiting { ticket, wait });
        OnSyn::Dial(ticket)
    }

    /// A RST arrived: whoever waits is told by losing its pair or its ticket.
    pub(super) fn reset(&mut self, flow: Flow) -> OnReset {
        self.open.remove(&flow);
        match self.take(flow, None) {
            Some(Wait::Held { .. }) => OnReset::Swallow,
            _ => OnReset::Pass,
        }
    }

    /// The peer finished sending: a SYN after this is a new connection.
    pub(super) fn finished(&mut self, flow: Flow) {
        self.open.remove(&flow);
    }

    /// The application answered. Returns the SYN to give to the kernel, or nothing when the peer
    /// has gone meanwhile; `pair` is then dropped.
    pub(super) fn release(
        &mut self,
        flow: Flow,
        ticket: Ticket,
        pair: P,
        now: Instant,
    ) -> Option<Vec<u8>> {
        let waiting = self.waiting.get_mut(&flow)?;
        if waiting.ticket != ticket {
            return None;
        }
        let released = Wait::Released { pair, since: now };
        let Wait::Held { syn } = std::mem::replace(&mut waiting.wait, released) else {
            return None;
        };
        Some(match self.note(flow, &syn, now) {
            None | Some(Seen::New) => syn,
            Some(Seen::Before | Seen::Unknown) => without_data(syn),
        })
    }

    /// The wait is over without a connection. Returns the SYN if it is still to be answered.
    pub(super) fn give_up(&mut self, flow: Flow, ticket: Ticket) -> Option<Vec<u8>> {
        match self.take(flow, Some(ticket))? {
            Wait::Held { syn } => Some(syn),
            Wait::Released { .. } => None,
        }
    }

    /// The kernel accepted a connection: its pair, or nothing when nobody was dialled for it.
    pub(super) fn accepted(&mut self, flow: Flow) -> Option<P> {
        let pair = match self.take(flow, None) {
            Some(Wait::Released { pair, .. }) => Some(pair),
            _ => None,
        };
        if self.open.len() < MAX_OPEN {
            self.open.insert(flow);
        }
        pair
    }

    /// Takes the pairs whose handshake did not end in time.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<P> {
        let late: Vec<Flow> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| match waiting.wait {
                Wait::Released { since, .. } => {
                    now.saturating_duration_since(since) >= PAIR_TIMEOUT
                }
                Wait::Held { .. } => false,
            })
            .map(|(flow, _)| *flow)
            .collect();
        late.into_iter()
            .filter_map(|flow| match self.take(flow, None) {
                Some(Wait::Released { pair, .. }) => Some(pair),
                _ => None,
            })
            .collect()
    }

    /// Whether a connection to `port` waits for the kernel.
    pub(super) fn needs(&self, port: u16) -> bool {
        self.waiting
            .keys()
            .any(|flow| flow.destination_port == port)
    }

    /// Forgets a peer: what waits for it ends.
    pub(super) fn remove_peer(&mut self, peer: Ipv6Addr) {
        self.waiting.retain(|flow, _| flow.source != peer);
        self.per_peer.remove(&peer);
        self.open.retain(|flow| flow.source != peer);
    }

    /// Takes note of the data that the kernel is about to be given, if there is any.
    fn note(&mut self, flow: Flow, syn: &[u8], now: Instant) -> Option<Seen> {
        let now = self.moment(now);
        early_data(syn).map(|sequence| self.replays.note(&flow, sequence, now))
    }

    /// Whether the kernel was given the data of this SYN before.
    fn is_replay(&mut self, flow: Flow, syn: &[u8], now: Instant) -> bool {
        let now = self.moment(now);
        early_data(syn).is_some_and(|sequence| self.replays.contains(&flow, sequence, now))
    }

    fn moment(&self, now: Instant) -> relay_tcp::Instant {
        relay_tcp::Instant::ZERO + now.saturating_duration_since(self.started)
    }

    fn take(&mut self, flow: Flow, ticket: Option<Ticket>) -> Option<Wait<P>> {
        let waiting = self.waiting.get(&flow)?;
        if ticket.is_some_and(|ticket| waiting.ticket != ticket) {
            return None;
        }
        let waiting = self.waiting.remove(&flow)?;
        if let Some(count) = self.per_peer.get_mut(&flow.source) {
            *count -= 1;
            if *count == 0 {
                self.per_peer.remove(&flow.source);
            }
        }
        Some(waiting.wait)
    }
}

/// Whether `packet` is `syn` once more, without its data.
fn repeats(packet: &[u8], syn: &[u8]) -> bool {
    let Some(sequence) = early_data(syn) else {
        return false;
    };
    matches!(parse(packet), Parsed::Tcp { sequence: again, .. } if again == sequence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::packet::SYN;
    use crate::stack::packet::tests::{flow, tcp_packet};

    fn dial(accepts: &mut Accepts<u32>, flow: Flow, syn: &[u8]) -> Ticket {
        match accepts.syn(flow, syn, false, Instant::now()) {
            OnSyn::Dial(ticket) => ticket,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_connection_is_dialled_once_released_and_paired() {
        let mut accepts = Accepts::default();
        let now = Instant::now();
        let ticket = dial(&mut accepts, flow(80), b"first");
        assert_eq!(
            accepts.syn(flow(80), b"again", false, Instant::now()),
            OnSyn::Held
        );
        assert!(accepts.needs(80) && !accepts.needs(81));
        assert_eq!(
            accepts.release(flow(80), ticket, 7, now),
            Some(b"again".to_vec())
        );
        assert_eq!(
            accepts.syn(flow(80), b"third", true, Instant::now()),
            OnSyn::Pass
        );
        assert_eq!(accepts.accepted(flow(80)), Some(7));
        assert_eq!(
            accepts.syn(flow(80), b"late repetition", true, Instant::now()),
            OnSyn::Pass
        );
        assert!(!accepts.needs(80));
    }

    #[test]
    fn the_same_source_may_reach_two_ports_at_once() {
        let mut accepts = Accepts::default();
        let first = dial(&mut accepts, flow(80), b"a");
        let second = dial(&mut accepts, flow(81), b"b");
        assert_ne!(first, second);
        let now = Instant::now();
        accepts.release(flow(81), second, 2, now);
        accepts.release(flow(80), first, 1, now);
        assert_eq!(accepts.accepted(flow(80)), Some(1));
        assert_eq!(accepts.accepted(flow(81)), Some(2));
    }

    #[test]
    fn a_refused_connection_gives_its_syn_back_once() {
        let mut accepts = Accepts::<u32>::default();
        let ticket = dial(&mut accepts, flow(80), b"syn");
        assert_eq!(accepts.give_up(flow(80), ticket), Some(b"syn".to_vec()));
        assert_eq!(accepts.give_up(flow(80), ticket), None);
    }

    #[test]
    fn a_reset_while_held_ends_the_wait_and_stays_out_of_the_kernel() {
        let mut accepts = Accepts::default();
        let ticket = dial(&mut accepts, flow(80), b"syn");
        assert_eq!(accepts.reset(flow(80)), OnReset::Swallow);
        assert_eq!(accepts.release(flow(80), ticket, 1, Instant::now()), None);
        assert_eq!(accepts.reset(flow(80)), OnReset::Pass);
    }

    #[test]
    fn a_late_decision_does_not_touch_the_next_connection_of_the_flow() {
        let mut accepts = Accepts::default();
        let old = dial(&mut accepts, flow(80), b"old");
        accepts.reset(flow(80));
        let new = dial(&mut accepts, flow(80), b"new");
        assert_eq!(accepts.release(flow(80), old, 1, Instant::now()), None);
        assert_eq!(accepts.give_up(flow(80), old), None);
        assert_eq!(
            accepts.release(flow(80), new, 2, Instant::now()),
            Some(b"new".to_vec())
        );
    }

    #[test]
    fn a_pair_is_given_up_after_twenty_seconds_and_not_before() {
        let mut accepts = Accepts::default();
        let start = Instant::now();
        let ticket = dial(&mut accepts, flow(80), b"syn");
        accepts.release(flow(80), ticket, 5, start);
        dial(
            &mut accepts,
            flow(81),
            b"held ones are the dialler's business",
        );
        assert!(
            accepts
                .expire(start + PAIR_TIMEOUT - Duration::from_millis(1))
                .is_empty()
        );
        assert_eq!(accepts.expire(start + PAIR_TIMEOUT), [5]);
        assert_eq!(accepts.accepted(flow(80)), None, "comes without a pair");
        assert!(accepts.needs(81));
    }

    #[test]
    fn an_accept_without_a_pair_is_told_apart() {
        let mut accepts = Accepts::<u32>::default();
        assert_eq!(accepts.accepted(flow(80)), None);
        assert_eq!(
            accepts.syn(flow(80), b"", true, Instant::now()),
            OnSyn::Pass
        );
    }

    #[test]
    fn a_flow_that_ended_or_that_nobody_listens_for_is_dialled_anew() {
        let mut accepts = Accepts::<u32>::default();
        accepts.accepted(flow(80));
        accepts.finished(flow(80));
        dial(&mut accepts, flow(80), b"syn");
        accepts.accepted(flow(81));
        dial(&mut accepts, flow(81), b"syn");
    }

    #[test]
    fn one_peer_cannot_fill_the_table_for_another() {
        let mut accepts = Accepts::<u32>::default();
        let mut first = None;
        for port in 0..MAX_WAITING_PER_PEER as u16 {
            let ticket = dial(&mut accepts, flow(port), b"");
            first.get_or_insert(ticket);
        }
        assert_eq!(
            accepts.syn(flow(60_000), b"", false, Instant::now()),
            OnSyn::Drop
        );
        let other = Flow {
            source: "fd7a:115c:a1e0::99".parse().unwrap(),
            ..flow(80)
        };
        dial(&mut accepts, other, b"");
        accepts.give_up(flow(0), first.unwrap());
        dial(&mut accepts, flow(60_000), b"");
        accepts.remove_peer(flow(0).source);
        assert!(!accepts.needs(60_000) && accepts.needs(80));
    }

    #[test]
    fn data_of_one_syn_reaches_the_kernel_once() {
        let mut accepts = Accepts::default();
        let now = Instant::now();
        let syn = tcp_packet(flow(80), SYN, 9, b"request");
        let ticket = dial(&mut accepts, flow(80), &syn);
        assert_eq!(accepts.release(flow(80), ticket, 1, now), Some(syn.clone()));
        let live = accepts.syn(flow(80), &syn, true, now);
        assert_eq!(live, OnSyn::Pass, "the kernel has the connection");
        accepts.accepted(flow(80));
        assert_eq!(accepts.syn(flow(80), &syn, true, now), OnSyn::Drop);
        accepts.finished(flow(80));
        for seconds in [0, 119] {
            let now = now + Duration::from_secs(seconds);
            assert_eq!(accepts.syn(flow(80), &syn, true, now), OnSyn::Drop);
        }
        let next = tcp_packet(flow(80), SYN, 10, b"request");
        dial(&mut accepts, flow(80), &next);
    }

    #[test]
    fn a_syn_that_never_reached_the_kernel_may_come_again() {
        let mut accepts = Accepts::<u32>::default();
        let syn = tcp_packet(flow(80), SYN, 9, b"request");
        let ticket = dial(&mut accepts, flow(80), &syn);
        accepts.give_up(flow(80), ticket);
        dial(&mut accepts, flow(80), &syn);
    }

    #[test]
    fn a_repetition_without_data_does_not_lose_the_data_but_a_new_attempt_counts() {
        let mut accepts = Accepts::default();
        let now = Instant::now();
        let syn = tcp_packet(flow(80), SYN, 9, b"request");
        let bare = tcp_packet(flow(80), SYN, 9, b"");
        let ticket = dial(&mut accepts, flow(80), &syn);
        assert_eq!(accepts.syn(flow(80), &bare, false, now), OnSyn::Held);
        assert_eq!(accepts.release(flow(80), ticket, 1, now), Some(syn.clone()));
        assert_eq!(accepts.syn(flow(80), &bare, true, now), OnSyn::Pass);

        let ticket = dial(&mut accepts, flow(81), &syn);
        let other = tcp_packet(flow(81), SYN, 10, b"");
        assert_eq!(accepts.syn(flow(81), &other, false, now), OnSyn::Held);
        assert_eq!(accepts.release(flow(81), ticket, 1, now), Some(other));
    }
}

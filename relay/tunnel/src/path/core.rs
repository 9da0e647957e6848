//! What all peers of an endpoint share: keys, randomness, pings in flight, and the queues of what goes out.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use relay_wire::disco::{self, Message, PayloadSize, TxId};
use relay_wire::keys::{DiscoPublic, SharedBox};

use super::local::Local;
use super::mtu::ping_size;
use super::survey::{Nat, Stun};
use super::{Destination, Event, PathConfig, PeerId, Transmit};

/// How long an answer to a ping is waited for.
const PING_LIMIT: Duration = Duration::from_secs(5);

/// Why a ping was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To find or keep a path.
    Path,
    /// To prove that packets of an inner MTU pass.
    Mtu(u16),
    /// To see whether packets pass that are too small for the tunnel.
    Small,
    /// Somebody asked by `relay ping`.
    Asked,
}

/// A ping whose answer is awaited.
#[derive(Clone, Copy, Debug)]
pub(super) struct InFlight {
    pub(super) peer: PeerId,
    pub(super) to: Destination,
    pub(super) sent: Instant,
    pub(super) purpose: Purpose,
}

pub(super) struct Core {
    pub(super) config: PathConfig,
    pub(super) own: DiscoPublic,
    pub(super) rng: StdRng,
    pub(super) local: Local,
    in_flight: HashMap<TxId, InFlight>,
    /// The same pings in the order they were sent, so that old ones are found without a search.
    sent_order: VecDeque<(Instant, TxId)>,
    pub(super) out: VecDeque<Transmit>,
    pub(super) events: VecDeque<Event>,
    /// No timer is due before this.
    pub(super) wake: Option<Instant>,
}

impl Core {
    pub(super) fn new(config: PathConfig, seed: [u8; 32]) -> Core {
        Core {
            own: config.disco.public(),
            config,
            rng: StdRng::from_seed(seed),
            local: Local::default(),
            in_flight: HashMap::new(),
            sent_order: VecDeque::new(),
            out: VecDeque::new(),
            events: VecDeque::new(),
            wake: None,
        }
    }

    /// What STUN servers tell about the network of this end.
    pub(super) fn verdict(&self) -> (Stun, Nat) {
        (self.local.stun(), self.local.nat())
    }

    pub(super) fn wake_at(&mut self, at: Instant) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }

    pub(super) fn send(
        &mut self,
        to: Destination,
        message: &Message,
        size: PayloadSize,
        shared: &SharedBox,
    ) {
        let nonce = self.rng.random();
        let payload = disco::seal(message, size, &self.own, shared, nonce);
        self.out.push_back(Transmit { to, payload });
    }

    /// Sends a ping and remembers it until it is answered or too old.
    pub(super) fn ping(
        &mut self,
        peer: PeerId,
        to: Destination,
        purpose: Purpose,
        shared: &SharedBox,
        now: Instant,
    ) -> TxId {
        let tx = TxId(self.rng.random());
        let size = match purpose {
            Purpose::Mtu(mtu) => ping_size(mtu),
            Purpose::Path | Purpose::Asked => PayloadSize::PADDED,
            Purpose::Small => PayloadSize::V0,
        };
        let message = Message::Ping {
            tx,
            node_key: Some(self.config.node),
        };
        self.send(to, &message, size, shared);
        self.in_flight.insert(
            tx,
            InFlight {
                peer,
                to,
                sent: now,
                purpose,
            },
        );
        self.sent_order.push_back((now, tx));
        tx
    }

    pub(super) fn answered(&mut self, tx: &TxId, peer: PeerId) -> Option<InFlight> {
        if self.in_flight.get(tx)?.peer != peer {
            return None;
        }
        self.in_flight.remove(tx)
    }

    pub(super) fn forget_old_pings(&mut self, now: Instant) {
        while let Some((sent, tx)) = self.sent_order.front() {
            if now.saturating_duration_since(*sent) < PING_LIMIT {
                break;
            }
            self.in_flight.remove(tx);
            self.sent_order.pop_front();
        }
    }
}

//! What a loop does about the others of its endpoint: relayed packets that change loops, and what
//! all of them must know. Nothing to do where there is one loop.

use std::net::SocketAddr;
use std::time::Instant;

use super::driver::{BATCH, Driver};
use super::exchange::Seat;
use super::relays::{Received, Relays};

impl Driver {
    /// Hands relayed packets of other loops' peers over to them.
    pub(super) fn hand_over(&self, relayed: &mut Vec<Received>) {
        if let Some(seat) = &self.seat {
            seat.hand_over(relayed);
        }
    }

    /// Another loop rang: packets to take over, or news on the board.
    pub(super) fn heed_others(&mut self, relayed: &mut Vec<Received>, now: Instant) {
        let Driver { seat, relays, .. } = self;
        let Some(seat) = seat else { return };
        if seat.is_first() {
            seat.take_outward(BATCH, |out| relays.send(out.region, out.node, &out.packet));
        } else {
            seat.take_inward(BATCH, relayed);
        }
        if !seat.board_changed() {
            return;
        }
        if seat.is_first() {
            let endpoints = seat.endpoints();
            self.node_changed |= self.template.endpoints != endpoints;
            self.template.endpoints = endpoints;
            self.update_relays();
        } else {
            self.follow_board(now);
        }
    }

    /// Does as the first loop says.
    fn follow_board(&mut self, now: Instant) {
        let Some(seat) = &self.seat else { return };
        let (interfaces, servers) = (seat.interfaces(), seat.stun_servers());
        let connected = seat.connected();
        if !interfaces.is_empty() {
            self.set_interfaces(interfaces);
        }
        self.paths.set_stun_servers(&servers, now);
        let Relays::Through(detour) = &mut self.relays else {
            return;
        };
        for region in detour.set_connected(connected) {
            self.relay_returned(region, now);
        }
    }

    /// This loop is reached there: the endpoint is, at all of its loops.
    pub(super) fn set_endpoints(&mut self, endpoints: Vec<SocketAddr>) {
        self.template.endpoints = match &self.seat {
            Some(seat) => {
                seat.post_endpoints(&endpoints);
                seat.endpoints()
            }
            None => endpoints,
        };
        self.node_changed = true;
    }

    /// Connects to the relays that are needed now, and leaves the others.
    pub(super) fn update_relays(&mut self) {
        let mut homes = self.peers.homes();
        match (&self.seat, self.relays.own()) {
            (seat, Some(relays)) => {
                homes.extend(seat.iter().flat_map(Seat::homes));
                relays.update(&homes);
                self.post_connected();
            }
            (Some(seat), None) => seat.post_homes(homes),
            (None, None) => {}
        }
    }

    /// Tells the other loops which relays are connected.
    pub(super) fn post_connected(&mut self) {
        if let (Some(seat), Some(relays)) = (&self.seat, self.relays.own()) {
            seat.post_connected(relays.connected());
        }
    }
}

//! From the kernel to the network: packets are collected by peer, sealed burst by burst, and sent
//! straight, through a relay, or both ways.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::driver::Driver;
use super::local::Local;
use super::peers::Slot;
use super::relays::Relays;
use super::streams;
use crate::datagram::{self, Datagram, MAX_UNFRAGMENTED};
use crate::path::{Destination, Paths, PeerId, Route};
use crate::udp::UdpSocket;
use crate::wireguard::Burst;

/// Reads of the TUN device in one turn; each is a packet or a super-packet.
const TUN_READS: usize = 64;
/// Bytes of super-packets after which a turn stops reading.
const TUN_BYTES: usize = 4 * 64 * 1024;
/// How long a full socket is waited for before what it should take is dropped.
const SEND_PATIENCE: Duration = Duration::from_millis(20);

impl Driver {
    /// Writes what this end itself has for the kernel.
    fn write_tun(&mut self) {
        if self.to_tun.is_empty() {
            return;
        }
        let packets: Vec<&[u8]> = self.to_tun.iter().map(Vec::as_slice).collect();
        if let Local::Kernel(tun, _) = &mut self.local
            && let Err(error) = tun.write_batch(&packets)
        {
            tracing::debug!(%error, "writing to the TUN device");
        }
        self.to_tun.clear();
    }

    /// Reads the TUN device. True when there was something.
    pub(super) fn take_tun(&mut self, now: Instant) -> bool {
        self.write_tun();
        let Driver {
            local,
            peers,
            to_tun,
            common,
            ..
        } = self;
        let Local::Kernel(tun, _) = local else {
            return false;
        };
        // A capture has packets as they were before.
        let at_once = common.capture.is_none();
        let mut last = None;
        let mut bytes = 0;
        let mut packets = 0;
        let mut worked = false;
        let mut failure = None;
        for _ in 0..TUN_READS {
            let mut each = |packet: &[u8]| {
                bytes += packet.len();
                packets += 1;
                let Some(destination) = datagram::destination(packet) else {
                    return;
                };
                let index = match last {
                    Some((address, index)) if address == destination => index,
                    _ => {
                        let Some(index) = peers.index_of_address(destination) else {
                            // A stream whose peer is gone must end; a new one may wait for it.
                            to_tun.extend(streams::reset_for(packet).map(|reset| reset.to_vec()));
                            return;
                        };
                        peers.touch(index);
                        last = Some((destination, index));
                        index
                    }
                };
                if let Some(slot) = peers.get_mut(index) {
                    if let Some((own, theirs)) = streams::opening(packet) {
                        slot.note_stream(own, theirs);
                    }
                    slot.add(packet, at_once);
                }
            };
            match tun.try_read(&mut each) {
                Ok(_) => worked = true,
                Err(error) => {
                    failure = Some(error).filter(|error| !is_passing(error));
                    break;
                }
            }
            if bytes >= TUN_BYTES {
                break;
            }
        }
        if last.is_some() {
            self.moved.bytes += bytes;
            self.moved.packets += packets;
            self.busy_at = now;
        }
        // Resets that answer what was read: nothing else may come that would take them along.
        self.write_tun();
        if let Some(error) = failure
            && !self.tun_failed
        {
            self.tun_failed = true;
            self.warn(format!("the TUN device failed: {error}; restart relay"));
        }
        worked
    }

    /// Sends one datagram of a flow or of the agent's UDP service.
    pub(super) fn send_inner_datagram(&mut self, datagram: &Datagram) {
        let Some(index) = self.peers.index_of_address(*datagram.destination.ip()) else {
            tracing::trace!("datagram to nobody known dropped");
            return;
        };
        let Driver {
            peers,
            scratch,
            fragments,
            ..
        } = self;
        let Some(slot) = peers.get_mut(index) else {
            return;
        };
        let size = datagram.payload.len();
        if size > MAX_UNFRAGMENTED && !slot.node.takes_fragments() {
            slot.oversize += 1;
            self.warn(format!(
                "a UDP datagram of {size} bytes was dropped: this peer takes at most \
                 {MAX_UNFRAGMENTED}; make the application send smaller ones, or run relay agent there"
            ));
            return;
        }
        datagram::build(
            scratch,
            datagram.source,
            datagram.destination,
            &datagram.payload,
        );
        let mtu = usize::from(slot.mtu);
        fragments.cut(scratch, mtu, &mut |packet| slot.add(packet, false));
        peers.touch(index);
    }

    /// Seals and sends everything that this turn collected.
    pub(super) async fn flush(&mut self, now: Instant) {
        let touched = self.peers.take_touched();
        for index in &touched {
            self.flush_peer(*index, now).await;
            self.peers.note_timer(*index);
        }
        self.peers.return_touched(touched);
        while let Some(transmit) = self.paths.poll_transmit() {
            match transmit.to {
                Destination::Udp(to) => {
                    if let Err(error) = self.udp.try_send(to, &transmit.payload) {
                        tracing::trace!(%error, "sending a disco or STUN message");
                    }
                }
                Destination::Relay(region, node) => {
                    self.relays.send(region, node, &transmit.payload);
                }
            }
        }
        self.relays.flush();
    }

    async fn flush_peer(&mut self, index: u32, now: Instant) {
        let Driver {
            udp,
            paths,
            relays,
            peers,
            common,
            ..
        } = self;
        let capture = &common.capture;
        let Some(slot) = peers.get_mut(index) else {
            return;
        };
        slot.touched = false;
        let data = !slot.outgoing.is_empty() || !slot.held.is_empty();
        if !data && slot.control.is_empty() {
            return;
        }
        let mut sender = Sender {
            udp,
            paths,
            relays,
            id: slot.id,
            now,
        };
        let mut route = match data {
            true => sender.paths.route(slot.id, now),
            false => sender.paths.quiet_route(slot.id, now),
        };
        // A relay that is not connected would only make packets old.
        route.relay = route
            .relay
            .filter(|(region, _)| sender.relays.is_connected(*region));
        if route == Route::default() {
            // Handshake messages are made anew when a path returns; packets are kept for it.
            slot.control.clear();
            if !slot.outgoing.is_empty() {
                slot.hold();
            }
            return;
        }
        if data && !slot.wireguard.is_ready() {
            slot.wireguard.greet(false, now, &mut slot.control);
        }
        sender.send_control(route, &mut slot.control).await;
        let Slot {
            wireguard,
            outgoing,
            held,
            control,
            sent,
            ..
        } = slot;
        let sealed = wireguard.seal_in_order([held, outgoing], now, control, |burst| {
            if let Some(capture) = capture {
                capture.record(burst.packets());
            }
        });
        for burst in [held, outgoing] {
            if burst.is_sealed() {
                *sent += burst.bytes() as u64;
                sender.send_burst(route, burst).await;
                burst.clear();
            }
        }
        sender.send_control(route, control).await;
        if !sealed {
            slot.hold();
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// What sending to one peer needs.
struct Sender<'a> {
    udp: &'a mut UdpSocket,
    paths: &'a mut Paths,
    relays: &'a mut Relays,
    id: PeerId,
    now: Instant,
}

impl Sender<'_> {
    async fn send_control(&mut self, route: Route, control: &mut Vec<Vec<u8>>) {
        for message in control.drain(..) {
            let len = message.len();
            let mut relay = route.relay;
            if let Some(to) = route.direct
                && let Err(error) = self.send_direct(to, &message, len).await
            {
                relay = self.direct_failed(to, &error).or(relay);
            }
            if let Some((region, node)) = relay {
                self.relays.send(region, node, &message);
            }
        }
    }

    async fn send_burst(&mut self, route: Route, burst: &Burst) {
        let mut relay = route.relay;
        if let Some(to) = route.direct {
            for run in burst.runs() {
                let data = &burst.data()[run.range];
                if let Err(error) = self.send_direct(to, data, run.segment).await {
                    relay = self.direct_failed(to, &error).or(relay);
                    break;
                }
            }
        }
        if let Some((region, node)) = relay {
            for datagram in burst.datagrams() {
                self.relays.send(region, node, datagram);
            }
        }
    }

    async fn send_direct(&mut self, to: SocketAddr, data: &[u8], segment: usize) -> io::Result<()> {
        loop {
            match self.udp.try_send_burst(to, data, segment) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let writable = tokio::time::timeout(SEND_PATIENCE, self.udp.writable()).await;
                    if writable.is_err() {
                        tracing::debug!("the UDP socket stays full; a burst is dropped");
                        return Ok(());
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(()),
                done => return done,
            }
        }
    }

    /// The address does not take packets any more: the relay, if there is one, does from now on.
    fn direct_failed(
        &mut self,
        to: SocketAddr,
        error: &io::Error,
    ) -> Option<(u16, relay_wire::keys::NodePublic)> {
        tracing::debug!(%to, %error, "direct path failed");
        self.paths.path_failed(self.id, to, self.now);
        self.paths.route(self.id, self.now).relay
    }
}

//! From the loop to the network: what was collected for a peer is sealed and sent.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::peer::Remote;
use crate::udp::UdpSocket;

/// How long a full socket is waited for before what it should take is dropped.
const PATIENCE: Duration = Duration::from_millis(20);

/// Seals and sends what was collected for a peer, or keeps it until there are keys.
pub(super) async fn flush(peer: &mut Remote, udp: &mut UdpSocket, now: Instant) {
    let data = !peer.outgoing.is_empty() || !peer.held.is_empty();
    if !data && peer.control.is_empty() {
        return;
    }
    let Some(to) = peer.endpoint() else {
        peer.control.clear();
        return peer.hold();
    };
    if data && !peer.wireguard.is_ready() {
        peer.wireguard.greet(false, now, &mut peer.control);
    }
    let mut failure = send_control(udp, to, &mut peer.control).await.err();
    let Remote {
        wireguard,
        outgoing,
        held,
        control,
        ..
    } = peer;
    let sealed = wireguard.seal_in_order([held, outgoing], now, control, |_| {});
    for burst in [held, outgoing] {
        if !burst.is_sealed() {
            continue;
        }
        for run in burst.runs() {
            let data = &burst.data()[run.range];
            if let Err(error) = send(udp, to, data, run.segment).await {
                failure = Some(error);
                break;
            }
        }
        burst.clear();
    }
    let last = send_control(udp, to, control).await.err();
    peer.failure = last.or(failure).map(|error| error.to_string());
    if !sealed {
        peer.hold();
    }
}

async fn send_control(
    udp: &mut UdpSocket,
    to: SocketAddr,
    control: &mut Vec<Vec<u8>>,
) -> io::Result<()> {
    let mut outcome = Ok(());
    for message in control.drain(..) {
        let sent = send(udp, to, &message, message.len()).await;
        outcome = outcome.and(sent);
    }
    outcome
}

async fn send(udp: &mut UdpSocket, to: SocketAddr, data: &[u8], segment: usize) -> io::Result<()> {
    loop {
        match udp.try_send_burst(to, data, segment) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let writable = tokio::time::timeout(PATIENCE, udp.writable()).await;
                if writable.is_err() {
                    return Ok(());
                }
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(()),
            done => return done,
        }
    }
}

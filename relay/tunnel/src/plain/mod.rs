//! A plain WireGuard end: keys and peers come from a file, there is no control plane, no relay and
//! no probing of paths. A peer is where its packets come from, and gets packets to the addresses
//! that are its own (`AllowedIPs`), of either family: IPv4 is translated for the stack, which speaks
//! IPv6.
//!
//! | file | job |
//! |---|---|
//! | `driver` | the loop that moves packets |
//! | `local` | the stack, the kernel's or relay's own |
//! | `peer` | where a peer is, whether it answers, what waits for it |
//! | `routes` | which peer an address belongs to |
//! | `send` | what a peer gets, sealed and sent |
//! | `translate` | IPv4 and IPv6 |

mod driver;
mod local;
mod peer;
mod routes;
mod send;
mod translate;

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::time::{Duration, Instant};

use relay_wire::wg;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::Error;
use crate::datagram::{Datagrams, Flow};
use crate::endpoint::{MAX_MTU, StackChoice};
use crate::stack::{NetHelper, Offloads, StackOptions, Stream, Streams};
use crate::udp::{UdpOffloads, UdpSocket};
use crate::wireguard::Identity;
use driver::Driver;
use local::Local;
use peer::Remote;
use routes::Routes;
use translate::{GROWTH, map};

/// What fits an Ethernet frame over either family: wg-quick's usual choice.
const USUAL_MTU: u16 = 1420;
/// What every IPv6 link carries.
const MIN_MTU: u16 = 1280;
/// Events kept for a reader that is slow.
const EVENTS: usize = 256;
/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(30);

/// Something about a peer that a person may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A peer answers: for the first time, or again.
    Answered {
        /// Its public key, as in the file.
        peer: String,
        /// Where it is.
        from: SocketAddr,
    },
    /// A peer does not answer. It is asked on.
    Silent {
        /// Its public key, as in the file.
        peer: String,
        /// Where it should be, as in the file.
        host: Option<String>,
        /// For how long.
        since: Duration,
        /// Why nothing could be sent, as far as the machine knows.
        reason: Option<String>,
    },
    /// The name of a peer's host cannot be looked up. It is tried on.
    Unresolved {
        /// Its host, as in the file.
        host: String,
        /// What the resolver says.
        reason: String,
    },
    /// Said once a cause.
    Warning(String),
}

/// A tunnel. It ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub struct Tunnel {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    streams: Streams,
    datagrams: Datagrams,
    addresses: Vec<IpAddr>,
    /// The peers that lead to the tunnel's hosts.
    needed: Vec<String>,
    task: JoinHandle<()>,
}

/// Opens a tunnel that leads to `hosts`. Must be called inside a tokio runtime.
///
/// # Errors
/// [`Error::NoWay`] and [`Error::NoAddress`] for a host that cannot be reached by this file, and
/// what the machine does not allow.
pub fn start(
    config: &wg::Config,
    hosts: &[IpAddr],
    choice: StackChoice,
    offloads: Offloads,
    helper: NetHelper,
) -> Result<(Tunnel, mpsc::Receiver<Event>), Error> {
    let interface = &config.interface;
    let mut routes = Routes::default();
    for (index, peer) in (0..).zip(&config.peers) {
        peer.allowed
            .iter()
            .for_each(|network| routes.insert(*network, index));
    }
    let mut needed = Vec::new();
    for host in hosts {
        needed.push(routes.find(*host).ok_or(Error::NoWay(*host))?);
        source_for(&interface.addresses, *host)?;
    }
    let udp_offloads = UdpOffloads {
        segmentation: offloads.udp_send,
        coalescing: offloads.udp_receive,
    };
    let udp = UdpSocket::bind(interface.listen_port.unwrap_or(0), udp_offloads)?;
    udp.allow_fragments();
    let mtu = interface.mtu.unwrap_or(USUAL_MTU).min(MAX_MTU);
    let options = StackOptions {
        mtu: (mtu + GROWTH).max(MIN_MTU),
        offloads,
        udp_receive_buffer: udp.receive_buffer() / 2,
    };
    let addresses: Vec<_> = interface.addresses.iter().copied().map(inside).collect();
    let mut stack = Local::open(choice, helper, &addresses, options)?;
    for host in hosts {
        let mtu = if host.is_ipv4() { mtu + GROWTH } else { mtu };
        stack.local.add_route(inside(*host), mtu)?;
    }
    let identity = Identity::with_cipher(*interface.private_key.as_bytes(), offloads.cipher());
    let now = Instant::now();
    let peers: Vec<Remote> = (0..)
        .zip(&config.peers)
        .map(|(index, peer)| Remote::new(&identity, index, peer, needed.contains(&index), now))
        .collect();
    let names = peers.iter().filter(|peer| peer.is_needed());
    let needed = names.map(|peer| peer.name().to_owned()).collect();
    let (datagrams, outbox, delivery) = Datagrams::new(addresses[0]);
    let (events, receiver) = mpsc::channel(EVENTS);
    if let Some(warning) = stack.instead {
        let _ = events.try_send(Event::Warning(warning));
    }
    let driver = Driver::new(driver::Parts {
        identity,
        udp,
        local: stack.local,
        peers,
        routes,
        own: addresses,
        mtu,
        outbox,
        delivery,
        events,
    });
    let inner = Inner {
        streams: stack.streams,
        datagrams,
        addresses: interface.addresses.clone(),
        needed,
        task: tokio::spawn(driver.run()),
    };
    let inner = Arc::new(inner);
    Ok((Tunnel { inner }, receiver))
}

/// What the stack knows an address by.
fn inside(address: IpAddr) -> std::net::Ipv6Addr {
    match address {
        IpAddr::V4(v4) => map(v4),
        IpAddr::V6(v6) => v6,
    }
}

/// The address that packets to a host come from.
fn source_for(own: &[IpAddr], host: IpAddr) -> Result<IpAddr, Error> {
    let same = |address: &&IpAddr| address.is_ipv4() == host.is_ipv4();
    own.iter().find(same).copied().ok_or(Error::NoAddress(host))
}

impl Tunnel {
    /// The public keys of the peers that lead to the hosts this tunnel was opened for.
    pub fn needed(&self) -> &[String] {
        &self.inner.needed
    }

    /// The same as [`open`](Self::open), as a socket.
    ///
    /// # Errors
    /// As those of [`open`](Self::open).
    pub async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        self.open(to).await?.into_socket()
    }

    /// Opens a TCP stream through the tunnel, within 30 seconds.
    ///
    /// # Errors
    /// What the other host or the stack says, or that nobody answered.
    pub async fn open(&self, to: SocketAddr) -> io::Result<Stream> {
        let (source, to) = self.ends(to).map_err(io::Error::other)?;
        let opening = self.inner.streams.open(*source.ip(), to, &[]);
        match tokio::time::timeout(CONNECT, opening).await {
            Ok(opened) => Ok(opened?.0),
            Err(_) => {
                let text = format!("no answer within {} seconds", CONNECT.as_secs());
                Err(io::Error::new(io::ErrorKind::TimedOut, text))
            }
        }
    }

    /// Opens a UDP flow through the tunnel.
    ///
    /// # Errors
    /// [`Error::TooManyFlows`].
    pub fn open_flow(&self, to: SocketAddr) -> Result<Flow, Error> {
        let (source, to) = self.ends(to)?;
        self.inner.datagrams.with_source(*source.ip()).open_flow(to)
    }

    fn ends(&self, to: SocketAddr) -> Result<(SocketAddrV6, SocketAddrV6), Error> {
        let source = source_for(&self.inner.addresses, to.ip())?;
        let end = |address, port| SocketAddrV6::new(inside(address), port, 0, 0);
        Ok((end(source, 0), end(to.ip(), to.port())))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.task.abort();
    }
}

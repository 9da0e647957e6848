//! The stream side of the stack: connections out of and into the namespace.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{SockRef, Socket};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::accept::{Accepts, OnReset, OnSyn, PAIR_TIMEOUT, Ticket};
use super::coalesce::Merger;
use super::congestion;
use super::helper::{Helper, Place};
use super::listeners::Listeners;
use super::packet::{ACK, FIN, Flow, ICMPV6, Parsed, RST, SYN, address, parse, reset_for};
use super::rewrite::Rewriter;
use super::ways::Ways;
use super::{Device, Incoming, Injection, NetHelper, StackOptions, Tun, Verdict};
use crate::Error;

/// Wanted connections the application has not looked at yet.
pub(super) const INCOMING_QUEUE: usize = 4096;
/// The headers of a stream's first packet, with as many options as there can be.
const HEADERS: usize = 40 + 60;

/// What a stream over a long path may hold that was received and not read, in bytes: the kernel
/// offers about half of it, 200 ms at 300 Mbit/s.
const LONG_RECEIVE: u32 = 16 << 20;

/// A handle to the kernel's TCP in the namespace, towards the peers of one device.
#[derive(Debug, Clone)]
pub struct KernelStack {
    shared: Arc<Shared>,
}

/// What the handles, the device and the listeners have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) helper: Arc<Helper>,
    /// Which of the namespace's devices it is.
    number: u8,
    /// There are others: the device is the way to the peers that are added here, and to no other.
    pub(super) shared_namespace: bool,
    /// Where listeners are served.
    runtime: Handle,
    pub(super) addresses: Vec<Ipv6Addr>,
    pub(super) accepts: Mutex<Accepts<oneshot::Sender<TcpStream>>>,
    pub(super) ways: Ways,
    windows: Arc<Windows>,
    /// The kernel sends and takes data in the first packet of a stream.
    early_data: bool,
    /// Present where the device is in the namespace that everything else is in.
    pub(super) rewriter: Option<Mutex<Rewriter>>,
    listeners: Listeners,
    incoming: Mutex<Option<mpsc::Sender<Incoming>>>,
    injections: Mutex<Injections>,
}

/// How much streams may hold that was received and not read: one setting for all of a namespace.
#[derive(Debug)]
pub(super) struct Windows {
    /// While all peers are near, in bytes; [`LONG_RECEIVE`] otherwise.
    near: u32,
    /// A bit for each device with a peer that is not known to be near.
    long: Mutex<u32>,
}

#[derive(Debug)]
struct Injections {
    sender: mpsc::UnboundedSender<Injection>,
    receiver: Option<mpsc::UnboundedReceiver<Injection>>,
}

impl Injections {
    fn new() -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self {
            sender,
            receiver: Some(receiver),
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn set_up(
    helper: NetHelper,
    addresses: &[Ipv6Addr],
    options: StackOptions,
    count: u8,
) -> Result<Vec<Device>, Error> {
    let (helper, mut ready) = Helper::set_up(helper, addresses, options, count)?;
    if ready.devices.len() > 1 && !binds_to_devices(&helper) {
        tracing::debug!("one loop only: this kernel keeps sockets from being bound to a device");
        ready.devices.truncate(1);
    }
    let helper = Arc::new(helper);
    let shared_namespace = ready.devices.len() > 1;
    let windows = Arc::new(Windows {
        near: options.udp_receive_buffer.try_into().unwrap_or(u32::MAX),
        long: Mutex::new(0),
    });
    let devices = ready.devices.into_iter().zip(0..);
    let device = |(descriptor, number)| Device {
        descriptor,
        number,
        shared_namespace,
        helper: Arc::clone(&helper),
        addresses: addresses.to_vec(),
        own_namespace: ready.place == Place::PrivateNamespace,
        windows: Arc::clone(&windows),
        early_data: ready.early_data,
        merger: Merger {
            tcp: ready.tcp_offload,
            udp: ready.udp_offload,
        },
    };
    Ok(devices.map(device).collect())
}

/// Whether a listener may be one for the packets of one device (since Linux 5.7 without
/// privileges).
fn binds_to_devices(helper: &Helper) -> bool {
    let Ok(socket) = helper.socket() else {
        return false;
    };
    bind_to_device(&Socket::from(socket), 0).is_ok()
}

fn bind_to_device(socket: &Socket, number: u8) -> io::Result<()> {
    socket.bind_device(Some(format!("relay{number}").as_bytes()))
}

impl Device {
    /// Watches the device in the runtime that runs the caller, and which serves its listeners from
    /// now on.
    ///
    /// # Errors
    /// [`Error::System`] when the runtime cannot watch it.
    pub fn open(self) -> Result<(Tun, KernelStack), Error> {
        let rewriter = (!self.own_namespace).then(Mutex::default);
        let shared = Arc::new(Shared {
            helper: self.helper,
            number: self.number,
            shared_namespace: self.shared_namespace,
            runtime: Handle::current(),
            addresses: self.addresses,
            accepts: Mutex::default(),
            ways: Ways::default(),
            windows: self.windows,
            early_data: self.early_data,
            rewriter,
            listeners: Listeners::default(),
            incoming: Mutex::default(),
            injections: Mutex::new(Injections::new()),
        });
        let tun = Tun::new(self.descriptor, Arc::clone(&shared), self.merger);
        let tun = tun.map_err(|source| Error::System {
            what: "watching the TUN device",
            source,
        })?;
        Ok((tun, KernelStack { shared }))
    }
}

impl KernelStack {
    /// Opens a stream through the tunnel from one of the stack's own addresses.
    pub async fn connect(&self, source: Ipv6Addr, remote: SocketAddrV6) -> io::Result<TcpStream> {
        let socket = self.outward(source)?;
        let socket = TcpSocket::from_std_stream(socket.into());
        let stream = socket.connect(remote.into()).await?;
        self.shared.suit(&stream, *remote.ip());
        Ok(stream)
    }

    /// Opens a stream whose first bytes travel with its first packet, and says how many of `first`
    /// did: none where the kernel cannot. The remote may act on them before the stream is open, so
    /// they must not be sent again on another stream unless twice is as good as once.
    pub async fn connect_with(
        &self,
        source: Ipv6Addr,
        remote: SocketAddrV6,
        first: &[u8],
    ) -> io::Result<(TcpStream, usize)> {
        if first.is_empty() || !self.shared.early_data {
            return Ok((self.connect(source, remote).await?, 0));
        }
        let socket = self.outward(source)?;
        // What acknowledges the other end's answer waits for something to travel with: the stream
        // is open at the other end since the first packet came.
        let _ = rustix::net::sockopt::set_tcp_quickack(&socket, false);
        let to = SocketAddr::from(remote).into();
        let taken = match socket.send_to_with_flags(first, &to, libc::MSG_FASTOPEN) {
            Ok(taken) => taken,
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => 0,
            Err(error) => return Err(error),
        };
        let stream = TcpStream::from_std(socket.into())?;
        stream.writable().await?;
        match stream.take_error()? {
            None => {
                self.shared.suit(&stream, *remote.ip());
                Ok((stream, taken))
            }
            Some(error) => Err(error),
        }
    }

    /// Whether data may travel with the first packet of a stream, both ways.
    pub fn takes_early_data(&self) -> bool {
        self.shared.early_data
    }

    /// How many bytes fit the first packet of a stream to this peer.
    pub fn early_room(&self, peer: Ipv6Addr) -> usize {
        usize::from(self.shared.ways.get(peer)).saturating_sub(HEADERS)
    }

    fn outward(&self, source: Ipv6Addr) -> io::Result<Socket> {
        let socket = Socket::from(self.shared.helper.socket()?);
        if self.shared.addresses == [source] && self.shared.rewriter.is_none() {
            // The namespace has no other address to choose.
            return Ok(socket);
        }
        // The port is chosen when both ends are known, so that it may serve several remotes.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        socket.bind(&SocketAddr::from((source, 0)).into())?;
        Ok(socket)
    }

    /// Decides about a packet from a peer before it is written to the TUN device. The caller has
    /// checked that the source address belongs to the peer.
    pub fn inspect(&self, packet: &[u8]) -> Verdict {
        let parsed = parse(packet);
        if parsed == Parsed::Malformed || !self.shared.addresses.contains(&address(packet, 24)) {
            return Verdict::Drop;
        }
        match parsed {
            Parsed::Tcp { flow, flags, .. } => self.shared.inspect_tcp(flow, flags, packet),
            // What else the machine offers is not for peers.
            Parsed::Other if self.shared.rewriter.is_some() && packet[6] != ICMPV6 => Verdict::Drop,
            Parsed::Other => Verdict::Pass,
            // TCP never sends fragments, and a piece cannot be judged.
            Parsed::TcpFragment | Parsed::Malformed => Verdict::Drop,
        }
    }

    /// Turns accept on demand on and returns where wanted connections arrive. Until it is called,
    /// and once the receiver is gone, every connection is refused.
    pub fn incoming(&self) -> mpsc::Receiver<Incoming> {
        let (sender, receiver) = mpsc::channel(INCOMING_QUEUE);
        self.send_incoming_to(sender);
        receiver
    }

    /// Turns accept on demand on: wanted connections go there.
    pub(crate) fn send_incoming_to(&self, sender: mpsc::Sender<Incoming>) {
        *lock(&self.shared.incoming) = Some(sender);
    }

    /// The runtime that serves this stack's listeners.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.shared.runtime
    }

    /// Makes this stack's device the way to a peer, before anything is sent there. Nothing to do
    /// where there is one device.
    pub(crate) fn add_peer(&self, peer: Ipv6Addr) {
        if !self.shared.shared_namespace {
            return;
        }
        let mtu = self.shared.ways.get(peer);
        let Shared { helper, number, .. } = &*self.shared;
        if let Err(error) = helper.set_route_now(*number, peer, mtu) {
            tracing::warn!("a peer cannot be reached: {error}");
        }
    }

    /// Makes the device the way to an address that is none of an agent or client, where packets have
    /// `mtu` bytes at most (1280 at least). It is the way when this returns.
    pub(crate) fn add_route(&self, to: Ipv6Addr, mtu: u16) -> io::Result<()> {
        self.shared.ways.set(to, mtu);
        let mtu = self.shared.ways.get(to);
        let Shared { helper, number, .. } = &*self.shared;
        helper.set_route_now(*number, to, mtu)
    }

    /// Where packets appear that the stack wants written later. The latest receiver gets them.
    pub fn injections(&self) -> mpsc::UnboundedReceiver<Injection> {
        let mut injections = lock(&self.shared.injections);
        loop {
            if let Some(receiver) = injections.receiver.take() {
                return receiver;
            }
            *injections = Injections::new();
        }
    }

    /// Sets the largest packet that reaches this peer; streams that are open follow at once.
    pub fn set_peer_mtu(&self, peer: Ipv6Addr, mtu: u16) {
        if self.shared.ways.set(peer, mtu) {
            let mtu = self.shared.ways.get(peer);
            let Shared { helper, number, .. } = &*self.shared;
            if let Err(error) = helper.set_route(*number, peer, mtu) {
                tracing::warn!("the packet size of a peer stays as it is: {error}");
            }
        }
    }

    /// Says whether the way to this peer is known to be short.
    pub fn set_peer_near(&self, peer: Ipv6Addr, near: bool) {
        self.shared.ways.set_near(peer, near);
        self.shared.suit_windows();
    }

    /// Forgets what is known about this peer; connections that still wait for the application end.
    pub fn remove_peer(&self, peer: Ipv6Addr) {
        lock(&self.shared.accepts).remove_peer(peer);
        if let Some(rewriter) = &self.shared.rewriter {
            lock(rewriter).remove_peer(peer);
        }
        let known = self.shared.ways.remove(peer);
        if (known || self.shared.shared_namespace)
            && let Err(error) = self.shared.helper.remove_route(self.shared.number, peer)
        {
            tracing::debug!("the route of a peer stays: {error}");
        }
        self.shared.suit_windows();
    }
}

impl Shared {
    /// A fresh socket to listen with: for packets of this device, where there are others.
    pub(super) fn listening_socket(&self) -> io::Result<Socket> {
        let socket = Socket::from(self.helper.socket()?);
        if self.shared_namespace {
            bind_to_device(&socket, self.number)?;
        }
        Ok(socket)
    }

    /// The runtime in which listeners are served.
    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub(super) fn listeners(&self) -> &Listeners {
        &self.listeners
    }

    /// Congestion control that suits the way to the peer. Acknowledgements travel with answers
    /// from the beginning, where the kernel would otherwise learn that after a few packets more;
    /// not before the handshake is over, whose last packet the other end waits for.
    fn suit(&self, stream: &TcpStream, peer: Ipv6Addr) {
        let _ = rustix::net::sockopt::set_tcp_quickack(stream, false);
        if !self.ways.is_near(peer) {
            congestion::suit(stream);
        }
    }

    /// While all peers are near, a stream may not have more under way than the UDP socket takes in
    /// one piece. Over a long path it needs room for what is under way and, after a loss, for what
    /// waits for the missing piece.
    fn suit_windows(&self) {
        let own = 1 << self.number;
        let mut devices = lock(&self.windows.long);
        let before = *devices;
        *devices = if self.ways.any_long() {
            before | own
        } else {
            before & !own
        };
        let most = match (before, *devices) {
            (0, 1..) => LONG_RECEIVE,
            (1.., 0) => self.windows.near,
            _ => return,
        };
        // The lock is held until it is set, so that the last word is right.
        if let Err(error) = self.helper.set_receive(most) {
            tracing::debug!("receive windows stay as they are: {error}");
        }
    }

    pub(super) fn inject(&self, injection: Injection) {
        // Without a receiver nothing moves packets any more.
        let _ = lock(&self.injections).sender.send(injection);
    }

    fn inspect_tcp(self: &Arc<Self>, flow: Flow, flags: u8, packet: &[u8]) -> Verdict {
        if flags & RST != 0 {
            return match lock(&self.accepts).reset(flow) {
                OnReset::Swallow => Verdict::Drop,
                OnReset::Pass => Verdict::Pass,
            };
        }
        if flags & (SYN | ACK) == SYN {
            return if flags & FIN != 0 {
                Verdict::Drop
            } else {
                self.inspect_syn(flow, packet)
            };
        }
        if flags & FIN != 0 {
            lock(&self.accepts).finished(flow);
        }
        Verdict::Pass
    }

    fn inspect_syn(self: &Arc<Self>, flow: Flow, packet: &[u8]) -> Verdict {
        let refused = || reset_for(packet).map_or(Verdict::Drop, Verdict::Answer);
        let Some(sender) = lock(&self.incoming).clone() else {
            return refused();
        };
        let listening = match &self.rewriter {
            Some(rewriter) => lock(rewriter).contains(flow),
            None => self.listeners.has(flow.destination_port),
        };
        let ticket = match lock(&self.accepts).syn(flow, packet, listening, Instant::now()) {
            OnSyn::Pass => return Verdict::Pass,
            OnSyn::Held => return Verdict::Held,
            OnSyn::Drop => return Verdict::Drop,
            OnSyn::Dial(ticket) => ticket,
        };
        let wanted = Wanted::new(self, flow, Offer::Held(ticket));
        let (mut incoming, verdict) = match sender.try_send(Incoming::Kernel(wanted)) {
            Ok(()) => return Verdict::Held,
            // The peer repeats it.
            Err(mpsc::error::TrySendError::Full(incoming)) => (incoming, Verdict::Drop),
            Err(mpsc::error::TrySendError::Closed(incoming)) => (incoming, refused()),
        };
        if let Incoming::Kernel(wanted) = &mut incoming {
            wanted.offer = Offer::Decided;
        }
        lock(&self.accepts).give_up(flow, ticket);
        verdict
    }

    /// A connection came out of a listener: it belongs to whoever was dialled for it.
    pub(super) fn accepted(self: &Arc<Self>, flow: Flow, stream: TcpStream) {
        self.suit(&stream, flow.source);
        let stream = match lock(&self.accepts).accepted(flow) {
            Some(pair) => match pair.send(stream) {
                Ok(()) => return,
                Err(stream) => return abort(stream),
            },
            None => stream,
        };
        tracing::debug!(
            port = flow.destination_port,
            "accepted before the application was dialled"
        );
        // Nobody was: an old SYN opened it, or the peer was faster than its own reset.
        if stream.peer_addr().is_err() {
            return;
        }
        let wanted = Wanted::new(self, flow, Offer::Open(stream));
        // Refused by being dropped when there is nobody to ask.
        if let Some(sender) = lock(&self.incoming).clone() {
            drop(sender.try_send(Incoming::Kernel(wanted)));
        }
    }
}

/// Keeps a stream although its peer does not answer for so long.
pub(super) fn outlast(stream: &TcpStream, silence: Duration) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_keepalive(false)?;
    socket.set_tcp_user_timeout(Some(silence))
}

/// Closes a stream so that the peer sees a reset.
pub(super) fn abort(stream: TcpStream) {
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
}

/// A connection that a peer wants, kept waiting until the application has been dialled. Dropping
/// it refuses the connection.
#[derive(Debug)]
pub struct Wanted {
    shared: Arc<Shared>,
    flow: Flow,
    offer: Offer,
}

#[derive(Debug)]
enum Offer {
    /// The SYN waits.
    Held(Ticket),
    /// The kernel has accepted it already.
    Open(TcpStream),
    Decided,
}

impl Wanted {
    fn new(shared: &Arc<Shared>, flow: Flow, offer: Offer) -> Self {
        Self {
            shared: Arc::clone(shared),
            flow,
            offer,
        }
    }

    /// The peer's address and port.
    pub fn source(&self) -> SocketAddrV6 {
        SocketAddrV6::new(self.flow.source, self.flow.source_port, 0, 0)
    }

    /// This end's address and port, which the peer wants.
    pub fn destination(&self) -> SocketAddrV6 {
        SocketAddrV6::new(self.flow.destination, self.flow.destination_port, 0, 0)
    }

    /// Lets the connection happen and returns its stream once the handshake is done. Fails when
    /// the peer has given up meanwhile, at once or after 20 seconds of silence.
    pub async fn accept(mut self) -> io::Result<TcpStream> {
        let ticket = match std::mem::replace(&mut self.offer, Offer::Decided) {
            Offer::Open(stream) => return Ok(stream),
            Offer::Held(ticket) => ticket,
            Offer::Decided => return Err(io::ErrorKind::ConnectionReset.into()),
        };
        self.offer = Offer::Held(ticket);
        let shared = Arc::clone(&self.shared);
        shared.listeners.ensure(&shared, self.flow)?;
        let (pair, stream) = oneshot::channel();
        let syn = lock(&shared.accepts).release(self.flow, ticket, pair, Instant::now());
        let syn = syn.ok_or(io::ErrorKind::ConnectionReset)?;
        shared.inject(Injection::ToTun(syn));
        match tokio::time::timeout(PAIR_TIMEOUT, stream).await {
            Ok(Ok(stream)) => {
                self.offer = Offer::Decided;
                Ok(stream)
            }
            Ok(Err(_)) => Err(io::ErrorKind::ConnectionReset.into()),
            Err(_) => {
                drop(lock(&shared.accepts).expire(Instant::now()));
                Err(io::ErrorKind::TimedOut.into())
            }
        }
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.offer, Offer::Decided) {
            Offer::Held(ticket) => {
                let syn = lock(&self.shared.accepts).give_up(self.flow, ticket);
                if let Some(reset) = syn.as_deref().and_then(reset_for) {
                    self.shared.inject(Injection::ToPeer(reset));
                }
            }
            Offer::Open(stream) => abort(stream),
            Offer::Decided => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_outlives_the_silence_of_its_peer() {
        let silence = Duration::from_secs(72 * 3600);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        let socket = SockRef::from(&stream);
        socket.set_keepalive(true).unwrap();
        outlast(&stream, silence).unwrap();
        assert!(!socket.keepalive().unwrap());
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(silence));
    }
}

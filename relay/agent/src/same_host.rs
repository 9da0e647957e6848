//! Peers that run on this machine: they prove it, and hand their connections over instead of sending
//! the bytes through the tunnel (`relay_wire::same_host`). A peer may do here what it may do
//! through the tunnel, and no longer.
//!
//! A socket that was handed over is shared with the one who did so, who can make any call on it wait.
//! So each peer on this machine is served by a thread of its own, and holds up nobody but itself.

use std::collections::HashMap;
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use relay_engine::handover::{Channel, Listener};
use relay_engine::{End, Moved as Counts, pump_counted};
use relay_wire::same_host::{
    Answer, Invitation, MOST_MOVED, Moved, Outcome, REQUEST, Request, SECRET, Secret, To,
};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::tcp::{self, Service};
use crate::traffic::Protocol;

/// How long an invitation holds.
const INVITED: Duration = Duration::from_secs(5);
/// Peers that are invited or served at once; others use the tunnel.
const GUESTS: usize = 256;
/// Those who came to the name of an invitation and did not show the token yet.
const STRANGERS: usize = 8;
/// What waits to be told to a peer.
const NOTES: usize = 64;
/// How often a peer is told what moved.
const TELL: Duration = Duration::from_secs(1);

/// The peers on this machine.
#[derive(Clone, Default)]
pub(crate) struct Neighbours(Arc<Mutex<Guests>>);

/// Each peer that is invited or served, with what ends that when it is dropped.
type Guests = HashMap<Ipv6Addr, Option<Stop>>;
type Stop = oneshot::Sender<std::convert::Infallible>;

impl Neighbours {
    /// Opens a name at which a peer can prove that it is here. The peer has asked through the
    /// tunnel, from this address.
    ///
    /// # Errors
    /// When the peer is invited or served already, when too many are, and as bind(2).
    pub(crate) fn invite(
        &self,
        peer: Ipv6Addr,
        challenge: Secret,
        service: Service,
    ) -> io::Result<Invitation> {
        let (seat, mut stopped) = self.seat(peer)?;
        let invitation = Invitation::generate(&mut rand::rng());
        let listener = Listener::bind(&invitation.name)?;
        let token = invitation.token.clone();
        tokio::spawn(async move {
            let came = tokio::select! {
                came = timeout(INVITED, welcome(listener, token, challenge)) => came,
                _ = &mut stopped => return,
            };
            if let Ok(Some(channel)) = came {
                serve_on_a_thread(channel.into(), seat, stopped, service);
            }
        });
        Ok(invitation)
    }

    /// Ends all connections of a peer, and its right to make new ones.
    pub(crate) fn end(&self, peer: Ipv6Addr) {
        if let Some(stop) = self.guests().get_mut(&peer) {
            *stop = None;
        }
    }

    /// Ends all connections of all peers.
    pub(crate) fn end_all(&self) {
        self.guests().values_mut().for_each(|stop| *stop = None);
    }

    fn seat(
        &self,
        peer: Ipv6Addr,
    ) -> io::Result<(Seat, oneshot::Receiver<std::convert::Infallible>)> {
        let mut guests = self.guests();
        if guests.len() >= GUESTS || guests.contains_key(&peer) {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let (stop, stopped) = oneshot::channel();
        guests.insert(peer, Some(stop));
        let neighbours = self.clone();
        Ok((Seat { neighbours, peer }, stopped))
    }

    fn guests(&self) -> MutexGuard<'_, Guests> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A peer's place among the guests, until this is dropped.
struct Seat {
    neighbours: Neighbours,
    peer: Ipv6Addr,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.neighbours.guests().remove(&self.peer);
    }
}

/// Waits for whoever shows the token, and shows the challenge in turn.
async fn welcome(listener: Listener, token: Secret, challenge: Secret) -> Option<Channel> {
    let mut strangers = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if strangers.len() < STRANGERS => {
                let channel = accepted.ok()?;
                let token = token.clone();
                strangers.spawn(async move { shows(&channel, &token).await.then_some(channel) });
            }
            Some(shown) = strangers.join_next() => {
                if let Ok(Some(channel)) = shown {
                    channel.send(challenge.reveal(), None).await.ok()?;
                    return Some(channel);
                }
            }
        }
    }
}

async fn shows(channel: &Channel, token: &Secret) -> bool {
    let mut shown = [0; SECRET];
    let received = channel.receive(&mut shown).await;
    received.is_ok_and(|(length, _)| token.is(&shown[..length]))
}

/// Serves a peer until it goes or is stopped.
fn serve_on_a_thread(
    channel: OwnedFd,
    seat: Seat,
    stopped: oneshot::Receiver<std::convert::Infallible>,
    service: Service,
) {
    let peer = seat.peer;
    let work = move || -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let channel = Channel::try_from(channel)?;
            tokio::select! {
                () = serve(&channel, peer, &service) => {}
                _ = stopped => {}
            }
            Ok(())
        })
        // The connections end with the runtime.
    };
    let thread = std::thread::Builder::new().name("same-host".to_owned());
    let started = thread.spawn(move || {
        if let Err(error) = work() {
            tracing::debug!(%error, "a client on this machine is not served");
        }
        drop(seat);
    });
    if let Err(error) = started {
        tracing::debug!(%error, "no thread for a client on this machine");
    }
}

/// What becomes of a connection.
enum Note {
    Became(u64, Outcome),
    /// It is carried, and this counts its bytes.
    Carried(u64, Counts),
    Ended(u64),
}

/// A connection that is carried.
struct Live {
    counts: Counts,
    told: (u64, u64),
}

impl Live {
    fn moved(&self, id: u64) -> Moved {
        Moved {
            id,
            taken: self.counts.a_to_b(),
            given: self.counts.b_to_a(),
        }
    }

    /// What moved since the last time, if anything did.
    fn news(&mut self, id: u64) -> Option<Moved> {
        let moved = self.moved(id);
        let now = (moved.taken, moved.given);
        (std::mem::replace(&mut self.told, now) != now).then_some(moved)
    }
}

/// Carries the connections that a peer hands over, until it goes. They end with this.
async fn serve(channel: &Channel, peer: Ipv6Addr, service: &Service) {
    let mut connections = JoinSet::new();
    let mut live = HashMap::new();
    let (notes, mut noted) = mpsc::channel(NOTES);
    let mut message = [0; REQUEST + 1];
    let mut ticks = interval(TELL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut first = true;
    loop {
        let told = tokio::select! {
            received = channel.receive(&mut message) => {
                let Ok((length @ 1.., socket)) = received else { return };
                let Some(request) = Request::decode(&message[..length]) else {
                    tracing::debug!("a client on this machine says something else");
                    return;
                };
                if std::mem::take(&mut first) {
                    tracing::info!("a client on this machine hands its connections over");
                }
                let carrying = carry(request, socket, peer, service.clone(), notes.clone());
                connections.spawn(carrying);
                Ok(())
            }
            Some(note) = noted.recv() => tell(channel, note, &mut live).await,
            _ = ticks.tick(), if !live.is_empty() => tell_moved(channel, &mut live).await,
            Some(_) = connections.join_next() => Ok(()),
        };
        if told.is_err() {
            return;
        }
    }
}

async fn tell(channel: &Channel, note: Note, live: &mut HashMap<u64, Live>) -> io::Result<()> {
    let answer = match note {
        Note::Became(id, outcome) => Answer::Became(id, outcome),
        Note::Carried(id, counts) => {
            let told = (0, 0);
            live.insert(id, Live { counts, told });
            Answer::Became(id, Outcome::Carried)
        }
        Note::Ended(id) => match live.remove(&id) {
            Some(one) => Answer::Ended(one.moved(id)),
            None => return Ok(()),
        },
    };
    channel.send(&answer.encode(), None).await
}

async fn tell_moved(channel: &Channel, live: &mut HashMap<u64, Live>) -> io::Result<()> {
    let news = live.iter_mut().filter_map(|(id, one)| one.news(*id));
    let news: Vec<_> = news.collect();
    for part in news.chunks(MOST_MOVED) {
        let answer = Answer::Moved(part.to_vec());
        channel.send(&answer.encode(), None).await?;
    }
    Ok(())
}

/// Joins a connection with what it leads to.
async fn carry(
    request: Request,
    socket: Option<OwnedFd>,
    peer: Ipv6Addr,
    service: Service,
    notes: mpsc::Sender<Note>,
) {
    let Request { id, to } = request;
    let place = service.open.take(peer);
    let app = match (&place, &socket) {
        (Some(_), Some(_)) => reach(&to, &service).await,
        // For want of descriptors the kernel drops what a message brings.
        _ => Err(Outcome::TooMany),
    };
    let (app, socket) = match (app, socket) {
        (Ok(app), Some(socket)) => (app, socket),
        (app, socket) => {
            // Before the answer: whoever closes it last decides how it ends.
            drop(socket);
            let outcome = app.err().unwrap_or(Outcome::TooMany);
            let _ = notes.send(Note::Became(id, outcome)).await;
            return;
        }
    };
    let counted = service.traffic.open(Protocol::Tcp);
    let moved = &counted.counts.moved;
    if notes.send(Note::Carried(id, moved.clone())).await.is_ok() {
        let summary = pump_counted(socket, app, service.engine, moved).await;
        tracing::debug!(?to, ?summary, "connection closed");
        let _ = notes.send(Note::Ended(id)).await;
    }
}

/// Connects to what a connection leads to.
async fn reach(to: &To, service: &Service) -> Result<End, Outcome> {
    match to {
        To::Port(port) if tcp::is_own(*port) => Err(Outcome::ThroughTunnel),
        To::Port(port) => match tcp::dial(*port).await {
            Ok(app) => Ok(app.into()),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(Outcome::TimedOut),
            Err(_) => Err(Outcome::Refused),
        },
        // There the reason is told in words.
        To::Socket(path) => {
            let dialled = service.api.streams().dial(path.as_ref()).await;
            dialled.map_err(|_| Outcome::ThroughTunnel)
        }
        To::Accepted(number) => {
            let taken = service.api.streams().take(*number);
            taken.map_err(|_| Outcome::ThroughTunnel)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::os::fd::AsFd;
    use std::sync::Arc;

    use relay_engine::Engine;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::api::Api;
    use crate::ssh;
    use crate::streams::Streams;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn service() -> Service {
        let ssh = ssh::Server::new(ssh::Options::default(), ssh::Workspace::default()).unwrap();
        Service {
            engine: Engine::Auto,
            api: Arc::new(Api::new(Streams::default(), None)),
            ssh: Arc::new(ssh),
            speed_tests: Default::default(),
            traffic: Default::default(),
            neighbours: Neighbours::default(),
            open: Default::default(),
        }
    }

    /// A served peer's own end, and what becomes of the serving.
    async fn served(name: &str, service: &Service) -> (Channel, tokio::task::JoinHandle<()>) {
        let name = format!("relay-test-{name}-{}", std::process::id());
        let listener = Listener::bind(&name).unwrap();
        let near = Channel::connect(&name).unwrap();
        let (far, service) = (listener.accept().await.unwrap(), service.clone());
        let serving = async move { serve(&far, Ipv6Addr::LOCALHOST, &service).await };
        (near, tokio::spawn(serving))
    }

    async fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    async fn ask(channel: &Channel, id: u64, to: To, socket: Option<&TcpStream>) {
        let request = Request { id, to }.encode().unwrap();
        let socket = socket.map(AsFd::as_fd);
        channel.send(&request, socket).await.unwrap();
    }

    async fn answer(channel: &Channel) -> Option<Answer> {
        let mut message = [0; relay_wire::same_host::ANSWER];
        let received = timeout(PATIENCE, channel.receive(&mut message)).await;
        let (length, _) = received.expect("an answer in time").unwrap();
        Answer::decode(&message[..length])
    }

    #[tokio::test]
    async fn a_connection_is_carried_counted_and_ended() {
        let service = service();
        let (channel, serving) = served("carried", &service).await;
        let app = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = app.local_addr().unwrap().port();
        let (mut client, accepted) = connection().await;
        ask(&channel, 7, To::Port(port), Some(&accepted)).await;
        let carried = Answer::Became(7, Outcome::Carried);
        assert_eq!(answer(&channel).await, Some(carried));
        drop(accepted);
        let (mut app, _) = app.accept().await.unwrap();
        client.write_all(b"question").await.unwrap();
        app.read_exact(&mut [0; 8]).await.unwrap();
        app.write_all(b"yes").await.unwrap();
        drop(app);
        let mut end = Vec::new();
        client.read_to_end(&mut end).await.unwrap();
        drop(client);
        loop {
            match answer(&channel).await {
                Some(Answer::Moved(_)) => {}
                other => {
                    let (taken, given) = (8, 3);
                    let moved = Moved {
                        id: 7,
                        taken,
                        given,
                    };
                    assert_eq!(other, Some(Answer::Ended(moved)));
                    break;
                }
            }
        }
        drop(channel);
        timeout(PATIENCE, serving).await.expect("it ends").unwrap();
    }

    #[tokio::test]
    async fn an_invited_peer_is_served_until_that_is_ended() {
        let (service, peer) = (service(), Ipv6Addr::LOCALHOST);
        let neighbours = service.neighbours.clone();
        let invite = || {
            let challenge = Secret::generate(&mut rand::rng());
            neighbours.invite(peer, challenge, service.clone())
        };
        let invitation = invite().unwrap();
        // It has one at a time.
        assert!(invite().is_err());
        let channel = Channel::connect(&invitation.name).unwrap();
        let token = invitation.token.reveal();
        channel.send(token, None).await.unwrap();
        let shown = timeout(PATIENCE, channel.receive(&mut [0; SECRET])).await;
        assert_eq!(shown.expect("the challenge").unwrap().0, SECRET);
        let (_client, accepted) = connection().await;
        for id in 0..3 {
            ask(&channel, id, To::Port(1), Some(&accepted)).await;
            let through = Answer::Became(id, Outcome::ThroughTunnel);
            assert_eq!(answer(&channel).await, Some(through));
        }
        assert!(invite().is_err());
        neighbours.end(peer);
        let end = timeout(PATIENCE, channel.receive(&mut [0; 1])).await;
        assert!(matches!(end.expect("an end"), Ok((0, _)) | Err(_)));
        let free = async {
            while invite().is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, free).await.expect("the seat is free");
    }

    #[tokio::test]
    async fn what_is_the_agents_own_or_not_there_or_lacks_a_socket_is_said() {
        let service = service();
        let (channel, serving) = served("own", &service).await;
        let (mut client, accepted) = connection().await;
        let gone = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let free = gone.local_addr().unwrap().port();
        drop(gone);
        for (to, socket, outcome) in [
            (To::Port(1), true, Outcome::ThroughTunnel),
            (To::Port(4), true, Outcome::ThroughTunnel),
            (To::Port(22), true, Outcome::ThroughTunnel),
            (
                To::Port(relay_wire::speedtest::PORT),
                true,
                Outcome::ThroughTunnel,
            ),
            (
                To::Socket("relative".to_owned()),
                true,
                Outcome::ThroughTunnel,
            ),
            (
                To::Socket("/no/such".to_owned()),
                true,
                Outcome::ThroughTunnel,
            ),
            (To::Accepted(1), true, Outcome::ThroughTunnel),
            (To::Port(free), true, Outcome::Refused),
            (To::Port(free), false, Outcome::TooMany),
        ] {
            ask(&channel, 1, to.clone(), socket.then_some(&accepted)).await;
            let became = Answer::Became(1, outcome);
            assert_eq!(answer(&channel).await, Some(became), "{to:?}");
        }
        // It is the client's own still.
        accepted.try_write(b"x").unwrap();
        client.read_u8().await.unwrap();
        channel.send(b"nonsense", None).await.unwrap();
        timeout(PATIENCE, serving).await.expect("it ends").unwrap();
    }

    #[tokio::test]
    async fn a_peer_has_no_more_open_than_through_the_tunnel() {
        let service = service();
        let places: Vec<_> =
            std::iter::from_fn(|| service.open.take(Ipv6Addr::LOCALHOST)).collect();
        let (channel, _serving) = served("open", &service).await;
        let (_client, accepted) = connection().await;
        let app = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = app.local_addr().unwrap().port();
        ask(&channel, 1, To::Port(port), Some(&accepted)).await;
        let refused = Answer::Became(1, Outcome::TooMany);
        assert_eq!(answer(&channel).await, Some(refused));
        drop(places);
        ask(&channel, 2, To::Port(port), Some(&accepted)).await;
        let carried = Answer::Became(2, Outcome::Carried);
        assert_eq!(answer(&channel).await, Some(carried));
    }

    fn invited() -> (Invitation, Secret, tokio::task::JoinHandle<Option<Channel>>) {
        let invitation = Invitation::generate(&mut rand::rng());
        let challenge = Secret::generate(&mut rand::rng());
        let listener = Listener::bind(&invitation.name).unwrap();
        let (token, shown) = (invitation.token.clone(), challenge.clone());
        let guest = tokio::spawn(welcome(listener, token, shown));
        (invitation, challenge, guest)
    }

    #[tokio::test]
    async fn only_the_token_opens_and_only_once() {
        let (invitation, challenge, guest) = invited();
        let silent = Channel::connect(&invitation.name).unwrap();
        let stranger = Channel::connect(&invitation.name).unwrap();
        let mut wrong = *invitation.token.reveal();
        wrong[SECRET - 1] ^= 1;
        stranger.send(&wrong, None).await.unwrap();
        let mut shown = [0; SECRET];
        // It is told nothing, and its connection is closed.
        assert!(matches!(
            stranger.receive(&mut shown).await,
            Ok((0, _)) | Err(_)
        ));

        let friend = Channel::connect(&invitation.name).unwrap();
        let token = invitation.token.reveal();
        friend.send(token, None).await.unwrap();
        let (length, _) = friend.receive(&mut shown).await.unwrap();
        assert!(challenge.is(&shown[..length]));
        assert!(guest.await.unwrap().is_some());
        // Whoever comes later, and whoever has waited, finds nobody.
        assert!(Channel::connect(&invitation.name).is_err());
        assert!(matches!(
            silent.receive(&mut shown).await,
            Ok((0, _)) | Err(_)
        ));
    }

    #[test]
    fn seats_are_bounded_one_a_peer_and_given_back() {
        let neighbours = Neighbours::default();
        let address = |n: usize| Ipv6Addr::from(n as u128);
        let mut seats: Vec<_> = (0..GUESTS)
            .map_while(|n| neighbours.seat(address(n)).ok())
            .collect();
        assert_eq!(seats.len(), GUESTS);
        assert!(neighbours.seat(address(GUESTS)).is_err());
        seats.pop();
        assert!(neighbours.seat(address(0)).is_err());
        assert!(neighbours.seat(address(GUESTS)).is_ok());
        neighbours.end(address(0));
        assert!(
            seats[0]
                .1
                .try_recv()
                .is_err_and(|error| { error == oneshot::error::TryRecvError::Closed })
        );
        // Its thread may still be at work.
        assert!(neighbours.seat(address(0)).is_err());
    }
}

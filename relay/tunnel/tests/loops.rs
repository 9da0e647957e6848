//! An agent whose loops share its peers: each peer is served by one loop, whichever way it comes, and
//! finds no difference.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

// The other tests of endpoints use more of it.
#[allow(dead_code)]
mod support;

use std::collections::HashSet;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use relay_tunnel::datagram::Datagram;
use relay_tunnel::endpoint::{Endpoint, LocalNode, PeerNode};
use relay_tunnel::path::PathState;
use relay_wire::keys::NodePrivate;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::MutexGuard;

use support::{AGENT, End, PATIENCE, Relay};

const LOOPS: u8 = 3;
const PORT: u16 = 2000;
const MIB: usize = 1 << 20;

/// Threads are counted, and many of them on few processors take long.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The peers whose streams each loop was given.
type Served = Arc<Vec<Mutex<HashSet<Ipv6Addr>>>>;

/// An agent of three loops and its clients.
struct Team {
    relay: Relay,
    agent: End,
    clients: Vec<End>,
    direct: bool,
    served: Served,
    _alone: MutexGuard<'static, ()>,
}

fn address(client: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 1, client as u16)
}

impl Team {
    async fn open(clients: usize, direct: bool) -> Option<Team> {
        let alone = ALONE.lock().await;
        let relay = Relay::start().await;
        let map = relay.map();
        let agent = End::open_with(AGENT, false, &map, |config| {
            config.direct = direct;
            config.loops = LOOPS;
        });
        let agent = agent.await?;
        let served = serve(&agent.endpoint);
        let mut team = Team {
            relay,
            agent,
            clients: Vec::new(),
            direct,
            served,
            _alone: alone,
        };
        for number in 0..clients {
            let client = End::open(address(number), true, direct, &team.relay.map()).await?;
            team.introduce(&client).await;
            team.clients.push(client);
        }
        Some(team)
    }

    async fn introduce(&self, client: &End) {
        let node = PeerNode::from(&client.node(self.direct).await);
        let installed = self.agent.endpoint.upsert_peer(client.id, node);
        installed.await.unwrap();
        let node = PeerNode::from(&self.agent_node().await);
        let installed = client.endpoint.upsert_peer(self.agent.id, node);
        installed.await.unwrap();
        let answered = client.endpoint.tsmp_ping(AGENT, PATIENCE);
        answered.await.unwrap();
        if self.direct {
            let direct = |state: &PathState| matches!(state, PathState::Direct(_));
            client.path(self.agent.id, direct).await;
        }
    }

    /// What the agent tells, once it speaks for all its loops.
    async fn agent_node(&self) -> LocalNode {
        let mut node = self.agent.endpoint.node();
        let complete = |node: &Option<LocalNode>| {
            node.as_ref()
                .is_some_and(|node| !self.direct || ports(node).len() == usize::from(LOOPS))
        };
        let node = tokio::time::timeout(PATIENCE, node.wait_for(complete));
        node.await.unwrap().unwrap().clone().unwrap()
    }

    /// Peers of each loop that had a stream.
    fn served(&self) -> Vec<usize> {
        let each = self.served.iter();
        each.map(|peers| peers.lock().unwrap().len()).collect()
    }

    fn loop_of(&self, client: usize) -> usize {
        let mut loops = self.served.iter();
        let peer = address(client);
        loops
            .position(|peers| peers.lock().unwrap().contains(&peer))
            .unwrap()
    }
}

fn ports(node: &LocalNode) -> HashSet<u16> {
    node.endpoints
        .iter()
        .map(|endpoint| endpoint.port())
        .collect()
}

/// Sends back what comes, in each loop by itself.
fn serve(agent: &Endpoint) -> Served {
    let loops = agent.incoming_by_loop();
    let served: Served = Arc::new(loops.iter().map(|_| Mutex::default()).collect());
    for (number, (runtime, mut incoming)) in loops.into_iter().enumerate() {
        let served = Arc::clone(&served);
        runtime.spawn(async move {
            while let Some(wanted) = incoming.recv().await {
                let mut peers = served[number].lock().unwrap();
                peers.insert(*wanted.source().ip());
                drop(peers);
                tokio::spawn(async move {
                    let mut stream = wanted.accept().await?;
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await?;
                    write.shutdown().await
                });
            }
        });
    }
    served
}

async fn connect(from: &End, to: Ipv6Addr) -> TcpStream {
    let connect = from.endpoint.connect(SocketAddrV6::new(to, PORT, 0, 0));
    tokio::time::timeout(PATIENCE, connect)
        .await
        .unwrap()
        .unwrap()
}

/// Sends so many bytes that `salt` makes different from all others, and gets them back.
async fn echo(stream: TcpStream, bytes: usize, salt: usize) {
    let (mut read, mut write) = stream.into_split();
    let data: Arc<Vec<u8>> = Arc::new(
        (0..bytes)
            .map(|n| (n ^ (n >> 8) ^ (salt * 31)) as u8)
            .collect(),
    );
    let sent = Arc::clone(&data);
    let sending = tokio::spawn(async move {
        write.write_all(&sent).await?;
        write.shutdown().await
    });
    let mut got = Vec::new();
    let receiving = tokio::time::timeout(PATIENCE, read.read_to_end(&mut got));
    receiving.await.unwrap().unwrap();
    sending.await.unwrap().unwrap();
    assert!(got == *data, "{} bytes came back, not the same", got.len());
}

#[tokio::test]
async fn clients_share_the_loops_of_an_agent_straight_and_relayed() {
    for direct in [true, false] {
        let Some(team) = Team::open(5, direct).await else {
            return;
        };
        let begin = Instant::now();
        let mut echoes = tokio::task::JoinSet::new();
        for (number, client) in team.clients.iter().enumerate() {
            let stream = connect(client, AGENT).await;
            echoes.spawn(echo(stream, 8 * MIB, number));
        }
        while let Some(done) = echoes.join_next().await {
            done.unwrap();
        }
        println!(
            "8 MiB there and back of each, direct {direct}: {:.1?}",
            begin.elapsed()
        );
        assert_eq!(team.served(), [2, 2, 1]);
        for client in &team.clients {
            let stats = team.agent.endpoint.stats(client.id).await.unwrap();
            assert!(stats.received > 8 << 20 && stats.rejected == 0, "{stats:?}");
            let pong = team.agent.endpoint.disco_ping(client.id).await.unwrap();
            assert!(pong.rtt < Duration::from_secs(5));
        }
    }
}

#[tokio::test]
async fn an_agent_of_several_loops_reaches_its_clients() {
    let Some(team) = Team::open(4, true).await else {
        return;
    };
    for (number, client) in team.clients.iter().enumerate() {
        serve(&client.endpoint);
        let answered = team.agent.endpoint.tsmp_ping(address(number), PATIENCE);
        answered.await.unwrap();
        let stream = connect(&team.agent, address(number)).await;
        echo(stream, MIB, number).await;
    }
}

#[tokio::test]
async fn datagrams_go_by_the_loop_of_their_peer() {
    let Some(team) = Team::open(4, true).await else {
        return;
    };
    let mut served = team.agent.endpoint.serve_datagrams();
    let agent = team.agent.endpoint.clone();
    tokio::spawn(async move {
        while let Some(datagram) = served.recv().await {
            let answer = Datagram {
                source: datagram.destination,
                destination: datagram.source,
                payload: datagram.payload,
            };
            agent.send_datagram(answer).await.unwrap();
        }
    });
    for (number, client) in team.clients.iter().enumerate() {
        let mut flow = client
            .endpoint
            .open_flow(SocketAddrV6::new(AGENT, 53, 0, 0))
            .unwrap();
        for size in [1, 1232, 9000] {
            let payload = vec![number as u8; size];
            flow.send(payload.clone().into()).await.unwrap();
            let got = tokio::time::timeout(PATIENCE, flow.recv()).await.unwrap();
            assert_eq!(got.unwrap(), payload);
        }
    }
}

#[tokio::test]
async fn a_client_that_left_comes_back_to_a_loop_with_room() {
    let Some(mut team) = Team::open(4, true).await else {
        return;
    };
    for client in &team.clients {
        echo(connect(client, AGENT).await, 1000, 0).await;
    }
    assert_eq!((team.loop_of(0), team.loop_of(1)), (0, 1));
    // Of the first loop's two peers one is left, of the second loop's none.
    for gone in team.clients.drain(..2) {
        team.agent.endpoint.remove_peer(gone.id).await.unwrap();
        assert!(team.agent.endpoint.stats(gone.id).await.is_err());
    }
    team.served
        .iter()
        .for_each(|peers| peers.lock().unwrap().clear());
    let map = team.relay.map();
    let Some(back) = End::open(address(0), true, true, &map).await else {
        return;
    };
    team.introduce(&back).await;
    echo(connect(&back, AGENT).await, MIB, 1).await;
    assert_eq!(team.loop_of(0), 1);
    for client in &team.clients {
        echo(connect(client, AGENT).await, MIB, 2).await;
    }
}

#[tokio::test]
async fn an_old_stream_of_a_client_that_moved_to_another_loop_is_reset() {
    let Some(team) = Team::open(2, true).await else {
        return;
    };
    let client = &team.clients[1];
    let mut old = connect(client, AGENT).await;
    old.write_u8(1).await.unwrap();
    assert_eq!(old.read_u8().await.unwrap(), 1);
    team.agent.endpoint.remove_peer(client.id).await.unwrap();
    for number in [7, 8] {
        let node = PeerNode {
            key: NodePrivate::generate(&mut rand::rng()).public(),
            addresses: vec![address(number)],
            ..PeerNode::from(&client.node(true).await)
        };
        let id = uuid::Uuid::from_u128(number as u128);
        let installed = team.agent.endpoint.upsert_peer(id, node);
        installed.await.unwrap();
    }
    // Every loop has one peer, so it comes to the first.
    old.write_u8(2).await.unwrap();
    team.introduce(client).await;
    let ended = tokio::time::timeout(PATIENCE, old.read_u8()).await;
    let error = ended.expect("the old stream ends").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    echo(connect(client, AGENT).await, MIB, 1).await;
    assert_eq!(team.loop_of(1), 0);
}

#[tokio::test]
async fn a_peer_that_takes_anothers_place_takes_it_in_every_loop() {
    let Some(team) = Team::open(3, true).await else {
        return;
    };
    for client in &team.clients {
        echo(connect(client, AGENT).await, 1000, 0).await;
    }
    // The second client's id, the third one's address: neither of the two is left.
    let map = team.relay.map();
    let Some(mut heir) = End::open(address(2), true, true, &map).await else {
        return;
    };
    heir.id = team.clients[1].id;
    team.introduce(&heir).await;
    echo(connect(&heir, AGENT).await, MIB, 3).await;
    assert!(
        team.served[1].lock().unwrap().contains(&address(2)),
        "in the place of its id"
    );
    let gone = team.agent.endpoint.stats(team.clients[2].id).await;
    assert!(gone.is_err(), "{gone:?}");
    echo(connect(&team.clients[0], AGENT).await, MIB, 4).await;
}

#[tokio::test]
async fn a_relay_that_comes_back_is_used_by_every_loop() {
    let Some(mut team) = Team::open(3, false).await else {
        return;
    };
    let mut streams = Vec::new();
    for client in &team.clients {
        streams.push(connect(client, AGENT).await);
    }
    team.relay.stop().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    team.relay.listen().await;
    for (number, stream) in streams.into_iter().enumerate() {
        echo(stream, MIB, number).await;
    }
}

#[tokio::test]
async fn the_loops_end_with_the_last_handle() {
    let Some(team) = Team::open(1, true).await else {
        return;
    };
    assert_eq!(threads(), usize::from(LOOPS) - 1);
    let Team { agent, _alone, .. } = team;
    drop(agent);
    let deadline = Instant::now() + PATIENCE;
    while threads() > 0 {
        assert!(Instant::now() < deadline, "{} loops are left", threads());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Threads of loops in this process.
fn threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with("relay-loop-")).count()
}

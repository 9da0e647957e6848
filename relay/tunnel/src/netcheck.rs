//! What this machine's network lets through: STUN over both address families with the same state machine that tunnels
//! use, and the time that each relay takes to answer.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use relay_wire::derp_map::{DerpMap, Node};
use relay_wire::keys::{DiscoPrivate, NodePrivate};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

use crate::derp;
use crate::dial::{self, BoxedStream, TlsOptions};
use crate::endpoint::stun_servers;
use crate::path::{self, BASE_MTU, Destination, PathConfig, Paths, Stun, Survey};

/// How long all STUN servers may take: three requests each, and a bit.
const STUN_LIMIT: Duration = Duration::from_secs(3);
/// How long a relay may take.
const RELAY_LIMIT: Duration = Duration::from_secs(5);
/// The path by which relays are timed (coder_wire §7.7).
const LATENCY_CHECK: &str = "/derp/latency-check";
/// The longest datagram that is a STUN answer.
const LONGEST: usize = 1500;
/// The longest line of a relay's answer that is read.
const LONGEST_LINE: usize = 256;

/// What was found.
#[derive(Clone, Debug)]
pub struct Findings {
    /// Addresses, STUN servers and the NAT.
    pub survey: Survey,
    /// Every relay region of the map.
    pub relays: Vec<RelayTime>,
}

/// How long a relay took to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayTime {
    /// Its region.
    pub region: u16,
    /// The region's name.
    pub name: String,
    /// From request to answer on an open connection, or why there was none.
    pub time: Result<Duration, String>,
}

impl Findings {
    /// Whether a STUN server of the address family answers.
    pub fn answers(&self, ipv6: bool) -> bool {
        let servers = self.survey.servers.iter();
        let mut of_family = servers.filter(|server| server.address.is_ipv6() == ipv6);
        of_family.any(|server| server.state == Stun::Answers)
    }

    /// Whether there is a STUN server of the address family at all.
    pub fn asked(&self, ipv6: bool) -> bool {
        let mut servers = self.survey.servers.iter();
        servers.any(|server| server.address.is_ipv6() == ipv6)
    }
}

/// Tries everything in the map, in a few seconds at most.
pub async fn check(map: &DerpMap, tls: &TlsOptions) -> io::Result<Findings> {
    let (survey, relays) = tokio::join!(ask_stun(map), time_relays(map, tls));
    Ok(Findings {
        survey: survey?,
        relays,
    })
}

/// A socket of each family, where the machine has it.
struct Sockets {
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
}

impl Sockets {
    async fn open() -> io::Result<Sockets> {
        let v4 = UdpSocket::bind("0.0.0.0:0").await;
        match (v4, v6_only()) {
            (Err(error), Err(_)) => Err(error),
            (v4, v6) => Ok(Sockets {
                v4: v4.ok(),
                v6: v6.ok(),
            }),
        }
    }

    fn of(&self, to: SocketAddr) -> Option<&UdpSocket> {
        match to {
            SocketAddr::V4(_) => self.v4.as_ref(),
            SocketAddr::V6(_) => self.v6.as_ref(),
        }
    }

    fn endpoints(&self) -> Vec<SocketAddr> {
        let interfaces = path::interfaces().unwrap_or_default();
        let endpoint = |ip: IpAddr| {
            let socket = self.of(SocketAddr::new(ip, 0))?;
            Some(SocketAddr::new(ip, socket.local_addr().ok()?.port()))
        };
        interfaces.into_iter().filter_map(endpoint).collect()
    }
}

fn v6_only() -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::DGRAM, None)?;
    socket.set_only_v6(true)?;
    socket.set_nonblocking(true)?;
    let any: SocketAddr = (std::net::Ipv6Addr::UNSPECIFIED, 0).into();
    socket.bind(&any.into())?;
    UdpSocket::from_std(socket.into())
}

async fn ask_stun(map: &DerpMap) -> io::Result<Survey> {
    let sockets = Sockets::open().await?;
    // No packet is ever sealed with these.
    let config = PathConfig {
        disco: DiscoPrivate::from_bytes(rand::random()),
        node: NodePrivate::from_bytes(rand::random()).public(),
        direct: true,
        max_mtu: BASE_MTU,
        relay_mtu: BASE_MTU,
    };
    let mut paths = Paths::new(config, rand::random());
    paths.set_local_endpoints(&sockets.endpoints());
    let servers = stun_servers(map).await;
    paths.set_stun_servers(&servers, Instant::now());
    let end = Instant::now() + STUN_LIMIT;
    let (mut four, mut six) = ([0; LONGEST], [0; LONGEST]);
    loop {
        let now = Instant::now();
        paths.handle_timeout(now);
        while let Some(transmit) = paths.poll_transmit() {
            if let Destination::Udp(to) = transmit.to
                && let Some(socket) = sockets.of(to)
                && let Err(error) = socket.send_to(&transmit.payload, to).await
            {
                tracing::debug!(%to, %error, "a STUN request was not sent");
            }
        }
        let survey = paths.survey();
        let waits = survey.servers.iter().any(|one| one.state == Stun::Asked);
        if !waits || now >= end {
            return Ok(survey);
        }
        let next = paths.poll_timeout().map_or(end, |(at, _)| at.min(end));
        let received = tokio::select! {
            received = receive(sockets.v4.as_ref(), &mut four) => received.map(|(n, from)| (&four[..n], from)),
            received = receive(sockets.v6.as_ref(), &mut six) => received.map(|(n, from)| (&six[..n], from)),
            () = sleep_until(next.into()) => continue,
        };
        if let Ok((datagram, from)) = received {
            paths.handle_udp(from, datagram, Instant::now());
        }
    }
}

async fn receive(socket: Option<&UdpSocket>, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    match socket {
        Some(socket) => socket.recv_from(buffer).await,
        None => std::future::pending().await,
    }
}

async fn time_relays(map: &DerpMap, tls: &TlsOptions) -> Vec<RelayTime> {
    let mut tasks = JoinSet::new();
    for (region, description) in &map.regions {
        let Some(node) = description.nodes.iter().find(|node| !node.stun_only) else {
            continue;
        };
        let (region, name) = (*region, description.name.clone());
        let (node, tls) = (node.clone(), tls.clone());
        tasks.spawn(async move {
            let time = timeout(RELAY_LIMIT, time_relay(&node, &tls)).await;
            let time = time.unwrap_or_else(|_| Err("no answer within 5 seconds".to_owned()));
            RelayTime { region, name, time }
        });
    }
    let mut times = tasks.join_all().await;
    times.sort_by_key(|time| time.region);
    times
}

async fn time_relay(node: &Node, tls: &TlsOptions) -> Result<Duration, String> {
    let target = derp::target(node)?;
    let stream = dial::connect_to(&target, tls, RELAY_LIMIT).await;
    let mut stream = stream.map_err(|error| error.to_string())?;
    let host = target.host_header();
    let request =
        format!("GET {LATENCY_CHECK} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let sent = Instant::now();
    let failed = |error: io::Error| format!("the connection broke: {error}");
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    stream.flush().await.map_err(failed)?;
    let line = first_line(&mut stream).await.map_err(failed)?;
    match status(&line) {
        Some(200..=299) => Ok(sent.elapsed()),
        Some(status) => Err(format!("it answers {status}; is that a relay?")),
        None => Err("its answer is not HTTP; is that a relay?".to_owned()),
    }
}

async fn first_line(stream: &mut BoxedStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    while line.len() < LONGEST_LINE {
        match stream.read_u8().await? {
            b'\n' => break,
            byte => line.push(byte),
        }
    }
    Ok(line)
}

/// The status in the first line of an HTTP/1 answer (RFC 9112 section 4).
fn status(line: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(line).ok()?;
    let mut words = text.strip_prefix("HTTP/1.")?.split_ascii_whitespace();
    words.nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use relay_wire::derp_map::Region;
    use tokio::net::TcpListener;

    use super::*;

    /// A region on loopback, with what is given of relay and STUN server.
    fn region(id: u16, derp_port: u16, stun_port: Option<u16>) -> (u16, Region) {
        let node = Node {
            host_name: "127.0.0.1".to_owned(),
            derp_port: derp_port.into(),
            stun_port: stun_port.map_or(-1, i32::from),
            stun_only: derp_port == 0,
            force_http: true,
            ..Node::default()
        };
        let region = Region {
            id,
            name: format!("Region {id}"),
            nodes: vec![node],
            ..Region::default()
        };
        (id, region)
    }

    #[tokio::test]
    async fn relays_and_stun_servers_are_told_with_what_they_say() {
        let relay = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay_port = relay.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = relay.accept().await.unwrap();
            let mut request = [0; 1024];
            let count = stream.read(&mut request).await.unwrap();
            assert!(request[..count].starts_with(b"GET /derp/latency-check "));
            stream
                .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
                .await
                .unwrap();
        });
        let stun = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let stun_port = stun.local_addr().unwrap().port();
        tokio::spawn(async move {
            let mut buffer = [0; 1500];
            let (count, from) = stun.recv_from(&mut buffer).await.unwrap();
            let tx = relay_wire::stun::parse_request(&buffer[..count]).unwrap();
            let answer = relay_wire::stun::response(tx, from);
            stun.send_to(&answer, from).await.unwrap();
        });
        let mut map = DerpMap::default();
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed_port = closed.local_addr().unwrap().port();
        drop(closed);
        map.regions.extend([
            region(1, relay_port, None),
            region(2, closed_port, None),
            region(3, 0, Some(stun_port)),
        ]);
        let found = check(&map, &TlsOptions::default()).await.unwrap();
        assert_eq!(found.relays.len(), 2);
        assert!(found.relays[0].time.is_ok(), "{found:?}");
        assert!(found.relays[1].time.is_err(), "{found:?}");
        assert!(found.answers(false) && !found.answers(true) && !found.asked(true));
        assert_eq!(found.survey.servers.len(), 1);
    }

    #[test]
    fn a_status_is_read_from_http_alone() {
        assert_eq!(status(b"HTTP/1.1 200 OK\r"), Some(200));
        assert_eq!(status(b"HTTP/1.0 404"), Some(404));
        for line in [
            &b""[..],
            b"HTTP/1.1",
            b"SSH-2.0-x 200",
            b"HTTP/1.1 \xff",
            b"HTTP/1.1 x",
        ] {
            assert_eq!(status(line), None);
        }
    }
}

//! Measures how fast bytes go through the tunnel, with the speed test that every agent serves.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::time::Duration;

use rand::RngCore;
use relay_tunnel::endpoint::StackChoice;
use relay_tunnel::path::PathState;
use relay_tunnel::stack::NetHelper;
pub use relay_wire::speedtest::Direction;
use relay_wire::speedtest::{MAX_LINE, PORT, Request, parse_answer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

use crate::Error;
use crate::event::Reporter;
use crate::ping::Route;
use crate::run::answered;
use crate::tunnel::{self, Options, Tunnel};
use crate::way::{Way, reason};

/// How long the agent may take to agree.
const AGREE: Duration = Duration::from_secs(15);
/// How much longer than its time a test may take.
const LATE: Duration = Duration::from_secs(5);
/// Bytes written and read at once.
const PIECE: usize = 256 << 10;
/// What is measured together.
const INTERVAL: Duration = Duration::from_secs(1);

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// How long.
    pub time: Duration,
    /// Which way.
    pub direction: Direction,
    /// Wait for a direct path first.
    pub wait_direct: bool,
}

/// Bytes that went by in a part of the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// From here on, since the test's first byte.
    pub start: Duration,
    /// Until here.
    pub end: Duration,
    /// That many.
    pub bytes: u64,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// The agent's name.
    pub agent: String,
    /// Parts of a second each; the last may be shorter.
    pub intervals: Vec<Interval>,
    /// All of them.
    pub overall: Interval,
    /// How the agent was reached when it was over.
    pub route: Route,
    /// The largest packet inside the tunnel, bytes.
    pub mtu: u16,
    /// The TCP/IP stack in use.
    pub stack: StackChoice,
}

/// Measures, and tells each part as it is over and each route that is waited on. Nothing was measured where
/// `shutdown` came first.
pub async fn run(
    options: Options,
    helper: NetHelper,
    report: Reporter,
    plan: Plan,
    waiting: impl FnMut(&Route),
    each: impl FnMut(&Interval),
    shutdown: impl Future<Output = ()>,
) -> Result<Option<Measured>, Error> {
    let mut shutdown = pin!(shutdown);
    let (tunnel, mut supervisor) = tokio::select! {
        biased;
        () = &mut shutdown => return Ok(None),
        opened = tunnel::open(options, helper, report.clone()) => opened?,
    };
    let found = supervisor.found.agent.clone();
    let regions = supervisor.regions.clone();
    let measure = async {
        answered(&tunnel, &report, &found.name).await?;
        let route = |state| Route::of(state, &regions);
        if plan.wait_direct {
            wait_direct(&tunnel, found.id, route, waiting).await?;
        }
        let failed = |error: io::Error| Error::SpeedTest {
            agent: found.name.clone(),
            reason: explain(&error),
        };
        let (intervals, overall) = test(&tunnel, plan, each).await.map_err(failed)?;
        Ok(Measured {
            agent: found.name.clone(),
            intervals,
            overall,
            route: route(*tunnel.endpoint.path(found.id).borrow()),
            mtu: tunnel.endpoint.stats(found.id).await?.mtu,
            stack: tunnel.endpoint.stack(),
        })
    };
    let result = tokio::select! {
        biased;
        () = &mut shutdown => Ok(None),
        error = supervisor.run() => Err(error),
        result = measure => result.map(Some),
    };
    supervisor.close().await;
    result
}

fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            "it serves none; is it older than relay's first speed test?".to_owned()
        }
        _ => reason(error),
    }
}

async fn wait_direct(
    tunnel: &Tunnel,
    agent: uuid::Uuid,
    route: impl Fn(PathState) -> Route,
    mut waiting: impl FnMut(&Route),
) -> Result<(), Error> {
    let mut path = tunnel.endpoint.path(agent);
    loop {
        let state = *path.borrow_and_update();
        if matches!(state, PathState::Direct(_)) {
            return Ok(());
        }
        waiting(&route(state));
        // Paths are looked for while something is sent.
        while !path.has_changed().unwrap_or(true) {
            let _ = tunnel.endpoint.disco_ping(agent).await;
            let _ = timeout(INTERVAL, path.changed()).await;
            if *path.borrow() != state {
                break;
            }
        }
        if path.has_changed().is_err() {
            return Err(relay_tunnel::Error::Closed.into());
        }
    }
}

async fn test(
    tunnel: &Tunnel,
    plan: Plan,
    each: impl FnMut(&Interval),
) -> io::Result<(Vec<Interval>, Interval)> {
    let (mut stream, _) = tunnel.connect(PORT, &[]).await?;
    agree(&mut stream, plan).await?;
    measure(stream, plan, each).await
}

/// Asks for the test, and reads what the agent says to that.
async fn agree(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), plan: Plan) -> io::Result<()> {
    let request = Request {
        time: plan.time,
        direction: plan.direction,
    };
    stream.write_all(&request.line()).await?;
    let line = async {
        let mut line = Vec::new();
        while line.len() <= MAX_LINE {
            match stream.read_u8().await? {
                b'\n' => break,
                byte => line.push(byte),
            }
        }
        io::Result::Ok(line)
    };
    let line = timeout(AGREE, line).await??;
    let answer = parse_answer(&line).map_err(io::Error::other)?;
    answer.map_err(|refusal| io::Error::other(format!("it says: {refusal}")))
}

/// Moves bytes until the time is over and counts them.
async fn measure(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    plan: Plan,
    mut each: impl FnMut(&Interval),
) -> io::Result<(Vec<Interval>, Interval)> {
    let mut piece = vec![0; PIECE];
    if plan.direction == Direction::Up {
        rand::rng().fill_bytes(&mut piece);
    }
    let begin = Instant::now();
    let (mut intervals, mut part) = (Vec::new(), 0);
    let mut from = Duration::ZERO;
    loop {
        let moved = match plan.direction {
            Direction::Up if begin.elapsed() >= plan.time => 0,
            Direction::Up => timeout_at(begin + plan.time + LATE, stream.write(&piece)).await??,
            Direction::Down => {
                timeout_at(begin + plan.time + LATE, stream.read(&mut piece)).await??
            }
        };
        let now = begin.elapsed();
        part += moved as u64;
        // A moment at the end would be no measurement of its own.
        if now - from >= INTERVAL || (moved == 0 && (part > 0 || intervals.is_empty())) {
            let interval = Interval {
                start: from,
                end: now,
                bytes: std::mem::take(&mut part),
            };
            from = now;
            each(&interval);
            intervals.push(interval);
        }
        if moved == 0 {
            break;
        }
    }
    stream.shutdown().await?;
    let overall = Interval {
        start: Duration::ZERO,
        end: intervals.last().map_or(Duration::ZERO, |last| last.end),
        bytes: intervals.iter().map(|interval| interval.bytes).sum(),
    };
    Ok((intervals, overall))
}

impl Interval {
    /// Megabits (10⁶) a second.
    pub fn megabits(&self) -> f64 {
        let seconds = (self.end - self.start).as_secs_f64();
        match seconds > 0.0 {
            true => self.bytes as f64 * 8.0 / 1e6 / seconds,
            false => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    fn plan(direction: Direction) -> Plan {
        Plan {
            time: Duration::from_millis(1200),
            direction,
            wait_direct: false,
        }
    }

    #[tokio::test]
    async fn bytes_are_counted_in_parts_of_a_second() {
        let (client, mut agent) = duplex(PIECE);
        let sending = tokio::spawn(async move {
            for _ in 0..12 {
                agent.write_all(&[7; 1000]).await.unwrap();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        let mut told = 0;
        let measured = measure(client, plan(Direction::Down), |part| told += part.bytes);
        let (intervals, overall) = measured.await.unwrap();
        sending.await.unwrap();
        assert_eq!((overall.bytes, told), (12_000, 12_000));
        assert!(
            intervals.len() >= 2 && overall.start.is_zero(),
            "{intervals:?}"
        );
        assert!(intervals.windows(2).all(|two| two[0].end == two[1].start));
    }

    #[tokio::test]
    async fn an_agent_that_refuses_is_quoted() {
        let (mut client, mut agent) = duplex(PIECE);
        let refusal = relay_wire::speedtest::answer_line(Some("not today"));
        agent.write_all(&refusal).await.unwrap();
        let error = agree(&mut client, plan(Direction::Up)).await.unwrap_err();
        assert!(error.to_string().contains("not today"), "{error}");
        let mut line = vec![0; 100];
        let count = agent.read(&mut line).await.unwrap();
        assert!(Request::parse(&line[..count]).is_ok());
    }

    #[test]
    fn megabits_are_millions_of_bits_a_second() {
        let interval = Interval {
            start: Duration::from_secs(1),
            end: Duration::from_secs(3),
            bytes: 1_000_000,
        };
        assert_eq!(interval.megabits(), 4.0);
    }
}

//! What `relay ping` says in the end: the figures, the way, and why it is none better.

use std::collections::VecDeque;
use std::time::Duration;

use chrono::{DateTime, Utc};
use relay_forward::event::Path;
use relay_forward::{Pong, Report, Route};
use relay_tunnel::path::{Reason, Stun, Survey};
use serde::Serialize;

use crate::duration::milliseconds;

/// One ping.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// When its answer came, or was given up.
    pub(super) at: DateTime<Utc>,
    /// The answer.
    pub(super) pong: Option<Pong>,
}

/// What happened while pings were sent.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) samples: VecDeque<Sample>,
    /// Each way, and since when it was the one.
    pub(super) routes: VecDeque<(DateTime<Utc>, Route)>,
}

/// All that JSON shows.
#[derive(Serialize)]
pub(super) struct Document<'a> {
    workspace: &'a str,
    agent: &'a str,
    pings: Vec<Row>,
    sent: usize,
    received: usize,
    loss_percent: f64,
    rtt_ms: Option<Times>,
    /// Each way that was taken, in their order; the last is `path` unless that has just changed.
    paths: Vec<Taken>,
    path: Way,
    same_host: bool,
    mtu: u16,
    handshake_age_seconds: Option<f64>,
    stack: String,
    network: Network,
}

#[derive(Serialize)]
struct Row {
    time: DateTime<Utc>,
    /// Milliseconds; none is a time-out.
    ms: Option<f64>,
    direct: bool,
    via: Option<String>,
}

#[derive(Serialize)]
struct Taken {
    since: DateTime<Utc>,
    #[serde(flatten)]
    way: Way,
}

#[derive(Serialize)]
struct Way {
    direct: bool,
    via: Option<String>,
    reason: Option<&'static str>,
    explanation: Option<String>,
    advice: Option<&'static str>,
}

impl Taken {
    fn of((since, route): &(DateTime<Utc>, Route)) -> Taken {
        Taken {
            since: *since,
            way: Way::of(route),
        }
    }
}

impl Way {
    fn of(route: &Route) -> Way {
        Way {
            direct: matches!(route.path, Some(Path::Direct(_))),
            via: route.path.as_ref().map(via),
            reason: route.reason.map(Reason::code),
            explanation: route.reason.map(|reason| reason.to_string()),
            advice: route.reason.map(Reason::advice),
        }
    }
}

#[derive(Serialize)]
struct Network {
    nat: &'static str,
    stun_servers: usize,
    stun_answers: usize,
    endpoints: Vec<String>,
}

/// Round trips, milliseconds.
#[derive(Debug, PartialEq, Serialize)]
struct Times {
    min: f64,
    avg: f64,
    p50: f64,
    p99: f64,
    max: f64,
    stddev: f64,
}

impl Times {
    fn of(samples: &VecDeque<Sample>) -> Option<Times> {
        let pongs = samples.iter().filter_map(|sample| sample.pong.as_ref());
        let mut times: Vec<Duration> = pongs.map(|pong| pong.time).collect();
        times.sort_unstable();
        let count = times.len();
        let (min, max) = (*times.first()?, *times.last()?);
        // The nearest rank: the smallest time that so many percent do not exceed.
        let rank = |percent: usize| times[(count * percent).div_ceil(100).max(1) - 1];
        let mean = times.iter().sum::<Duration>().as_secs_f64() / count as f64;
        let squares = times.iter().map(|time| (time.as_secs_f64() - mean).powi(2));
        let deviation = (squares.sum::<f64>() / count as f64).sqrt();
        Some(Times {
            min: milliseconds(min),
            avg: milliseconds(Duration::from_secs_f64(mean)),
            p50: milliseconds(rank(50)),
            p99: milliseconds(rank(99)),
            max: milliseconds(max),
            stddev: milliseconds(Duration::from_secs_f64(deviation)),
        })
    }
}

fn via(path: &Path) -> String {
    match path {
        Path::Direct(address) => address.to_string(),
        Path::Relayed(name) => name.clone(),
    }
}

fn loss(samples: &VecDeque<Sample>) -> f64 {
    let lost = samples
        .iter()
        .filter(|sample| sample.pong.is_none())
        .count();
    let percent = 100.0 * lost as f64 / samples.len().max(1) as f64;
    (percent * 10.0).round() / 10.0
}

fn answers(survey: &Survey) -> usize {
    let servers = survey.servers.iter();
    servers
        .filter(|server| server.state == Stun::Answers)
        .count()
}

/// The JSON document.
pub(super) fn document<'a>(workspace: &'a str, seen: &Seen, report: &'a Report) -> Document<'a> {
    let row = |sample: &Sample| {
        let pong = sample.pong.as_ref();
        Row {
            time: sample.at,
            ms: pong.map(|pong| milliseconds(pong.time)),
            direct: matches!(pong.map(|pong| &pong.path), Some(Path::Direct(_))),
            via: pong.map(|pong| via(&pong.path)),
        }
    };
    let samples = &seen.samples;
    Document {
        workspace,
        agent: &report.agent,
        pings: samples.iter().map(row).collect(),
        sent: samples.len(),
        received: samples
            .iter()
            .filter(|sample| sample.pong.is_some())
            .count(),
        loss_percent: loss(samples),
        rtt_ms: Times::of(samples),
        paths: seen.routes.iter().map(Taken::of).collect(),
        path: Way::of(&report.route),
        same_host: report.same_host,
        mtu: report.mtu,
        handshake_age_seconds: report.handshake_age.map(|age| milliseconds(age) / 1e3),
        stack: report.stack.to_string(),
        network: Network {
            nat: report.survey.nat.code(),
            stun_servers: report.survey.servers.len(),
            stun_answers: answers(&report.survey),
            endpoints: report
                .survey
                .endpoints
                .iter()
                .map(ToString::to_string)
                .collect(),
        },
    }
}

/// A few lines for people.
pub(super) fn text(samples: &VecDeque<Sample>, report: &Report) -> String {
    let received = samples
        .iter()
        .filter(|sample| sample.pong.is_some())
        .count();
    let mut text = format!(
        "{} pings, {received} answered, {} % lost",
        samples.len(),
        loss(samples)
    );
    if let Some(times) = Times::of(samples) {
        let Times {
            min, p50, p99, max, ..
        } = times;
        text += &format!("; {min}/{p50}/{p99}/{max} ms least/p50/p99/most");
    }
    text += &match &report.route.path {
        Some(Path::Direct(address)) => format!("\nthe connection is direct, to {address}"),
        Some(Path::Relayed(name)) => format!("\nthe connection is relayed through {name}"),
        None => "\nthere is no way to the agent".to_owned(),
    };
    if let Some(reason) = report.route.reason {
        text += &format!("\n  why: {reason}\n  what helps: {}", reason.advice());
    }
    if report.same_host {
        text += "\nthe workspace is on this machine: forwards go past the tunnel";
    }
    let handshake = match report.handshake_age {
        Some(age) => format!("last handshake {} s ago", age.as_secs()),
        None => "no handshake yet".to_owned(),
    };
    let (mtu, stack, survey) = (report.mtu, report.stack, &report.survey);
    text += &format!("\nMTU {mtu}, {handshake}, stack {stack}");
    text += &format!(
        "\nthis machine: {} of {} STUN servers answer; NAT: {}",
        answers(survey),
        survey.servers.len(),
        survey.nat
    );
    text
}

#[cfg(test)]
mod tests {
    use relay_tunnel::endpoint::StackChoice;
    use relay_tunnel::path::{Nat, StunServer};

    use super::*;

    fn sample(millis: Option<u64>) -> Sample {
        Sample {
            at: DateTime::UNIX_EPOCH,
            pong: millis.map(|millis| Pong {
                time: Duration::from_millis(millis),
                path: Path::Relayed("Here".to_owned()),
            }),
        }
    }

    fn report() -> Report {
        Report {
            agent: "main".to_owned(),
            route: Route {
                path: Some(Path::Relayed("Here".to_owned())),
                reason: Some(Reason::UdpBlocked),
            },
            mtu: 1420,
            handshake_age: Some(Duration::from_secs(3)),
            same_host: false,
            stack: StackChoice::Kernel,
            survey: Survey {
                endpoints: vec!["10.0.0.1:7".parse().unwrap()],
                stun: Stun::Silent,
                servers: vec![StunServer {
                    address: "10.0.0.9:3478".parse().unwrap(),
                    state: Stun::Silent,
                    mapped: None,
                    rtt: None,
                }],
                nat: Nat::Unknown,
            },
        }
    }

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let samples: VecDeque<Sample> = (1..=200).rev().map(|n| sample(Some(n))).collect();
        let times = Times::of(&samples).unwrap();
        assert_eq!((times.min, times.max), (1.0, 200.0));
        assert_eq!((times.p50, times.p99), (100.0, 198.0));
        assert_eq!(times.avg, 100.5);
        let one = Times::of(&[sample(Some(7)), sample(None)].into()).unwrap();
        assert_eq!((one.p50, one.p99, one.stddev), (7.0, 7.0, 0.0));
        assert_eq!(Times::of(&[sample(None)].into()), None);
    }

    #[test]
    fn the_way_and_its_reason_are_told_to_people_and_programs() {
        let report = report();
        let direct = Path::Direct("10.0.0.2:41641".parse().unwrap());
        let direct = Route {
            path: Some(direct),
            reason: None,
        };
        let routes = [direct, report.route.clone()];
        let seen = Seen {
            samples: [sample(Some(2)), sample(None), sample(Some(4))].into(),
            routes: routes.map(|route| (DateTime::UNIX_EPOCH, route)).into(),
        };
        let text = text(&seen.samples, &report);
        for part in [
            "3 pings, 2 answered, 33.3 % lost; 2/2/4/4 ms",
            "relayed through Here\n  why: UDP is blocked",
            "MTU 1420, last handshake 3 s ago, stack kernel",
            "0 of 1 STUN servers answer",
        ] {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
        let document = serde_json::to_value(document("dev", &seen, &report)).unwrap();
        assert_eq!(document["path"]["reason"], "udp_blocked");
        assert_eq!(document["path"]["direct"], false);
        assert_eq!(document["rtt_ms"]["p99"], 4.0);
        assert!(document["pings"][1]["ms"].is_null());
        assert_eq!(document["network"]["stun_servers"], 1);
        assert_eq!(document["paths"][0]["via"], "10.0.0.2:41641");
        assert_eq!(document["paths"][1]["reason"], "udp_blocked");
        assert_eq!(document["paths"][1]["since"], "1970-01-01T00:00:00Z");
    }
}

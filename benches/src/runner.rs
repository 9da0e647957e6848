//! The run: every route up, then rounds in which each figure goes over each route in turn, so that
//! a slow minute of the machine falls on all of them.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use crate::link::{Hosts, Link, Pair};
use crate::load::{self, App, Direction};
use crate::model::{Figure, Report, Route, Row};
use crate::processes::first_line;
use crate::routes::{Deployment, OpenRoute, open};
use crate::statistics::{Summary, percentile};
use crate::{Error, load::Bulk};

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The `relay` program.
    pub program: PathBuf,
    /// The routes.
    pub routes: Vec<Route>,
    /// Rounds.
    pub rounds: usize,
    /// How long each bulk figure runs a round.
    pub length: Duration,
    /// The path between the two ends; `None` is this machine's loopback.
    pub link: Option<Link>,
}

/// Told about the run while it goes on.
pub trait Progress {
    /// The number of steps to come.
    fn steps(&mut self, count: usize);
    /// A step begins.
    fn step(&mut self, what: &str);
}

/// Offered load of the datagram figures, a second.
const OFFERED: u64 = 100_000;
const HELD: usize = 1000;
/// On this machine.
const KINDS: &[Kind] = &[
    Kind::Bulk(Direction::Up, 1),
    Kind::Bulk(Direction::Down, 1),
    Kind::Bulk(Direction::Up, 8),
    Kind::Bulk(Direction::Down, 8),
    Kind::Ping,
    Kind::Connections,
    Kind::Datagrams(64),
    Kind::Datagrams(1200),
];
/// Over an emulated link: what the path decides.
const LINKED: &[Kind] = &[
    Kind::Bulk(Direction::Up, 1),
    Kind::Bulk(Direction::Down, 1),
    Kind::Ping,
    Kind::Connect,
];

#[derive(Clone, Copy)]
enum Kind {
    Bulk(Direction, usize),
    Ping,
    Connections,
    Connect,
    Datagrams(usize),
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Bulk(Direction::Up, 1) => "one stream up",
            Self::Bulk(Direction::Down, 1) => "one stream down",
            Self::Bulk(Direction::Up, _) => "eight streams up",
            Self::Bulk(Direction::Down, _) => "eight streams down",
            Self::Ping => "ping-pong",
            Self::Connections => "connections",
            Self::Connect => "time to the first byte",
            Self::Datagrams(_) => "datagrams",
        }
    }

    fn figure(self) -> Figure {
        match self {
            Self::Bulk(Direction::Up, 1) => Figure::TcpUp1,
            Self::Bulk(Direction::Down, 1) => Figure::TcpDown1,
            Self::Bulk(Direction::Up, _) => Figure::TcpUp8,
            Self::Bulk(Direction::Down, _) => Figure::TcpDown8,
            Self::Ping => Figure::PingP50,
            Self::Connections => Figure::Connections1,
            Self::Connect => Figure::Connect,
            Self::Datagrams(64) => Figure::Udp64Loss,
            Self::Datagrams(_) => Figure::Udp1200Loss,
        }
    }
}

/// Runs the plan.
///
/// # Errors
/// When no route could be put up, or a measurement over one that was up failed.
pub fn run(plan: &Plan, progress: &mut dyn Progress) -> Result<Report, Error> {
    let hosts = match plan.link {
        None => Hosts::Same,
        Some(link) => Hosts::Linked(Pair::new(link).map_err(Error::system(
            "cannot emulate a link (it takes root, /dev/net/tun and the `ip` program)",
        ))?),
    };
    let enter = |source| Error::System {
        what: "cannot enter a host".to_owned(),
        source,
    };
    let app = hosts.far(App::start).map_err(enter)?.map_err(enter)?;
    let kinds = if plan.link.is_some() { LINKED } else { KINDS };
    let mut samples = Samples::default();
    let mut missing = BTreeMap::new();
    let endings = usize::from(plan.link.is_none());
    progress.steps(plan.routes.len() * (1 + endings + plan.rounds * kinds.len()));
    let (_deployment, routes) = open_all(plan, &hosts, &app, progress, &mut missing)?;
    for route in &routes {
        samples.starting(route);
    }
    for _ in 0..plan.rounds {
        for &kind in kinds {
            for route in &routes {
                progress.step(&format!("{}: {}", route.route, kind.name()));
                let measured = hosts.near(|| samples.measure(kind, route, &app, plan.length));
                let (figure, route) = (kind.figure(), route.route);
                let failed = |source| Error::Measure {
                    figure,
                    route,
                    source,
                };
                measured.map_err(enter)?.map_err(failed)?;
            }
        }
    }
    if plan.link.is_none() {
        for route in &routes {
            progress.step(&format!("{}: {HELD} connections", route.route));
            let (figure, name) = (Figure::Memory1000, route.route);
            let failed = |source| Error::Measure {
                figure,
                route: name,
                source,
            };
            samples.ending(route).map_err(failed)?;
        }
    }
    Ok(samples.report(plan, missing))
}

fn open_all(
    plan: &Plan,
    hosts: &Hosts,
    app: &App,
    progress: &mut dyn Progress,
    missing: &mut BTreeMap<String, String>,
) -> Result<(Option<Deployment>, Vec<OpenRoute>), Error> {
    let own = |route: &Route| !matches!(route, Route::Direct | Route::Ssh);
    let deployment = match plan.routes.iter().any(own) {
        true => Some(Deployment::start(&plan.program, hosts)?),
        false => None,
    };
    let mut routes = Vec::new();
    let mut last = None;
    for &route in &plan.routes {
        progress.step(&format!("{route}: starting"));
        match open(route, hosts, app.port(), deployment.as_ref()) {
            Ok(open) => routes.push(open),
            Err(error) => {
                missing.insert(route.name().to_owned(), error.to_string());
                last = Some(error);
            }
        }
    }
    match last {
        Some(error) if routes.is_empty() => Err(error),
        _ => Ok((deployment, routes)),
    }
}

#[derive(Default)]
struct Samples {
    numbers: BTreeMap<(Route, Figure), Vec<f64>>,
    latencies: BTreeMap<Route, Vec<f64>>,
}

impl Samples {
    fn add(&mut self, route: &OpenRoute, figure: Figure, number: f64) {
        self.numbers
            .entry((route.route, figure))
            .or_default()
            .push(number);
    }

    fn starting(&mut self, route: &OpenRoute) {
        if let Some(start) = route.start {
            self.add(route, Figure::Start, start.as_secs_f64() * 1e3);
        }
        if route.route != Route::Direct {
            self.add(route, Figure::MemoryIdle, route.family.memory());
        }
    }

    fn measure(
        &mut self,
        kind: Kind,
        route: &OpenRoute,
        app: &App,
        length: Duration,
    ) -> io::Result<()> {
        match kind {
            Kind::Bulk(direction, streams) => self.bulk(route, direction, streams, length),
            Kind::Ping => self.ping(route, length),
            Kind::Connections => self.connections(route, length),
            Kind::Connect => self.connect(route),
            Kind::Datagrams(size) => self.datagrams(route, app, size, length),
        }
    }

    fn bulk(
        &mut self,
        route: &OpenRoute,
        direction: Direction,
        streams: usize,
        length: Duration,
    ) -> io::Result<()> {
        let before = route.family.cpu();
        let moved: Bulk = load::bulk(route.local, direction, streams, length)?;
        let used = route.family.cpu().saturating_sub(before);
        let (rate, cpu) = match (direction, streams) {
            (Direction::Up, 1) => (Figure::TcpUp1, Figure::CpuUp1),
            (Direction::Down, 1) => (Figure::TcpDown1, Figure::CpuDown1),
            (Direction::Up, _) => (Figure::TcpUp8, Figure::CpuUp8),
            (Direction::Down, _) => (Figure::TcpDown8, Figure::CpuDown8),
        };
        self.add(route, rate, moved.gigabits_per_second());
        if route.route != Route::Direct {
            self.add(route, cpu, used.as_secs_f64() / moved.gibibytes());
        }
        Ok(())
    }

    fn ping(&mut self, route: &OpenRoute, length: Duration) -> io::Result<()> {
        let times = load::ping_pong(route.local, length)?;
        for (share, figure) in [(0.5, Figure::PingP50), (0.99, Figure::PingP99)] {
            if let Some(time) = percentile(&times, share) {
                self.add(route, figure, time);
            }
        }
        let step = times.len().div_ceil(1000).max(1);
        self.latencies
            .insert(route.route, times.into_iter().step_by(step).collect());
        Ok(())
    }

    fn connections(&mut self, route: &OpenRoute, length: Duration) -> io::Result<()> {
        let one = load::connections(route.local, 1, length / 2)?;
        self.add(route, Figure::Connections1, one);
        let many = load::connections(route.local, 16, length / 2)?;
        self.add(route, Figure::Connections16, many);
        self.connect(route)
    }

    fn connect(&mut self, route: &OpenRoute) -> io::Result<()> {
        let times = load::connect_times(route.local, 50)?;
        if let Some(time) = percentile(&times, 0.5) {
            self.add(route, Figure::Connect, time);
        }
        Ok(())
    }

    fn datagrams(
        &mut self,
        route: &OpenRoute,
        app: &App,
        size: usize,
        length: Duration,
    ) -> io::Result<()> {
        if !route.route.carries_udp() {
            return Ok(());
        }
        let offered = load::datagrams(app, route.local, size, OFFERED, length)?;
        let (rate, loss) = match size {
            64 => (Figure::Udp64Rate, Figure::Udp64Loss),
            _ => (Figure::Udp1200Rate, Figure::Udp1200Loss),
        };
        self.add(route, rate, offered.rate());
        self.add(route, loss, offered.loss());
        Ok(())
    }

    fn ending(&mut self, route: &OpenRoute) -> io::Result<()> {
        if route.route == Route::Direct {
            return Ok(());
        }
        let held = load::hold(route.local, HELD)?;
        self.add(route, Figure::Memory1000, route.family.memory());
        drop(held);
        thread::sleep(Duration::from_secs(5));
        self.add(route, Figure::MemoryAfter, route.family.memory());
        Ok(())
    }

    fn report(self, plan: &Plan, missing: BTreeMap<String, String>) -> Report {
        let rows = self
            .numbers
            .into_iter()
            .filter_map(|((route, figure), samples)| {
                let summary = Summary::of(&samples)?;
                Some(Row {
                    route,
                    figure,
                    unit: figure.unit().text(),
                    samples,
                    summary,
                })
            })
            .collect();
        Report {
            kernel: first_line("/proc/sys/kernel/osrelease"),
            cpu: cpu_model(),
            cpus: thread::available_parallelism().map_or(1, Into::into),
            seconds: plan.length.as_secs_f64(),
            rounds: plan.rounds,
            link: plan.link.map(|link| link.to_string()),
            rows,
            missing,
            latencies: self
                .latencies
                .into_iter()
                .map(|(route, times)| (route.name().to_owned(), times))
                .collect(),
        }
    }
}

fn cpu_model() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|line| line.starts_with("model name"));
    let name = line.and_then(|line| line.split_once(':'));
    name.map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned())
}

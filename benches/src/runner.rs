//! The run: every route up, then rounds in which each figure goes over each route in turn, so that
//! a slow minute of the machine falls on all of them.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use crate::dashboard::{self, Measured, Step, Way};
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
    /// GiB moved over each route before its memory is looked at; 0 leaves that out.
    pub memory_gib: f64,
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

/// Offered loads of the datagram figures, a second.
const OFFERED: u64 = 100_000;
const OFFERED_FAST: u64 = 300_000;
/// How long a route may take to move the bulk of its memory figure.
const BULK_LIMIT: Duration = Duration::from_secs(120);
const HELD: usize = 1000;
/// From the end of a load to the look at what memory stayed.
const SETTLE: Duration = Duration::from_secs(5);
/// On this machine.
const KINDS: &[Kind] = &[
    Kind::Bulk(Direction::Up, 1),
    Kind::Bulk(Direction::Down, 1),
    Kind::Bulk(Direction::Up, 8),
    Kind::Bulk(Direction::Down, 8),
    Kind::Ping,
    Kind::Connections,
    Kind::Datagrams(64, OFFERED),
    Kind::Datagrams(1200, OFFERED),
    Kind::Datagrams(64, OFFERED_FAST),
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
    /// Their size, and how many a second are offered.
    Datagrams(usize, u64),
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
            Self::Datagrams(..) => "datagrams",
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
            Self::Datagrams(64, OFFERED) => Figure::Udp64Loss,
            Self::Datagrams(64, _) => Figure::Udp64FastLoss,
            Self::Datagrams(..) => Figure::Udp1200Loss,
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
    let endings: &[Ending] = match plan.link {
        Some(_) => &[],
        None if plan.memory_gib > 0.0 => &[Ending::Bulk, Ending::Held],
        None => &[Ending::Held],
    };
    let mut run = Run {
        plan,
        hosts,
        app,
        deployment: None,
        routes: Vec::new(),
        ways: Vec::new(),
        samples: Samples::default(),
        missing: BTreeMap::new(),
    };
    run.open_ways()?;
    let routes = plan.routes.iter().filter(|route| route.is_tcp());
    let ways = run.ways.len() * (1 + plan.rounds * Step::ROUND.len());
    progress.steps(routes.count() * (1 + endings.len() + plan.rounds * kinds.len()) + ways);
    run.open_all(progress)?;
    run.each_way(Step::Sockets, progress)?;
    for _ in 0..plan.rounds {
        for &kind in kinds {
            run.each_route(
                kind.name(),
                kind.figure(),
                progress,
                |samples, route, app| samples.measure(kind, route, app, plan.length),
            )?;
        }
        for &step in Step::ROUND {
            run.each_way(step, progress)?;
        }
    }
    for &ending in endings {
        run.each_route(
            ending.name(),
            ending.figure(),
            progress,
            |samples, route, _| samples.ending(ending, route, plan.memory_gib),
        )?;
    }
    Ok(run.samples.report(plan, run.missing))
}

/// What is looked at once, after the rounds.
#[derive(Clone, Copy)]
enum Ending {
    /// Memory after bulk.
    Bulk,
    /// Memory with many connections.
    Held,
}

impl Ending {
    fn name(self) -> &'static str {
        match self {
            Self::Bulk => "memory after bulk",
            Self::Held => "1,000 connections",
        }
    }

    fn figure(self) -> Figure {
        match self {
            Self::Bulk => Figure::MemoryBulk,
            Self::Held => Figure::Memory1000,
        }
    }
}

/// A run under way.
struct Run<'a> {
    plan: &'a Plan,
    hosts: Hosts,
    app: App,
    deployment: Option<Deployment>,
    routes: Vec<OpenRoute>,
    ways: Vec<Way>,
    samples: Samples,
    missing: BTreeMap<String, String>,
}

impl Run<'_> {
    /// Starts relay's server if a route needs it, and opens the browser's way.
    fn open_ways(&mut self) -> Result<(), Error> {
        if !self.plan.routes.iter().any(|route| route.is_own()) {
            return Ok(());
        }
        let deployment = Deployment::start(&self.plan.program, &self.hosts)?;
        let deployment = self.deployment.insert(deployment);
        if !self.plan.routes.contains(&Route::Dashboard) {
            return Ok(());
        }
        match dashboard::open(deployment, &self.hosts, &mut self.samples.notes) {
            Ok(ways) => self.ways = ways,
            Err(error) if self.plan.routes.len() == 1 => return Err(error),
            Err(error) => {
                let name = Route::Dashboard.name().to_owned();
                self.missing.insert(name, error.to_string());
            }
        }
        Ok(())
    }

    fn open_all(&mut self, progress: &mut dyn Progress) -> Result<(), Error> {
        let mut last = None;
        let routes = self.plan.routes.iter().copied().filter(|r| r.is_tcp());
        for route in routes {
            progress.step(&format!("{route}: starting"));
            match self.open(route) {
                Ok(open) => self.routes.push(open),
                Err(error) => {
                    self.missing
                        .insert(route.name().to_owned(), error.to_string());
                    last = Some(error);
                }
            }
        }
        for route in &self.routes {
            self.samples.starting(route);
        }
        match last {
            Some(error) if self.routes.is_empty() && self.ways.is_empty() => Err(error),
            _ => Ok(()),
        }
    }

    fn open(&self, route: Route) -> Result<OpenRoute, Error> {
        let deployment = self.deployment.as_ref();
        open(route, &self.hosts, self.app.port(), deployment)
    }

    /// Measures something over each route in turn.
    fn each_route(
        &mut self,
        what: &str,
        figure: Figure,
        progress: &mut dyn Progress,
        measure: impl Fn(&mut Samples, &OpenRoute, &App) -> io::Result<()> + Sync,
    ) -> Result<(), Error> {
        for open in std::mem::take(&mut self.routes) {
            let route = open.route;
            progress.step(&format!("{route}: {what}"));
            let samples = &mut self.samples;
            let work = |app: &App| measure(samples, &open, app);
            let measured = open.drive(&self.hosts, &self.app, work);
            match measured.map_err(Error::system("cannot enter a host"))? {
                Ok(()) => self.routes.push(open),
                Err(source) if route.is_peer() => {
                    // What it still has queued must not be a load on the routes after it.
                    drop(open);
                    let why = match source.kind() {
                        io::ErrorKind::WouldBlock => "it moved nothing for 20 s".to_owned(),
                        _ => source.to_string(),
                    };
                    self.begin_again(route, format!("{route}: {figure} failed: {why}"));
                }
                Err(source) => {
                    return Err(Error::Measure {
                        figure,
                        route,
                        source,
                    });
                }
            }
        }
        Ok(())
    }

    /// Measures something over each of a browser's ways in turn.
    fn each_way(&mut self, step: Step, progress: &mut dyn Progress) -> Result<(), Error> {
        for way in std::mem::take(&mut self.ways) {
            progress.step(&format!("{}: {}", way.route, step.name()));
            match way.measure(step, self.plan.length) {
                Ok(measured) => self.samples.add_measured(way.route, measured),
                Err(error) if way.route.is_peer() => {
                    self.samples.notes.push(error.to_string());
                    continue;
                }
                Err(error) => return Err(error),
            }
            self.ways.push(way);
        }
        Ok(())
    }

    /// Starts a peer anew that failed; what failed is told with the numbers.
    fn begin_again(&mut self, route: Route, note: String) {
        if !self.samples.notes.contains(&note) {
            self.samples.notes.push(note);
        }
        match self.open(route) {
            Ok(open) => self.routes.push(open),
            Err(error) => {
                let note = format!("{route}: left out from there on: {error}");
                self.samples.notes.push(note);
            }
        }
    }
}

#[derive(Default)]
struct Samples {
    numbers: BTreeMap<(Route, Figure), Vec<f64>>,
    latencies: BTreeMap<Route, Vec<f64>>,
    http_latencies: BTreeMap<Route, Vec<f64>>,
    notes: Vec<String>,
}

impl Samples {
    fn add(&mut self, route: &OpenRoute, figure: Figure, number: f64) {
        self.numbers
            .entry((route.route, figure))
            .or_default()
            .push(number);
    }

    fn add_measured(&mut self, route: Route, measured: Measured) {
        for (figure, number) in measured.numbers {
            self.numbers
                .entry((route, figure))
                .or_default()
                .push(number);
        }
        if let Some(times) = measured.times {
            self.http_latencies.insert(route, thinned(times));
        }
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
            Kind::Datagrams(size, rate) => self.datagrams(route, app, (size, rate), length),
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
        self.latencies.insert(route.route, thinned(times));
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
        (size, rate): (usize, u64),
        length: Duration,
    ) -> io::Result<()> {
        if !route.route.carries_udp() {
            return Ok(());
        }
        let offered = load::datagrams(app, route.local, size, rate, length)?;
        let (arrived, loss) = match (size, rate) {
            (64, OFFERED) => (Figure::Udp64Rate, Figure::Udp64Loss),
            (64, _) => (Figure::Udp64FastRate, Figure::Udp64FastLoss),
            _ => (Figure::Udp1200Rate, Figure::Udp1200Loss),
        };
        if arrived == Figure::Udp64FastRate {
            // The machine may not get there.
            self.add(route, Figure::Udp64FastOffered, offered.offered());
        }
        self.add(route, arrived, offered.rate());
        self.add(route, loss, offered.loss());
        Ok(())
    }

    fn ending(&mut self, ending: Ending, route: &OpenRoute, gib: f64) -> io::Result<()> {
        if route.route == Route::Direct {
            return Ok(());
        }
        match ending {
            Ending::Bulk => {
                move_bulk(route, gib)?;
                thread::sleep(SETTLE);
                self.add(route, Figure::MemoryBulk, route.family.memory());
            }
            Ending::Held => {
                let held = load::hold(route.local, HELD)?;
                self.add(route, Figure::Memory1000, route.family.memory());
                drop(held);
                thread::sleep(SETTLE);
                self.add(route, Figure::MemoryAfter, route.family.memory());
            }
        }
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
            bulk_gib: plan.memory_gib,
            rows,
            missing,
            notes: self.notes,
            latencies: by_name(self.latencies),
            http_latencies: by_name(self.http_latencies),
        }
    }
}

/// At most 1,000 of some sorted times.
fn thinned(times: Vec<f64>) -> Vec<f64> {
    let step = times.len().div_ceil(1000).max(1);
    times.into_iter().step_by(step).collect()
}

fn by_name(latencies: BTreeMap<Route, Vec<f64>>) -> BTreeMap<String, Vec<f64>> {
    let named = latencies.into_iter();
    named
        .map(|(route, times)| (route.name().to_owned(), times))
        .collect()
}

/// Moves `gib` in turns of a second, up and down.
fn move_bulk(route: &OpenRoute, gib: f64) -> io::Result<()> {
    let begin = Instant::now();
    let mut moved = 0.0;
    for direction in [Direction::Up, Direction::Down].into_iter().cycle() {
        moved += load::bulk(route.local, direction, 1, Duration::from_secs(1))?.gibibytes();
        if moved >= gib {
            break;
        }
        if begin.elapsed() > BULK_LIMIT {
            let seconds = BULK_LIMIT.as_secs();
            let words = format!("only {moved:.1} of {gib} GiB moved within {seconds} s");
            return Err(io::Error::new(io::ErrorKind::TimedOut, words));
        }
    }
    Ok(())
}

fn cpu_model() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|line| line.starts_with("model name"));
    let name = line.and_then(|line| line.split_once(':'));
    name.map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned())
}

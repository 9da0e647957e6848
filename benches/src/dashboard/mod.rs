//! The way of a browser: through the server's proxy and its tunnel to an HTTP app, beside a plain
//! HTTP proxy to the same app and the app itself.

mod app;
mod client;
mod head;
mod login;

use std::io;
use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use crate::load::Direction;
use crate::model::{Figure, Route};
use crate::processes::Family;
use crate::routes::{Deployment, OpenRoute, READY, haproxy_http};
use crate::statistics::percentile;
use crate::{Error, link::Hosts};
use app::App;
use client::Site;

/// WebSockets held at once.
const HELD: usize = 1000;
/// Held before the memory is first looked at, so that what is made once is not counted.
const HELD_BEFORE: usize = 16;
/// Clients at once.
const CLIENTS: usize = 16;
/// From the last WebSocket to the look at the memory.
const SETTLE: Duration = Duration::from_millis(500);

/// One thing that is measured over each way in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Small requests from this many clients.
    Requests(usize),
    /// The large file.
    Bulk(Direction),
    /// What the app's cookie saves.
    Cookie,
    /// The memory of WebSockets.
    Sockets,
}

impl Step {
    /// Measured in each round.
    pub(crate) const ROUND: &'static [Self] = &[
        Self::Requests(1),
        Self::Requests(CLIENTS),
        Self::Bulk(Direction::Down),
        Self::Bulk(Direction::Up),
        Self::Cookie,
    ];

    /// In a few words.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Requests(1) => "requests of one client",
            Self::Requests(_) => "requests of sixteen clients",
            Self::Bulk(Direction::Down) => "a download",
            Self::Bulk(Direction::Up) => "an upload",
            Self::Cookie => "requests without the app's cookie",
            Self::Sockets => "1,000 WebSockets",
        }
    }

    fn figure(self) -> Figure {
        match self {
            Self::Requests(1) => Figure::HttpRate1,
            Self::Requests(_) => Figure::HttpRate16,
            Self::Bulk(Direction::Down) => Figure::HttpDown,
            Self::Bulk(Direction::Up) => Figure::HttpUp,
            Self::Cookie => Figure::HttpNoCookie,
            Self::Sockets => Figure::HttpWebSocket,
        }
    }
}

/// A way to the app.
pub(crate) struct Way {
    /// The column of the report.
    pub(crate) route: Route,
    site: Site,
    /// The processes in between.
    family: Family,
    /// The one of these that browsers talk to.
    front: Family,
    _open: Option<OpenRoute>,
}

/// What a step gave.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    /// The numbers.
    pub(crate) numbers: Vec<(Figure, f64)>,
    /// Sorted times of requests of one client, microseconds.
    pub(crate) times: Option<Vec<f64>>,
}

/// Puts the ways up; a plain proxy that cannot be is told in `notes`.
///
/// # Errors
/// When the way through the server cannot be put up.
pub(crate) fn open(
    deployment: &Deployment,
    hosts: &Hosts,
    notes: &mut Vec<String>,
) -> Result<Vec<Way>, Error> {
    if !matches!(hosts, Hosts::Same) {
        let what = "the dashboard is measured over loopback only";
        return Err(Error::system(what)(io::ErrorKind::Unsupported.into()));
    }
    let app = App::start().map_err(Error::system("cannot start the HTTP app"))?;
    let direct = (Ipv4Addr::LOCALHOST, app.port()).into();
    let through = deployment.web(hosts)?;
    let host = through.host(app.port());
    let site = login::visit(&through.account, &host, READY);
    let site = site.map_err(Error::system("cannot open the app in a browser's way"))?;
    let mut ways = vec![Way {
        route: Route::Direct,
        site: plain(direct),
        family: Family::default(),
        front: Family::default(),
        _open: None,
    }];
    let front = Family::of([through.server]);
    ways.push(Way {
        route: Route::Dashboard,
        site,
        family: through.open.family.clone(),
        front,
        _open: Some(through.open),
    });
    match haproxy_http(app.port()) {
        Ok(open) => ways.push(Way {
            route: Route::Haproxy,
            site: plain(open.local),
            family: open.family.clone(),
            front: open.family.clone(),
            _open: Some(open),
        }),
        Err(error) => notes.push(format!("dashboard: no plain proxy beside it: {error}")),
    }
    Ok(ways)
}

fn plain(address: std::net::SocketAddr) -> Site {
    Site {
        address,
        host: address.to_string(),
        cookies: Vec::new(),
    }
}

impl Way {
    /// Measures one step.
    ///
    /// # Errors
    /// When a request fails.
    pub(crate) fn measure(&self, step: Step, length: Duration) -> Result<Measured, Error> {
        let measured = match step {
            Step::Requests(clients) => self.requests(clients, length),
            Step::Bulk(direction) => self.bulk(direction, length),
            Step::Cookie => self.cookie(length),
            Step::Sockets => self.sockets(),
        };
        measured.map_err(|source| Error::Measure {
            figure: step.figure(),
            route: self.route,
            source,
        })
    }

    fn requests(&self, clients: usize, length: Duration) -> io::Result<Measured> {
        let client::Requests { rate, times } = client::requests(&self.site, clients, length)?;
        let figures = match clients {
            1 => [Figure::HttpRate1, Figure::HttpP50, Figure::HttpP99],
            _ => [Figure::HttpRate16, Figure::Http16P50, Figure::Http16P99],
        };
        let mut numbers = vec![(figures[0], rate)];
        for (share, figure) in [(0.5, figures[1]), (0.99, figures[2])] {
            numbers.extend(percentile(&times, share).map(|time| (figure, time)));
        }
        let times = (clients == 1).then_some(times);
        Ok(Measured { numbers, times })
    }

    fn bulk(&self, direction: Direction, length: Duration) -> io::Result<Measured> {
        let before = self.family.cpu();
        let moved = client::bulk(&self.site, direction, length)?;
        let used = self.family.cpu().saturating_sub(before);
        let (rate, cpu) = match direction {
            Direction::Down => (Figure::HttpDown, Figure::HttpCpuDown),
            Direction::Up => (Figure::HttpUp, Figure::HttpCpuUp),
        };
        let mut numbers = vec![(rate, moved.gigabits_per_second())];
        if self.route != Route::Direct {
            numbers.push((cpu, used.as_secs_f64() / moved.gibibytes()));
        }
        Ok(Measured {
            numbers,
            times: None,
        })
    }

    fn cookie(&self, length: Duration) -> io::Result<Measured> {
        if self.route != Route::Dashboard {
            return Ok(Measured::default());
        }
        let (with, without) = client::cookie_times(&self.site, length)?;
        Ok(Measured {
            numbers: vec![(Figure::HttpNoCookie, without - with)],
            times: None,
        })
    }

    fn sockets(&self) -> io::Result<Measured> {
        if self.route == Route::Direct {
            return Ok(Measured::default());
        }
        let first = client::hold(&self.site, HELD_BEFORE)?;
        thread::sleep(SETTLE);
        let before = self.front.memory();
        let held = client::hold(&self.site, HELD)?;
        thread::sleep(SETTLE);
        let more = self.front.memory() - before;
        drop((first, held));
        Ok(Measured {
            numbers: vec![(Figure::HttpWebSocket, more * 1024.0 / HELD as f64)],
            times: None,
        })
    }
}

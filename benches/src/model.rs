//! What is measured: routes, figures, and the report that holds the samples.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::Error;
use crate::statistics::Summary;

macro_rules! routes {
    ($($variant:ident, $name:literal, $kind:ident, $doc:literal;)*) => {
        /// A way from a local port to the app.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
        pub enum Route {
            $(#[doc = $doc] #[serde(rename = $name)] $variant,)*
        }

        impl Route {
            /// All that are known, peers included, in the order of the report.
            pub const EVERY: &'static [Self] = &[$(Self::$variant,)*];

            /// The name on the command line and in reports.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            fn kind(self) -> Kind {
                match self { $(Self::$variant => Kind::$kind,)* }
            }
        }
    };
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Plain loopback and OpenSSH.
    Yardstick,
    /// Through relay.
    Own,
    /// Another forwarder.
    Peer,
}

routes! {
    Direct, "direct", Yardstick, "No forwarder at all: the app's own port on loopback";
    P2p, "p2p", Own, "`relay port-forward` over peer-to-peer WireGuard at the proven MTU";
    P2p1280, "p2p-1280", Own, "The same with the tunnel held at MTU 1280, as towards Coder peers";
    P2pUser, "p2p-user", Own, "The same as p2p with relay's own TCP at both ends, as in containers (--stack user)";
    Relayed, "relayed", Own, "`relay port-forward` through the relay server (DERP)";
    Dashboard, "dashboard", Own, "A browser's way: HTTP through the server's app proxy and its WireGuard tunnel";
    Ssh, "ssh", Yardstick, "OpenSSH's `ssh -L`";
    SshTunnel, "ssh-tunnel", Own, "OpenSSH's `ssh -L` to an sshd behind `relay port-forward`: encrypted twice";
    Onetun, "onetun", Peer, "onetun, to a WireGuard device of boringtun-cli or gotatun-cli";
    Boringtun, "boringtun", Peer, "Two WireGuard devices of boringtun-cli, the kernel's TCP end to end";
    Gotatun, "gotatun", Peer, "Two WireGuard devices of gotatun-cli, the kernel's TCP end to end";
    Rathole, "rathole", Peer, "rathole with its Noise transport";
    Bore, "bore", Peer, "bore: two hops in plain text";
    Dumbpipe, "dumbpipe", Peer, "dumbpipe: QUIC";
    Socat, "socat", Peer, "socat: one hop in plain text, a process a connection";
    Haproxy, "haproxy", Peer, "haproxy: one hop in plain text";
}

impl Route {
    /// Those measured when nothing else is asked for: relay's, plain loopback and OpenSSH.
    pub fn usual() -> Vec<Self> {
        Self::EVERY
            .iter()
            .copied()
            .filter(|route| !route.is_peer())
            .collect()
    }

    /// Other forwarders, measured when they are asked for and installed.
    pub fn peers() -> Vec<Self> {
        Self::EVERY
            .iter()
            .copied()
            .filter(|route| route.is_peer())
            .collect()
    }

    /// Whether it is another forwarder.
    pub fn is_peer(self) -> bool {
        self.kind() == Kind::Peer
    }

    /// Whether relay itself is part of it.
    pub fn is_own(self) -> bool {
        self.kind() == Kind::Own
    }

    /// Whether it carries any bytes of a TCP connection; the dashboard carries HTTP only.
    pub fn is_tcp(self) -> bool {
        self != Self::Dashboard
    }

    /// Whether the route can carry datagrams.
    pub fn carries_udp(self) -> bool {
        !matches!(
            self,
            Self::Dashboard
                | Self::Ssh
                | Self::SshTunnel
                | Self::Bore
                | Self::Dumbpipe
                | Self::Socat
                | Self::Haproxy
        )
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Route {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let found = Self::EVERY.iter().find(|route| route.name() == text);
        found
            .copied()
            .ok_or_else(|| Error::NoSuchRoute(text.to_owned()))
    }
}

/// The unit of a figure, and which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Goodput, gigabits (10^9) a second; more is better.
    GigabitsPerSecond,
    /// CPU seconds (user and system) of the forwarder's processes per GiB moved; less is better.
    CpuSecondsPerGib,
    /// Microseconds; less is better.
    Microseconds,
    /// Milliseconds; less is better.
    Milliseconds,
    /// Events a second; more is better.
    PerSecond,
    /// Percent; less is better.
    Percent,
    /// Mebibytes of anonymous and shared memory, shared pages counted once; less is better.
    Mebibytes,
    /// Kibibytes of the same; less is better.
    Kibibytes,
}

impl Unit {
    /// The text behind a number.
    pub fn text(self) -> &'static str {
        match self {
            Self::GigabitsPerSecond => "Gbit/s",
            Self::CpuSecondsPerGib => "CPU s/GiB",
            Self::Microseconds => "µs",
            Self::Milliseconds => "ms",
            Self::PerSecond => "/s",
            Self::Percent => "%",
            Self::Mebibytes => "MiB",
            Self::Kibibytes => "KiB",
        }
    }

    /// Whether a larger number is the better one.
    pub fn more_is_better(self) -> bool {
        matches!(self, Self::GigabitsPerSecond | Self::PerSecond)
    }
}

macro_rules! figures {
    ($($variant:ident, $name:literal, $unit:ident, $doc:literal;)*) => {
        /// One measured number.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
        pub enum Figure {
            $(#[doc = $doc] #[serde(rename = $name)] $variant,)*
        }

        impl Figure {
            /// All of them, in the order of the report.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name in reports.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Its unit.
            pub fn unit(self) -> Unit {
                match self { $(Self::$variant => Unit::$unit,)* }
            }

            /// A sentence for people.
            pub fn about(self) -> &'static str {
                match self { $(Self::$variant => $doc,)* }
            }
        }
    };
}

figures! {
    TcpUp1, "tcp-up1", GigabitsPerSecond, "One TCP stream towards the app";
    TcpDown1, "tcp-down1", GigabitsPerSecond, "One TCP stream from the app";
    TcpUp8, "tcp-up8", GigabitsPerSecond, "Eight TCP streams towards the app";
    TcpDown8, "tcp-down8", GigabitsPerSecond, "Eight TCP streams from the app";
    CpuUp1, "cpu-up1", CpuSecondsPerGib, "CPU of the forwarder's processes, one stream towards the app";
    CpuDown1, "cpu-down1", CpuSecondsPerGib, "CPU of the forwarder's processes, one stream from the app";
    CpuUp8, "cpu-up8", CpuSecondsPerGib, "CPU of the forwarder's processes, eight streams towards the app";
    CpuDown8, "cpu-down8", CpuSecondsPerGib, "CPU of the forwarder's processes, eight streams from the app";
    PingP50, "ping-p50", Microseconds, "One byte each way on an open connection, median";
    PingP99, "ping-p99", Microseconds, "One byte each way on an open connection, 99th percentile";
    Connections1, "connections1", PerSecond, "Connect, one byte each way, close; one client";
    Connections16, "connections16", PerSecond, "Connect, one byte each way, close; sixteen clients";
    Connect, "connect", Microseconds, "From connect to the first byte of the answer, median";
    Udp64Rate, "udp64-rate", PerSecond, "Datagrams of 64 B received, 100,000 a second offered";
    Udp64Loss, "udp64-loss", Percent, "Datagrams of 64 B lost, 100,000 a second offered";
    Udp1200Rate, "udp1200-rate", PerSecond, "Datagrams of 1200 B received, 100,000 a second offered";
    Udp1200Loss, "udp1200-loss", Percent, "Datagrams of 1200 B lost, 100,000 a second offered";
    Udp64FastOffered, "udp64-300k-offered", PerSecond, "Datagrams of 64 B really sent, 300,000 a second meant";
    Udp64FastRate, "udp64-300k-rate", PerSecond, "Datagrams of 64 B received, 300,000 a second offered";
    Udp64FastLoss, "udp64-300k-loss", Percent, "Datagrams of 64 B lost, 300,000 a second offered";
    Start, "start", Milliseconds, "From the start of the command to its Ready";
    MemoryIdle, "memory-idle", Mebibytes, "Both ends before any traffic";
    Memory1000, "memory-1000", Mebibytes, "Both ends with 1,000 open connections";
    MemoryBulk, "memory-bulk", Mebibytes, "Both ends 5 s after the asked amount of bulk";
    MemoryAfter, "memory-after", Mebibytes, "Both ends 5 s after all of it";
    HttpRate1, "http-rate1", PerSecond, "HTTP requests for a page of 1 KiB on a kept connection; one client";
    HttpRate16, "http-rate16", PerSecond, "HTTP requests for a page of 1 KiB on kept connections; sixteen clients";
    HttpP50, "http-p50", Microseconds, "From an HTTP request to the end of its answer, median; one client";
    HttpP99, "http-p99", Microseconds, "From an HTTP request to the end of its answer, 99th percentile; one client";
    Http16P50, "http16-p50", Microseconds, "From an HTTP request to the end of its answer, median; sixteen clients";
    Http16P99, "http16-p99", Microseconds, "From an HTTP request to the end of its answer, 99th percentile; sixteen clients";
    HttpDown, "http-down", GigabitsPerSecond, "Downloads of 64 MiB over HTTP, one after the other";
    HttpUp, "http-up", GigabitsPerSecond, "Uploads of 64 MiB over HTTP, one after the other";
    HttpCpuDown, "http-cpu-down", CpuSecondsPerGib, "CPU of the processes between, downloads";
    HttpCpuUp, "http-cpu-up", CpuSecondsPerGib, "CPU of the processes between, uploads";
    HttpNoCookie, "http-no-cookie", Microseconds, "What a request without the app's cookie takes more than one with it, difference of medians";
    HttpWebSocket, "http-websocket", Kibibytes, "Memory of the server or proxy for each of 1,000 open WebSockets";
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The samples of one figure over one route.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The route.
    pub route: Route,
    /// The figure.
    pub figure: Figure,
    /// The unit's text.
    pub unit: &'static str,
    /// One number a round, in the order measured.
    pub samples: Vec<f64>,
    /// Median and range of the samples.
    pub summary: Summary,
}

/// The result of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The kernel's release.
    pub kernel: String,
    /// CPU's model name.
    pub cpu: String,
    /// CPUs online.
    pub cpus: usize,
    /// Seconds a bulk figure was measured for, each round.
    pub seconds: f64,
    /// Rounds.
    pub rounds: usize,
    /// The emulated path between the two ends, in words.
    pub link: Option<String>,
    /// GiB moved before `memory-bulk` was taken.
    pub bulk_gib: f64,
    /// All rows.
    pub rows: Vec<Row>,
    /// Routes that could not be measured, with the reason.
    pub missing: BTreeMap<String, String>,
    /// Figures that a peer failed at, in words.
    pub notes: Vec<String>,
    /// Sorted ping-pong times of each route, microseconds, at most 1,000 points.
    pub latencies: BTreeMap<String, Vec<f64>>,
    /// The same for HTTP requests of one client.
    pub http_latencies: BTreeMap<String, Vec<f64>>,
}

impl Report {
    /// The row of a figure over a route.
    pub fn row(&self, route: Route, figure: Figure) -> Option<&Row> {
        self.rows
            .iter()
            .find(|row| row.route == route && row.figure == figure)
    }

    /// The routes that have rows, in the order of [`Route::EVERY`].
    pub fn routes(&self) -> Vec<Route> {
        let measured = |route: &Route| self.rows.iter().any(|row| row.route == *route);
        Route::EVERY.iter().copied().filter(measured).collect()
    }

    /// What a figure is called in this report.
    pub fn label(&self, figure: Figure) -> String {
        match figure {
            Figure::MemoryBulk => format!("memory after {} GiB", self.bulk_gib),
            _ => figure.name().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_found_by_its_name_and_another_name_lists_them() {
        for route in Route::EVERY {
            assert_eq!(route.name().parse::<Route>().unwrap(), *route);
        }
        let error = "carrier-pigeon".parse::<Route>().unwrap_err().to_string();
        assert!(error.contains("ssh-tunnel, onetun"), "{error}");
    }

    #[test]
    fn peers_are_measured_only_when_asked_for() {
        let usual = Route::usual();
        assert!(usual.contains(&Route::SshTunnel) && !usual.contains(&Route::Socat));
        assert_eq!(usual.len() + Route::peers().len(), Route::EVERY.len());
    }
}

//! An emulated path between two hosts of this machine: two network namespaces joined by two TUN
//! devices, with a thread between them that delays, drops and paces packets.
//!
//! Needs root and `/dev/net/tun`; nothing outside the two namespaces is touched.

mod emulator;
mod host;
mod tun;

use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::time::Duration;

pub use host::Host;

/// What the path does to packets, the same in both directions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Time there and back.
    pub rtt: Duration,
    /// Share of packets dropped in each direction, 0 to 1, independently of each other.
    pub loss: f64,
    /// Bits a second in each direction; `None` is unlimited.
    pub rate: Option<u64>,
}

/// Why a text is no link.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is no link; write RTT[,LOSS[,RATE]], for example 40ms,0.5%,300mbit")]
pub struct LinkError(String);

impl FromStr for Link {
    type Err = LinkError;

    fn from_str(text: &str) -> Result<Self, LinkError> {
        parse(text).ok_or_else(|| LinkError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Link> {
    let mut parts = text.split(',').map(str::trim);
    let millis: f64 = parts.next()?.strip_suffix("ms")?.parse().ok()?;
    let percent: f64 = match parts.next() {
        Some(loss) => loss.strip_suffix('%')?.parse().ok()?,
        None => 0.0,
    };
    let rate = match parts.next() {
        Some(rate) => Some(rate.strip_suffix("mbit")?.parse::<u32>().ok()?),
        None => None,
    };
    let sane = (0.0..=60_000.0).contains(&millis)
        && (0.0..100.0).contains(&percent)
        && rate != Some(0)
        && parts.next().is_none();
    sane.then(|| Link {
        rtt: Duration::from_secs_f64(millis / 1e3),
        loss: percent / 100.0,
        rate: rate.map(|rate| u64::from(rate) * 1_000_000),
    })
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "RTT {} ms, loss {} %",
            self.rtt.as_secs_f64() * 1e3,
            self.loss * 100.0
        )?;
        match self.rate {
            Some(rate) => write!(f, ", {} Mbit/s", rate / 1_000_000),
            None => Ok(()),
        }
    }
}

/// Two hosts with a link between them; all of it ends when it is dropped.
#[derive(Debug)]
pub struct Pair {
    /// The developer's side, at [`Pair::NEAR`].
    pub near: Host,
    /// The workspace's side, at [`Pair::FAR`].
    pub far: Host,
    _emulator: emulator::Emulator,
}

impl Pair {
    /// Address of the near host.
    pub const NEAR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
    /// Address of the far host.
    pub const FAR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

    /// Makes both hosts and the link.
    ///
    /// # Errors
    /// Without the right to make namespaces or TUN devices.
    pub fn new(link: Link) -> io::Result<Self> {
        let (near, near_device) = Host::new(Self::NEAR)?;
        let (far, far_device) = Host::new(Self::FAR)?;
        let emulator = emulator::Emulator::start(link, near_device, far_device)?;
        Ok(Self {
            near,
            far,
            _emulator: emulator,
        })
    }
}

/// Where the two ends of a route are.
#[derive(Debug)]
pub enum Hosts {
    /// Both on this machine, over loopback.
    Same,
    /// On the two ends of an emulated link.
    Linked(Pair),
}

impl Hosts {
    /// Runs `work` where the developer is.
    ///
    /// # Errors
    /// When the host cannot be entered.
    pub fn near<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        match self {
            Self::Same => Ok(work()),
            Self::Linked(pair) => pair.near.enter(work),
        }
    }

    /// Runs `work` where the workspace, its app and the server are.
    ///
    /// # Errors
    /// When the host cannot be entered.
    pub fn far<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        match self {
            Self::Same => Ok(work()),
            Self::Linked(pair) => pair.far.enter(work),
        }
    }

    /// The address at which the near side reaches the far one.
    pub fn far_address(&self) -> Ipv4Addr {
        match self {
            Self::Same => Ipv4Addr::LOCALHOST,
            Self::Linked(_) => Pair::FAR,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_written_as_rtt_loss_and_rate() {
        let link: Link = "40ms,0.5%,300mbit".parse().unwrap();
        assert_eq!(link.rtt, Duration::from_millis(40));
        assert!((link.loss - 0.005).abs() < 1e-12);
        assert_eq!(link.rate, Some(300_000_000));
        assert_eq!(link.to_string(), "RTT 40 ms, loss 0.5 %, 300 Mbit/s");
        assert_eq!("20ms".parse::<Link>().unwrap().rate, None);
    }

    #[test]
    fn what_is_no_link_is_refused_with_its_text() {
        for text in [
            "",
            "40",
            "40ms,1",
            "40ms,100%",
            "1ms,0%,0mbit",
            "1ms,0%,1mbit,x",
            "-1ms",
        ] {
            let error = text.parse::<Link>().unwrap_err().to_string();
            assert!(error.contains(&format!("'{text}'")), "{error}");
        }
    }
}

//! Forwards of every kind, each with a text that names it:
//!
//! ```text
//! forward = "tcp://" spec | "udp://" spec | "unix://" unix | "reverse://" reverse
//! unix    = path ":" "/" path | path ":" port | [ bind ":" ] port ":" "/" path
//! reverse = ports *( "," ports ) | "/" path ":" "/" path
//! ports   = port [ "-" port ] [ ":" [ host ":" ] port [ "-" port ] ]
//! ```
//!
//! `spec` is that of [`crate::spec`]; ranges of both sides are as long. In all but `reverse` this machine's side comes first; in
//! `reverse` the workspace's does, as in `ssh -R`.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use crate::remote_forward::RemoteForward;
use crate::spec::{Forward, Pair, Proto, SpecError, SpecReason, parse_specs};

/// The host that a short reverse forward leads to.
const HERE: &str = "localhost";
/// The longest path of a Unix socket, bytes (unix(7): 108 with the final zero).
const LONGEST_PATH: usize = 107;

/// One forward.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AnyForward {
    /// A port here leads to a port of the workspace.
    Port(Forward),
    /// The same with a Unix socket on one side at least.
    Unix(UnixForward),
    /// A port or socket of the workspace leads here.
    Reverse(RemoteForward),
}

/// A forward with a Unix socket on one side at least.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UnixForward {
    /// What is listened on.
    pub here: Here,
    /// Where it leads.
    pub there: There,
}

/// This machine's side.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Here {
    /// A Unix socket.
    Socket(PathBuf),
    /// A TCP port; without an address, of both loopback addresses.
    Port(Option<IpAddr>, u16),
}

/// The workspace's side.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum There {
    /// A Unix socket, by its absolute path.
    Socket(String),
    /// A TCP port of its loopback.
    Port(u16),
}

/// What is wrong with a text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// It does not begin with a known word.
    #[error(
        "{0:?} is no forward; write tcp://8080:8000, udp://5353:53, unix:///l.sock:/r.sock or reverse://8080:3000"
    )]
    Kind(String),
    /// Ports.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Sockets.
    #[error(
        "{0:?} is no forward of a Unix socket; write LOCAL.sock:/REMOTE.sock, LOCAL.sock:PORT or \
         PORT:/REMOTE.sock"
    )]
    Unix(String),
    /// A path that no socket can have.
    #[error("{0:?} is too long for a Unix socket; its path may have {LONGEST_PATH} bytes")]
    Path(String),
    /// The other direction.
    #[error(
        "{0:?} is no reverse forward; write REMOTE_PORT:LOCAL_PORT, REMOTE_PORT:LOCAL_HOST:LOCAL_PORT \
         or /REMOTE.sock:/LOCAL.sock; ports may be ranges"
    )]
    Reverse(String),
    /// Its ports.
    #[error("{spec:?} is no reverse forward: {reason}")]
    ReversePorts {
        /// The text.
        spec: String,
        /// What is wrong with them.
        reason: SpecReason,
    },
}

impl AnyForward {
    /// Reads the text of a forward; ranges and lists of ports are several.
    ///
    /// # Errors
    /// [`ForwardError`], which names the text.
    pub fn parse(text: &str) -> Result<Vec<Self>, ForwardError> {
        let unknown = || ForwardError::Kind(text.to_owned());
        let (kind, rest) = text.trim().split_once("://").ok_or_else(unknown)?;
        let ports = |forwards: Vec<Forward>| forwards.into_iter().map(Self::Port).collect();
        match kind {
            "tcp" => Ok(ports(parse_specs(&[rest], &[])?)),
            "udp" => Ok(ports(parse_specs(&[], &[rest])?)),
            "unix" => Ok(vec![Self::Unix(rest.parse()?)]),
            "reverse" => Ok(parse_reverse(rest)?
                .into_iter()
                .map(Self::Reverse)
                .collect()),
            _ => Err(unknown()),
        }
    }
}

impl From<Forward> for AnyForward {
    fn from(forward: Forward) -> Self {
        Self::Port(forward)
    }
}

impl fmt::Display for AnyForward {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(forward) => write!(out, "{forward}"),
            Self::Unix(forward) => write!(out, "unix://{forward}"),
            Self::Reverse(forward) => write!(out, "reverse://{forward}"),
        }
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}://", self.proto)?;
        write_bind(out, self.bind)?;
        write!(out, "{}:{}", self.local, self.remote)
    }
}

fn write_bind(out: &mut fmt::Formatter<'_>, bind: Option<IpAddr>) -> fmt::Result {
    match bind {
        Some(IpAddr::V4(ip)) => write!(out, "{ip}:"),
        Some(IpAddr::V6(ip)) => write!(out, "[{ip}]:"),
        None => Ok(()),
    }
}

impl fmt::Display for UnixForward {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.here, self.there)
    }
}

impl fmt::Display for Here {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(out, "{}", path.display()),
            Self::Port(bind, port) => {
                write_bind(out, *bind)?;
                write!(out, "{port}")
            }
        }
    }
}

impl fmt::Display for There {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => out.write_str(path),
            Self::Port(port) => write!(out, "{port}"),
        }
    }
}

impl FromStr for UnixForward {
    type Err = ForwardError;

    fn from_str(text: &str) -> Result<Self, ForwardError> {
        let invalid = || ForwardError::Unix(text.to_owned());
        if text.contains('\0') {
            return Err(invalid());
        }
        // A path there begins with a slash, so the last such place is where the sides meet.
        let (here, there) = match text.rfind(":/") {
            Some(at) => (&text[..at], There::Socket(text[at + 1..].to_owned())),
            None => {
                let (here, port) = text.rsplit_once(':').ok_or_else(invalid)?;
                (here, There::Port(single(port).ok_or_else(invalid)?))
            }
        };
        let here = match port_here(here) {
            Some(here) => here,
            None if is_path(here) => Here::Socket(here.into()),
            None => return Err(invalid()),
        };
        match (&here, &there) {
            (Here::Port(..), There::Port(_)) => return Err(invalid()),
            (_, There::Socket(path)) if path.len() < 2 => return Err(invalid()),
            _ => {}
        }
        if let There::Socket(path) = &there {
            check_length(path)?;
        }
        if let Here::Socket(path) = &here {
            check_length(&path.to_string_lossy())?;
        }
        Ok(Self { here, there })
    }
}

fn is_path(text: &str) -> bool {
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    !text.is_empty() && !text.ends_with('/') && !number(text)
}

fn check_length(path: &str) -> Result<(), ForwardError> {
    match path.len() <= LONGEST_PATH {
        true => Ok(()),
        false => Err(ForwardError::Path(path.to_owned())),
    }
}

/// A port of this machine, with or without an address.
fn port_here(text: &str) -> Option<Here> {
    let forwards = parse_specs(&[text], &[]).ok()?;
    match forwards[..] {
        // What is written once is the same on both sides.
        [one] if one.local == one.remote && one.proto == Proto::Tcp => {
            Some(Here::Port(one.bind, one.local))
        }
        _ => None,
    }
}

fn single(port: &str) -> Option<u16> {
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    let port = digits.then(|| port.parse().ok()).flatten();
    port.filter(|port| *port != 0)
}

/// Reads reverse forwards: what `ssh -R` takes, or with no host, or with no more than ports, which may
/// be ranges, and several after commas.
///
/// # Errors
/// [`ForwardError::Reverse`] and [`ForwardError::ReversePorts`], which name the text.
pub fn parse_reverse(text: &str) -> Result<Vec<RemoteForward>, ForwardError> {
    if text.starts_with('/') {
        let forward: Result<RemoteForward, _> = text.parse();
        let forward = forward.map_err(|_| ForwardError::Reverse(text.to_owned()))?;
        if let RemoteForward::Unix { remote, local } = &forward {
            check_length(remote)?;
            check_length(&local.to_string_lossy())?;
        }
        return Ok(vec![forward]);
    }
    let pieces = text.split(',').map(|piece| match piece.trim() {
        "" => Err(ForwardError::Reverse(text.to_owned())),
        piece => reverse_ports(piece),
    });
    let forwards: Vec<_> = pieces.collect::<Result<_, _>>()?;
    Ok(forwards.concat())
}

fn reverse_ports(spec: &str) -> Result<Vec<RemoteForward>, ForwardError> {
    let invalid = || ForwardError::Reverse(spec.to_owned());
    let (there, here) = spec.split_once(':').unwrap_or((spec, spec));
    let (host, here) = here.rsplit_once(':').unwrap_or((HERE, here));
    if host.is_empty() {
        return Err(invalid());
    }
    let pair = Pair::of(here, there).map_err(|_| invalid())?;
    let ports = pair.ports().map_err(|reason| {
        let spec = spec.to_owned();
        ForwardError::ReversePorts { spec, reason }
    })?;
    let forward = |(port, remote)| RemoteForward::Tcp {
        remote,
        host: host.to_owned(),
        port,
    };
    Ok(ports.map(forward).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_names_what_it_is_read_from() {
        for (text, name) in [
            ("tcp://8080:8000", "tcp://8080:8000"),
            ("tcp://9000", "tcp://9000:9000"),
            ("udp://127.0.0.1:53:5353", "udp://127.0.0.1:53:5353"),
            ("tcp://[::1]:1:2", "tcp://[::1]:1:2"),
            ("unix://l.sock:/r.sock", "unix://l.sock:/r.sock"),
            ("unix:///a:b/l.sock:/r.sock", "unix:///a:b/l.sock:/r.sock"),
            ("unix:///l.sock:8000", "unix:///l.sock:8000"),
            ("unix://8080:/r.sock", "unix://8080:/r.sock"),
            (
                "unix://127.0.0.2:8080:/r.sock",
                "unix://127.0.0.2:8080:/r.sock",
            ),
            ("reverse://8080:3000", "reverse://8080:localhost:3000"),
            ("reverse://8080", "reverse://8080:localhost:8080"),
            ("reverse://8080:db:5432", "reverse://8080:db:5432"),
            ("reverse:///r.sock:/l.sock", "reverse:///r.sock:/l.sock"),
        ] {
            let read = AnyForward::parse(text).unwrap();
            assert_eq!(read.len(), 1, "{text}");
            assert_eq!(read[0].to_string(), name);
            assert_eq!(AnyForward::parse(name).unwrap(), read);
        }
        assert_eq!(AnyForward::parse("tcp://1-3,7").unwrap().len(), 4);
        let several = AnyForward::parse("reverse://1-2:[::1]:11-12, 80-81,7:9").unwrap();
        let names: Vec<String> = several.iter().map(ToString::to_string).collect();
        let expected = [
            "reverse://1:[::1]:11",
            "reverse://2:[::1]:12",
            "reverse://80:localhost:80",
            "reverse://81:localhost:81",
            "reverse://7:localhost:9",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn what_is_no_forward_is_named() {
        let long = format!("unix://{}:80", "x".repeat(200));
        for text in [
            "",
            "8080",
            "http://x",
            "tcp://",
            "tcp://0",
            "tcp:8080",
            "unix://8080:8000",
            "unix://l.sock",
            "unix://l.sock:r.sock",
            "unix://:/r",
            "unix://l.sock:/",
            "unix://l.sock:0",
            "unix://dir/:/r",
            "unix://l.sock:70000",
            "unix://0:/r.sock",
            "reverse://",
            "reverse://0",
            "reverse://8080:",
            "reverse://8080:0",
            "reverse://a:b",
            "reverse://8080:a:b",
            "reverse://r.sock:/l.sock",
            "reverse://1-2:3",
            "reverse://2-1",
            "reverse://1,",
            "reverse://1-2:a:70000-70001",
            &long,
        ] {
            let error = AnyForward::parse(text).unwrap_err().to_string();
            let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
            let shown = format!("{:?}", rest.split(":80").next().unwrap());
            let named =
                error.contains(&format!("{text:?}")) || error.contains(shown.trim_matches('"'));
            assert!(named, "{text}: {error}");
        }
    }
}

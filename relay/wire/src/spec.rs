//! Port specifications of the command line, and the plan of what to listen on (coder_facts §1.2 to
//! §1.4).
//!
//! ```text
//! spec  = [ bind ":" ] ports [ ":" ports ]
//! bind  = dotted-quad | "[" hex-digits-and-colons "]"
//! ports = number [ "-" number ]
//! ```

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The protocol of a forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Proto {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Proto {
    /// `tcp` or `udp`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One local port and the workspace's port that it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Forward {
    /// Streams or datagrams.
    pub proto: Proto,
    /// The local address; `None` is both loopback addresses.
    pub bind: Option<IpAddr>,
    /// The local port.
    pub local: u16,
    /// The port on the workspace's loopback.
    pub remote: u16,
}

/// What is wrong with the specifications.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// One of them.
    #[error("parse {proto} port-forward specification {spec:?}: {reason}")]
    Spec {
        /// Of which flag.
        proto: Proto,
        /// The text.
        spec: String,
        /// What is wrong with it.
        reason: SpecReason,
    },
    /// Two of them want the same local port.
    #[error(
        "{proto} port-forward specification {spec:?} listens on {address} as {before:?} does; \
         give one of them another local port"
    )]
    Duplicate {
        /// Of which flag.
        proto: Proto,
        /// The later text.
        spec: String,
        /// The earlier text.
        before: String,
        /// What both listen on.
        address: String,
    },
    /// None at all.
    #[error("no port-forwards requested; add for example --tcp 8080:8000, --udp 5353:53 or --auto")]
    NoForwards,
    /// A flag's value that is no CSV record.
    #[error("{0:?} is no list: a quote is missing or stands in the wrong place")]
    List(String),
}

/// What is wrong with one specification.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecReason {
    /// Not of the shape.
    #[error(
        "it is not [BIND:]PORT[-PORT][:PORT[-PORT]]; write for example 8080:8000, 9000-9005, \
         127.0.0.1:8080:80 or [::1]:8080:80"
    )]
    Shape,
    /// A bind address of the right shape that is no address.
    #[error("{0:?} is no IP address")]
    Address(String),
    /// Port 0.
    #[error("port 0 cannot be forwarded; ports are 1 to 65535")]
    PortZero,
    /// A number above 65535.
    #[error("port {0} is too large; ports are 1 to 65535")]
    PortTooLarge(String),
    /// `9-8`.
    #[error("the range {0} ends before it starts; write the smaller port first")]
    Reversed(String),
    /// Ranges of different lengths.
    #[error("{local} local and {remote} remote ports do not pair up; both ranges must be as long")]
    Lengths {
        /// Ports on the left.
        local: u32,
        /// Ports on the right.
        remote: u32,
    },
}

/// Reads the occurrences of a list flag: each is a CSV record, an empty one clears what came
/// before.
///
/// # Errors
/// [`SpecError::List`] for broken quoting.
pub fn read_list<T: AsRef<str>>(occurrences: &[T]) -> Result<Vec<String>, SpecError> {
    let mut list = Vec::new();
    for occurrence in occurrences {
        let text = occurrence.as_ref();
        if text.is_empty() {
            list.clear();
            continue;
        }
        list.extend(read_record(text)?);
    }
    Ok(list)
}

fn read_record(text: &str) -> Result<Vec<String>, SpecError> {
    let broken = || SpecError::List(text.to_owned());
    if !well_quoted(text) {
        return Err(broken());
    }
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .from_reader(text.as_bytes());
    let mut record = csv::StringRecord::new();
    match reader.read_record(&mut record) {
        Ok(true) => Ok(record.iter().map(str::to_owned).collect()),
        _ => Err(broken()),
    }
}

/// Quotes enclose whole fields, as RFC 4180 has it; the `csv` crate would take others.
fn well_quoted(text: &str) -> bool {
    let mut rest = text;
    loop {
        let end = match rest.strip_prefix('"') {
            None => match rest.find([',', '"']) {
                Some(at) if rest.as_bytes()[at] == b'"' => return false,
                Some(at) => at,
                None => return true,
            },
            Some(quoted) => match closing_quote(quoted) {
                Some(at) => at + 2,
                None => return false,
            },
        };
        match rest[end..].strip_prefix(',') {
            Some(next) => rest = next,
            None => return end == rest.len(),
        }
    }
}

fn closing_quote(quoted: &str) -> Option<usize> {
    let bytes = quoted.as_bytes();
    let mut at = 0;
    loop {
        at += quoted[at..].find('"')?;
        match bytes.get(at + 1) {
            Some(b'"') => at += 2,
            _ => return Some(at),
        }
    }
}

/// Parses the elements of `--tcp` and `--udp`; each may hold several specifications between
/// commas. All TCP ones come before all UDP ones, in their order.
///
/// # Errors
/// The first specification that is wrong, two that clash, or none at all.
pub fn parse_specs<T: AsRef<str>>(tcp: &[T], udp: &[T]) -> Result<Vec<Forward>, SpecError> {
    let mut forwards = Vec::new();
    let mut taken = Taken::default();
    for (proto, list) in [(Proto::Tcp, tcp), (Proto::Udp, udp)] {
        for piece in list.iter().flat_map(|element| element.as_ref().split(',')) {
            let spec = piece.trim();
            let parsed = parse_spec(proto, spec);
            let parsed = parsed.map_err(|reason| SpecError::Spec {
                proto,
                spec: spec.to_owned(),
                reason,
            })?;
            for forward in parsed {
                taken.add(forward, spec)?;
                forwards.push(forward);
            }
        }
    }
    if forwards.is_empty() {
        return Err(SpecError::NoForwards);
    }
    Ok(forwards)
}

/// The local addresses that are spoken for. A default bind takes both loopback addresses, so it
/// clashes with an explicit one of either.
#[derive(Default)]
struct Taken<'a>(HashMap<(Proto, IpAddr, u16), &'a str>);

impl<'a> Taken<'a> {
    fn add(&mut self, forward: Forward, spec: &'a str) -> Result<(), SpecError> {
        let Forward { proto, local, .. } = forward;
        for address in forward.listen_on() {
            if let Some(before) = self.0.insert((proto, address.ip(), local), spec) {
                return Err(SpecError::Duplicate {
                    proto,
                    spec: spec.to_owned(),
                    before: before.to_owned(),
                    address: address.to_string(),
                });
            }
        }
        Ok(())
    }
}

fn parse_spec(
    proto: Proto,
    spec: &str,
) -> Result<impl Iterator<Item = Forward> + use<>, SpecReason> {
    let (bind, ports) = split_bind(spec)?;
    let (local, remote) = match ports.split_once(':') {
        Some((local, remote)) => (local, remote),
        None => (ports, ports),
    };
    // The shape of all is judged before the numbers of any.
    let ports = Pair::of(local, remote)?;
    let bind = bind.map(BindText::parse).transpose()?;
    Ok(ports.ports()?.map(move |(local, remote)| Forward {
        proto,
        bind,
        local,
        remote,
    }))
}

/// Ports or ranges of ports on both sides, not yet judged by value.
pub(crate) struct Pair<'a> {
    local: Shape<'a>,
    remote: Shape<'a>,
}

impl<'a> Pair<'a> {
    /// Both sides as they are written.
    pub(crate) fn of(local: &'a str, remote: &'a str) -> Result<Self, SpecReason> {
        let (local, remote) = (Shape::of(local)?, Shape::of(remote)?);
        Ok(Self { local, remote })
    }

    /// Each port here, with that of the workspace.
    pub(crate) fn ports(&self) -> Result<impl Iterator<Item = (u16, u16)> + use<>, SpecReason> {
        let (local, remote) = (self.local.range()?, self.remote.range()?);
        let count = |(first, last): (u16, u16)| u32::from(last - first) + 1;
        if count(local) != count(remote) {
            return Err(SpecReason::Lengths {
                local: count(local),
                remote: count(remote),
            });
        }
        Ok((local.0..=local.1).zip(remote.0..=remote.1))
    }
}

enum BindText<'a> {
    V4(&'a str),
    V6(&'a str),
}

impl BindText<'_> {
    fn parse(self) -> Result<IpAddr, SpecReason> {
        let (text, parsed) = match self {
            Self::V4(text) => (text, text.parse::<Ipv4Addr>().ok().map(IpAddr::from)),
            Self::V6(text) => (text, text.parse::<Ipv6Addr>().ok().map(IpAddr::from)),
        };
        parsed.ok_or_else(|| SpecReason::Address(text.to_owned()))
    }
}

/// Cuts a bind address off, judged by its shape alone.
fn split_bind(spec: &str) -> Result<(Option<BindText<'_>>, &str), SpecReason> {
    if let Some(rest) = spec.strip_prefix('[') {
        let (address, rest) = rest.split_once(']').ok_or(SpecReason::Shape)?;
        let ports = rest.strip_prefix(':').ok_or(SpecReason::Shape)?;
        let hex = |byte: u8| byte.is_ascii_hexdigit() || byte == b':';
        return match !address.is_empty() && address.bytes().all(hex) {
            true => Ok((Some(BindText::V6(address)), ports)),
            false => Err(SpecReason::Shape),
        };
    }
    match spec.split_once(':') {
        Some((address, ports)) if is_dotted_quad(address) => {
            Ok((Some(BindText::V4(address)), ports))
        }
        _ => Ok((None, spec)),
    }
}

fn is_dotted_quad(text: &str) -> bool {
    let digits = |part: &str| {
        (1..=3).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit())
    };
    text.split('.').count() == 4 && text.split('.').all(digits)
}

/// `number [ "-" number ]`, not yet judged by value.
struct Shape<'a> {
    text: &'a str,
    first: &'a str,
    last: &'a str,
}

impl<'a> Shape<'a> {
    fn of(text: &'a str) -> Result<Self, SpecReason> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        match number(first) && number(last) {
            true => Ok(Self { text, first, last }),
            false => Err(SpecReason::Shape),
        }
    }

    fn range(&self) -> Result<(u16, u16), SpecReason> {
        let (first, last) = (port(self.first)?, port(self.last)?);
        match first <= last {
            true => Ok((first, last)),
            false => Err(SpecReason::Reversed(self.text.to_owned())),
        }
    }
}

fn port(digits: &str) -> Result<u16, SpecReason> {
    match digits.trim_start_matches('0') {
        "" => Err(SpecReason::PortZero),
        number => number
            .parse()
            .map_err(|_| SpecReason::PortTooLarge(digits.to_owned())),
    }
}

/// One attempt to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The forward that it serves.
    pub forward: Forward,
    /// Where.
    pub address: SocketAddr,
    /// Whether failing ends the command: of a default bind only `127.0.0.1` must work.
    pub required: bool,
}

impl Listen {
    /// What is printed before the attempt.
    pub fn notice(&self) -> String {
        let Forward { proto, remote, .. } = self.forward;
        format!(
            "Forwarding '{proto}://{}' locally to '{proto}://127.0.0.1:{remote}' in the workspace",
            self.address
        )
    }
}

impl Forward {
    /// The attempts for this forward, in order.
    pub fn listens(&self) -> impl Iterator<Item = Listen> + use<> {
        let forward = *self;
        self.listen_on().into_iter().map(move |address| Listen {
            forward,
            address,
            required: forward.bind.is_some() || address.is_ipv4(),
        })
    }

    fn listen_on(&self) -> Vec<SocketAddr> {
        let at = |ip: IpAddr| SocketAddr::new(ip, self.local);
        match self.bind {
            Some(ip) => vec![at(ip)],
            None => vec![
                at(Ipv6Addr::LOCALHOST.into()),
                at(Ipv4Addr::LOCALHOST.into()),
            ],
        }
    }
}

/// All attempts for all forwards, in order.
pub fn plan(forwards: &[Forward]) -> Vec<Listen> {
    forwards.iter().flat_map(Forward::listens).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(spec: &str) -> Result<Vec<Forward>, SpecError> {
        parse_specs(&[spec], &[])
    }

    #[test]
    fn the_largest_port_is_an_ordinary_port() {
        let forwards = one("65535").unwrap();
        assert_eq!((forwards[0].local, forwards.len()), (65535, 1));
        assert_eq!(one("65534-65535").unwrap().len(), 2);
        assert_eq!(one("1-65535").unwrap().len(), 65535);
    }

    #[test]
    fn a_default_bind_clashes_with_either_loopback_address() {
        for (a, b) in [
            ("8080", "127.0.0.1:8080"),
            ("[::1]:8080", "8080"),
            ("8080", "8079-8081"),
        ] {
            let error = parse_specs(&[a, b], &[]).unwrap_err();
            assert!(matches!(error, SpecError::Duplicate { .. }), "{a} {b}");
            assert!(error.to_string().contains(b), "{error}");
        }
        assert!(parse_specs(&["8080"], &["8080"]).is_ok());
        assert!(parse_specs(&["8080", "127.0.0.2:8080"], &[]).is_ok());
    }

    #[test]
    fn an_error_names_the_piece_and_its_protocol() {
        let error = parse_specs(&["1"], &["2, x"]).unwrap_err().to_string();
        assert!(error.contains("udp") && error.contains("\"x\""), "{error}");
    }

    #[test]
    fn addresses_of_the_right_shape_may_still_be_none() {
        for spec in ["256.0.0.1:80", "01.2.3.4:80", "[:::]:80", "[1:2]:80"] {
            let Err(SpecError::Spec { reason, .. }) = one(spec) else {
                panic!("{spec}");
            };
            assert!(matches!(reason, SpecReason::Address(_)), "{spec}: {reason}");
        }
    }

    #[test]
    fn leading_zeros_and_long_numbers() {
        assert_eq!(one("0080").unwrap()[0].local, 80);
        assert_eq!(one("000000000000000000000000000080").unwrap()[0].local, 80);
        assert!(one("99999999999999999999999").is_err());
    }

    #[test]
    fn lists_are_csv_records_and_an_empty_one_clears() {
        let read = |list: &[&str]| read_list(list);
        assert_eq!(read(&["1,2", "3"]).unwrap(), ["1", "2", "3"]);
        assert_eq!(read(&["1", "", "2"]).unwrap(), ["2"]);
        assert_eq!(read(&["\"1,2\",3"]).unwrap(), ["1,2", "3"]);
        assert_eq!(read(&["\"a\"\"b\""]).unwrap(), ["a\"b"]);
        for broken in ["\"1", "1\"", "\"1\"2", "1,\"2"] {
            assert!(read(&[broken]).is_err(), "{broken}");
        }
    }
}

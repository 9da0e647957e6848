//! The file that wg-quick(8) reads. What of it is about the machine's own network (DNS, routing
//! tables, commands to run) does not concern an end that leaves the machine alone, and is only noted.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use base64::Engine as _;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::Network;
use crate::keys::NodePrivate;

/// The smallest MTU that IPv6 may have (RFC 8200 §5).
const IPV6_MTU: u16 = 1280;
/// The smallest that makes sense (RFC 791: what every host takes).
const SMALLEST_MTU: u16 = 576;
/// Longer words are not shown: they may be a key at the wrong place.
const LONGEST_WORD: usize = 24;

/// A key that only its owner may see.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Secret([u8; 32]);

impl Secret {
    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Secret")
    }
}

/// Where a peer is reached at first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// A name or an address, without brackets.
    pub name: String,
    /// Its UDP port.
    pub port: u16,
}

impl fmt::Display for Host {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.contains(':') {
            true => write!(out, "[{}]:{}", self.name, self.port),
            false => write!(out, "{}:{}", self.name, self.port),
        }
    }
}

/// A file that makes sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// This end.
    pub interface: Interface,
    /// The other ends, one at least.
    pub peers: Vec<Peer>,
    /// Settings that have no meaning here: their lines and names.
    pub ignored: Vec<(usize, &'static str)>,
}

/// This end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its key.
    pub private_key: Secret,
    /// Its addresses in the tunnel, one at least.
    pub addresses: Vec<IpAddr>,
    /// The largest packet in the tunnel, in bytes.
    pub mtu: Option<u16>,
    /// The UDP port to be reached at; any if `None`.
    pub listen_port: Option<u16>,
}

/// Another end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its key.
    pub public_key: [u8; 32],
    /// A secret that both ends have besides.
    pub preshared_key: Option<Secret>,
    /// The addresses behind it: packets to them go there, and from it no others are taken.
    pub allowed: Vec<Network>,
    /// Where it is; without that it has to call first.
    pub endpoint: Option<Host>,
    /// After how many seconds of silence it is sent something, so that the way stays open.
    pub keepalive: Option<u16>,
}

impl Peer {
    /// The public key as the file has it.
    pub fn name(&self) -> String {
        base64::engine::general_purpose::STANDARD.encode(self.public_key)
    }
}

/// Why a file cannot be used. No secret is ever part of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// One of its lines.
    #[error("line {line}: {problem}")]
    Line {
        /// Which, from 1.
        line: usize,
        /// What is wrong and what to do.
        problem: String,
    },
    /// Something that is not there.
    #[error("{0}")]
    Missing(&'static str),
}

const SECTION: &str = "this is no section: there are [Interface] and [Peer]";
const BEFORE: &str = "a setting stands before any section; begin with [Interface]";
const NO_VALUE: &str = "this is neither a section nor NAME = VALUE";
const KEY: &str = "is no WireGuard key: 44 characters of base64, the last being `=`, as `wg genkey` \
                   and `wg pubkey` print them";
const INTERFACES: &str = "there is a second [Interface]; a file describes one end";
const OWN_KEY: &str = "PublicKey is this end's own; put the other end's there (`wg pubkey` of its \
                       PrivateKey)";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Section {
    Interface,
    Peer,
}

/// Settings of an interface that are about the machine, and not about the tunnel.
const OF_THE_MACHINE: [&str; 8] = [
    "DNS",
    "Table",
    "PreUp",
    "PostUp",
    "PreDown",
    "PostDown",
    "SaveConfig",
    "FwMark",
];

impl FromStr for Config {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut reader = Reader::default();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let taken = reader.take(number, line);
            taken.map_err(|problem| ConfigError::Line {
                line: number,
                problem,
            })?;
        }
        reader.finish()
    }
}

/// What has been read so far.
#[derive(Default)]
struct Reader {
    section: Option<Section>,
    interfaces: usize,
    private_key: Option<Secret>,
    addresses: Vec<IpAddr>,
    mtu: Option<(usize, u16)>,
    listen_port: Option<u16>,
    peers: Vec<UnfinishedPeer>,
    ignored: Vec<(usize, &'static str)>,
}

struct UnfinishedPeer {
    line: usize,
    public_key: Option<(usize, [u8; 32])>,
    preshared_key: Option<Secret>,
    allowed: Vec<Network>,
    endpoint: Option<Host>,
    keepalive: Option<u16>,
}

impl Reader {
    fn take(&mut self, number: usize, line: &str) -> Result<(), String> {
        if line.starts_with('[') {
            return self.begin(number, line);
        }
        let (name, value) = line.split_once('=').ok_or(NO_VALUE)?;
        let (name, value) = (name.trim(), value.trim());
        match self.section.ok_or(BEFORE)? {
            Section::Interface => self.take_interface(number, name, value),
            Section::Peer => match self.peers.last_mut() {
                Some(peer) => peer.take(number, name, value),
                None => Err(BEFORE.to_owned()),
            },
        }
    }

    fn begin(&mut self, line: usize, header: &str) -> Result<(), String> {
        if header.eq_ignore_ascii_case("[Interface]") {
            self.section = Some(Section::Interface);
            self.interfaces += 1;
            return if self.interfaces > 1 {
                Err(INTERFACES.to_owned())
            } else {
                Ok(())
            };
        }
        if !header.eq_ignore_ascii_case("[Peer]") {
            return Err(SECTION.to_owned());
        }
        self.section = Some(Section::Peer);
        self.peers.push(UnfinishedPeer {
            line,
            public_key: None,
            preshared_key: None,
            allowed: Vec::new(),
            endpoint: None,
            keepalive: None,
        });
        Ok(())
    }

    fn take_interface(&mut self, line: usize, name: &str, value: &str) -> Result<(), String> {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        if is("PrivateKey") {
            self.private_key = Some(secret("PrivateKey", value)?);
        } else if is("Address") {
            for part in list(value) {
                let (address, _) = part.split_once('/').unwrap_or((part, ""));
                part.parse::<Network>().map_err(|()| no_address(part))?;
                let address = address.trim().parse().map_err(|_| no_address(part))?;
                self.addresses.push(address);
            }
        } else if is("MTU") {
            let largest = u16::MAX;
            let mtu = parse(value).filter(|mtu| (SMALLEST_MTU..=largest).contains(mtu));
            let mtu = mtu.ok_or_else(|| {
                format!("MTU is a number of bytes from {SMALLEST_MTU} to {largest}, usually 1420")
            })?;
            self.mtu = Some((line, mtu));
        } else if is("ListenPort") {
            let port = parse::<u16>(value).ok_or("ListenPort is a number from 0 to 65535")?;
            self.listen_port = Some(port).filter(|port| *port != 0);
        } else if let Some(known) = OF_THE_MACHINE.iter().find(|known| is(known)) {
            self.ignored.push((line, known));
        } else {
            let known = "PrivateKey, Address, ListenPort and MTU";
            return Err(unknown(name, "[Interface]", known));
        }
        Ok(())
    }

    fn finish(self) -> Result<Config, ConfigError> {
        let missing = |what| ConfigError::Missing(what);
        let private_key = self.private_key.ok_or(missing(
            "the file has no PrivateKey in an [Interface] section; `wg genkey` makes one",
        ))?;
        if self.addresses.is_empty() {
            return Err(missing(
                "the file has no Address in its [Interface] section: this end's address in the \
                 tunnel, such as 10.0.0.1/24",
            ));
        }
        if self.peers.is_empty() {
            return Err(missing(
                "the file has no [Peer] section: there is nobody to reach",
            ));
        }
        if let Some((line, mtu)) = self.mtu.filter(|(_, mtu)| *mtu < IPV6_MTU)
            && self.addresses.iter().any(IpAddr::is_ipv6)
        {
            let problem = format!("an MTU of {mtu} is too small for IPv6, which needs {IPV6_MTU}");
            return Err(ConfigError::Line { line, problem });
        }
        let own = *NodePrivate::from_bytes(private_key.0).public().as_bytes();
        let mut peers: Vec<Peer> = Vec::with_capacity(self.peers.len());
        for unfinished in self.peers {
            let (line, peer) = unfinished.finish()?;
            let problem = match peer.public_key {
                key if key == own => OWN_KEY.to_owned(),
                key if peers.iter().any(|other| other.public_key == key) => {
                    "another [Peer] has this PublicKey already; make them one".to_owned()
                }
                _ => {
                    peers.push(peer);
                    continue;
                }
            };
            return Err(ConfigError::Line { line, problem });
        }
        Ok(Config {
            interface: Interface {
                private_key,
                addresses: self.addresses,
                mtu: self.mtu.map(|(_, mtu)| mtu),
                listen_port: self.listen_port,
            },
            peers,
            ignored: self.ignored,
        })
    }
}

impl UnfinishedPeer {
    fn take(&mut self, line: usize, name: &str, value: &str) -> Result<(), String> {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        if is("PublicKey") {
            let key = key(value).ok_or_else(|| format!("PublicKey {KEY}"))?;
            self.public_key = Some((line, key));
        } else if is("PresharedKey") {
            self.preshared_key = Some(secret("PresharedKey", value)?);
        } else if is("AllowedIPs") {
            for part in list(value) {
                let network = part.parse().map_err(|()| no_address(part))?;
                self.allowed.push(network);
            }
        } else if is("Endpoint") {
            self.endpoint = Some(host(value).ok_or(
                "Endpoint is HOST:PORT, with an IPv6 address in brackets, such as \
                 vpn.example.com:51820 or [2001:db8::1]:51820",
            )?);
        } else if is("PersistentKeepalive") {
            let seconds = if value.eq_ignore_ascii_case("off") {
                Some(0)
            } else {
                parse::<u16>(value)
            };
            let seconds =
                seconds.ok_or("PersistentKeepalive is a number of seconds up to 65535, or off")?;
            self.keepalive = Some(seconds).filter(|seconds| *seconds != 0);
        } else {
            let known = "PublicKey, PresharedKey, AllowedIPs, Endpoint and PersistentKeepalive";
            return Err(unknown(name, "[Peer]", known));
        }
        Ok(())
    }

    fn finish(self) -> Result<(usize, Peer), ConfigError> {
        let Some((line, public_key)) = self.public_key else {
            let problem = "this [Peer] has no PublicKey".to_owned();
            let line = self.line;
            return Err(ConfigError::Line { line, problem });
        };
        let peer = Peer {
            public_key,
            preshared_key: self.preshared_key,
            allowed: self.allowed,
            endpoint: self.endpoint,
            keepalive: self.keepalive,
        };
        Ok((line, peer))
    }
}

/// The parts of a value between commas.
fn list(value: &str) -> impl Iterator<Item = &str> {
    value
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
}

fn parse<T: FromStr>(text: &str) -> Option<T> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

fn key(text: &str) -> Option<[u8; 32]> {
    let mut decoded = base64::engine::general_purpose::STANDARD
        .decode(text)
        .ok()?;
    let key = <[u8; 32]>::try_from(&decoded[..]).ok();
    decoded.zeroize();
    key
}

fn secret(name: &str, text: &str) -> Result<Secret, String> {
    let key = key(text).ok_or_else(|| format!("{name} {KEY}"))?;
    Ok(Secret(key))
}

fn host(text: &str) -> Option<Host> {
    let (name, port) = text.rsplit_once(':')?;
    let port = parse::<u16>(port).filter(|port| *port != 0)?;
    let name = match name.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').filter(|name| name.contains(':'))?,
        None => Some(name).filter(|name| !name.contains(':'))?,
    };
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"[]/".contains(&byte);
    let good = !name.is_empty() && name.len() <= 255 && name.bytes().all(plain);
    good.then(|| Host {
        name: name.to_owned(),
        port,
    })
}

fn no_address(text: &str) -> String {
    let form = "an address such as 10.0.0.1/24 or fd00::1/64";
    match show(text) {
        Some(text) => format!("{text:?} is not {form}"),
        None => format!("this is not {form}"),
    }
}

fn unknown(name: &str, section: &str, known: &str) -> String {
    match show(name) {
        Some(name) => {
            format!("{section} has no setting {name:?}; it has {known}. Correct or remove the line")
        }
        None => {
            format!("{section} has no such setting; it has {known}. Correct or remove the line")
        }
    }
}

/// A word that is too short to be a key.
fn show(word: &str) -> Option<&str> {
    (word.len() <= LONGEST_WORD).then_some(word)
}

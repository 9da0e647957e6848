//! A local port that leads to a port of some host in the tunnel.
//!
//! ```text
//! forward = [ bind ":" ] port ":" host ":" port
//! bind, host = dotted-quad | "[" ipv6-address "]"
//! ```

use std::fmt;
use std::net::IpAddr;

use crate::spec::{self, Proto};

/// One local port, and where it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Forward {
    /// Streams or datagrams.
    pub proto: Proto,
    /// The local address; `None` is both loopback addresses.
    pub bind: Option<IpAddr>,
    /// The local port.
    pub local: u16,
    /// The host in the tunnel.
    pub host: IpAddr,
    /// Its port.
    pub port: u16,
}

/// Why a text is no forward.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("--{proto} {text:?}: {reason}")]
pub struct ForwardError {
    proto: Proto,
    text: String,
    reason: &'static str,
}

const FORM: &str = "write LOCAL:HOST:PORT or BIND:LOCAL:HOST:PORT, such as 8080:10.0.0.2:80 or \
                    8080:[fd00::2]:80";
const PORT: &str = "a port is a number from 1 to 65535";
const HOST: &str = "the host must be an address in the tunnel, an IPv6 address in brackets; names \
                    are not looked up there";
const BIND: &str = "the address to listen on must be an IP address, an IPv6 address in brackets";

impl Forward {
    /// Reads the text of `--tcp` or `--udp`.
    ///
    /// # Errors
    /// [`ForwardError`] with what to write instead.
    pub fn parse(proto: Proto, text: &str) -> Result<Forward, ForwardError> {
        Self::read(proto, text).map_err(|reason| ForwardError {
            proto,
            text: text.to_owned(),
            reason,
        })
    }

    fn read(proto: Proto, text: &str) -> Result<Forward, &'static str> {
        let fields = split(text);
        let (bind, local, host, port) = match fields[..] {
            [local, host, port] => (None, local, host, port),
            [bind, local, host, port] => (Some(bind), local, host, port),
            _ => return Err(FORM),
        };
        Ok(Forward {
            proto,
            bind: bind.map(|bind| address(bind).ok_or(BIND)).transpose()?,
            local: number(local).ok_or(PORT)?,
            host: address(host).ok_or(HOST)?,
            port: number(port).ok_or(PORT)?,
        })
    }

    /// Its local side, with the port it leads to.
    pub fn listening(&self) -> spec::Forward {
        spec::Forward {
            proto: self.proto,
            bind: self.bind,
            local: self.local,
            remote: self.port,
        }
    }
}

/// Splits at colons outside brackets.
fn split(text: &str) -> Vec<&str> {
    let mut inside = false;
    text.split(|character| {
        match character {
            '[' => inside = true,
            ']' => inside = false,
            _ => {}
        }
        character == ':' && !inside
    })
    .collect()
}

fn address(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[') {
        Some(rest) => Some(IpAddr::V6(rest.strip_suffix(']')?.parse().ok()?)),
        None => Some(IpAddr::V4(text.parse().ok()?)),
    }
}

fn number(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let port = digits.then(|| text.parse().ok()).flatten();
    port.filter(|port| *port != 0)
}

impl fmt::Display for Forward {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bracketed = |address: IpAddr| match address {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => format!("[{v6}]"),
        };
        if let Some(bind) = self.bind {
            write!(out, "{}:", bracketed(bind))?;
        }
        write!(out, "{}:{}:{}", self.local, bracketed(self.host), self.port)
    }
}

//! What `ssh -R` of Coder's command line takes (coder_facts §3.2): a port of the workspace that
//! leads to a port from here, or a socket of the workspace that leads to a socket here.
//!
//! ```text
//! remote-forward = port ":" host ":" port | "/" path ":" "/" path
//! ```

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

use crate::{Error, Result};

/// A listener in the workspace, and where its connections are taken.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RemoteForward {
    /// A port on the workspace's loopback.
    Tcp {
        /// The port there.
        remote: u16,
        /// A host as this machine names it; an IPv6 address may stand in brackets.
        host: String,
        /// The port of that host.
        port: u16,
    },
    /// A Unix socket.
    Unix {
        /// The socket there.
        remote: String,
        /// The socket here.
        local: PathBuf,
    },
}

/// Where ports are listened on in the workspace.
pub const REMOTE_BIND: Ipv4Addr = Ipv4Addr::LOCALHOST;

impl FromStr for RemoteForward {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = || Error::RemoteForward(text.to_owned());
        if text.starts_with('/') {
            let at = text.rfind(":/").ok_or_else(invalid)?;
            let (remote, local) = (&text[..at], &text[at + 1..]);
            if remote.len() < 2 || local.len() < 2 || text.contains('\0') {
                return Err(invalid());
            }
            return Ok(Self::Unix {
                remote: remote.to_owned(),
                local: local.into(),
            });
        }
        let (remote, rest) = text.split_once(':').ok_or_else(invalid)?;
        let (host, local) = rest.rsplit_once(':').ok_or_else(invalid)?;
        let (Some(remote), Some(port)) = (port(remote), port(local)) else {
            return Err(invalid());
        };
        if host.is_empty() {
            return Err(invalid());
        }
        Ok(Self::Tcp {
            remote,
            host: host.to_owned(),
            port,
        })
    }
}

/// Digits alone: no sign, no zero.
fn port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let port = digits.then(|| text.parse().ok()).flatten();
    port.filter(|port| *port != 0)
}

impl RemoteForward {
    /// The local host without the brackets of an IPv6 address, and its port; `None` for a socket.
    pub fn local_host(&self) -> Option<(&str, u16)> {
        match self {
            Self::Tcp { host, port, .. } => {
                let bare = host
                    .strip_prefix('[')
                    .and_then(|host| host.strip_suffix(']'));
                Some((bare.unwrap_or(host), *port))
            }
            Self::Unix { .. } => None,
        }
    }
}

impl fmt::Display for RemoteForward {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { remote, host, port } => write!(out, "{remote}:{host}:{port}"),
            Self::Unix { remote, local } => write!(out, "{remote}:{}", local.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_numbers_from_one_to_65535() {
        for good in ["1:a:65535", "00080:localhost:080"] {
            assert!(good.parse::<RemoteForward>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "1",
            "1:a",
            "1:2",
            "0:a:1",
            "1:a:0",
            "65536:a:1",
            "1:a:65536",
            "+1:a:1",
            "1:a:+1",
            "1::2",
            "a:b:1",
            "1:a:b",
            " 1:a:2",
        ] {
            let error = bad.parse::<RemoteForward>().unwrap_err();
            assert_eq!(error, Error::RemoteForward(bad.to_owned()));
        }
    }

    #[test]
    fn a_bracketed_address_is_dialled_without_brackets() {
        let forward: RemoteForward = "8080:[::1]:80".parse().unwrap();
        assert_eq!(forward.local_host(), Some(("::1", 80)));
        assert_eq!(forward.to_string(), "8080:[::1]:80");
        let forward: RemoteForward = "8080:example.com:80".parse().unwrap();
        assert_eq!(forward.local_host(), Some(("example.com", 80)));
    }

    #[test]
    fn sockets_are_absolute_paths_on_both_sides() {
        let forward: RemoteForward = "/a:b/r.sock:/l.sock".parse().unwrap();
        let expected = RemoteForward::Unix {
            remote: "/a:b/r.sock".to_owned(),
            local: "/l.sock".into(),
        };
        assert_eq!(forward, expected);
        for bad in ["/", "/r", "/r:", "/r:l", "/:/l", "/r:/", "/r:/\0"] {
            assert!(bad.parse::<RemoteForward>().is_err(), "{bad}");
        }
    }
}

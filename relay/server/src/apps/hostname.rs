//! The label of an app's host name: `[prefix---](port[s]|slug)[--agent]--workspace--user`
//! (coder_facts §2.3).

use std::fmt;
use std::str::FromStr;

use super::names::is_name;

/// The longest DNS label (RFC 1035 §2.3.4).
pub const LONGEST_LABEL: usize = 63;

/// How the proxy speaks to the app.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Plain HTTP.
    Http,
    /// HTTP over TLS, certificate not checked: the far end of the tunnel is trusted.
    Https,
}

impl Protocol {
    /// The URL scheme.
    pub fn scheme(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// What a host label names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct AppHost {
    /// Free text in front, with its three hyphens; empty when absent.
    pub prefix: String,
    /// A port with an optional `s`, or an app's slug.
    pub slug_or_port: String,
    /// The agent's name; empty when it is not needed.
    pub agent: String,
    /// The workspace's name or id.
    pub workspace: String,
    /// The owner's name or id.
    pub user: String,
}

/// Why a label names no app.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// It has not the shape.
    #[error(
        "'{0}' is no application address; it should read port--agent--workspace--user or \
         app--workspace--user"
    )]
    InvalidFormat(String),
    /// A port without an agent.
    #[error(
        "'{0}' names a port but no agent; write the agent between port and workspace, as in \
         8080--agent--workspace--user"
    )]
    PortWithoutAgent(String),
    /// More than a DNS label can hold.
    #[error(
        "'{label}' has {length} characters, more than the {LONGEST_LABEL} of a DNS label; use a \
         shorter workspace, agent or user name"
    )]
    TooLong {
        /// The label.
        label: String,
        /// Its length, with what the pattern adds to the label.
        length: usize,
    },
}

impl FromStr for AppHost {
    type Err = HostError;

    fn from_str(label: &str) -> Result<Self, HostError> {
        let invalid = || HostError::InvalidFormat(label.to_owned());
        let (prefix, rest) = match label.rfind("---") {
            Some(at) => label.split_at(at + 3),
            None => ("", label),
        };
        let parts: Vec<&str> = rest.split("--").collect();
        if !parts.iter().all(|part| is_name(part)) {
            return Err(invalid());
        }
        let (slug_or_port, agent, workspace, user) = match parts[..] {
            [slug, workspace, user] => (slug, "", workspace, user),
            [slug, agent, workspace, user] => (slug, agent, workspace, user),
            _ => return Err(invalid()),
        };
        if agent.is_empty() && is_long_port(slug_or_port) {
            return Err(HostError::PortWithoutAgent(label.to_owned()));
        }
        // A slug is unique in its workspace, so an agent beside it says nothing.
        let keeps_agent = is_port(slug_or_port);
        Ok(Self {
            prefix: prefix.to_owned(),
            slug_or_port: slug_or_port.to_owned(),
            agent: if keeps_agent {
                agent.to_owned()
            } else {
                String::new()
            },
            workspace: workspace.to_owned(),
            user: user.to_owned(),
        })
    }
}

impl fmt::Display for AppHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}--", self.prefix, self.slug_or_port)?;
        if !self.agent.is_empty() {
            write!(f, "{}--", self.agent)?;
        }
        write!(f, "{}--{}", self.workspace, self.user)
    }
}

impl AppHost {
    /// The host of an app. A slug that looks like a port needs its agent.
    pub fn of_app(slug: &str, agent: &str, workspace: &str, user: &str) -> Self {
        Self {
            prefix: String::new(),
            slug_or_port: slug.to_owned(),
            agent: match port_info(slug) {
                Some(_) => agent.to_owned(),
                None => String::new(),
            },
            workspace: workspace.to_owned(),
            user: user.to_owned(),
        }
    }

    /// The port and protocol that the first part means, if it is a port.
    pub fn port(&self) -> Option<(u16, Protocol)> {
        port_info(&self.slug_or_port)
    }

    /// The label, if DNS can hold it together with the `suffix` characters that the wildcard
    /// pattern adds to the label.
    ///
    /// # Errors
    /// [`HostError::TooLong`] with the lengths.
    pub fn label(&self, suffix: usize) -> Result<String, HostError> {
        let label = self.to_string();
        let length = label.len() + suffix;
        if length > LONGEST_LABEL {
            return Err(HostError::TooLong { label, length });
        }
        Ok(label)
    }
}

/// The port and protocol of `8080` or `8080s`; `None` for anything else.
pub fn port_info(text: &str) -> Option<(u16, Protocol)> {
    let (digits, protocol) = split_port(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some((digits.parse().ok()?, protocol))
}

/// The same port with another protocol: adds or removes the `s`. What is no port stays.
pub fn change_protocol(text: &str, to: Protocol) -> String {
    if port_info(text).is_none() {
        return text.to_owned();
    }
    let (digits, _) = split_port(text);
    match to {
        Protocol::Http => digits.to_owned(),
        Protocol::Https => format!("{digits}s"),
    }
}

fn split_port(text: &str) -> (&str, Protocol) {
    match text.strip_suffix('s') {
        Some(digits) => (digits, Protocol::Https),
        None => (text, Protocol::Http),
    }
}

fn digits_of(text: &str) -> Option<usize> {
    let (digits, _) = split_port(text);
    digits
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then_some(digits.len())
}

/// A number that is a port when an agent stands beside it.
fn is_port(text: &str) -> bool {
    digits_of(text).is_some_and(|length| (2..=5).contains(&length))
}

/// A number that can only be meant as a port.
fn is_long_port(text: &str) -> bool {
    digits_of(text).is_some_and(|length| (4..=5).contains(&length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_that_dns_cannot_hold_is_refused_with_its_length() {
        let host = AppHost {
            slug_or_port: "8080".into(),
            agent: "main".into(),
            workspace: "w".repeat(32),
            user: "u".repeat(20),
            ..AppHost::default()
        };
        assert_eq!(
            host.label(0).unwrap_err().to_string().matches("66").count(),
            1
        );
        let short = AppHost {
            user: "u".into(),
            ..host
        };
        assert!(short.label(6).is_ok());
        assert!(short.label(20).is_err());
    }

    #[test]
    fn a_port_without_an_agent_says_so() {
        let error = "8080--workspace--user".parse::<AppHost>().unwrap_err();
        assert!(matches!(error, HostError::PortWithoutAgent(_)));
    }

    #[test]
    fn what_was_parsed_is_written_the_same() {
        for label in ["8080s--main--dev--alice", "a---b---code--dev--alice"] {
            assert_eq!(label.parse::<AppHost>().unwrap().to_string(), label);
        }
    }
}

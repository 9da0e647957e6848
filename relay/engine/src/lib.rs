//! Moves bytes between two sockets, and what goes with owning many of them: descriptor limits,
//! listeners, an accept loop that survives running out, and bounded tables of UDP sessions.
//!
//! What the bytes mean and where the sockets come from is not known here.

pub mod accept;
pub mod burst;
mod ebpf;
mod end;
mod epoll;
pub mod handover;
pub mod limits;
mod listen;
mod pump;
mod ring;
pub mod sessions;
mod sockmap;
pub mod steer;
pub mod unix;

use std::fmt;
use std::str::FromStr;

pub use end::{End, abort, peek};
pub use listen::{connect, deepen, listen, listen_udp};
pub use pump::{Ending, Moved, Side, Summary, pump, pump_counted};

/// How bytes get from one socket to the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// The fastest that works for the two sockets at hand.
    #[default]
    Auto,
    /// `read` and `write` through a buffer of this process.
    Copy,
    /// `splice` through a pipe: the bytes never enter this process.
    Splice,
    /// io_uring: the kernel is told in one system call what to do for many sockets.
    IoUring,
    /// A program in the kernel sends on what arrives, for connections of near ends.
    Sockmap,
}

/// What can be wrong with the choice of an engine, or what this machine does not offer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A name that means nothing.
    #[error("no engine is called \"{0}\"; use auto, copy, splice, io-uring or sockmap")]
    Unknown(String),
    /// An engine that this machine does not allow.
    #[error("engine \"{0}\" does not work here: {1}")]
    Unavailable(Engine, String),
    /// One socket cannot have many ports.
    #[error("one socket cannot have a range of ports here: {0}")]
    Steering(String),
    /// Another process steers the ports of the address.
    #[error("another process steers the ports of {0}: take another address")]
    Claimed(std::net::Ipv4Addr),
}

impl Error {
    /// With what could not be done about it, and why.
    fn steering(what: &str, mut error: &dyn std::error::Error) -> Self {
        // The innermost says most.
        while let Some(source) = error.source() {
            error = source;
        }
        Self::Steering(format!("cannot {what}: {error}"))
    }
}

impl Engine {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Auto,
        Self::Copy,
        Self::Splice,
        Self::IoUring,
        Self::Sockmap,
    ];

    /// Finds out by a trial whether this engine works on this machine. What does not is taken over
    /// by [`Engine::Auto`]; ask before connections come, to be able to say so.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with the reason.
    pub fn check(self) -> Result<(), Error> {
        match self {
            Self::Auto | Self::Copy | Self::Splice => Ok(()),
            Self::IoUring => ring::probe().map_err(|why| Error::Unavailable(self, why)),
            Self::Sockmap => sockmap::probe().map_err(|why| Error::Unavailable(self, why)),
        }
    }
}

/// Connections that [`Engine::Sockmap`] joined in this process. Those that it did not find fit for
/// that are carried in the ordinary way.
pub fn connections_joined() -> u64 {
    sockmap::connections_joined()
}

/// For tests: from how many bytes on connections are joined.
#[doc(hidden)]
pub mod test_support {
    /// With none, connections are joined before their first byte is read.
    pub fn join_after(bytes: u64) {
        crate::sockmap::join_after(bytes);
    }

    /// What is usual.
    pub const JOIN_AFTER: u64 = crate::sockmap::JOIN_AFTER;
}

impl FromStr for Engine {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "auto" => Ok(Self::Auto),
            "copy" => Ok(Self::Copy),
            "splice" => Ok(Self::Splice),
            "io-uring" => Ok(Self::IoUring),
            "sockmap" => Ok(Self::Sockmap),
            _ => Err(Error::Unknown(name.to_owned())),
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Auto => "auto",
            Self::Copy => "copy",
            Self::Splice => "splice",
            Self::IoUring => "io-uring",
            Self::Sockmap => "sockmap",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_are_known_by_name() {
        for engine in Engine::ALL {
            assert_eq!(engine.to_string().parse(), Ok(engine));
        }
        assert!(matches!("fast".parse::<Engine>(), Err(Error::Unknown(_))));
    }
}

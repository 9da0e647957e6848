//! Byte formats and state machines of Coder's protocol. Nothing here does I/O: bytes, time and randomness come in as
//! arguments, so the same code serves the client, the agent, the server, the tests and the fuzzers.
//!
//! | module | format |
//! |---|---|
//! | [`keys`] | X25519 keys, their text and binary forms, NaCl boxes |
//! | [`addr`] | tunnel addresses and node ids derived from UUIDs |
//! | [`disco`] | path discovery messages |
//! | [`derp`] | frames and opening of the relay protocol |
//! | [`stun`] | binding requests and responses |
//! | [`tsmp`] | reachability pings inside the tunnel |

pub mod addr;
pub mod derp;
pub mod disco;
mod error;
pub mod keys;
pub mod stun;
pub mod tsmp;

pub use error::Error;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

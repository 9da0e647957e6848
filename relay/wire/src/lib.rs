//! Byte formats and state machines of Coder's protocol. Nothing here does I/O: bytes, time and
//! randomness come in as arguments, so the same code serves the client, the agent, the server, the
//! tests and the fuzzers.
//!
//! | module | format |
//! |---|---|
//! | [`keys`] | X25519 keys, their text and binary forms, NaCl boxes |
//! | [`addr`] | tunnel addresses and node ids derived from UUIDs |
//! | [`disco`] | path discovery messages |
//! | [`derp`] | frames and opening of the relay protocol |
//! | [`derp_map`] | which relays there are, as JSON and protobuf |
//! | [`speedtest`] | the opening of a speed test |
//! | [`stun`] | binding requests and responses |
//! | [`tsmp`] | reachability pings inside the tunnel |
//! | [`yamux`], [`drpc`], [`proto`] | the control channel: streams, calls, messages |
//! | [`spec`] | port specifications and the plan of what to listen on |
//! | [`names`] | names of workspaces and agents |
//! | [`forwards`] | forwards of every kind, by the text that names them |
//! | [`remote_forward`] | what of a workspace leads back to this machine |
//! | [`rest`] | JSON bodies of the HTTP API |
//! | [`same_host`] | what relay's own ends say when they run on the same machine |
//! | [`terminal`] | terminal modes of SSH |
//! | [`wg`] | files of wg-quick, and forwards into a plain WireGuard tunnel |

pub mod addr;
pub mod derp;
pub mod derp_map;
pub mod disco;
pub mod drpc;
mod error;
pub mod forwards;
pub mod keys;
pub mod names;
pub mod proto;
pub mod remote_forward;
pub mod rest;
pub mod same_host;
pub mod spec;
pub mod speedtest;
pub mod stun;
pub mod terminal;
pub mod tsmp;
pub mod wg;
pub mod yamux;

pub use error::Error;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

//! TCP made for forwarding in bulk, for where no kernel's TCP is to be had. Nothing here does I/O:
//! packets, time and randomness come in as arguments, so the same code serves the product, the
//! simulator and the fuzzer.
//!
//! A [`Connection`] takes segments ([`Connection::handle_segment`]), time
//! ([`Connection::handle_timeout`]) and the application's reads and writes, and gives packets
//! ([`Connection::poll_transmit`]), the next moment it wants to be called
//! ([`Connection::poll_timeout`]) and events ([`Connection::take_events`]).
//!
//! A [`Stack`] is many connections: it finds the one a packet belongs to, lets them send in turn,
//! and tells of requests for new ones, which may be to any port.
//!
//! The unit is the burst: any number of segments are taken before one acknowledgement is made for
//! all of them, and one call writes up to 64 segments of one length straight into the caller's
//! buffer ([`PacketSink`]), as segmentation offload takes them.

mod buffer;
pub mod cc;
mod checksum;
mod config;
mod connection;
mod emit;
mod error;
mod pacer;
mod pool;
mod ranges;
mod recovery;
mod replay;
pub mod segment;
mod seq;
mod stack;
mod time;

pub use buffer::{Lent, MOST_SLICES};
pub use checksum::sum_of_words;
pub use config::{Algorithm, Config, Keepalive};
pub use connection::{
    CloseReason, Connection, Events, MOST_EARLY, Request, Secrets, State, Timer, Transmit, Tuple,
};
pub use emit::{Bursts, Checksums, PacketSink, reset_for};
pub use error::Error;
pub use pool::Pool;
pub use replay::{REPLAY_MEMORY, Replays, Seen};
pub use stack::{ConnectionId, Event, RequestId, Stack, StackConfig};
pub use time::Instant;

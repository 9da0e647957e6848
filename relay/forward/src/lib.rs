//! The developer's side of relay: makes ports of a workspace appear on this machine, and opens
//! sessions there.

mod error;
pub mod event;
mod find;
mod listeners;
mod ping;
mod plan;
mod run;
pub mod ssh;
mod tcp;
#[cfg(test)]
mod testing;
mod tunnel;
mod udp;
mod usage;
mod way;
pub mod wg;

pub use error::Error;
pub use find::{Found, find};
pub use ping::{Pong, ping};
pub use run::forward;
pub use tunnel::Options;

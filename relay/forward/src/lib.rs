//! The developer's side of relay: makes ports of a workspace appear on this machine.

mod error;
pub mod event;
mod find;
mod listeners;
mod tcp;
#[cfg(test)]
mod testing;
mod udp;
mod usage;
mod way;

pub use error::Error;
pub use find::{Found, find};

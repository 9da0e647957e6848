//! The developer's side of relay: makes ports of a workspace appear on this machine.

mod error;
pub mod event;
mod listeners;
mod tcp;
#[cfg(test)]
mod testing;
mod udp;
mod way;

pub use error::Error;

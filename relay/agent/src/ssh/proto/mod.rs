//! SSH as a server speaks it, without I/O: packets, key exchange, channels (RFC 4251 to 4254).
//! Whoever comes here has passed the tunnel's own authentication, so every user is let in.

pub(super) mod auth;
mod cipher;
pub(super) mod codec;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod kex;
pub(super) mod mux;
pub(super) mod number;
pub(super) mod transport;

pub(super) use kex::HostKey;

//! Apps in a browser: a whole server, apps on this machine's loopback, and a dialer that leads there.
#![allow(
    clippy::unwrap_used,
    reason = "a test panics on what it does not expect"
)]

mod access;
mod bodies;
mod connections;
mod login;
mod secure;
mod support;
mod upgrades;
mod usage;

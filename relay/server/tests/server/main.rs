//! A server in this process, and clients that speak to it over loopback.
#![allow(
    clippy::unwrap_used,
    reason = "a test panics on what it does not expect"
)]

mod apps;
mod coordination;
mod hostile;
mod limits;
mod pages;
mod places;
mod recorded;
mod relay;
mod rest;
mod shares;
mod support;
mod templates;

//! The relay, by raw clients.

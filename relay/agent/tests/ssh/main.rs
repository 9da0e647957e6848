//! The agent's SSH server and the system's OpenSSH.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod files;
mod forwards;
mod programs;
mod support;

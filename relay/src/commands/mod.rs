//! One module a command. Each has `Args` and `run`, which builds the runtime that it needs.

pub(crate) mod agent;
pub(crate) mod bench;
pub(crate) mod demo;
pub(crate) mod list;
pub(crate) mod login;
pub(crate) mod ping;
pub(crate) mod port_forward;
pub(crate) mod server;

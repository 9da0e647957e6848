//! One module a command. Each has `Args` and `run`, which builds the runtime that it needs.

pub(crate) mod agent;
pub(crate) mod bench;
pub(crate) mod config_ssh;
pub(crate) mod connect;
pub(crate) mod demo;
pub(crate) mod list;
pub(crate) mod login;
pub(crate) mod manual;
pub(crate) mod netcheck;
pub(crate) mod ping;
pub(crate) mod port_forward;
pub(crate) mod server;
pub(crate) mod speedtest;
pub(crate) mod ssh;
pub(crate) mod status;
mod tunnel;
pub(crate) mod wg;

use std::future::Future;
use std::io;

use anyhow::Context;
use relay_forward::event::{Event, Reporter};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

use crate::output;

/// Shows what a command waits for before it has something to tell.
fn waiting_reporter() -> Reporter {
    Reporter::new(|event| match event {
        Event::WaitingForBuild { .. }
        | Event::WaitingForAgent { .. }
        | Event::WaitingForTunnel { .. }
        | Event::RelaysOnly => output::notice(event),
        _ => tracing::debug!("{event}"),
    })
}

/// Runs a command's future on this thread alone.
pub(crate) fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime
        .context("cannot start the async runtime")?
        .block_on(future)
}

/// Ends with the first of SIGINT, SIGTERM and SIGHUP. They are caught from the call on.
pub(crate) fn interrupted() -> io::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}

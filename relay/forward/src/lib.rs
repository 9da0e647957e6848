//! The developer's side of relay: makes ports of a workspace appear on this machine, and opens
//! sessions there.
//!
//! A program that wants forwards of its own makes a [`Forwarder`] and runs it:
//!
//! ```no_run
//! use relay_forward::{Access, AnyForward, Client, Forwarder, NetHelper, Options, Wanted, parse_url};
//!
//! # async fn embedded() -> Result<(), Box<dyn std::error::Error>> {
//! // Early in `main`, while the process has one thread: it forks.
//! let helper = NetHelper::spawn()?;
//!
//! let access = Access { token: "TOKEN".to_owned(), ..Access::default() };
//! let client = Client::new(&parse_url("https://relay.example.com")?, access);
//! let forwarder = Forwarder::new(Options::new(client, "dev".parse()?), helper);
//!
//! // Adds, removes and counts forwards while it runs.
//! let handle = forwarder.handle();
//! let changes = async {
//!     handle.add(AnyForward::parse("udp://5353:53")?).await?;
//!     for row in handle.board().traffic(usize::MAX).0 {
//!         println!("{}: {} bytes sent", row.row.name, row.sent);
//!     }
//!     Ok::<_, Box<dyn std::error::Error>>(())
//! };
//! let wanted = Wanted { forwards: AnyForward::parse("tcp://8080:8000")?, ..Wanted::default() };
//! let forwarding = forwarder.run(wanted, std::future::pending());
//! let (forwarded, changed) = tokio::join!(forwarding, changes);
//! # forwarded?; changed
//! # }
//! ```
//!
//! * [`Options`] say which workspace and how it is reached, [`Wanted`] what is forwarded from the
//!   start, an [`AnyForward`] what one forward is; `tcp://8080:8000` is the text of one.
//! * A [`Reporter`](event::Reporter) hears every [`Event`](event::Event): what listens, which
//!   connections come and go, how the workspace is reached, what goes wrong.
//! * Forwards stay when the agent, the workspace or the network goes away, and work again when it
//!   is back. Dropping the future of [`Forwarder::run`] closes everything.
//! * It needs tokio with time and I/O, on one thread or more.
//!
//! `examples/embed.rs` is a whole program. `relay port-forward -o json` is the same for programs in
//! other languages.

mod agent_api;
mod auto;
mod board;
mod error;
pub mod event;
mod find;
mod listeners;
mod monitor;
mod ping;
mod plan;
mod reverse;
mod run;
mod same_host;
mod serve;
pub mod speedtest;
pub mod ssh;
mod tcp;
#[cfg(test)]
mod testing;
mod tunnel;
mod udp;
mod usage;
mod way;
pub mod wg;

pub use relay_control::config::parse_url;
pub use relay_control::rest::{Access, Client};
pub use relay_engine::Engine;
pub use relay_tunnel::stack::NetHelper;
pub use relay_wire::forwards::AnyForward;
pub use relay_wire::names::WorkspaceName;

pub use board::{Board, Kind, Row, Traffic};
pub use error::Error;
pub use find::{Found, find};
pub use monitor::{Monitor, Snapshot};
pub use ping::{Pace, Pong, Report, Route, Step, ping};
pub use run::{Forwarder, Handle, Wanted};
pub use tunnel::Options;

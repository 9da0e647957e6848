//! The lab: hosts in network namespaces that a test makes itself, relay's real binary in them, and
//! small apps to move bytes between. Nothing here leaves the machine, and all of it is gone when
//! the test's process ends, however it ends.
//!
//! * [`net`]: namespaces, the switch that joins them, firewalls between hosts;
//! * [`nat`]: hosts behind a router with a NAT, of either kind;
//! * [`process`]: programs in a host, their output line by line, their memory;
//! * [`pty`]: programs on a terminal of their own;
//! * [`apps`]: what a workspace serves, and the clients that check every byte;
//! * [`cluster`]: server, agent and forward put together;
//! * [`mod@loaded`]: what relay has in the kernel;
//! * [`web`] and [`site`]: web apps, and the deployment that a browser opens them through;
//! * [`mod@needs`]: what a test needs of the machine, and how it is skipped.

pub mod apps;
pub mod cluster;
pub mod loaded;
pub mod nat;
pub mod needs;
pub mod net;
pub mod process;
pub mod pty;
pub mod rootless;
pub mod site;
pub mod vectors;
pub mod web;

use std::time::{Duration, Instant};

/// How long a test waits for something that is expected to come at once. Generous: a busy machine
/// makes tests slow, not red.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Repeats `probe` until it gives a value; `None` when the time is over.
pub fn poll<T>(limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = probe() {
            return Some(value);
        }
        if start.elapsed() > limit {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Prints a line that shows even when the test passes: times that were measured, what was skipped.
pub fn say(text: impl std::fmt::Display) {
    use std::io::Write;
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("test");
    let _ = writeln!(std::io::stderr().lock(), "[{name}] {text}");
}

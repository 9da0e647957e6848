//! A host: a network namespace that lives as long as its value.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

use super::tun;

/// A network namespace with a loopback and one address.
#[derive(Debug)]
pub struct Host {
    namespace: File,
}

impl Host {
    pub(super) fn new(address: Ipv4Addr) -> io::Result<(Self, File)> {
        on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let namespace = File::open("/proc/thread-self/ns/net")?;
            let device = tun::open("path0")?;
            ip(&["link", "set", "lo", "up"])?;
            ip(&["addr", "add", &format!("{address}/24"), "dev", "path0"])?;
            ip(&[
                "link",
                "set",
                "path0",
                "mtu",
                "1500",
                "txqueuelen",
                "1000",
                "up",
            ])?;
            Ok((Self { namespace }, device))
        })
    }

    /// A host with nothing but its loopback.
    pub(crate) fn bare() -> io::Result<Self> {
        on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let namespace = File::open("/proc/thread-self/ns/net")?;
            ip(&["link", "set", "lo", "up"])?;
            Ok(Self { namespace })
        })
    }

    /// Moves a device of this host to another.
    pub(crate) fn give(&self, device: &str, to: &Self) -> io::Result<()> {
        let (own, descriptor) = (std::process::id(), to.namespace.as_raw_fd());
        let namespace = format!("/proc/{own}/fd/{descriptor}");
        self.ip(&["link", "set", "dev", device, "netns", &namespace])
    }

    /// Runs the `ip` program in this host.
    pub(crate) fn ip(&self, args: &[&str]) -> io::Result<()> {
        self.enter(|| ip(args))?
    }

    /// Runs `work` on a thread inside this host; processes and sockets made there belong to it.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_own_thread(|| {
            setns(self.namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        })
    }
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = scope.spawn(work);
        thread
            .join()
            .unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
    })
}

fn ip(args: &[&str]) -> io::Result<()> {
    let output = Command::new("ip").args(args).output()?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!(
        "ip {}: {}",
        args.join(" "),
        words.trim()
    )))
}

//! The helper process, seen from the parent. It is forked before the process has threads, and only
//! it enters the namespace: what relay is and starts stays where the user started it.

mod child;
mod device;
mod netlink;
mod protocol;
mod reason;
mod setup;

use std::collections::VecDeque;
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{ForkResult, Pid};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};

pub(super) use protocol::Place;
#[doc(hidden)]
pub use protocol::Step;
use protocol::{Faults, Reply, Request, Setup};

use super::StackOptions;
use crate::Error;

/// Sockets fetched at a time, and how few may be left before the next are asked for.
const BATCH: u8 = 32;
const LOW: usize = 8;
/// The helper answers within microseconds; one that does not is broken.
const PATIENCE: Duration = Duration::from_secs(15);

/// The client side of the forked helper process, the only one that enters the namespace.
#[derive(Debug)]
pub struct NetHelper {
    socket: OwnedFd,
    child: Pid,
    faults: Faults,
}

impl NetHelper {
    /// Forks the helper. Call it before the process has threads: a process with threads may not
    /// enter a user namespace, and forking one can leave locks behind.
    pub fn spawn() -> Result<Self, Error> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(failed("opening a socket to the net helper"))?;
        set_socket_timeout(&ours, Timeout::Recv, Some(PATIENCE))
            .map_err(failed("setting up the socket to the net helper"))?;
        let parent = nix::unistd::getpid().as_raw();
        // SAFETY: the child runs `child::main`, which never returns; the caller was told that the
        // process must not have threads, so no lock is held by a thread the child lacks.
        match unsafe { nix::unistd::fork() } {
            Ok(ForkResult::Child) => child::main(&theirs, parent),
            Ok(ForkResult::Parent { child }) => Ok(Self {
                socket: ours,
                child,
                faults: Faults::default(),
            }),
            Err(errno) => Err(Error::System {
                what: "starting the net helper",
                source: errno.into(),
            }),
        }
    }

    /// Lets a step of the set-up fail with an error number, for tests of what happens then.
    #[doc(hidden)]
    #[must_use]
    pub fn with_fault(mut self, step: Step, errno: i32) -> Self {
        self.faults.0.push((step, errno as u8));
        self
    }
}

impl Drop for NetHelper {
    fn drop(&mut self) {
        // The end of the conversation ends the helper. It is waited for, but not for long: what is
        // left of it goes with this process.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        for _ in 0..50 {
            match waitpid(self.child, Some(WaitPidFlag::WNOHANG)) {
                Ok(nix::sys::wait::WaitStatus::StillAlive) => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                _ => break,
            }
        }
    }
}

fn failed(what: &'static str) -> impl Fn(rustix::io::Errno) -> Error {
    move |errno| Error::System {
        what,
        source: errno.into(),
    }
}

/// What the set-up gave.
#[derive(Debug)]
pub(super) struct Ready {
    /// One at least.
    pub(super) devices: Vec<OwnedFd>,
    pub(super) place: Place,
    pub(super) tcp_offload: bool,
    pub(super) udp_offload: bool,
    pub(super) early_data: bool,
}

/// The helper of a stack that is up: a source of sockets, and a hand on the routes.
#[derive(Debug)]
pub(super) struct Helper(Mutex<State>);

#[derive(Debug)]
struct State {
    helper: NetHelper,
    pool: Vec<OwnedFd>,
    /// Requests without an answer yet; the helper answers in order.
    pending: VecDeque<&'static str>,
}

const SOCKETS: &str = "making sockets in the namespace";
const ROUTES: &str = "changing a route in the namespace";
const WINDOWS: &str = "setting receive windows in the namespace";

impl Helper {
    pub(super) fn set_up(
        helper: NetHelper,
        addresses: &[Ipv6Addr],
        options: StackOptions,
        devices: u8,
    ) -> Result<(Self, Ready), Error> {
        let system = |source| Error::System {
            what: "asking the net helper for a TUN device",
            source,
        };
        let setup = Setup {
            devices,
            mtu: options.mtu,
            receive_window: options.udp_receive_buffer.try_into().unwrap_or(u32::MAX),
            tcp_offload: options.offloads.tun_tcp,
            udp_offload: options.offloads.tun_udp,
            faults: helper.faults.clone(),
            addresses: addresses.to_vec(),
        };
        let request = Request::Setup(setup).encode();
        protocol::send(helper.socket.as_fd(), &request, &[]).map_err(system)?;
        let (message, devices) =
            protocol::receive(helper.socket.as_fd(), RecvFlags::empty()).map_err(system)?;
        let (place, tcp_offload, udp_offload, early_data, notes) = match Reply::decode(&message) {
            Some(Reply::Ready {
                place,
                tcp_offload,
                udp_offload,
                early_data,
                notes,
            }) => (place, tcp_offload, udp_offload, early_data, notes),
            Some(Reply::Failed { reason, .. }) => return Err(Error::KernelStack { reason }),
            _ => return Err(system(gone())),
        };
        if devices.is_empty() {
            return Err(system(gone()));
        }
        for note in notes.lines() {
            tracing::debug!("kernel stack: {note}");
        }
        let state = State {
            helper,
            pool: Vec::new(),
            pending: VecDeque::new(),
        };
        let ready = Ready {
            devices,
            place,
            tcp_offload,
            udp_offload,
            early_data,
        };
        Ok((Self(Mutex::new(state)), ready))
    }

    /// A fresh TCP socket of the namespace.
    pub(super) fn socket(&self) -> io::Result<OwnedFd> {
        let mut state = self.lock();
        if state.pool.len() <= LOW && !state.pending.contains(&SOCKETS) {
            state.post(&Request::Sockets(BATCH), SOCKETS)?;
        }
        while state.pool.is_empty() {
            if state.pending.is_empty() {
                return Err(io::Error::from_raw_os_error(libc::EMFILE));
            }
            state.collect(RecvFlags::empty())?;
        }
        state.pool.pop().ok_or_else(gone)
    }

    /// Sets the route of one peer to a device without waiting for it.
    pub(super) fn set_route(&self, device: u8, peer: Ipv6Addr, mtu: u16) -> io::Result<()> {
        let request = Request::SetRoute(device, peer, mtu);
        self.lock().post(&request, ROUTES)
    }

    /// The same, and the route is there when it returns.
    pub(super) fn set_route_now(&self, device: u8, peer: Ipv6Addr, mtu: u16) -> io::Result<()> {
        let mut state = self.lock();
        state.post(&Request::SetRoute(device, peer, mtu), ROUTES)?;
        while !state.pending.is_empty() {
            let before = state.pending.len();
            match state.collect(RecvFlags::empty()) {
                // Sockets that could not be made are missed by whoever wants them.
                Err(_) if state.pending.len() < before => {}
                outcome => outcome?,
            }
        }
        Ok(())
    }

    /// Removes the route of one peer to a device without waiting for it.
    pub(super) fn remove_route(&self, device: u8, peer: Ipv6Addr) -> io::Result<()> {
        self.lock()
            .post(&Request::RemoveRoute(device, peer), ROUTES)
    }

    /// Sets what a stream may hold at most that was received and not read, in bytes, without waiting
    /// for it.
    pub(super) fn set_receive(&self, most: u32) -> io::Result<()> {
        self.lock().post(&Request::SetReceive(most), WINDOWS)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn post(&mut self, request: &Request, what: &'static str) -> io::Result<()> {
        while !self.pending.is_empty() {
            match self.collect(RecvFlags::DONTWAIT) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                outcome => outcome?,
            }
        }
        protocol::send(self.helper.socket.as_fd(), &request.encode(), &[])?;
        self.pending.push_back(what);
        Ok(())
    }

    /// Takes the answer to the oldest request.
    fn collect(&mut self, flags: RecvFlags) -> io::Result<()> {
        let received = protocol::receive(self.helper.socket.as_fd(), flags);
        let (message, descriptors) = match received {
            Err(error) if flags.is_empty() && error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            received => received?,
        };
        let Some(reply) = Reply::decode(&message) else {
            self.pending.clear();
            return Err(gone());
        };
        let what = self.pending.pop_front().unwrap_or(SOCKETS);
        self.pool.extend(descriptors);
        match reply {
            Reply::Failed { errno, reason } if what == SOCKETS => {
                tracing::debug!("net helper: {reason}");
                Err(io::Error::from_raw_os_error(errno))
            }
            Reply::Failed { reason, .. } => {
                tracing::warn!("net helper: {reason}");
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the net helper has ended")
}

//! The helper process: sets the namespace up, then makes sockets and routes in it until the parent
//! is gone. It shares no memory with the parent and logs nothing; what it has to say, it replies.

use std::net::Ipv6Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use super::device;
use super::netlink::Route;
use super::protocol::{self, MAX_DESCRIPTORS, Reply, Request};
use super::setup::{self, Interface};

/// A silent connection is asked for a sign of life this often.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// How long a connection survives without one.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// Runs the helper on its end of the conversation, for the rest of the process.
pub(super) fn main(socket: &OwnedFd, parent: i32) -> ! {
    // A panic must not unwind into what the parent was doing when it forked.
    let _ = std::panic::catch_unwind(|| {
        settle(socket, parent);
        serve(socket, parent);
    });
    device::exit();
}

/// Lets go of everything that is the parent's.
fn settle(socket: &OwnedFd, parent: i32) {
    device::ignore_signals();
    let _ = prctl::set_name(c"relay-net");
    die_with(parent);
    device::close_others(socket.as_raw_fd());
    let _ = rustix::process::chdir("/");
    if let Ok(null) = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()) {
        let _ = nix::unistd::dup2_stdin(&null);
        let _ = nix::unistd::dup2_stdout(&null);
        let _ = nix::unistd::dup2_stderr(&null);
    }
}

fn serve(socket: &OwnedFd, parent: i32) {
    let mut interface = None;
    while let Ok((message, _)) = protocol::receive(socket.as_fd(), RecvFlags::empty()) {
        let Some(request) = Request::decode(&message) else {
            break;
        };
        let (reply, descriptors) = answer(&mut interface, request, parent);
        let beside: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        if protocol::send(socket.as_fd(), &reply.encode(), &beside).is_err() {
            break;
        }
    }
}

fn die_with(parent: i32) {
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    if nix::unistd::getppid().as_raw() != parent {
        device::exit();
    }
}

fn answer(
    interface: &mut Option<Interface>,
    request: Request,
    parent: i32,
) -> (Reply, Vec<OwnedFd>) {
    match request {
        Request::Setup(setup) => {
            let outcome = setup::run(&setup);
            // Entering a user namespace may have forgotten it.
            die_with(parent);
            match outcome {
                Ok((devices, made)) => {
                    let reply = Reply::Ready {
                        place: made.place,
                        tcp_offload: made.tcp_offload,
                        udp_offload: made.udp_offload,
                        early_data: made.early_data,
                        notes: made.notes.join("\n"),
                    };
                    *interface = Some(made);
                    (reply, devices)
                }
                Err(failure) => {
                    let reply = Reply::Failed {
                        errno: failure.errno.raw_os_error(),
                        reason: failure.reason,
                    };
                    (reply, Vec::new())
                }
            }
        }
        Request::Sockets(count) => sockets(usize::from(count).min(MAX_DESCRIPTORS)),
        Request::SetRoute(device, peer, mtu) => {
            let outcome = with_device(interface, device, |interface, index| {
                let route = Route {
                    prefix: (peer, 128),
                    mtu,
                    largest: interface.largest,
                    replace: true,
                    priority: 0,
                };
                interface.netlink.set_route(index, route)
            });
            done(peer, outcome)
        }
        Request::RemoveRoute(device, peer) => {
            let outcome = with_device(interface, device, |interface, index| {
                interface.netlink.remove_route(index, (peer, 128))
            });
            done(peer, outcome)
        }
        Request::SetReceive(most) => match set_receive(interface, most) {
            Ok(()) => (Reply::Done, Vec::new()),
            Err(errno) => {
                let reply = Reply::Failed {
                    errno: errno.raw_os_error(),
                    reason: format!("setting the receive window of streams failed: {errno}"),
                };
                (reply, Vec::new())
            }
        },
    }
}

fn with_device(
    interface: &mut Option<Interface>,
    device: u8,
    change: impl FnOnce(&mut Interface, u32) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let interface = interface.as_mut().ok_or(Errno::NODEV)?;
    let index = interface.indices.get(usize::from(device)).copied();
    change(interface, index.ok_or(Errno::NODEV)?)
}

fn set_receive(interface: &mut Option<Interface>, most: u32) -> Result<(), Errno> {
    let interface = interface.as_mut().ok_or(Errno::NODEV)?;
    interface.set_receive(most)
}

fn done(peer: Ipv6Addr, outcome: Result<(), Errno>) -> (Reply, Vec<OwnedFd>) {
    let reply = match outcome {
        // A route that is gone already is what removing it was for.
        Ok(()) | Err(Errno::SRCH) => Reply::Done,
        Err(errno) => Reply::Failed {
            errno: errno.raw_os_error(),
            reason: format!("changing the route to {peer} failed: {errno}"),
        },
    };
    (reply, Vec::new())
}

fn sockets(count: usize) -> (Reply, Vec<OwnedFd>) {
    let mut made = Vec::with_capacity(count);
    for _ in 0..count {
        match socket() {
            Ok(socket) => made.push(socket),
            Err(error) if made.is_empty() => {
                let reply = Reply::Failed {
                    errno: error.raw_os_error().unwrap_or(0),
                    reason: format!("making a socket in the namespace failed: {error}"),
                };
                return (reply, made);
            }
            Err(_) => break,
        }
    }
    (Reply::Sockets, made)
}

/// A TCP socket with everything set that only this process may set, or that must be set before it
/// connects or listens: accepted sockets inherit it. Congestion control chosen later than that
/// would leave the pacing of the one before behind.
fn socket() -> std::io::Result<OwnedFd> {
    let socket = Socket::new(
        Domain::IPV6,
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    socket.set_only_v6(true)?;
    socket.set_tcp_nodelay(true)?;
    let _ = socket.set_tcp_congestion(b"cubic");
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(PATIENCE))?;
    Ok(socket.into())
}

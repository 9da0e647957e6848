//! A TUN device in a network namespace of its own, with one address.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Socket, Type};

/// Puts this thread into a new network namespace and makes the device, for packets as they are.
/// The namespace is gone with the thread and what it opened.
///
/// # Errors
/// As unshare(2), open(2) and ioctl(2).
pub(super) fn open(address: Ipv4Addr, mask: Ipv4Addr) -> io::Result<File> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let device = options
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    let mut request = Request::new();
    request.0.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
    request.make(&device, libc::TUNSETIFF)?;
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    request.0.ifr_ifru.ifru_addr = sockaddr(address);
    request.make(&socket, libc::SIOCSIFADDR)?;
    request.0.ifr_ifru.ifru_addr = sockaddr(mask);
    request.make(&socket, libc::SIOCSIFNETMASK)?;
    request.0.ifr_ifru.ifru_flags = libc::IFF_UP as i16;
    request.make(&socket, libc::SIOCSIFFLAGS)?;
    Ok(device)
}

/// What is asked of a device; the kernel has put its name in (netdevice(7)).
struct Request(libc::ifreq);

impl Request {
    fn new() -> Self {
        // SAFETY: it is made of integers, for which zero is a value.
        Self(unsafe { std::mem::zeroed() })
    }

    fn make(&mut self, at: &impl AsFd, what: libc::Ioctl) -> io::Result<()> {
        let fd = at.as_fd().as_raw_fd();
        // SAFETY: the descriptor is open, and all these requests take a `struct ifreq`.
        let status = unsafe { libc::ioctl(fd, what, &raw mut self.0) };
        if status < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

fn sockaddr(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (place, byte) in data[2..6].iter_mut().zip(address.octets()) {
        *place = byte as libc::c_char;
    }
    libc::sockaddr {
        sa_family: libc::AF_INET as libc::sa_family_t,
        sa_data: data,
    }
}

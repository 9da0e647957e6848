//! The system calls that no safe library covers: the TUN device's ioctls, and what the helper does
//! to itself.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

const SET_INTERFACE: libc::Ioctl = 0x4004_54ca;
const SET_PERSISTENT: libc::Ioctl = 0x4004_54cb;
const SET_OFFLOAD: libc::Ioctl = 0x4004_54d0;

const TUN: u16 = 0x0001;
const NO_PACKET_INFORMATION: u16 = 0x1000;
const VNET_HEADER: u16 = 0x4000;

/// Checksums left to relay, TCP super-packets of both families, with congestion marks.
pub(super) const OFFLOAD_TCP: u32 = 0x01 | 0x02 | 0x04 | 0x08;
/// UDP super-packets of both families: the kernel takes both or none.
pub(super) const OFFLOAD_UDP: u32 = 0x20 | 0x40;

#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    padding: [u8; 22],
}

pub(super) fn open() -> Result<OwnedFd, Errno> {
    rustix::fs::open(
        "/dev/net/tun",
        OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK,
        Mode::empty(),
    )
}

/// Makes the interface and returns the name it got.
pub(super) fn make_interface(device: &OwnedFd, pattern: &str) -> Result<String, Errno> {
    let mut request = InterfaceRequest {
        name: [0; 16],
        flags: TUN | NO_PACKET_INFORMATION | VNET_HEADER,
        padding: [0; 22],
    };
    request.name[..pattern.len()].copy_from_slice(pattern.as_bytes());
    // SAFETY: the kernel reads and writes one `struct ifreq`, 40 bytes, which `request` is laid
    // out as; it outlives the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), SET_INTERFACE, &raw mut request) })?;
    let end = request.name.iter().position(|byte| *byte == 0);
    Ok(String::from_utf8_lossy(&request.name[..end.unwrap_or(16)]).into_owned())
}

pub(super) fn set_offload(device: &OwnedFd, flags: u32) -> Result<(), Errno> {
    // SAFETY: the argument is a number, no memory is passed.
    check(unsafe { libc::ioctl(device.as_raw_fd(), SET_OFFLOAD, libc::c_ulong::from(flags)) })
}

/// Lets the device live as long as its namespace. Closing the last descriptor of one that is not
/// persistent takes it down at once and can wait for ever for sockets that remember its routes.
pub(super) fn set_persistent(device: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: the argument is a number, no memory is passed.
    check(unsafe { libc::ioctl(device.as_raw_fd(), SET_PERSISTENT, 1 as libc::c_ulong) })
}

/// Closes everything but the standard streams and `keep`.
pub(super) fn close_others(keep: RawFd) {
    let keep = keep as libc::c_uint;
    // SAFETY: this is the freshly forked helper; nothing that owns one of these descriptors is
    // used again in this process.
    unsafe {
        if keep > 3 {
            libc::close_range(3, keep - 1, 0);
        }
        libc::close_range(keep + 1, libc::c_uint::MAX, 0);
    }
}

/// Leaves new namespaces to this process alone.
pub(super) fn unshare(user: bool) -> Result<(), Errno> {
    let flags = libc::CLONE_NEWNET | if user { libc::CLONE_NEWUSER } else { 0 };
    // SAFETY: the helper has one thread, and the flags do not touch memory or descriptors.
    check(unsafe { libc::unshare(flags) })
}

/// Ends the process without running anything that belongs to the parent.
pub(super) fn exit() -> ! {
    // SAFETY: takes no memory and does not return.
    unsafe { libc::_exit(0) }
}

/// Signals that are meant for the parent must not end the helper before it.
pub(super) fn ignore_signals() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
        // SAFETY: ignoring a signal installs no handler.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

fn check(result: libc::c_int) -> Result<(), Errno> {
    if result < 0 {
        let error = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
    }
    Ok(())
}

//! Opening a TUN device in the calling thread's network namespace.
#![allow(unsafe_code, reason = "one ioctl that no crate wraps")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

const IFF_TUN: i16 = 0x0001;
const IFF_NO_PI: i16 = 0x1000;
/// `_IOW('T', 202, int)` of linux/if_tun.h.
const TUNSETIFF: u64 = 0x4004_54ca;

/// `struct ifreq` with its flags member.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: i16,
    rest: [u8; 22],
}

nix::ioctl_write_ptr_bad!(set_interface, TUNSETIFF, Request);

/// A new non-blocking device called `name`, carrying plain IP packets.
pub(super) fn open(name: &str) -> io::Result<File> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    let mut request = Request {
        name: [0; 16],
        flags: IFF_TUN | IFF_NO_PI,
        rest: [0; 22],
    };
    for (to, from) in request.name[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: the descriptor is open, and the request is a whole `struct ifreq` that outlives the
    // call.
    unsafe { set_interface(device.as_raw_fd(), &raw const request) }?;
    Ok(device)
}

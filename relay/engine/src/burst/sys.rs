//! The system calls of bursts that no safe wrapper offers without an allocation a call: `sendmsg`
//! with `UDP_SEGMENT` and `recvmmsg` with `UDP_GRO`.

use std::io::{self, IoSlice};
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc;

/// One received message.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    /// Who sent it.
    pub from: SocketAddr,
    /// Its bytes.
    pub len: usize,
    /// Bytes of each of the datagrams that lie side by side in it, the last may be shorter; never 0.
    pub segment: usize,
}

/// Room for one control message, aligned as the kernel wants it.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; 64]);

/// Sends `parts`, one behind the other, as datagrams of `segment` bytes (0: as one datagram) to `to`,
/// or to where the socket is connected.
///
/// # Errors
/// As sendmsg(2); `EIO`, `EINVAL` and others where the kernel cannot cut bursts on that way.
pub fn send(
    fd: BorrowedFd<'_>,
    to: Option<SocketAddr>,
    parts: &[IoSlice<'_>],
    segment: u16,
) -> io::Result<usize> {
    let mut name = to.map(encode);
    let mut control = Control([0; 64]);
    // SAFETY: an all-zero msghdr is a valid value of this plain C struct.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    if let Some((name, len)) = &mut name {
        header.msg_name = std::ptr::from_mut(name).cast();
        header.msg_namelen = *len;
    }
    // An IoSlice is an iovec by its documentation.
    header.msg_iov = parts.as_ptr().cast_mut().cast();
    header.msg_iovlen = parts.len() as _;
    if segment != 0 {
        header.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: pure arithmetic on a length; the room of 64 bytes exceeds CMSG_SPACE(2), so the
        // first header lies inside `control`, is aligned, and takes 2 bytes of data.
        unsafe {
            header.msg_controllen = libc::CMSG_SPACE(2) as _;
            let first = libc::CMSG_FIRSTHDR(&raw const header);
            (*first).cmsg_level = libc::SOL_UDP;
            (*first).cmsg_type = libc::UDP_SEGMENT;
            (*first).cmsg_len = libc::CMSG_LEN(2) as _;
            libc::CMSG_DATA(first)
                .cast::<u16>()
                .write_unaligned(segment);
        }
    }
    // SAFETY: every pointer of the header points to a live local or to `parts`, which outlive the
    // call; the kernel does not write through them.
    let sent = unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Receives up to `N` messages, the n-th into `data[n * stride..]`, without waiting, and returns how
/// many there were. One that did not fit is `None`.
///
/// # Errors
/// As recvmmsg(2); `WouldBlock` when there is nothing.
pub fn receive<const N: usize>(
    fd: BorrowedFd<'_>,
    data: &mut [u8],
    stride: usize,
    out: &mut [Option<Message>; N],
) -> io::Result<usize> {
    // SAFETY: all-zero values are valid for these plain C structs.
    let mut names: [libc::sockaddr_storage; N] = unsafe { mem::zeroed() };
    // SAFETY: as above.
    let mut headers: [libc::mmsghdr; N] = unsafe { mem::zeroed() };
    let mut controls = [Control([0; 64]); N];
    let mut parts = [libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: 0,
    }; N];
    let mut room = 0;
    for (n, chunk) in data.chunks_exact_mut(stride).take(N).enumerate() {
        parts[n] = libc::iovec {
            iov_base: chunk.as_mut_ptr().cast(),
            iov_len: stride,
        };
        let header = &mut headers[n].msg_hdr;
        header.msg_name = (&raw mut names[n]).cast();
        header.msg_namelen = mem::size_of::<libc::sockaddr_storage>() as _;
        header.msg_iov = &raw mut parts[n];
        header.msg_iovlen = 1;
        header.msg_control = controls[n].0.as_mut_ptr().cast();
        header.msg_controllen = mem::size_of::<Control>() as _;
        room += 1;
    }
    // SAFETY: the first `room` headers point to live, disjoint buffers of the lengths given.
    let got = unsafe {
        libc::recvmmsg(
            fd.as_raw_fd(),
            headers.as_mut_ptr(),
            room as _,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
        )
    };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    for n in 0..got {
        let len = headers[n].msg_len as usize;
        let truncated = headers[n].msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
        out[n] = decode(&names[n])
            .filter(|_| !truncated)
            .map(|from| Message {
                from,
                len,
                segment: segment_size(&headers[n].msg_hdr)
                    .unwrap_or(len)
                    .min(len)
                    .max(1),
            });
    }
    Ok(got)
}

/// The datagram size the kernel reports for a message it merged.
fn segment_size(header: &libc::msghdr) -> Option<usize> {
    // SAFETY: the kernel filled msg_control and msg_controllen of this header; the CMSG functions
    // stay inside it, and a UDP_GRO message carries an int.
    unsafe {
        let mut item = libc::CMSG_FIRSTHDR(header);
        while !item.is_null() {
            if (*item).cmsg_level == libc::SOL_UDP && (*item).cmsg_type == libc::UDP_GRO {
                let size = libc::CMSG_DATA(item).cast::<libc::c_int>().read_unaligned();
                return usize::try_from(size).ok().filter(|size| *size > 0);
            }
            item = libc::CMSG_NXTHDR(header, item);
        }
    }
    None
}

fn encode(to: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: an all-zero sockaddr_storage is valid.
    let mut storage: libc::sockaddr_storage = unsafe { mem::zeroed() };
    let len = match to {
        SocketAddr::V4(v4) => {
            let name = (&raw mut storage).cast::<libc::sockaddr_in>();
            // SAFETY: sockaddr_storage is large enough and aligned for every address family.
            unsafe {
                (*name).sin_family = libc::AF_INET as _;
                (*name).sin_port = v4.port().to_be();
                (*name).sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
            }
            mem::size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(v6) => {
            let name = (&raw mut storage).cast::<libc::sockaddr_in6>();
            // SAFETY: as above.
            unsafe {
                (*name).sin6_family = libc::AF_INET6 as _;
                (*name).sin6_port = v6.port().to_be();
                (*name).sin6_addr.s6_addr = v6.ip().octets();
                (*name).sin6_scope_id = v6.scope_id();
            }
            mem::size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, len as _)
}

fn decode(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match libc::c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that the kernel wrote a sockaddr_in.
            let name = unsafe { &*std::ptr::from_ref(storage).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(name.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddrV4::new(ip, u16::from_be(name.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that the kernel wrote a sockaddr_in6.
            let name = unsafe { &*std::ptr::from_ref(storage).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(name.sin6_addr.s6_addr);
            let port = u16::from_be(name.sin6_port);
            Some(match IpAddr::V6(ip).to_canonical() {
                IpAddr::V4(ip) => SocketAddrV4::new(ip, port).into(),
                IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, name.sin6_scope_id).into(),
            })
        }
        _ => None,
    }
}

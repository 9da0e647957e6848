//! Congestion control by the length of the path.
#![allow(
    unsafe_code,
    reason = "TCP_INFO has no safe wrapper in the crates used here"
)]

use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use socket2::SockRef;

/// From this round trip on a path is long: there loss is the network's and not a sign of a full
/// queue, and what it costs to pace packets does not show.
const LONG: Duration = Duration::from_millis(4);

/// Gives a connection over a long path BBR, where the kernel has it. All start with cubic, which is
/// a fifth faster between ends that are near (dataplane measurements), and a tenth as fast at half
/// a percent of loss and 40 ms.
pub(super) fn suit(stream: &impl AsFd) {
    // No time is known yet where the first packet brought data, which is only done on long paths.
    if round_trip(stream).is_none_or(|time| time >= LONG) {
        // Without BBR the connection goes on as it is.
        let _ = SockRef::from(stream).set_tcp_congestion(b"bbr");
    }
}

/// The smoothed round trip that the kernel has measured, once a handshake is done (tcp(7)).
fn round_trip(stream: &impl AsFd) -> Option<Duration> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).ok()?;
    // SAFETY: the descriptor is open for the call, and the kernel writes at most `length` bytes to
    // a value of that size.
    let result = unsafe {
        libc::getsockopt(
            stream.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return None;
    }
    // SAFETY: it was zeroed, and every bit pattern is a value of this plain structure.
    let info = unsafe { info.assume_init() };
    Some(Duration::from_micros(info.tcpi_rtt.into())).filter(|time| !time.is_zero())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_near_connection_keeps_what_it_has() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let before = SockRef::from(&stream).tcp_congestion().unwrap();
        let time = round_trip(&stream).unwrap();
        assert!(time < Duration::from_secs(1), "{time:?}");
        if time < LONG {
            suit(&stream);
            assert_eq!(SockRef::from(&stream).tcp_congestion().unwrap(), before);
        }
    }
}

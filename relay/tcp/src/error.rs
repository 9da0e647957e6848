//! What can go wrong here.

/// Errors of this crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The packet ends before its headers do.
    #[error("the packet is shorter than its headers say; drop it")]
    Truncated,
    /// The packet is not IPv4 or IPv6 with TCP right behind the header, or it is a fragment.
    #[error("the packet holds no whole TCP segment; hand it to whom its protocol belongs")]
    NotTcp,
    /// The checksum of the IP or TCP header is wrong.
    #[error("the packet's checksum is wrong; drop it")]
    Checksum,
    /// The two ends of a connection have addresses of different families.
    #[error("one end has an IPv4 address and the other an IPv6 address; use one family")]
    Family,
    /// No connection has this id, or it is closed and forgotten.
    #[error("the connection is gone; forget its id")]
    Gone,
    /// Nobody waits for an answer to this SYN, or it waited too long.
    #[error("the connection request is gone; close what was opened for it")]
    RequestGone,
    /// As many connections as the limit allows are open.
    #[error("there are as many connections as the limit allows; close some or raise the limit")]
    TooMany,
    /// All local ports are in use towards this remote end.
    #[error("every local port is in use towards this address; close some connections")]
    NoPort,
    /// The connection is not open for sending.
    #[error("the connection takes no more data; its sending side was shut down or reset")]
    NotOpen,
}

//! The states of a connection (RFC 9293 §3.3.2) and how it ends.

/// State of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// A SYN was sent.
    SynSent,
    /// A SYN was received and answered.
    SynReceived,
    /// Data flows both ways.
    Established,
    /// Our end was sent and is not acknowledged.
    FinWait1,
    /// Our end is acknowledged; the peer still sends.
    FinWait2,
    /// The peer's end was received; we still send.
    CloseWait,
    /// Both ends were sent at once; ours is not acknowledged.
    Closing,
    /// The peer's end was received, then ours was sent and is not acknowledged.
    LastAck,
    /// Both ends are acknowledged; late segments are answered for a while.
    TimeWait,
    /// Over.
    Closed,
}

impl State {
    /// Whether the handshake is over and the connection is not.
    pub fn is_synchronized(self) -> bool {
        !matches!(self, Self::SynSent | Self::SynReceived | Self::Closed)
    }

    /// Whether data and an end may still be sent.
    pub(crate) fn may_send(self) -> bool {
        matches!(
            self,
            Self::Established | Self::CloseWait | Self::FinWait1 | Self::Closing | Self::LastAck
        )
    }

    /// Whether data of the peer may still come.
    pub(crate) fn may_receive(self) -> bool {
        matches!(self, Self::Established | Self::FinWait1 | Self::FinWait2)
    }
}

/// Why a connection is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// Both directions came to their end.
    Finished,
    /// The peer did not take the connection.
    Refused,
    /// The peer reset it.
    Reset,
    /// The peer is silent.
    TimedOut,
    /// It was reset from here.
    Aborted,
}

/// What happened to a connection since it was asked last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Events {
    /// The handshake is over, or data came with the peer's SYN.
    pub connected: bool,
    /// There is more to read.
    pub readable: bool,
    /// A write that was cut short can go on.
    pub writable: bool,
    /// The peer sends no more; what is buffered can still be read.
    pub finished: bool,
    /// The connection is over.
    pub closed: Option<CloseReason>,
}

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Timer {
    /// An answer to a SYN.
    Handshake,
    /// The retransmission timeout.
    Retransmission,
    /// A probe for a lost tail.
    TailProbe,
    /// Whether an overtaken segment is lost.
    Reordering,
    /// A probe of a closed window.
    Persist,
    /// The next burst.
    Pacing,
    /// An acknowledgement that was held back.
    DelayedAck,
    /// A question to an idle peer.
    Keepalive,
    /// The end of TIME-WAIT, or of the wait for the peer's end.
    Linger,
}

//! How connections behave: limits, timers and which extensions are offered.

use std::time::Duration;

use crate::emit::Checksums;

/// Which congestion control a connection uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Algorithm {
    /// BBR version 3 (draft-ietf-ccwg-bbr): follows the measured rate and is not stopped by loss
    /// that is no congestion.
    #[default]
    Bbr,
    /// CUBIC (RFC 9438) with HyStart++ (RFC 9406).
    Cubic,
}

/// When an idle connection asks whether the peer is still there (RFC 9293 §3.8.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first question.
    pub idle: Duration,
    /// Time between questions.
    pub interval: Duration,
    /// Questions without an answer after which the connection is given up.
    pub probes: u32,
}

/// Settings of connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The largest IP packet, in bytes.
    pub mtu: u16,
    /// Congestion control.
    pub algorithm: Algorithm,
    /// Bytes a receive buffer may hold at first.
    pub receive_buffer: u64,
    /// Bytes to which a receive buffer may grow. It also decides the window scale.
    pub receive_buffer_max: u64,
    /// Bytes that may wait in a send buffer for their first transmission. It need not be much where a
    /// writer comes soon when it is told of room; what waits long is no longer in the processor's
    /// cache when it is sent.
    pub send_reserve: u64,
    /// Bytes that a send buffer may hold, sent or not.
    pub send_buffer_max: u64,
    /// Offer timestamps (RFC 7323).
    pub timestamps: bool,
    /// Offer selective acknowledgements (RFC 2018).
    pub sack: bool,
    /// Offer window scaling (RFC 7323).
    pub window_scaling: bool,
    /// Offer explicit congestion notification (RFC 3168).
    pub ecn: bool,
    /// Take data that comes with a SYN, and answer before the handshake is over (RFC 7413, without
    /// cookies): only where peers cannot forge addresses, as in a tunnel. What a [`Stack`] took with
    /// a SYN it does not take again with a copy of it.
    ///
    /// [`Stack`]: crate::Stack
    pub early_data: bool,
    /// Checksums of TCP.
    pub checksums: Checksums,
    /// The shortest retransmission timeout. RFC 6298 §2.4 says one second; every system uses less.
    pub rto_min: Duration,
    /// The longest retransmission timeout, also between probes of a closed window. RFC 6298 §2.5
    /// allows no bound below a minute; a tunnel that comes back should not be waited for so long.
    pub rto_max: Duration,
    /// Lets acknowledgements of small segments, and of the peer's end, wait for something to travel
    /// with from the beginning, instead of after the first few: where peers hold no small segments
    /// back until others are acknowledged (RFC 896), so that nothing waits for them.
    pub patient_acks: bool,
    /// How long data may stay without acknowledgement (RFC 9293 §3.8.3).
    pub user_timeout: Duration,
    /// How long opening may take, if `user_timeout` is not shorter.
    pub open_timeout: Duration,
    /// The longest that an acknowledgement is held back (RFC 9293 §3.8.6.3).
    pub delayed_ack: Duration,
    /// Twice the maximum segment lifetime (RFC 9293 §3.4.2). Several times `rto_max`, or a peer
    /// whose end was acknowledged in vain finds nobody to ask again.
    pub time_wait: Duration,
    /// How long a connection that the application closed waits for the peer's end.
    pub fin_wait: Duration,
    /// Questions to idle peers; none: an idle connection lives for ever.
    pub keepalive: Option<Keepalive>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mtu: 1280,
            algorithm: Algorithm::default(),
            receive_buffer: 256 << 10,
            receive_buffer_max: 16 << 20,
            send_reserve: 128 << 10,
            send_buffer_max: 16 << 20,
            timestamps: true,
            sack: true,
            window_scaling: true,
            ecn: true,
            early_data: false,
            checksums: Checksums::Full,
            rto_min: Duration::from_millis(200),
            rto_max: Duration::from_secs(20),
            user_timeout: Duration::from_secs(600),
            open_timeout: Duration::from_secs(60),
            delayed_ack: Duration::from_millis(40),
            patient_acks: false,
            time_wait: Duration::from_secs(60),
            fin_wait: Duration::from_secs(60),
            keepalive: Some(Keepalive {
                idle: Duration::from_secs(7200),
                interval: Duration::from_secs(75),
                probes: 9,
            }),
        }
    }
}

impl Config {
    /// The window scale that reaches `receive_buffer_max` (RFC 7323 §2.2).
    pub(crate) fn window_shift(&self) -> u8 {
        (0..14)
            .find(|&shift| 0xffff_u64 << shift >= self.receive_buffer_max)
            .unwrap_or(14)
    }
}

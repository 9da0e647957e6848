//! Timestamps (RFC 7323), congestion echoed (RFC 3168), sizes (RFC 9293 §3.7).

use crate::open::OPENED;
use crate::script::run;

const WITH_TIMESTAMPS: &str = "
    set timestamps on
    connect
    > S seq=0 ts=1000:0
    < S. seq=0 ack=1 mss=1000 sackok ts=500:1000
    > . seq=1 ack=1 ts=1000:500
";

#[test]
fn timestamps_are_echoed() {
    run(&format!(
        "{WITH_TIMESTAMPS}
        +100
        < . seq=1 ack=1 len=100 ts=600:1000
        > . ack=101 ts=1100:600
        # Beyond a gap: the one before counts (RFC 7323 section 4.3).
        < . seq=201 ack=1 len=100 ts=700:1000
        > . ack=101 ts=1100:600 sack=201-301
        < . seq=101 ack=1 len=100 ts=710:1000
        > . ack=301 ts=1100:710
    "
    ));
}

#[test]
fn an_old_timestamp_makes_an_old_segment() {
    run(&format!(
        "{WITH_TIMESTAMPS}
        < . seq=1 ack=1 len=100 ts=600:1000
        > . ack=101
        < . seq=101 ack=1 len=100 ts=535:1000
        > . ack=101 ts=1000:600
        unread 100
        # A reset has no need of one.
        < R seq=101
        closed Reset
    "
    ));
}

/// The retransmission that fills a gap overtakes what was sent before it.
#[test]
fn data_that_was_overtaken_counts() {
    run(&format!(
        "{WITH_TIMESTAMPS}
        < . seq=101 ack=1 len=100 ts=590:1000
        > . ack=1 ts=1000:500 sack=101-201
        < . seq=1 ack=1 len=100 ts=600:1000
        > . ack=201 ts=1000:600
        < . seq=201 ack=1 len=100 ts=595:1000
        > . ack=301 ts=1000:600
        < . seq=301 ack=1 len=100 ts=536:1000
        > . ack=401 ts=1000:600
        unread 400
    "
    ));
}

#[test]
fn a_segment_without_the_timestamp_that_was_agreed_on_is_dropped() {
    run(&format!(
        "{WITH_TIMESTAMPS}
        < . seq=1 ack=1 len=100
        none
        unread 0
    "
    ));
}

#[test]
fn congestion_is_echoed_until_the_peer_heard() {
    run("
        set ecn on
        < SEW seq=0 mss=1000
        > SE. seq=0 ack=1 ect=no
        < . seq=1 ack=1
        < . seq=1 ack=1 len=100 ce
        > E. ack=101 ect=no
        < . seq=101 ack=1 len=100
        > E. ack=201
        < W. seq=201 ack=1 len=100
        > . ack=301
    ");
}

#[test]
fn an_echo_of_congestion_reduces_the_window_once_a_round() {
    run("
        set ecn on
        connect
        > SEW seq=0
        < SE. seq=0 ack=1 mss=1000
        > . seq=1 ack=1
        window 10000..10001
        write 2000
        > . seq=1 len=1000 ect
        > . seq=1001 len=1000 ect
        +10
        < E. seq=1 ack=1001
        window 3000..8000
        < E. seq=1 ack=2001
        write 1000
        > W. seq=2001 len=1000 ect
        +10
        < . seq=1 ack=3001
        write 1000
        > . seq=3001 len=1000 ect
    ");
}

#[test]
fn the_peers_segment_size_is_respected() {
    run("
        connect
        > S seq=0
        < S. seq=0 ack=1 mss=700
        > . seq=1 ack=1
        write 1500
        > . seq=1 len=700
        > . seq=701 len=700
        > . seq=1401 len=100
    ");
    // Nothing said means 1220 with IPv6, here more than fits.
    run("
        connect
        > S seq=0 mss=1000
        < S. seq=0 ack=1
        > . seq=1 ack=1
        write 1500
        > . seq=1 len=1000
        > . seq=1001 len=500
    ");
}

#[test]
fn a_smaller_path_sends_again_what_did_not_fit() {
    run(&format!(
        "{OPENED}
        write 2500
        > . seq=1 len=1000
        > . seq=1001 len=1000
        > . seq=2001 len=500
        mtu 660
        > . seq=1 len=600
        > . seq=601 len=400
        > . seq=1001 len=600
        > . seq=1601 len=400
        none
        window 10000..10001
        < . seq=1 ack=2501
        write 700
        > . seq=2501 len=600
        > . seq=3101 len=100
    "
    ));
}

//! How connections end: RFC 9293 §3.6 and §3.10.7.4.

use crate::open::OPENED;
use crate::script::run;

fn opened(script: &str) {
    run(&format!("{OPENED}{script}"));
}

#[test]
fn our_end_first_then_the_peers() {
    opened(
        "
        shutdown
        > F. seq=1 ack=1
        state FinWait1
        < . seq=1 ack=2
        state FinWait2
        # The peer still sends.
        < . seq=1 ack=2 len=300
        > . seq=2 ack=301
        read 300
        < F. seq=301 ack=2
        > . seq=2 ack=302
        state TimeWait
        closed no
        # Its end comes again, because our answer was lost; the wait begins anew.
        +59000
        < F. seq=301 ack=2
        > . seq=2 ack=302
        +59900
        state TimeWait
        +200
        closed Finished
    ",
    );
}

#[test]
fn the_peers_end_first_then_ours() {
    opened(
        "
        < F. seq=1 ack=1 len=5
        > . seq=1 ack=7
        state CloseWait
        read 5
        write 10
        > . seq=1 len=10 ack=7
        < . seq=7 ack=11
        shutdown
        > F. seq=11 ack=7
        state LastAck
        < . seq=7 ack=12
        closed Finished
    ",
    );
}

#[test]
fn both_ends_at_once() {
    opened(
        "
        shutdown
        > F. seq=1 ack=1
        < F. seq=1 ack=1
        > . seq=2 ack=2
        state Closing
        < . seq=2 ack=2
        state TimeWait
    ",
    );
    // The end and the acknowledgement in one.
    opened(
        "
        shutdown
        > F. seq=1 ack=1
        < F. seq=1 ack=2
        > . seq=2 ack=2
        state TimeWait
    ",
    );
}

#[test]
fn a_lost_end_is_sent_again() {
    opened(
        "
        +100
        write 10
        > . seq=1 len=10
        +20
        < . seq=1 ack=11
        shutdown
        > F. seq=11 ack=1
        ~200 > F. seq=11
        ~400 > F. seq=11
        ~800 > F. seq=11
        < . seq=1 ack=12
        state FinWait2
    ",
    );
}

#[test]
fn an_end_beyond_a_gap_waits_for_what_is_before_it() {
    opened(
        "
        < F. seq=101 ack=1 len=100
        > . ack=1 sack=101-201
        state Established
        < . seq=1 ack=1 len=100
        > . ack=202
        state CloseWait
        unread 200
    ",
    );
}

#[test]
fn nothing_counts_behind_the_end() {
    opened(
        "
        < F. seq=1 ack=1 len=10
        > . ack=12
        < . seq=12 ack=1 len=10
        > . ack=12
        unread 10
    ",
    );
}

#[test]
fn a_closed_end_does_not_wait_for_ever() {
    opened(
        "
        close
        > F. seq=1 ack=1
        < . seq=1 ack=2
        state FinWait2
        +60100
        closed Finished
    ",
    );
    // One that still reads does.
    opened(
        "
        shutdown
        > F. seq=1 ack=1
        < . seq=1 ack=2
        +600000
        state FinWait2
    ",
    );
}

#[test]
fn a_reset_ends_the_wait() {
    opened(
        "
        shutdown
        > F. seq=1 ack=1
        < F. seq=1 ack=2
        > . seq=2 ack=2
        state TimeWait
        < R seq=2
        closed Finished
    ",
    );
}

#[test]
fn the_end_needs_no_window() {
    opened(
        "
        write 10
        > . seq=1 len=10
        < . seq=1 ack=11 win=0
        shutdown
        > F. seq=11 ack=1
    ",
    );
}

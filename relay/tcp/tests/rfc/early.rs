//! Data in the SYN: RFC 7413 §4.2 without cookies, and what a SYN's answer may carry.

use crate::script::run;

#[test]
fn first_bytes_go_with_the_syn_and_are_not_sent_again_when_taken() {
    run("
        connect 500
        > S seq=0 len=500
        +50
        < S. seq=0 ack=501 mss=1000
        # The answer will carry the acknowledgement, or ask for it.
        none
        state Established
        +10
        < . seq=1 ack=501 len=10
        > . seq=501 ack=11
        write 300
        > . seq=501 len=300
    ");
}

#[test]
fn an_answer_that_is_long_in_coming_is_not_waited_for_with_the_acknowledgement() {
    run("
        connect 500
        > S seq=0 len=500
        < S. seq=0 ack=501 mss=1000
        ~40 > . seq=501 ack=1 len=0
    ");
}

#[test]
fn what_the_peer_does_not_take_is_sent_once_the_connection_is_open() {
    run("
        connect 500
        > S seq=0 len=500
        < S. seq=0 ack=1 mss=1000
        > . seq=1 len=500 ack=1
        < . seq=1 ack=501
        none
    ");
    // A part of it.
    run("
        connect 500
        > S seq=0 len=500
        < S. seq=0 ack=201 mss=1000
        > . seq=201 len=300 ack=1
        < . seq=1 ack=501
        none
    ");
}

#[test]
fn a_packet_holds_what_it_holds_and_the_rest_follows() {
    run("
        connect 1500
        > S seq=0 len=992
        < S. seq=0 ack=993 mss=1000
        > . seq=993 len=508
    ");
    run("
        connect 500
        shutdown
        > S seq=0 len=500
        < S. seq=0 ack=501 mss=1000
        > F. seq=501 len=0
        state FinWait1
    ");
}

#[test]
fn a_syn_that_is_sent_again_carries_no_data() {
    run("
        connect 500
        > S seq=0 len=500
        ~1000 > S seq=0 len=0
        < S. seq=0 ack=1 mss=1000
        > . seq=1 len=500
    ");
    // The first one had come through, and its answer was lost.
    run("
        connect 500
        > S seq=0 len=500
        ~1000 > S seq=0 len=0
        < S. seq=0 ack=501 mss=1000
        write 10
        > . seq=501 len=10
    ");
}

#[test]
fn an_acknowledgement_of_more_than_was_sent_is_reset() {
    run("
        connect 500
        > S seq=0 len=500
        < S. seq=0 ack=502 mss=1000
        > R seq=502
        state SynSent
    ");
}

#[test]
fn a_refusal_of_the_data_is_a_refusal() {
    run("
        connect 500
        > S seq=0 len=500
        < R. seq=0 ack=501
        none
        closed Refused
    ");
}

#[test]
fn both_ends_may_open_at_once_with_data() {
    run("
        connect 500
        > S seq=0 len=500
        < S seq=0 mss=1000
        > S. seq=0 ack=1 len=0
        < S. seq=0 ack=1
        state Established
        > . seq=1 len=500 ack=1
    ");
}

#[test]
fn data_that_came_with_the_syn_is_answered_before_the_handshake_is_over() {
    run("
        set early on
        < S seq=0 len=300 mss=1000
        > S. seq=0 ack=301
        unread 300
        state SynReceived
        write 200
        > . seq=1 len=200 ack=301
        +20
        < . seq=301 ack=201
        state Established
        none
    ");
}

#[test]
fn a_whole_answer_may_end_before_the_handshake_is_over() {
    run("
        set early on
        < S seq=0 len=300 mss=1000
        > S. seq=0 ack=301
        read 300
        write 200
        shutdown
        > F. seq=1 len=200 ack=301
        state SynReceived
        < F. seq=301 ack=202
        > . seq=202 ack=302
        state TimeWait
    ");
}

#[test]
fn a_server_that_speaks_first_waits_for_nothing() {
    run("
        set early on
        < S seq=0 mss=1000
        > S. seq=0 ack=1
        write 200
        > . seq=1 len=200 ack=1
        < . seq=1 ack=1
        state Established
        < . seq=1 ack=201
        none
    ");
    // RFC 9293 lets it wait, and so does an end that is not told otherwise.
    run("
        < S seq=0 mss=1000
        > S. seq=0 ack=1
        write 200
        none
        < . seq=1 ack=1
        > . seq=1 len=200 ack=1
    ");
}

#[test]
fn an_end_that_takes_no_early_data_acknowledges_the_syn_alone() {
    run("
        < S seq=0 len=300 mss=1000
        > S. seq=0 ack=1
        unread 0
        < . seq=1 ack=1 len=300
        > . seq=1 ack=301
        unread 300
    ");
}

#[test]
fn the_data_counts_once_however_often_the_syn_comes() {
    run("
        set early on
        < S seq=0 len=300 mss=1000
        > S. seq=0 ack=301
        < S seq=0 len=300 mss=1000
        > S. seq=0 ack=301
        < S seq=0 mss=1000
        > S. seq=0 ack=301
        unread 300
        < . seq=301 ack=1 len=50
        > . seq=1 ack=351
        unread 350
        state Established
    ");
}

#[test]
fn a_lost_answer_and_what_followed_it_come_again() {
    run("
        set early on
        < S seq=0 len=300 mss=1000
        > S. seq=0 ack=301
        write 200
        > . seq=1 len=200
        ~1000 > S. seq=0 ack=301
        > . seq=1 len=200 ack=301
        < . seq=301 ack=201
        state Established
        none
    ");
}

#[test]
fn data_that_finds_no_room_is_not_acknowledged() {
    run("
        set early on
        set buffer 200
        < S seq=0 len=300 mss=1000
        > S. seq=0 ack=201 win=0
        unread 200
    ");
}

#[test]
fn a_wrong_acknowledgement_of_what_was_sent_early_is_reset() {
    run("
        set early on
        < S seq=0 len=300 mss=1000
        > S. seq=0 ack=301
        write 200
        > . seq=1 len=200
        < . seq=301 ack=202
        > R. seq=202
        closed Reset
    ");
}

#[test]
fn what_comes_right_behind_the_answer_or_with_it_is_taken() {
    // Both in one burst: nothing was sent in between.
    run("
        connect
        > S seq=0
        < S. seq=0 ack=1 mss=1000
        < . seq=1 ack=1 len=100
        > . seq=1 ack=101
        unread 100
    ");
    run("
        connect
        > S seq=0
        < S. seq=0 ack=1 mss=1000 len=50
        > . seq=1 ack=51
        unread 50
    ");
    run("
        connect 10
        > S seq=0 len=10
        < SF. seq=0 ack=11 mss=1000 len=50
        > . seq=11 ack=52
        unread 50
        state CloseWait
    ");
}

//! The handshake: RFC 9293 §3.5 and §3.10.7.3.

use crate::script::run;

/// An open connection whose peer takes 60,000 bytes and segments of 1,000.
pub(crate) const OPENED: &str = "
    connect
    > S seq=0
    < S. seq=0 ack=1 mss=1000 sackok
    > . seq=1 ack=1
    state Established
";

#[test]
fn an_active_open_offers_everything_and_takes_what_is_answered() {
    run("
        set timestamps on
        set scaling on
        set ecn on
        set buffer 16000000
        connect
        > SEW seq=0 mss=1000 ws=8 sackok win=65535 ts=1000:0
        +50
        < S. seq=0 ack=1 mss=1460 win=1000
        > . seq=1 ack=1 ts=no sack=no
        state Established
        write 500
        > . seq=1 len=500 ts=no ect=no
    ");
}

#[test]
fn a_passive_open_answers_what_was_offered() {
    run("
        set timestamps on
        set scaling on
        < S seq=0 mss=800 ws=7 sackok ts=77:0 win=128
        > S. seq=0 ack=1 mss=1000 sackok ts=1000:77
        state SynReceived
        +20
        < . seq=1 ack=1 win=1 ts=78:1000
        state Established
        write 200
        # The window is 1 shifted by 7.
        > . seq=1 len=128
    ");
    run("
        set timestamps on
        set scaling on
        < S seq=0
        > S. seq=0 ack=1 ts=no ws=99 sackok=no
    ");
}

#[test]
fn a_syn_is_sent_again_with_growing_pauses() {
    run("
        connect
        > S seq=0
        ~1000 > S seq=0
        ~2000 > S seq=0
        ~4000 > S seq=0
        < S. seq=0 ack=1
        > . seq=1 ack=1
    ");
}

#[test]
fn an_open_without_an_answer_ends() {
    run("
        set user_timeout 2500
        connect
        > S seq=0
        ~1000 > S seq=0
        +2100
        closed TimedOut
    ");
}

#[test]
fn the_answer_to_a_syn_is_sent_again() {
    run("
        < S seq=0 mss=1000
        > S. seq=0 ack=1
        ~1000 > S. seq=0 ack=1
        # The peer's SYN comes again.
        < S seq=0 mss=1000
        > S. seq=0 ack=1
        < . seq=1 ack=1
        state Established
    ");
}

#[test]
fn both_ends_may_open_at_once() {
    // RFC 9293 figure 7.
    run("
        connect
        > S seq=0
        < S seq=0 mss=1000
        > S. seq=0 ack=1
        state SynReceived
        < S. seq=0 ack=1
        state Established
        > . seq=1 ack=1
        < . seq=1 ack=1 len=10
        > . ack=11
    ");
}

#[test]
fn an_answer_to_something_else_is_reset() {
    run("
        connect
        > S seq=0
        < S. seq=0 ack=7
        > R seq=7
        state SynSent
        < R. seq=0 ack=9
        none
        < R seq=0
        none
        state SynSent
        < R. seq=0 ack=1
        none
        closed Refused
    ");
}

#[test]
fn data_may_be_written_before_the_answer_came() {
    run("
        connect
        > S seq=0
        write 100
        shutdown
        none
        < S. seq=0 ack=1
        > F. seq=1 len=100 ack=1
        state FinWait1
    ");
}

#[test]
fn the_last_step_may_carry_data_or_be_lost() {
    run("
        < S seq=0
        > S. seq=0 ack=1
        < . seq=1 ack=1 len=100
        state Established
        > . seq=1 ack=101
        unread 100
    ");
    // Only data that came later is seen, and it acknowledges the SYN.
    run("
        < S seq=0 sackok
        > S. seq=0 ack=1
        < . seq=101 ack=1 len=100
        state Established
        > . seq=1 ack=1 sack=101-201
    ");
}

#[test]
fn a_wrong_acknowledgement_of_our_syn_is_reset() {
    run("
        < S seq=0
        > S. seq=0 ack=1
        < . seq=1 ack=5
        > R. seq=5
        closed Reset
    ");
}

//! Blind attacks and resets: RFC 5961, RFC 9293 §3.10.7.4.

use crate::open::OPENED;
use crate::script::run;

fn opened(script: &str) {
    run(&format!("{OPENED}{script}"));
}

#[test]
fn only_the_very_number_resets() {
    opened(
        "
        < R seq=2
        > . seq=1 ack=1
        < R seq=59000
        > . seq=1 ack=1
        < R seq=65000
        none
        state Established
        < R seq=1
        none
        closed Reset
    ",
    );
}

#[test]
fn a_syn_changes_nothing() {
    opened(
        "
        < S seq=100
        > . seq=1 ack=1
        < S. seq=0 ack=1
        > . seq=1 ack=1
        state Established
    ",
    );
}

#[test]
fn acknowledgements_from_nowhere_are_challenged() {
    opened(
        "
        # Of what was never sent.
        < . seq=1 ack=5000 len=10
        > . seq=1 ack=1
        unread 0
        # Of what lies before any window.
        < . seq=1 ack=4294767297 len=10
        > . seq=1 ack=1
        unread 0
    ",
    );
}

#[test]
fn challenges_are_few() {
    let many = "< S seq=100\n > . seq=1 ack=1\n".repeat(10);
    opened(&format!(
        "
        {many}
        < S seq=100
        none
        +1000
        < S seq=100
        > . seq=1 ack=1
    "
    ));
}

#[test]
fn segments_without_an_acknowledgement_are_dropped() {
    opened(
        "
        < - seq=1 len=10
        none
        unread 0
    ",
    );
}

#[test]
fn an_abort_resets_the_peer() {
    opened(
        "
        write 100
        > . seq=1 len=100
        abort
        > R. seq=101 ack=1
        closed Aborted
        < . seq=1 ack=101
        none
    ",
    );
}

#[test]
fn unread_data_makes_a_close_a_reset() {
    // RFC 9293 §3.6.1.
    opened(
        "
        < . seq=1 ack=1 len=100
        > . ack=101
        close
        > R. seq=1 ack=101
        closed Aborted
    ",
    );
    // And so does data that comes after it.
    opened(
        "
        close
        > F. seq=1 ack=1
        < . seq=1 ack=2 len=100
        > R. seq=2
        closed Aborted
    ",
    );
}

#[test]
fn an_old_reset_of_a_half_open_connection_is_refused() {
    run("
        < S seq=0
        > S. seq=0 ack=1
        < R seq=0
        none
        state SynReceived
        < R seq=1
        none
        closed Reset
    ");
}

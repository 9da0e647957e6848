//! Windows: closed ones, small ones, idle peers. RFC 9293 §3.8.4 to §3.8.6.

use crate::open::OPENED;
use crate::script::run;

fn opened(script: &str) {
    run(&format!("{OPENED}{script}"));
}

#[test]
fn a_closed_window_is_probed_until_it_opens() {
    run("
        connect
        > S seq=0
        < S. seq=0 ack=1 mss=1000 win=500
        > . seq=1 ack=1
        write 800
        > . seq=1 len=500
        +10
        < . seq=1 ack=501 win=0
        # A probe has the number of the last byte, and no data.
        ~200 > . seq=500 len=0
        < . seq=1 ack=501 win=0
        ~400 > . seq=500 len=0
        ~800 > . seq=500 len=0
        < . seq=1 ack=501 win=10000
        > . seq=501 len=300
    ");
}

#[test]
fn a_peer_that_answers_probes_is_not_given_up() {
    run("
        set user_timeout 1000
        connect
        > S seq=0
        < S. seq=0 ack=1 win=0
        > . seq=1 ack=1
        write 800
        ~200 > . seq=0 len=0
        < . seq=1 ack=1 win=0
        ~400 > . seq=0 len=0
        < . seq=1 ack=1 win=0
        ~800 > . seq=0 len=0
        < . seq=1 ack=1 win=0
        +1500
        state Established
    ");
}

#[test]
fn a_small_window_is_used_only_when_nothing_better_comes() {
    opened(
        "
        write 2000
        > . seq=1 len=1000
        > . seq=1001 len=1000
        < . seq=1 ack=2001 win=100
        write 2000
        none
        ~200 > . seq=2001 len=100
        +10
        < . seq=1 ack=2101 win=100
        none
        < . seq=1 ack=2101 win=60000
        > . seq=2101 len=1000
        > . seq=3101 len=900
    ",
    );
}

#[test]
fn a_window_that_shrank_is_respected() {
    opened(
        "
        write 1000
        > . seq=1 len=1000
        < . seq=1 ack=1001 win=2000
        < . seq=1 ack=1001 win=1000
        write 3000
        > . seq=1001 len=1000
        none
    ",
    );
}

#[test]
fn an_old_acknowledgement_does_not_bring_an_old_window_back() {
    opened(
        "
        write 1000
        > . seq=1 len=1000
        < . seq=1 ack=1001 win=0
        < . seq=1 ack=1 win=60000
        write 1000
        none
    ",
    );
}

#[test]
fn the_window_follows_what_is_read() {
    run(&format!(
        "set buffer 4000\n{OPENED}
        < . seq=1 ack=1 len=1000
        > . ack=1001 win=3000
        < . seq=1001 ack=1 len=1000
        > . ack=2001 win=2000
        < . seq=2001 ack=1 len=1000
        < . seq=3001 ack=1 len=1000
        > . ack=4001 win=0
        # More than the window is cut off, and answered.
        < . seq=4001 ack=1 len=500
        > . ack=4001 win=0
        read 100
        none
        read 1000
        > . ack=4001 win=1100
        read 2900
        > . ack=4001 win=4000
    "
    ));
}

#[test]
fn an_idle_peer_is_asked_and_then_given_up() {
    run(&format!(
        "set keepalive 5000/1000/2\n{OPENED}
        ~5000 > . seq=0 len=0 ack=1
        < . seq=1 ack=1
        ~5000 > . seq=0 len=0
        ~1000 > . seq=0 len=0
        ~1000 > R. seq=1
        closed TimedOut
    "
    ));
}

#[test]
fn a_question_whether_we_live_is_answered() {
    opened(
        "
        < . seq=0 ack=1
        > . seq=1 ack=1
        < . seq=0 ack=1 len=1
        > . seq=1 ack=1
    ",
    );
}

#[test]
fn data_without_an_acknowledgement_ends_the_connection_in_time() {
    run(&format!(
        "set user_timeout 1500\n{OPENED}
        write 10
        > . seq=1 len=10
        ~200 > . seq=1 len=10
        ~400 > . seq=1 len=10
        ~800 > . seq=1 len=10
        ~1600 > R. seq=11
        closed TimedOut
    "
    ));
}

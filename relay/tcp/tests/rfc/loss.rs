//! Finding and repairing losses: RFC 8985, RFC 6298, RFC 6675, RFC 6582, RFC 5682, RFC 3522.

use crate::script::run;

/// Open, with a round trip of 50 ms measured, and five segments on their way.
const FLIGHT: &str = "
    connect
    > S seq=0
    +50
    < S. seq=0 ack=1 mss=1000 sackok
    > . seq=1 ack=1
    write 5000
    > . seq=1 len=1000
    > . seq=1001 len=1000
    > . seq=2001 len=1000
    > . seq=3001 len=1000
    > . seq=4001 len=1000
    +50
";

fn flight(script: &str) {
    run(&format!("{FLIGHT}{script}"));
}

#[test]
fn three_segments_beyond_a_gap_mean_loss() {
    flight(
        "
        < . seq=1 ack=1 sack=1001-2001
        none
        < . seq=1 ack=1 sack=1001-3001
        none
        < . seq=1 ack=1 sack=1001-4001
        > . seq=1 len=1000
        < . seq=1 ack=1 sack=1001-5001
        none
        +50
        < . seq=1 ack=5001
        none
        # CUBIC: seven tenths of what was in flight.
        window 3000..8000
    ",
    );
}

/// RFC 6937: seven tenths of ten may be in flight; six are when the loss is found. From then on each
/// segment that arrives lets one go, and a window is neither stopped nor sent at once.
#[test]
fn while_a_loss_is_repaired_each_arrival_lets_one_segment_go() {
    run("
        connect
        > S seq=0
        +50
        < S. seq=0 ack=1 mss=1000 sackok
        > . seq=1 ack=1
        write 10000
        > . seq=1 len=1000
        > . seq=1001 len=1000
        > . seq=2001 len=1000
        > . seq=3001 len=1000
        > . seq=4001 len=1000
        > . seq=5001 len=1000
        > . seq=6001 len=1000
        > . seq=7001 len=1000
        > . seq=8001 len=1000
        > . seq=9001 len=1000
        none
        +50
        < . seq=1 ack=1 sack=1001-2001
        none
        < . seq=1 ack=1 sack=1001-3001
        none
        < . seq=1 ack=1 sack=1001-4001
        > . seq=1 len=1000
        window 7000..7001
        write 10000
        none
        +5
        < . seq=1 ack=1 sack=1001-5001
        > . seq=10001 len=1000
        none
        +5
        < . seq=1 ack=1 sack=1001-6001
        > . seq=11001 len=1000
        none
        +5
        < . seq=1 ack=1 sack=1001-9001
        > . seq=12001 len=1000
        > . seq=13001 len=1000
        # The last of them is paced.
        ~7 > . seq=14001 len=1000
        window 7000..7001
        +20
    ");
}

#[test]
fn less_than_three_mean_loss_after_a_quarter_of_a_round_trip() {
    flight(
        "
        < . seq=1 ack=1 sack=1001-2001
        ~12 > . seq=1 len=1000
    ",
    );
}

#[test]
fn a_segment_that_was_overtaken_is_not_lost() {
    flight(
        "
        < . seq=1 ack=1 sack=1001-2001
        +5
        < . seq=1 ack=2001
        +5
        < . seq=1 ack=5001
        window 10000..20000
    ",
    );
}

#[test]
fn a_lost_retransmission_is_sent_again_before_the_timeout() {
    flight(
        "
        < . seq=1 ack=1 sack=1001-4001
        > . seq=1 len=1000
        write 1000
        +1
        < . seq=1 ack=1 sack=1001-5001
        ~2 > . seq=5001 len=1000
        +50
        # What was sent after it arrived.
        < . seq=1 ack=1 sack=1001-6001
        > . seq=1 len=1000
    ",
    );
}

#[test]
fn a_lost_tail_is_probed() {
    flight(
        "
        < . seq=1 ack=3001
        # Twice the round trip after the last news; the last segment again.
        ~102 > . seq=4001 len=1000
        +50
        < . seq=1 ack=3001 sack=4001-5001
        > . seq=3001 len=1000
    ",
    );
}

#[test]
fn a_probe_sends_new_data_if_there_is_some() {
    run("
        connect
        > S seq=0
        +50
        < S. seq=0 ack=1 mss=1000 sackok win=2000
        > . seq=1 ack=1
        write 3000
        > . seq=1 len=1000
        > . seq=1001 len=1000
        ~102 > . seq=1001 len=1000
    ");
}

#[test]
fn the_timeout_doubles_and_sends_the_first_segment() {
    flight(
        "
        ~52 > . seq=4001 len=1000
        ~200 > . seq=1 len=1000
        window 1000..1001
        ~400 > . seq=1 len=1000
        ~800 > . seq=1 len=1000
        < . seq=1 ack=1001
        > . seq=1001 len=1000
        > . seq=2001 len=1000
    ",
    );
}

#[test]
fn a_timeout_for_nothing_is_taken_back() {
    // F-RTO: segments that were not sent again arrive (RFC 5682).
    flight(
        "
        ~52 > . seq=4001 len=1000
        ~200 > . seq=1 len=1000
        window 1000..1001
        < . seq=1 ack=3001
        none
        window 10000..13001
    ",
    );
}

#[test]
fn a_timestamp_tells_that_the_first_transmission_arrived() {
    // Eifel (RFC 3522).
    run("
        set timestamps on
        connect
        > S seq=0
        +50
        < S. seq=0 ack=1 mss=1000 sackok ts=1:1000
        > . seq=1 ack=1
        write 900
        > . seq=1 len=900 ts=1050:1
        ~200 > . seq=1 len=900 ts=1250:1
        window 988..989
        < . seq=1 ack=901 ts=2:1050
        window 9880..20000
    ");
}

#[test]
fn three_duplicates_mean_loss_without_sack() {
    run("
        connect
        > S seq=0
        +50
        < S. seq=0 ack=1 mss=1000
        > . seq=1 ack=1
        write 5000
        > . seq=1 len=1000
        > . seq=1001 len=1000
        > . seq=2001 len=1000
        > . seq=3001 len=1000
        > . seq=4001 len=1000
        +50
        < . seq=1 ack=1
        < . seq=1 ack=1
        none
        < . seq=1 ack=1
        > . seq=1 len=1000
        +50
        # A part only: the next is lost as well (RFC 6582).
        < . seq=1 ack=2001
        > . seq=2001 len=1000
        +50
        < . seq=1 ack=5001
        none
    ");
}

#[test]
fn a_peer_that_takes_back_what_it_held_gets_it_again() {
    flight(
        "
        < . seq=1 ack=1 sack=1001-5001
        > . seq=1 len=1000
        +50
        # It acknowledges the hole and not what it said it held.
        < . seq=1 ack=1001
        none
        ~200 > . seq=1001 len=1000
    ",
    );
}

#[test]
fn duplicates_reported_take_a_reduction_back() {
    flight(
        "
        < . seq=1 ack=1 sack=1001-4001
        > . seq=1 len=1000
        window 3000..8000
        +50
        # It had been late, not lost, and then came twice.
        < . seq=1 ack=5001 sack=1-1001
        none
        window 10000..20000
    ",
    );
}

/// What fills the first gap of the second repair was sent again during the first, as its timestamp
/// tells: older than what the second sent again, and no late original.
#[test]
fn a_retransmission_of_the_repair_before_is_no_original() {
    run("
        set timestamps on
        connect
        > S seq=0
        +50
        < S. seq=0 ack=1 mss=1000 sackok ts=1:1000
        > . seq=1 ack=1
        write 9880
        > . seq=1 len=988
        > . seq=989 len=988
        > . seq=1977 len=988
        > . seq=2965 len=988
        > . seq=3953 len=988
        > . seq=4941 len=988
        > . seq=5929 len=988
        > . seq=6917 len=988
        > . seq=7905 len=988
        > . seq=8893 len=988
        +50
        < . seq=1 ack=1 sack=989-9881 ts=51:1050
        > . seq=1 len=988 ts=1100:51
        write 5928
        ~2 > . seq=9881 len=988
        > . seq=10869 len=988
        ~8 > . seq=11857 len=988
        > . seq=12845 len=988
        ~8 > . seq=13833 len=988
        > . seq=14821 len=988
        +20
        < . seq=1 ack=1 sack=989-9881,10869-12845 ts=101:1050
        > . seq=1 len=988 ts=1140:101
        > . seq=9881 len=988
        +5
        < . seq=1 ack=9881 sack=10869-12845 ts=101:1100
        none
        +5
        < . seq=1 ack=9881 sack=10869-12845,13833-15809 ts=101:1100
        > . seq=12845 len=988 ts=1150:101
        +10
        < . seq=1 ack=12845 sack=13833-15809 ts=102:1140
        window 2000..5000
    ");
}

/// While the first gap stays, the timestamp that is echoed does not change, and does not tell which
/// transmission arrived beyond it.
#[test]
fn a_retransmission_that_arrives_beyond_a_gap_tells_that_one_before_it_is_lost() {
    run("
        set timestamps on
        connect
        > S seq=0
        +50
        < S. seq=0 ack=1 mss=1000 sackok ts=1:1000
        > . seq=1 ack=1
        write 5928
        > . seq=1 len=988
        > . seq=989 len=988
        > . seq=1977 len=988
        > . seq=2965 len=988
        > . seq=3953 len=988
        > . seq=4941 len=988
        +50
        < . seq=1 ack=1 sack=989-1977,2965-5929 ts=51:1050
        > . seq=1 len=988
        > . seq=1977 len=988
        +50
        < . seq=1 ack=1 sack=989-5929 ts=101:1050
        ~2 > . seq=1 len=988
    ");
}

/// The next acknowledgement tells again what a lost one had told.
#[test]
fn during_a_repair_the_next_acknowledgement_is_waited_for() {
    flight(
        "
        write 4000
        > . seq=5001 len=1000
        > . seq=6001 len=1000
        > . seq=7001 len=1000
        > . seq=8001 len=1000
        +1
        < . seq=1 ack=1 sack=1001-5001
        > . seq=1 len=1000
        +50
        # The retransmission overtook nothing: what was sent before it arrived as well.
        < . seq=1 ack=5001
        none
        < . seq=1 ack=5001 sack=6001-9001
        ~1 > . seq=5001 len=1000
        none
    ",
    );
}

/// What it says it held is not said again by the one that overtook it.
#[test]
fn an_acknowledgement_that_was_overtaken_counts() {
    run("
        set timestamps on
        connect
        > S seq=0
        +50
        < S. seq=0 ack=1 mss=1000 sackok ts=1:1000
        > . seq=1 ack=1
        write 4940
        > . seq=1 len=988
        > . seq=989 len=988
        > . seq=1977 len=988
        > . seq=2965 len=988
        > . seq=3953 len=988
        +50
        < . seq=1 ack=1 sack=3953-4941 ts=52:1050
        none
        < . seq=1 ack=1 sack=989-3953 ts=51:1050
        # Only the first is missing.
        ~12 > . seq=1 len=988
        +50
        < . seq=1 ack=4941 ts=112:1112
        none
    ");
}

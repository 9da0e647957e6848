//! What is acknowledged, and when: RFC 9293 §3.8.6.3, RFC 2018, RFC 2883.

use crate::open::OPENED;
use crate::script::run;

fn opened(script: &str) {
    run(&format!("{OPENED}{script}"));
}

/// The first segments are acknowledged at once; this gets past them.
fn warmed() -> String {
    let mut script = OPENED.to_owned();
    for index in 0..16 {
        let (seq, ack) = (1 + index * 1000, 1001 + index * 1000);
        script += &format!("< . seq={seq} ack=1 len=1000\n > . ack={ack}\n read 1000\n");
    }
    script
}

#[test]
fn a_lone_segment_is_acknowledged_late() {
    run(&format!(
        "{}
        < . seq=16001 ack=1 len=1000
        none
        ~40 > . seq=1 ack=17001
    ",
        warmed()
    ));
}

#[test]
fn every_second_segment_is_acknowledged_at_once() {
    run(&format!(
        "{}
        < . seq=16001 ack=1 len=1000
        none
        < . seq=17001 ack=1 len=1000
        > . seq=1 ack=18001
        none
    ",
        warmed()
    ));
}

#[test]
fn a_burst_is_acknowledged_once() {
    run(&format!(
        "{}
        < . seq=16001 ack=1 len=1000
        < . seq=17001 ack=1 len=1000
        < . seq=18001 ack=1 len=1000
        < . seq=19001 ack=1 len=1000
        < . seq=20001 ack=1 len=1000
        > . seq=1 ack=21001
        none
    ",
        warmed()
    ));
}

#[test]
fn an_answer_carries_the_acknowledgement() {
    run(&format!(
        "{}
        < . seq=16001 ack=1 len=100
        write 50
        > . seq=1 len=50 ack=16101
        none
        +30
        < . seq=16101 ack=51
        +20
    ",
        warmed()
    ));
}

#[test]
fn gaps_are_told_the_latest_first() {
    opened(
        "
        < . seq=1001 ack=1 len=1000
        > . ack=1 sack=1001-2001
        < . seq=3001 ack=1 len=1000
        > . ack=1 sack=3001-4001,1001-2001
        < . seq=2001 ack=1 len=1000
        > . ack=1 sack=1001-4001
        < . seq=6001 ack=1 len=10
        > . ack=1 sack=6001-6011,1001-4001
        < . seq=1 ack=1 len=1000
        > . ack=4001 sack=6001-6011
    ",
    );
}

#[test]
fn all_gaps_of_a_burst_are_told() {
    opened(
        "
        < . seq=1001 ack=1 len=10
        < . seq=2001 ack=1 len=10
        < . seq=3001 ack=1 len=10
        < . seq=4001 ack=1 len=10
        < . seq=5001 ack=1 len=10
        < . seq=6001 ack=1 len=10
        > . ack=1 sack=3001-3011,2001-2011,1001-1011
        > . ack=1 sack=6001-6011,5001-5011,4001-4011
        none
    ",
    );
}

/// The acknowledgement that told them may have been lost (RFC 2018 §4).
#[test]
fn each_gap_is_told_twice() {
    opened(
        "
        < . seq=1001 ack=1 len=10
        < . seq=2001 ack=1 len=10
        < . seq=3001 ack=1 len=10
        < . seq=4001 ack=1 len=10
        > . ack=1 sack=4001-4011,3001-3011,2001-2011,1001-1011
        < . seq=5001 ack=1 len=10
        < . seq=6001 ack=1 len=10
        < . seq=7001 ack=1 len=10
        < . seq=8001 ack=1 len=10
        > . ack=1 sack=4001-4011,3001-3011,2001-2011,1001-1011
        > . ack=1 sack=8001-8011,7001-7011,6001-6011,5001-5011
        < . seq=9001 ack=1 len=10
        > . ack=1 sack=5001-5011,4001-4011,3001-3011,2001-2011
        > . ack=1 sack=9001-9011,8001-8011,7001-7011,6001-6011
        < . seq=10001 ack=1 len=10
        > . ack=1 sack=10001-10011,9001-9011,8001-8011,7001-7011
        none
    ",
    );
}

#[test]
fn what_comes_twice_is_told() {
    opened(
        "
        < . seq=1 ack=1 len=1000
        > . ack=1001 sack=no
        < . seq=1 ack=1 len=1000
        > . ack=1001 sack=1-1001
        < . seq=501 ack=1 len=1000
        > . ack=1501 sack=501-1001
        < . seq=3001 ack=1 len=100
        > . ack=1501 sack=3001-3101
        < . seq=3001 ack=1 len=100
        > . ack=1501 sack=3001-3101,3001-3101
    ",
    );
}

#[test]
fn a_peer_without_sack_gets_an_answer_for_each_segment_out_of_order() {
    run("
        connect
        > S seq=0
        < S. seq=0 ack=1 mss=1000
        > . seq=1 ack=1
        < . seq=1001 ack=1 len=1000
        < . seq=2001 ack=1 len=1000
        < . seq=3001 ack=1 len=1000
        > . ack=1
        > . ack=1
        > . ack=1
        none
    ");
}

#[test]
fn overlapping_segments_are_joined() {
    opened(
        "
        < . seq=101 ack=1 len=100
        > . ack=1
        < . seq=151 ack=1 len=100
        > . ack=1 sack=101-251
        < . seq=1 ack=1 len=120
        > . ack=251
        unread 250
    ",
    );
}

#[test]
fn patient_acknowledgements_travel_with_answers_from_the_beginning() {
    run("
        set patient on
        < S seq=0 mss=1000
        > S. seq=0 ack=1
        < . seq=1 ack=1 len=100
        none
        write 50
        > . seq=1 len=50 ack=101
        # Nothing is answered.
        < . seq=101 ack=51 len=10
        ~40 > . seq=51 ack=111
        # A second one is not kept waiting.
        < . seq=111 ack=51 len=10
        < . seq=121 ack=51 len=10
        > . seq=51 ack=131
        # Bulk grows as fast as ever.
        < . seq=131 ack=51 len=1000
        > . seq=51 ack=1131
    ");
}

#[test]
fn a_patient_acknowledgement_of_the_peers_end_travels_with_our_own() {
    run("
        set patient on
        < S seq=0 mss=1000
        > S. seq=0 ack=1
        < F. seq=1 ack=1 len=100
        none
        state CloseWait
        shutdown
        > F. seq=1 ack=102
    ");
    // Where ours does not follow, and where it was first.
    run("
        set patient on
        < S seq=0 mss=1000
        > S. seq=0 ack=1
        < F. seq=1 ack=1
        ~40 > . seq=1 ack=2
    ");
    run("
        set patient on
        < S seq=0 mss=1000
        > S. seq=0 ack=1
        < . seq=1 ack=1
        shutdown
        > F. seq=1 ack=1
        < F. seq=1 ack=2
        > . seq=2 ack=2
        state TimeWait
    ");
}

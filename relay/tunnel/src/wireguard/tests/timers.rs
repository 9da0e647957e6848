//! Timers, keys that are replaced, and messages that are lost or recorded, in simulated time.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Lets both ends do what is due until `end`, and carries what they say as `carries` allows.
fn live(
    ends: [&mut End; 2],
    mut now: Instant,
    end: Instant,
    mut carries: impl FnMut(&[u8]) -> bool,
) {
    let [a, b] = ends;
    loop {
        let due = [&*a, &*b].map(|end| end.peer.poll_timeout().map(|(at, _)| at));
        let Some(at) = due.into_iter().flatten().min().filter(|at| *at <= end) else {
            return;
        };
        assert!(at > now || due.iter().flatten().count() > 0);
        now = at.max(now);
        for turn in 0..2 {
            let (from, to) = if turn == 0 {
                (&mut *a, &mut *b)
            } else {
                (&mut *b, &mut *a)
            };
            let mut said = Vec::new();
            from.peer.handle_timeout(now, &mut said);
            said.retain(|message| carries(message));
            converse(from, to, said, now);
        }
    }
}

/// Sends a packet and says whether it arrived; keys that are asked for are agreed.
fn send(from: &mut End, to: &mut End, packet: &[u8], now: Instant) -> bool {
    let mut burst = Burst::default();
    burst.push(packet);
    let mut said = Vec::new();
    if !from.peer.seal_burst(&mut burst, now, &mut said) {
        return false;
    }
    let before = to.opened.len();
    let datagrams = burst.datagrams().map(<[u8]>::to_vec);
    said.extend(datagrams);
    converse(from, to, said, now);
    to.opened.len() > before
}

#[test]
fn an_idle_tunnel_wakes_only_for_its_keepalive_and_the_end_of_its_keys() {
    let (mut a, mut b, start) = connected();
    let mut wakes = Vec::new();
    while let Some((at, why)) = b.peer.poll_timeout() {
        wakes.push((at - start, why));
        b.peer.handle_timeout(at, &mut Vec::new());
    }
    assert_eq!(wakes, [(180 * SECOND, "end of a session")]);
    assert!(!b.peer.is_ready());
    for wake in 1..=4 {
        let due = a.peer.poll_timeout().unwrap();
        assert_eq!(due, (start + wake * 25 * SECOND, "keepalive"));
        let mut said = Vec::new();
        a.peer.handle_timeout(due.0, &mut said);
        assert_eq!(said.len(), 1);
    }
}

#[test]
fn keys_are_replaced_under_load_without_a_gap() {
    let (mut a, mut b, start) = connected();
    let (mut ages, mut now) = (Vec::new(), start);
    for number in 0..6_000 {
        now += Duration::from_millis(100);
        let kind = number % 2 == 0;
        let (from, to) = if kind {
            (&mut a, &mut b)
        } else {
            (&mut b, &mut a)
        };
        let (source, destination) = if kind { (A, B) } else { (B, A) };
        assert!(
            send(from, to, &packet(source, destination, 200, 1), now),
            "{number}"
        );
        ages.push(a.peer.handshake_age(now).unwrap());
        a.opened.clear();
        b.opened.clear();
    }
    let changes = ages.windows(2).filter(|pair| pair[1] < pair[0]).count();
    assert_eq!(changes, 4, "every two minutes of ten");
    assert!(ages.iter().all(|age| *age <= 121 * SECOND));
}

#[test]
fn one_that_only_receives_asks_for_new_keys_in_time() {
    let (mut a, mut b, start) = connected();
    let mut now = start;
    for _ in 0..400 {
        now += SECOND;
        assert!(send(&mut b, &mut a, &packet(B, A, 200, 1), now));
    }
    assert!(a.peer.handshake_age(now).unwrap() < 180 * SECOND);
}

#[test]
fn keys_are_not_used_after_three_minutes() {
    let (mut a, mut b, start) = connected();
    let mut burst = Burst::default();
    burst.push(&packet(A, B, 100, 1));
    assert!(
        a.peer
            .seal_burst(&mut burst, start + 179 * SECOND, &mut Vec::new())
    );
    let datagram = burst.datagrams().next().unwrap().to_vec();
    let late = start + 180 * SECOND;
    let (opened, len) = (&mut b.opened, datagram.len());
    b.peer
        .open_burst(&datagram, len, None, late, opened, &mut Vec::new());
    assert!(b.opened.is_empty());
    burst.clear();
    burst.push(&packet(A, B, 100, 1));
    assert!(!a.peer.seal_burst(&mut burst, late, &mut Vec::new()));
}

#[test]
fn what_came_is_answered_within_ten_seconds() {
    let (mut a, mut b, start) = connected();
    assert!(send(&mut a, &mut b, &packet(A, B, 100, 1), start));
    let due = b.peer.poll_timeout().unwrap();
    assert_eq!(due.0, start + 10 * SECOND);
    let mut said = Vec::new();
    b.peer.handle_timeout(due.0, &mut said);
    assert_eq!(said[0].len(), OVERHEAD);
    let before = a.peer.authentic();
    converse(&mut b, &mut a, said, due.0);
    assert_eq!(a.peer.authentic(), before + 1);
}

#[test]
fn a_peer_that_forgot_the_keys_is_greeted_anew() {
    let (mut a, mut b, start) = connected();
    let (_, fresh) = pair(start);
    b.peer = fresh.peer;
    assert!(!send(&mut a, &mut b, &packet(A, B, 100, 1), start + SECOND));
    live(
        [&mut a, &mut b],
        start + SECOND,
        start + 17 * SECOND,
        |_| true,
    );
    assert!(b.peer.is_ready());
    assert!(send(
        &mut a,
        &mut b,
        &packet(A, B, 100, 1),
        start + 17 * SECOND
    ));
}

#[test]
fn handshakes_that_cross_agree() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now);
    let (mut from_a, mut from_b) = (Vec::new(), Vec::new());
    a.peer.greet(false, now, &mut from_a);
    b.peer.greet(false, now, &mut from_b);
    converse(&mut a, &mut b, from_a, now);
    converse(&mut b, &mut a, from_b, now);
    for _ in 0..3 {
        assert!(send(&mut a, &mut b, &packet(A, B, 100, 1), now));
        assert!(send(&mut b, &mut a, &packet(B, A, 100, 1), now));
    }
    assert_eq!(a.peer.unanswered_since(), None);
    assert_eq!(b.peer.unanswered_since(), None);
}

#[test]
fn the_answer_to_an_earlier_attempt_is_taken() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now);
    let (mut first, mut second) = (Vec::new(), Vec::new());
    a.peer.greet(false, now, &mut first);
    let (at, why) = a.peer.poll_timeout().unwrap();
    assert_eq!(why, "handshake retry");
    a.peer.handle_timeout(at, &mut second);
    assert_ne!(first, second);
    converse(&mut a, &mut b, first, at);
    assert!(a.peer.is_ready() && b.peer.is_ready());
    converse(&mut a, &mut b, second, at);
    assert!(send(&mut a, &mut b, &packet(A, B, 100, 1), at));
    assert!(send(&mut b, &mut a, &packet(B, A, 100, 1), at));
}

#[test]
fn a_recorded_first_message_is_not_answered() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now);
    let (mut older, mut newer) = (Vec::new(), Vec::new());
    a.peer.greet(false, now, &mut older);
    a.peer.greet(true, now + SECOND, &mut newer);
    for (message, answers) in [(&newer, 1), (&newer, 0), (&older, 0)] {
        let (message, mut got) = (&message[0], Vec::new());
        let len = message.len();
        b.peer
            .open_burst(message, len, None, now, &mut b.opened, &mut got);
        assert_eq!(got.len(), answers);
    }
    assert_eq!(b.peer.authentic(), 1);
}

#[test]
fn nobody_else_is_answered() {
    let now = Instant::now();
    let (_, mut b) = pair(now);
    let stranger = Identity::new([3; 32]);
    let options = PeerOptions {
        key: b.identity.public.to_bytes(),
        index: 1,
        addresses: vec![B],
        keepalive: false,
    };
    let mut peer = Peer::new(&stranger, options, now);
    let (mut hello, mut answers) = (Vec::new(), Vec::new());
    peer.greet(false, now, &mut hello);
    let len = hello[0].len();
    b.peer
        .open_burst(&hello[0], len, None, now, &mut b.opened, &mut answers);
    assert!(answers.is_empty() && b.peer.authentic() == 0);
}

#[test]
fn a_key_without_a_secret_is_never_agreed_with() {
    let now = Instant::now();
    let identity = Identity::new([1; 32]);
    let options = PeerOptions {
        key: [0; 32],
        index: 1,
        addresses: vec![],
        keepalive: true,
    };
    let mut peer = Peer::new(&identity, options, now);
    let mut said = Vec::new();
    peer.greet(false, now, &mut said);
    assert!(said.is_empty());
}

#[test]
fn attempts_cease_where_nothing_keeps_the_tunnel_open() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now);
    for (end, is_kept) in [(&mut a, true), (&mut b, false)] {
        let mut said = Vec::new();
        end.peer.greet(false, now, &mut said);
        while let Some((at, _)) = end.peer.poll_timeout() {
            if at > now + 600 * SECOND {
                break;
            }
            end.peer.handle_timeout(at, &mut said);
        }
        assert_eq!(end.peer.poll_timeout().is_some(), is_kept);
        let most = if is_kept { 45 } else { 22 };
        assert!((18..=most).contains(&said.len()), "{}", said.len());
    }
}

#[test]
fn answers_that_are_lost_do_not_take_the_number_of_the_keys_in_use() {
    let (mut a, mut b, start) = connected();
    let mut now = start;
    for restart in 0..600 {
        now += Duration::from_millis(250);
        let options = PeerOptions {
            key: b.identity.public.to_bytes(),
            index: 7,
            addresses: vec![B],
            keepalive: false,
        };
        let mut said = Vec::new();
        Peer::new(&a.identity, options, now).greet(false, now, &mut said);
        let mut lost = Vec::new();
        b.identity.limiter.reset_count();
        let (first, len) = (&said[0], said[0].len());
        b.peer
            .open_burst(first, len, None, now, &mut b.opened, &mut lost);
        assert_eq!(lost.len(), 1, "{restart} was answered");
        assert!(
            send(&mut a, &mut b, &packet(A, B, 200, 1), now)
                && send(&mut b, &mut a, &packet(B, A, 200, 1), now),
            "the keys are of use after {restart}"
        );
    }
}

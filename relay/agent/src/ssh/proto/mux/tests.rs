//! Channels against a peer that is written by hand.

use std::task::{Context, Poll, Waker};

use super::{BUDGET, CHANNELS, Event, FIRST_WINDOW, FULL_WINDOW, Id, Mux, PACKET, Refusal};
use crate::ssh::proto::codec::{Put, Reader};
use crate::ssh::proto::number;

/// The peer's number of its first channel.
const THEIRS: u32 = 40;

fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

fn message(kind: u8, id: u32) -> Vec<u8> {
    let mut out = vec![kind];
    out.put_u32(id);
    out
}

fn data(id: Id, length: u32) -> Vec<u8> {
    let mut out = message(number::CHANNEL_DATA, id);
    out.put_string(vec![7; length as usize]);
    out
}

fn adjust(id: Id, more: u32) -> Vec<u8> {
    let mut out = message(number::CHANNEL_WINDOW_ADJUST, id);
    out.put_u32(more);
    out
}

/// Opens a channel whose peer takes `window` bytes in packets of at most 100.
fn open(mux: &mut Mux, kind: &str, peer: u32, window: u32) -> Id {
    let mut out = vec![number::CHANNEL_OPEN];
    out.put_string(kind)
        .put_u32(peer)
        .put_u32(window)
        .put_u32(100);
    let Some(Event::Open { id, .. }) = mux.receive(&out).unwrap() else {
        panic!("not asked");
    };
    mux.accept(id);
    let sent = next(mux).unwrap();
    assert_eq!(sent[..5], message(number::CHANNEL_OPEN_CONFIRMATION, peer));
    id
}

fn next(mux: &mut Mux) -> Option<Vec<u8>> {
    let message = mux.next()?;
    let mut out = Vec::new();
    mux.write(&message, &mut out);
    Some(out)
}

fn write(mux: &mut Mux, id: Id, bytes: &[u8]) -> Poll<Option<usize>> {
    mux.poll_write(id, false, bytes, &cx())
}

/// The bytes of the data messages that are sent next.
fn sent_data(mux: &mut Mux) -> Vec<usize> {
    std::iter::from_fn(|| next(mux))
        .map(|sent| {
            assert_eq!(sent[0], number::CHANNEL_DATA);
            Reader::new(&sent[5..]).string().unwrap().len()
        })
        .collect()
}

#[test]
fn what_is_sent_stays_within_the_peers_window_and_packets() {
    let mut mux = Mux::default();
    let id = open(&mut mux, "session", THEIRS, 250);
    assert_eq!(write(&mut mux, id, &[1; 400]), Poll::Ready(Some(400)));
    assert_eq!(sent_data(&mut mux), [100, 100, 50]);
    mux.receive(&adjust(id, 120)).unwrap();
    assert_eq!(sent_data(&mut mux), [100, 20]);
    mux.receive(&adjust(id, u32::MAX)).unwrap();
    mux.receive(&adjust(id, u32::MAX)).unwrap();
    assert_eq!(sent_data(&mut mux), [30]);
}

#[test]
fn a_writer_waits_when_the_peer_takes_nothing() {
    let mut mux = Mux::default();
    let id = open(&mut mux, "session", THEIRS, 0);
    let mut held = 0;
    while let Poll::Ready(Some(count)) = write(&mut mux, id, &[1; 60_000]) {
        held += count;
    }
    assert!(held <= 512 << 10, "{held}");
    assert!(next(&mut mux).is_none());
    mux.receive(&adjust(id, u32::MAX)).unwrap();
    assert_eq!(sent_data(&mut mux).into_iter().sum::<usize>(), held);
    assert!(write(&mut mux, id, &[1]).is_ready());
}

#[test]
fn a_peer_that_sends_more_than_the_window_is_thrown_out() {
    let mut mux = Mux::default();
    let id = open(&mut mux, "session", THEIRS, 0);
    assert!(mux.receive(&data(id, PACKET + 1)).is_err());
    for _ in 0..FIRST_WINDOW / PACKET {
        mux.receive(&data(id, PACKET)).unwrap();
    }
    // Nobody read: no window was given back.
    assert!(next(&mut mux).is_none());
    assert!(mux.receive(&data(id, 1)).is_err());
}

#[test]
fn the_window_opens_as_bytes_are_used_and_grows_for_a_busy_channel() {
    let mut mux = Mux::default();
    let id = open(&mut mux, "session", THEIRS, 0);
    let mut spare = Vec::new();
    let mut granted = FIRST_WINDOW;
    let mut sent = 0;
    for _ in 0..200 {
        let length = PACKET.min(granted - sent);
        mux.receive(&data(id, length)).unwrap();
        sent += length;
        assert!(mux.poll_take(id, &mut spare, &cx()).is_ready());
        assert_eq!(spare.len(), length as usize);
        mux.credit(id, spare.len());
        while let Some(message) = next(&mut mux) {
            assert_eq!(
                message[..5],
                self::message(number::CHANNEL_WINDOW_ADJUST, THEIRS)
            );
            granted += Reader::new(&message[5..]).u32().unwrap();
        }
        assert!(granted - sent <= FULL_WINDOW);
    }
    assert!(granted - sent > FULL_WINDOW / 2);
}

#[test]
fn all_windows_together_are_bounded_and_given_back() {
    let mut mux = Mux::default();
    let mut ids = Vec::new();
    for number in 0..64 {
        let id = open(&mut mux, "session", number, 0);
        mux.receive(&data(id, PACKET)).unwrap();
        mux.receive(&data(id, PACKET)).unwrap();
        mux.credit(id, 2 * PACKET as usize);
        while next(&mut mux).is_some() {}
        ids.push(id);
    }
    assert_eq!(mux.granted, BUDGET);
    for id in ids {
        mux.receive(&message(number::CHANNEL_CLOSE, id)).unwrap();
        mux.drop_channel(id);
        while next(&mut mux).is_some() {}
    }
    assert_eq!(mux.granted, 0);
    assert!(mux.channels.is_empty());
}

#[test]
fn the_end_goes_behind_all_data() {
    let mut mux = Mux::default();
    let id = open(&mut mux, "session", THEIRS, 100);
    assert!(write(&mut mux, id, &[1; 150]).is_ready());
    mux.shutdown(id);
    mux.say_last(id, "exit-status", &[0, 0, 0, 7]);
    mux.drop_channel(id);
    assert_eq!(sent_data(&mut mux), [100]);
    mux.receive(&adjust(id, 1000)).unwrap();
    let kinds: Vec<_> = std::iter::from_fn(|| next(&mut mux))
        .map(|sent| sent[0])
        .collect();
    let expected = [
        number::CHANNEL_DATA,
        number::CHANNEL_EOF,
        number::CHANNEL_REQUEST,
        number::CHANNEL_CLOSE,
    ];
    assert_eq!(kinds, expected);
    // It is there until the peer has closed it, too: its number must not be another's.
    assert_eq!(mux.channels.len(), 1);
    mux.receive(&data(id, 5)).unwrap();
    mux.receive(&message(number::CHANNEL_CLOSE, id)).unwrap();
    assert!(mux.channels.is_empty());
    assert!(mux.receive(&data(id, 5)).is_err());
}

#[test]
fn a_close_is_answered_at_once_and_what_came_before_can_be_read() {
    let mut mux = Mux::default();
    let id = open(&mut mux, "session", THEIRS, 100);
    assert!(write(&mut mux, id, &[1; 500]).is_ready());
    mux.receive(&data(id, 10)).unwrap();
    mux.receive(&message(number::CHANNEL_CLOSE, id)).unwrap();
    let sent = next(&mut mux).unwrap();
    assert_eq!(sent, message(number::CHANNEL_CLOSE, THEIRS));
    assert!(next(&mut mux).is_none());
    let mut spare = Vec::new();
    assert!(mux.poll_take(id, &mut spare, &cx()).is_ready());
    assert_eq!(spare.len(), 10);
    assert!(mux.poll_take(id, &mut spare, &cx()).is_ready());
    assert!(spare.is_empty());
    assert_eq!(write(&mut mux, id, &[1]), Poll::Ready(None));
    assert_eq!(mux.poll_request(id, &cx()), Poll::Ready(None));
    mux.drop_channel(id);
    assert!(mux.channels.is_empty());
}

#[test]
fn channels_take_turns() {
    let mut mux = Mux::default();
    let ids = [1, 2].map(|peer| open(&mut mux, "session", peer, 100_000));
    for id in ids {
        assert!(write(&mut mux, id, &[1; 300]).is_ready());
    }
    let turns: Vec<_> = std::iter::from_fn(|| next(&mut mux))
        .map(|sent| sent[4])
        .collect();
    assert_eq!(turns, [1, 2, 1, 2, 1, 2]);
}

#[test]
fn a_channel_that_this_side_asks_for_opens_or_does_not() {
    let mut mux = Mux::default();
    let ids = [(); 2].map(|()| mux.open("forwarded-tcpip", b"x").unwrap());
    for id in ids {
        assert!(mux.poll_opened(id, &cx()).is_pending());
        let sent = next(&mut mux).unwrap();
        assert_eq!(sent[0], number::CHANNEL_OPEN);
        assert_eq!(sent.last(), Some(&b'x'));
    }
    let mut yes = message(number::CHANNEL_OPEN_CONFIRMATION, ids[0]);
    yes.put_u32(THEIRS).put_u32(1000).put_u32(1000);
    mux.receive(&yes).unwrap();
    assert!(mux.receive(&yes).is_err(), "twice");
    assert_eq!(mux.poll_opened(ids[0], &cx()), Poll::Ready(true));
    let mut no = message(number::CHANNEL_OPEN_FAILURE, ids[1]);
    no.put_u32(2).put_string("").put_string("");
    mux.receive(&no).unwrap();
    assert_eq!(mux.poll_opened(ids[1], &cx()), Poll::Ready(false));
    mux.drop_channel(ids[1]);
    assert_eq!(mux.channels.len(), 1);
}

#[test]
fn a_peer_cannot_open_channels_without_end() {
    let mut mux = Mux::default();
    for peer in 0..u32::try_from(CHANNELS).unwrap() {
        open(&mut mux, "session", peer, 0);
    }
    let mut out = vec![number::CHANNEL_OPEN];
    out.put_string("session").put_u32(9).put_u32(0).put_u32(0);
    assert_eq!(mux.receive(&out).unwrap(), None);
    let sent = next(&mut mux).unwrap();
    assert_eq!(sent[..5], message(number::CHANNEL_OPEN_FAILURE, 9));
}

#[test]
fn a_refused_channel_is_gone_and_one_that_nobody_takes_is_refused() {
    let mut mux = Mux::default();
    for refuse in [true, false] {
        let mut out = vec![number::CHANNEL_OPEN];
        out.put_string("x").put_u32(THEIRS).put_u32(0).put_u32(0);
        let Some(Event::Open { id, kind, .. }) = mux.receive(&out).unwrap() else {
            panic!("not asked");
        };
        assert_eq!(kind, "x");
        if refuse {
            mux.refuse(id, Refusal::UnknownType, "no");
        }
        mux.drop_channel(id);
        let sent = next(&mut mux).unwrap();
        assert_eq!(sent[..5], message(number::CHANNEL_OPEN_FAILURE, THEIRS));
        assert!(mux.channels.is_empty());
    }
}

#[test]
fn requests_wait_for_a_session_and_others_are_refused() {
    let mut mux = Mux::default();
    let session = open(&mut mux, "session", 1, 0);
    let forward = open(&mut mux, "direct-tcpip", 2, 0);
    for id in [session, forward] {
        let mut out = message(number::CHANNEL_REQUEST, id);
        out.put_string("shell").put_bool(true);
        mux.receive(&out).unwrap();
    }
    assert_eq!(next(&mut mux).unwrap(), message(number::CHANNEL_FAILURE, 2));
    let Poll::Ready(Some(request)) = mux.poll_request(session, &cx()) else {
        panic!("no request");
    };
    assert!(request.want_reply && request.kind == "shell");
    assert!(mux.poll_request(session, &cx()).is_pending());
}

#[test]
fn when_the_connection_ends_nobody_waits_any_more() {
    let mut mux = Mux::default();
    let id = open(&mut mux, "session", THEIRS, 0);
    mux.end();
    assert_eq!(mux.poll_request(id, &cx()), Poll::Ready(None));
    assert!(mux.poll_take(id, &mut Vec::new(), &cx()).is_ready());
    assert!(mux.open("forwarded-tcpip", b"").is_none());
    mux.drop_channel(id);
    assert!(mux.channels.is_empty());
}

#[test]
fn messages_that_end_too_soon_are_errors() {
    let mut mux = Mux::default();
    let id = open(&mut mux, "session", THEIRS, 0);
    let mut request = message(number::CHANNEL_REQUEST, id);
    request.put_string("shell").put_bool(true);
    for whole in [data(id, 10), adjust(id, 1), request] {
        for length in 1..whole.len() {
            assert!(mux.receive(&whole[..length]).is_err(), "{whole:?} {length}");
        }
    }
}

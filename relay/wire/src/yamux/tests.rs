//! Two sessions joined by hand, in made-up time.

use super::*;

struct Pair {
    client: Session,
    server: Session,
    now: Instant,
}

impl Pair {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            client: Session::new(Role::Client, Config::default(), now),
            server: Session::new(Role::Server, Config::default(), now),
            now,
        }
    }

    /// Carries bytes both ways until nothing is left, in pieces of `size`.
    fn run(&mut self, size: usize) {
        loop {
            let to_server = self.client.poll_output();
            let to_client = self.server.poll_output();
            if to_server.is_none() && to_client.is_none() {
                return;
            }
            for piece in to_server.iter().flat_map(|b| b.chunks(size)) {
                self.server.handle_input(piece, self.now).unwrap();
            }
            for piece in to_client.iter().flat_map(|b| b.chunks(size)) {
                self.client.handle_input(piece, self.now).unwrap();
            }
        }
    }
}

fn events(session: &mut Session) -> Vec<Event> {
    std::iter::from_fn(|| session.poll_event()).collect()
}

#[test]
fn opening_says_syn_and_the_acceptor_acknowledges_at_once() {
    let mut pair = Pair::new();
    assert_eq!(pair.client.open(), Ok(1));
    let open = pair.client.poll_output().unwrap();
    assert_eq!(open[..], [0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0]);
    pair.server.handle_input(&open, pair.now).unwrap();
    assert_eq!(events(&mut pair.server), [Event::Incoming(1)]);
    let ack = pair.server.poll_output().unwrap();
    assert_eq!(ack[..], [0, 1, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0]);
    assert_eq!(pair.client.open(), Ok(3));
    assert_eq!(pair.server.open(), Ok(2));
}

#[test]
fn bytes_arrive_however_they_are_cut_and_both_halves_close() {
    for size in [1, 7, 12, 4096] {
        let mut pair = Pair::new();
        let id = pair.client.open().unwrap();
        assert_eq!(pair.client.send(id, b"hello"), Ok(5));
        pair.client.close(id);
        pair.run(size);
        assert_eq!(
            events(&mut pair.server),
            [
                Event::Incoming(1),
                Event::Data(1, Bytes::from_static(b"hello")),
                Event::Fin(1)
            ]
        );
        assert_eq!(pair.server.send(id, b"bye"), Ok(3));
        pair.server.close(id);
        pair.run(size);
        assert_eq!(
            events(&mut pair.client),
            [Event::Data(1, Bytes::from_static(b"bye")), Event::Fin(1)]
        );
        assert_eq!(pair.client.open_streams() + pair.server.open_streams(), 0);
        assert_eq!(pair.client.send(id, b"x"), Err(Error::Closed));
    }
}

#[test]
fn a_sender_stops_at_the_window_and_goes_on_when_half_of_it_is_back() {
    let mut pair = Pair::new();
    let id = pair.client.open().unwrap();
    let bytes = vec![7; WINDOW as usize + 10];
    assert_eq!(pair.client.send(id, &bytes), Ok(WINDOW as usize));
    assert_eq!(pair.client.send(id, &bytes[..1]), Ok(0));
    pair.run(5000);
    pair.server.consumed(id, WINDOW as usize / 2 - 1);
    assert_eq!(pair.server.poll_output(), None);
    pair.server.consumed(id, 1);
    pair.run(5000);
    assert_eq!(events(&mut pair.client), [Event::Writable(id)]);
    assert_eq!(pair.client.send(id, &bytes[..10]), Ok(10));
}

#[test]
fn more_data_than_the_window_ends_the_session_and_tells_the_peer() {
    let mut pair = Pair::new();
    let id = pair.client.open().unwrap();
    pair.run(100);
    let header = Header {
        kind: Kind::Data,
        flags: 0,
        stream: id,
        length: WINDOW + 1,
    };
    let answer = pair.server.handle_input(&header.encode(), pair.now);
    assert!(matches!(answer, Err(Error::Protocol(_))));
    assert_eq!(
        pair.server.poll_output().unwrap()[..],
        [0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    );
    assert!(pair.server.handle_input(&[0], pair.now).is_err());
}

#[test]
fn data_with_syn_opens_and_data_for_a_lost_stream_is_skipped() {
    let mut pair = Pair::new();
    let mut bytes = vec![0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 4];
    bytes.extend(b"abcd");
    bytes.extend([0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 5]);
    bytes.extend(b"noone");
    bytes.extend([0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7]);
    for byte in bytes {
        pair.server.handle_input(&[byte], pair.now).unwrap();
    }
    assert_eq!(
        events(&mut pair.server),
        [
            Event::Incoming(3),
            Event::Data(3, Bytes::from_static(b"abcd"))
        ]
    );
    let answer = pair.server.poll_output().unwrap();
    assert_eq!(answer[12..], [0, 2, 0, 2, 0, 0, 0, 0, 0, 0, 0, 7]);
}

#[test]
fn keepalive_pings_each_30_s_and_gives_up_10_s_later() {
    let mut pair = Pair::new();
    let start = pair.now;
    assert_eq!(
        pair.client.poll_timeout(),
        Some(start + Duration::from_secs(30))
    );
    pair.now = start + Duration::from_secs(30);
    pair.client.handle_timeout(pair.now).unwrap();
    pair.now += Duration::from_millis(20);
    pair.run(100);
    assert_eq!(
        events(&mut pair.client),
        [Event::Pong(Duration::from_millis(20))]
    );
    pair.now += Duration::from_secs(30);
    pair.client.handle_timeout(pair.now).unwrap();
    assert_eq!(
        pair.client.poll_timeout(),
        Some(pair.now + Duration::from_secs(10))
    );
    pair.now += Duration::from_secs(10);
    assert_eq!(
        pair.client.handle_timeout(pair.now),
        Err(Error::KeepaliveTimeout)
    );
    assert_eq!(pair.client.poll_timeout(), None);
}

#[test]
fn reset_drops_the_stream_on_both_sides() {
    let mut pair = Pair::new();
    let id = pair.client.open().unwrap();
    pair.run(100);
    events(&mut pair.server);
    pair.server.reset(id);
    pair.run(100);
    assert_eq!(events(&mut pair.client), [Event::Reset(id)]);
    assert_eq!(pair.client.open_streams() + pair.server.open_streams(), 0);
}

#[test]
fn streams_beyond_the_bound_are_reset() {
    let now = Instant::now();
    let config = Config {
        max_streams: 1,
        ..Config::default()
    };
    let mut pair = Pair::new();
    pair.server = Session::new(Role::Server, config, now);
    pair.client.open().unwrap();
    let second = pair.client.open().unwrap();
    pair.run(100);
    assert_eq!(events(&mut pair.client), [Event::Reset(second)]);
}

#[test]
fn going_away_stops_new_streams_only() {
    let mut pair = Pair::new();
    let id = pair.client.open().unwrap();
    pair.run(100);
    pair.server.go_away();
    pair.run(100);
    assert_eq!(events(&mut pair.client), [Event::GoAway(0)]);
    assert_eq!(pair.client.open(), Err(Error::GoingAway));
    assert_eq!(pair.client.send(id, b"still"), Ok(5));
}

#[test]
fn a_stream_number_of_the_wrong_side_or_used_twice_is_an_error() {
    for id in [0, 2] {
        let mut pair = Pair::new();
        let header = Header {
            kind: Kind::Window,
            flags: SYN,
            stream: id,
            length: 0,
        };
        assert!(
            pair.server
                .handle_input(&header.encode(), pair.now)
                .is_err()
        );
    }
    let mut pair = Pair::new();
    pair.client.open().unwrap();
    let open = pair.client.poll_output().unwrap();
    pair.server.handle_input(&open, pair.now).unwrap();
    assert!(pair.server.handle_input(&open, pair.now).is_err());
}

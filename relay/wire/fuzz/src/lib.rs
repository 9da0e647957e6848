//! What must hold for any bytes from a network or a user. Each function is the body of a fuzz target and of a property
//! in `relay/wire/tests/properties.rs`, so these checks are compiled and run by the ordinary tests too.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use relay_wire::keys::{DiscoPrivate, DiscoPublic, NodePrivate, NodePublic};
use relay_wire::names::{self, WorkspaceName};
use relay_wire::proto::tailnet;
use relay_wire::remote_forward::RemoteForward;
use relay_wire::{
    addr, derp, derp_map, disco, drpc, same_host, spec, speedtest, stun, tsmp, wg, yamux,
};

/// Cuts `bytes` into pieces whose lengths come from `cuts`, over and over.
fn pieces<'a>(cuts: &'a [u8], mut bytes: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let mut lengths = cuts.iter().cycle();
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let wanted = lengths.next().map_or(1, |length| usize::from(*length) + 1);
        let (piece, rest) = bytes.split_at(wanted.min(bytes.len()));
        bytes = rest;
        Some(piece)
    })
}

/// Splits a fuzzer's input into cuts and bytes.
pub fn with_cuts(input: &[u8]) -> (&[u8], &[u8]) {
    input.split_at(input.len().min(4))
}

/// Disco packets: opened, and their plaintext read and written again.
pub fn disco(bytes: &[u8]) {
    let own = DiscoPrivate::from_bytes([1; 32]);
    if let Some(sender) = disco::sender(bytes) {
        let _ = disco::open(bytes, &own.shared(&sender));
    }
    let Ok(message) = disco::decode(bytes) else {
        return;
    };
    for size in [disco::PayloadSize::V0, disco::PayloadSize::PADDED] {
        let plain = disco::encode(&message, size);
        assert_eq!(disco::decode(&plain).as_ref(), Ok(&message));
        let peer = DiscoPrivate::from_bytes([2; 32]);
        let shared = own.shared(&peer.public());
        let packet = disco::seal(&message, size, &own.public(), &shared, [3; 24]);
        assert!(disco::is_disco(&packet) && disco::sender(&packet) == Some(own.public()));
        assert_eq!(
            disco::open(&packet, &peer.shared(&own.public())).as_ref(),
            Ok(&message)
        );
    }
}

/// DERP frames: the same however the stream is cut, and the same when written again.
pub fn derp_frames(cuts: &[u8], bytes: &[u8]) {
    let (whole, failed) = read_derp(std::iter::once(bytes));
    let (cut, cut_failed) = read_derp(pieces(cuts, bytes));
    assert_eq!((&whole, &failed), (&cut, &cut_failed));
    let key = NodePrivate::from_bytes([1; 32]);
    for frame in whole {
        let _ = derp::handshake::open_client_info(&frame, &key);
        let _ = derp::handshake::open_server_info(&frame, &key, &key.public());
        if matches!(frame, derp::Frame::Unknown(_)) {
            continue;
        }
        let mut written = BytesMut::new();
        frame.encode(&mut written);
        let (again, failed) = read_derp(std::iter::once(&written[..]));
        assert_eq!((again, failed), (vec![frame], None));
    }
}

fn read_derp<'a>(
    pieces: impl Iterator<Item = &'a [u8]>,
) -> (Vec<derp::Frame>, Option<relay_wire::Error>) {
    let mut decoder = derp::Decoder::new();
    let mut frames = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.next() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

/// STUN packets: read, and what was read answered and read again.
pub fn stun(bytes: &[u8]) {
    if let Ok(tx) = stun::parse_request(bytes) {
        assert_eq!(stun::parse_request(&stun::request(tx)), Ok(tx));
    }
    if let Ok((tx, address)) = stun::parse_response(bytes) {
        assert_eq!(
            stun::parse_response(&stun::response(tx, address)),
            Ok((tx, address))
        );
    }
}

/// The opening of speed tests: what was read is written in a form that reads the same.
pub fn speedtest(bytes: &[u8]) {
    if let Ok(request) = speedtest::Request::parse(bytes) {
        assert_eq!(speedtest::Request::parse(&request.line()), Ok(request));
    }
    if let Ok(answer) = speedtest::parse_answer(bytes) {
        let line = speedtest::answer_line(answer.as_ref().err().map(String::as_str));
        if line.len() <= speedtest::MAX_LINE {
            assert_eq!(speedtest::parse_answer(&line), Ok(answer));
        }
    }
}

/// TSMP packets: read, written and read again.
pub fn tsmp(bytes: &[u8]) {
    let Some(read) = tsmp::parse(bytes) else {
        return;
    };
    let again = match read {
        tsmp::Tsmp::Ping { src, dst, data } => tsmp::parse(&tsmp::ping_packet(src, dst, data)),
        tsmp::Tsmp::Pong {
            src,
            dst,
            data,
            port,
        } => tsmp::parse(&tsmp::pong_packet(src, dst, data, port)),
    };
    assert_eq!(again, Some(read));
}

/// A yamux session in both roles: events and answers do not depend on how its input is cut.
pub fn yamux(cuts: &[u8], bytes: &[u8]) {
    let now = Instant::now();
    for role in [yamux::Role::Client, yamux::Role::Server] {
        let whole = run_yamux(role, std::iter::once(bytes), now);
        assert_eq!(whole, run_yamux(role, pieces(cuts, bytes), now));
    }
}

type Outcome = (Vec<yamux::Event>, Bytes, Option<yamux::Error>);

fn run_yamux<'a>(
    role: yamux::Role,
    pieces: impl Iterator<Item = &'a [u8]>,
    now: Instant,
) -> Outcome {
    let mut session = yamux::Session::new(role, yamux::Config::default(), now);
    let own = session.open().expect("a new session has room for a stream");
    let _ = session.send(own, b"ours");
    let (mut events, mut failed) = (Vec::new(), None);
    for piece in pieces {
        if let Err(error) = session.handle_input(piece, now) {
            failed = Some(error);
            break;
        }
    }
    while let Some(event) = session.poll_event() {
        match (events.last_mut(), event) {
            (Some(yamux::Event::Data(id, before)), yamux::Event::Data(next, bytes))
                if *id == next =>
            {
                *before = [&before[..], &bytes[..]].concat().into();
            }
            (_, event) => events.push(event),
        }
    }
    let output = session.poll_output().unwrap_or_default();
    for event in &events {
        if let yamux::Event::Data(id, bytes) = event {
            session.consumed(*id, bytes.len());
            session.close(*id);
        }
    }
    (events, output, failed)
}

/// dRPC: packets do not depend on how the stream is cut, and read the same when written again.
pub fn drpc(cuts: &[u8], bytes: &[u8]) {
    let whole = read_drpc(std::iter::once(bytes));
    assert_eq!(whole, read_drpc(pieces(cuts, bytes)));
    for packet in whole.0 {
        if packet.kind == drpc::Kind::Error {
            let _ = drpc::parse_error_body(&packet.body);
        }
        let mut written = BytesMut::new();
        drpc::Encoder::new().put(packet.kind, &packet.body, &mut written);
        let (again, failed) = read_drpc(pieces(cuts, &written));
        assert!(failed.is_none() && again.len() == 1);
        assert_eq!((again[0].kind, &again[0].body), (packet.kind, &packet.body));
    }
}

fn read_drpc<'a>(
    pieces: impl Iterator<Item = &'a [u8]>,
) -> (Vec<drpc::Packet>, Option<drpc::Error>) {
    let mut decoder = drpc::Decoder::new();
    let mut packets = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.next_packet() {
                Ok(Some(packet)) => packets.push(packet),
                Ok(None) => break,
                Err(error) => return (packets, Some(error)),
            }
        }
    }
    (packets, None)
}

/// Messages of coordination: what was read is written in a form that reads the same.
pub fn proto_tailnet(bytes: &[u8]) {
    fn settles<M: prost::Message + Default>(bytes: &[u8]) {
        if let Ok(message) = M::decode(bytes) {
            let written = message.encode_to_vec();
            let again = M::decode(&written[..]).expect("what was written reads");
            assert_eq!(again.encoded_len(), written.len());
        }
    }
    settles::<tailnet::CoordinateRequest>(bytes);
    settles::<tailnet::CoordinateResponse>(bytes);
    if let Ok(map) = tailnet::DerpMap::decode(bytes) {
        use_map(&derp_map::DerpMap::from(map));
    }
}

/// Files of wg-quick and forwards into their tunnels: what was understood is the same when spelled out.
pub fn wg(text: &str) {
    match text.parse::<wg::Config>() {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(config) => {
            assert!(!config.peers.is_empty() && !config.interface.addresses.is_empty());
            for network in config.peers.iter().flat_map(|peer| &peer.allowed) {
                assert_eq!(network.to_string().parse().as_ref(), Ok(network));
            }
        }
    }
    if let Ok(forward) = wg::Forward::parse(spec::Proto::Tcp, text) {
        let spelled = forward.to_string();
        assert_eq!(wg::Forward::parse(spec::Proto::Tcp, &spelled), Ok(forward));
    }
}

/// Port specifications and list flags: what was understood is understood the same when spelled out.
pub fn specs(text: &str) {
    let _ = spec::read_list(&[text]);
    let Ok(forwards) = spec::parse_specs(&[text], &[] as &[&str]) else {
        return;
    };
    let spelled: Vec<String> = forwards
        .iter()
        .map(|forward| match forward.bind {
            None => format!("{}:{}", forward.local, forward.remote),
            Some(IpAddr::V4(ip)) => format!("{ip}:{}:{}", forward.local, forward.remote),
            Some(ip) => format!("[{ip:?}]:{}:{}", forward.local, forward.remote),
        })
        .collect();
    // An IPv4-mapped address is displayed with dots, which a bind address may not have.
    let mapped = |forward: &spec::Forward| matches!(forward.bind, Some(IpAddr::V6(_)));
    if !forwards.iter().any(mapped) {
        assert_eq!(spec::parse_specs(&spelled, &[]).as_ref(), Ok(&forwards));
    }
    assert!(!spec::plan(&forwards).is_empty());
}

/// What ends on one machine say: the same when written again.
pub fn same_host(bytes: &[u8]) {
    if let Some(request) = same_host::Request::decode(bytes) {
        assert_eq!(request.encode().as_deref(), Some(bytes));
    }
    if let Some(answer) = same_host::Answer::decode(bytes) {
        assert!(bytes.len() <= same_host::ANSWER);
        assert_eq!(answer.encode(), bytes);
    }
    if let Some(invitation) = std::str::from_utf8(bytes)
        .ok()
        .and_then(same_host::Invitation::from_text)
    {
        let again = same_host::Invitation::from_text(&invitation.to_text());
        assert!(again.is_some_and(|again| again.token.is(invitation.token.reveal())));
    }
}

/// Names of workspaces, keys and prefixes as text.
pub fn names(text: &str) {
    let _ = names::ssh_host(&names::normalize_ssh(text), "coder.", "coder");
    let _ = text.parse::<DiscoPublic>();
    if let Ok(forward) = text.parse::<RemoteForward>() {
        assert_eq!(forward.to_string().parse::<RemoteForward>(), Ok(forward));
    }
    if let Ok(key) = text.parse::<NodePublic>() {
        assert_eq!(key.to_string().parse(), Ok(key));
        assert_eq!(NodePublic::from_wire(&key.to_wire()), Ok(key));
    }
    if let Ok(address) = addr::parse_prefix(text) {
        assert_eq!(addr::parse_prefix(&addr::prefix_text(address)), Ok(address));
    }
    let Ok(name) = text.parse::<WorkspaceName>() else {
        return;
    };
    let owner = name.owner.as_ref().map(|owner| format!("{owner}/"));
    let agent = name.agent.as_ref().map(|agent| format!(".{agent}"));
    let spelled = [owner, Some(name.workspace.clone()), agent];
    let spelled: String = spelled.into_iter().flatten().collect();
    assert_eq!(spelled.parse(), Ok(name));
}

/// Relay maps as JSON: regions read the same when written again.
pub fn derp_map_json(bytes: &[u8]) {
    let Ok(map) = serde_json::from_slice::<derp_map::DerpMap>(bytes) else {
        return;
    };
    let written = serde_json::to_vec(&map).expect("a map is written");
    let again: derp_map::DerpMap = serde_json::from_slice(&written).expect("and reads");
    assert_eq!(again.regions, map.regions);
    use_map(&map);
}

fn use_map(map: &derp_map::DerpMap) {
    let _ = tailnet::DerpMap::from(map);
    for (id, region) in &map.regions {
        let _ = map.is_relay(*id);
        for node in &region.nodes {
            let _ = (node.stun(), node.relay_url());
        }
    }
    let mut map = map.clone();
    if let Ok(access) = "https://[::1]:3000".parse() {
        map.rewrite_embedded(&access);
    }
}

/// An address, so that properties reach the forms random bytes seldom have.
pub fn stun_answer(tx: [u8; 12], address: SocketAddr) {
    let canonical = SocketAddr::new(address.ip().to_canonical(), address.port());
    assert_eq!(
        stun::parse_response(&stun::response(tx, address)),
        Ok((tx, canonical))
    );
}

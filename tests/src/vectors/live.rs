//! Recorded sessions of a real deployment: every byte of both directions decodes with our codecs.

use std::collections::HashMap;
use std::time::Instant;

use prost::Message;
use relay_wire::derp::{Decoder, Frame, handshake};
use relay_wire::keys::{NodePrivate, NodePublic};
use relay_wire::proto::{agent, tailnet};
use relay_wire::{disco, drpc, rest as bodies, stun as stun_wire, yamux};
use serde_json::Value;

use super::control::through;
use super::{array, bytes, text};

/// The pieces of one direction.
fn direction<'a>(session: &'a Value, direction: &'a str) -> impl Iterator<Item = Vec<u8>> + 'a {
    // Of a WebSocket, binary messages alone carry the byte stream.
    let carries = |piece: &&Value| piece["op"].as_u64().is_none_or(|op| op == 2);
    let pieces = session["stream"]
        .as_array()
        .expect("a stream")
        .iter()
        .filter(carries);
    pieces
        .filter(move |piece| piece["dir"] == direction)
        .map(|piece| bytes(&piece["hex"]))
}

/// All frames of one direction; nothing may be left over.
fn frames(session: &Value, towards: &str) -> Vec<Frame> {
    let mut decoder = Decoder::new();
    let mut frames = Vec::new();
    for piece in direction(session, towards) {
        decoder.push(&piece);
        while let Some(frame) = decoder.next().expect("a frame") {
            frames.push(frame);
        }
    }
    assert!(
        decoder.buffer_mut().is_empty(),
        "bytes behind the last frame"
    );
    frames
}

fn key(session: &Value) -> NodePublic {
    let headers = session["resp_headers"].as_array().expect("headers");
    let header = headers.iter().find(|header| {
        header[0]
            .as_str()
            .is_some_and(|name| name.eq_ignore_ascii_case("Derp-Public-Key"))
    });
    NodePublic::from_hex(
        header.expect("the relay's key")[1]
            .as_str()
            .unwrap_or_default(),
    )
    .expect("the relay's key")
}

/// Two clients with known keys: every box opens, and what one sends the other receives.
pub(super) fn derp(content: &Value) {
    let mut sent: Vec<(NodePublic, Vec<u8>)> = Vec::new();
    let mut received: Vec<(NodePublic, Vec<u8>)> = Vec::new();
    for session in content["sessions"].as_array().expect("sessions") {
        let who = text(session, "who");
        let name = who.split(' ').next().unwrap_or_default();
        let own = NodePrivate::from_bytes(array(&content["private_keys"][name]));
        let (up, down) = (frames(session, "c2s"), frames(session, "s2c"));
        let server = key(session);
        assert_eq!(down[0], Frame::ServerKey(server));
        let Frame::ClientInfo {
            client,
            nonce,
            sealed,
        } = &up[0]
        else {
            panic!("{who}: {:?} where client info is due", up[0]);
        };
        assert_eq!(*client, own.public());
        // The box between two keys opens from either side.
        let plain = own
            .shared(&server)
            .open(nonce, sealed)
            .expect("client info opens");
        let info: handshake::ClientInfo = serde_json::from_slice(&plain).expect("client info");
        assert_eq!(info.version, 2);
        let info = handshake::open_server_info(&down[1], &own, &server).expect("server info");
        assert_eq!(info.version, 2);
        for frame in up {
            if let Frame::SendPacket {
                destination,
                packet,
            } = frame
            {
                sent.push((destination, packet.to_vec()));
            }
        }
        for frame in down {
            assert!(!matches!(frame, Frame::Unknown(_)), "{who}: {frame:?}");
            if let Frame::RecvPacket { packet, .. } = frame {
                received.push((own.public(), packet.to_vec()));
            }
        }
    }
    assert!(!received.is_empty());
    for packet in &received {
        assert!(sent.contains(packet), "a packet that nobody sent");
    }
}

/// A real CLI's relay connection.
pub(super) fn derp_cli(session: &Value) {
    let (up, down) = (frames(session, "c2s"), frames(session, "s2c"));
    assert!(matches!(down[0], Frame::ServerKey(_)), "{:?}", down[0]);
    assert!(matches!(up[0], Frame::ClientInfo { .. }), "{:?}", up[0]);
    assert!(matches!(down[1], Frame::ServerInfo { .. }), "{:?}", down[1]);
    for frame in up.iter().chain(&down) {
        assert!(!matches!(frame, Frame::Unknown(_)), "{frame:?}");
        let packet = match frame {
            Frame::SendPacket { packet, .. } | Frame::RecvPacket { packet, .. } => packet,
            _ => continue,
        };
        let wireguard = matches!(packet.first(), Some(1..=4)) && packet[1..4] == [0; 3];
        assert!(
            wireguard || disco::sender(packet).is_some(),
            "neither WireGuard nor disco"
        );
    }
}

/// Calls of a recorded direction: by stream, its packets.
fn packets(session: &Value, towards: &str, role: yamux::Role) -> HashMap<u32, Vec<drpc::Packet>> {
    let now = Instant::now();
    let mut side = yamux::Session::new(role, yamux::Config::default(), now);
    let mut streams: HashMap<u32, drpc::Decoder> = HashMap::new();
    let mut calls: HashMap<u32, Vec<drpc::Packet>> = HashMap::new();
    for piece in session["stream"].as_array().expect("a stream") {
        let data = bytes(&piece["hex"]);
        if piece["dir"] != towards {
            // The other side's openings, so that this side knows the streams.
            let opening = data.len() == 12 && data[1] == 1 && data[3] & 1 != 0;
            if opening && role == yamux::Role::Client {
                side.open().expect("a stream");
            }
            continue;
        }
        side.handle_input(&data, now).expect("yamux");
        side.poll_output();
        while let Some(event) = side.poll_event() {
            if let yamux::Event::Data(id, body) = event {
                side.consumed(id, body.len());
                let decoder = streams.entry(id).or_default();
                decoder.push(&body);
                while let Some(packet) = decoder.next_packet().expect("dRPC") {
                    calls.entry(id).or_default().push(packet);
                }
            }
        }
    }
    for (id, decoder) in streams {
        assert!(
            decoder.is_empty(),
            "bytes behind the last packet of stream {id}"
        );
    }
    calls
}

/// Decodes a message and encodes it again: the same bytes.
fn same<M: Message + Default>(body: &[u8]) {
    assert_eq!(
        M::decode(body).expect("decodes").encode_to_vec().len(),
        body.len()
    );
}

/// What a client sends on a call.
fn request(path: &str, body: &[u8]) {
    match path {
        tailnet::COORDINATE => same::<tailnet::CoordinateRequest>(body),
        tailnet::STREAM_DERP_MAPS => same::<tailnet::StreamDerpMapsRequest>(body),
        tailnet::REFRESH_RESUME_TOKEN => same::<tailnet::RefreshResumeTokenRequest>(body),
        // Usage facts are nobody's concern here.
        tailnet::POST_TELEMETRY => {}
        agent::GET_MANIFEST => same::<agent::GetManifestRequest>(body),
        agent::GET_ANNOUNCEMENT_BANNERS => same::<agent::GetAnnouncementBannersRequest>(body),
        agent::GET_RESOURCES_MONITORING_CONFIGURATION => {
            same::<agent::GetResourcesMonitoringConfigurationRequest>(body);
        }
        agent::UPDATE_STARTUP => same::<agent::UpdateStartupRequest>(body),
        agent::UPDATE_LIFECYCLE => same::<agent::UpdateLifecycleRequest>(body),
        agent::UPDATE_STATS => same::<agent::UpdateStatsRequest>(body),
        agent::REPORT_CONNECTION => same::<agent::ReportConnectionRequest>(body),
        other => panic!("a call that nothing knows: {other}"),
    }
}

/// What a server answers.
fn answer(path: &str, body: &[u8]) {
    match path {
        tailnet::COORDINATE => same::<tailnet::CoordinateResponse>(body),
        tailnet::STREAM_DERP_MAPS => {
            same::<tailnet::DerpMap>(body);
            let map = tailnet::DerpMap::decode(body).expect("decodes");
            assert!(map.home_params.is_some());
        }
        tailnet::REFRESH_RESUME_TOKEN => same::<tailnet::RefreshResumeTokenResponse>(body),
        tailnet::POST_TELEMETRY => {}
        agent::GET_MANIFEST => same::<agent::Manifest>(body),
        agent::GET_ANNOUNCEMENT_BANNERS => same::<agent::GetAnnouncementBannersResponse>(body),
        agent::GET_RESOURCES_MONITORING_CONFIGURATION => {
            same::<agent::GetResourcesMonitoringConfigurationResponse>(body);
        }
        agent::UPDATE_STARTUP => same::<agent::Startup>(body),
        agent::UPDATE_LIFECYCLE => same::<agent::Lifecycle>(body),
        agent::UPDATE_STATS => same::<agent::UpdateStatsResponse>(body),
        agent::REPORT_CONNECTION => same::<tailnet::Empty>(body),
        other => panic!("a call that nothing knows: {other}"),
    }
}

pub(super) fn control(session: &Value) {
    let requests = packets(session, "c2s", yamux::Role::Server);
    let answers = packets(session, "s2c", yamux::Role::Client);
    assert!(requests.len() >= 3 && answers.len() >= 3);
    let mut nodes = 0;
    for (id, packets) in &requests {
        assert_eq!(packets[0].kind, drpc::Kind::Invoke, "stream {id}");
        let path = std::str::from_utf8(&packets[0].body).expect("a path");
        for body in messages(packets) {
            request(path, &body);
            if path == tailnet::COORDINATE {
                let request = tailnet::CoordinateRequest::decode(&body[..]).expect("decodes");
                nodes += usize::from(request.update_self.is_some());
            }
        }
        for body in answers
            .get(id)
            .map(|packets| messages(packets))
            .unwrap_or_default()
        {
            answer(path, &body);
        }
    }
    assert!(nodes > 0);
}

fn messages(packets: &[drpc::Packet]) -> Vec<bytes::Bytes> {
    let messages = packets
        .iter()
        .filter(|packet| packet.kind == drpc::Kind::Message);
    messages.map(|packet| packet.body.clone()).collect()
}

/// Every JSON answer reads as what our client takes it for.
pub(super) fn rest(content: &Value) {
    let mut read = 0;
    for exchange in content
        .as_object()
        .expect("commands")
        .values()
        .flat_map(exchanges)
    {
        let path = text(exchange, "path").split('?').next().unwrap_or_default();
        let Ok(body) = serde_json::from_str::<Value>(text(exchange, "resp_body")) else {
            continue;
        };
        let path = path.trim_start_matches("/api/v2/");
        let parts: Vec<&str> = path.split('/').collect();
        match (exchange["status"].as_u64().unwrap_or_default(), &parts[..]) {
            (400.., _) => drop(through::<bodies::ErrorBody>(&body)),
            (_, ["buildinfo"]) => drop(through::<bodies::BuildInfo>(&body)),
            (_, ["users", "me"]) => drop(through::<bodies::User>(&body)),
            (_, ["users", "me", "keys"]) => drop(through::<bodies::NewKey>(&body)),
            (_, ["users", _, "workspace", _]) => drop(through::<bodies::Workspace>(&body)),
            (_, ["workspaces"]) => drop(through::<bodies::Workspaces>(&body)),
            (_, ["workspaces", _]) => drop(through::<bodies::Workspace>(&body)),
            (_, ["deployment", "ssh"]) => drop(through::<bodies::SshConfig>(&body)),
            (_, ["templateversions", _]) => drop(through::<bodies::TemplateVersion>(&body)),
            (_, ["workspaceagents", .., "connection"]) => {
                drop(through::<bodies::ConnectionInfo>(&body));
            }
            (_, ["workspaceagents", _]) => drop(through::<bodies::WorkspaceAgent>(&body)),
            _ => continue,
        }
        read += 1;
    }
    assert!(read > 20, "only {read} answers were read");
}

fn exchanges(command: &Value) -> impl Iterator<Item = &Value> {
    command.as_array().into_iter().flatten()
}

pub(super) fn stun(content: &Value) {
    let (mut requests, mut responses) = (Vec::new(), 0);
    for packet in content["packets"].as_array().expect("packets") {
        let data = bytes(&packet["hex"]);
        assert!(stun_wire::is_stun(&data));
        match stun_wire::parse_request(&data) {
            Ok(tx) => requests.push((tx, text(packet, "src").to_owned())),
            Err(_) => {
                let (tx, seen) = stun_wire::parse_response(&data).expect("a response");
                let asked = requests.iter().find(|(asked, _)| *asked == tx);
                // The address is the asker's, out of its IPv6 coat.
                assert_eq!(asked.map(|(_, src)| src.clone()), Some(seen.to_string()));
                responses += 1;
            }
        }
    }
    assert!(responses > 0);
}

pub(super) fn udp(content: &Value) {
    let (mut found, mut senders) = (0, Vec::new());
    for packet in content["packets"].as_array().expect("packets") {
        let data = bytes(&packet["hex"]);
        match disco::sender(&data) {
            Some(sender) => {
                assert_eq!(data.len(), 1310);
                found += 1;
                if !senders.contains(&sender) {
                    senders.push(sender);
                }
            }
            None => assert!(
                matches!(data[0], 1..=4) && data[1..4] == [0; 3],
                "not WireGuard"
            ),
        }
    }
    assert_eq!((found, senders.len()), (40, 2));
}

//! Bytes of the control channel against the shared vectors and the recorded sessions.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test panics on what it does not expect

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Instant;

use prost::Message;
use relay_wire::proto::{agent, tailnet};
use relay_wire::{derp_map, drpc, rest, yamux};
use serde_json::Value;

fn read(name: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors");
    let text = std::fs::read_to_string(path.join(name)).expect(name);
    serde_json::from_str(&text).expect(name)
}

fn rows(name: &str) -> Vec<Value> {
    read(name).as_array().expect("rows").clone()
}

fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().expect("hex text")).expect("hex")
}

#[test]
fn yamux_headers_have_the_vectors_bytes() {
    for row in rows("wire_yamux.json") {
        let number = |name: &str| row["input"][name].as_u64().unwrap() as u32;
        let expected = bytes(&row["expect"]["header_hex"]);
        let header = yamux::Header::decode(expected[..].try_into().unwrap()).unwrap();
        assert_eq!(header.encode()[..], expected, "{}", row["name"]);
        assert_eq!(header.kind as u32, number("type"));
        assert_eq!(u32::from(header.flags), number("flags"));
        assert_eq!(header.stream, number("stream_id"));
        assert_eq!(header.length, number("length"));
    }
}

#[test]
fn drpc_has_the_vectors_bytes() {
    for row in rows("wire_drpc.json") {
        let (input, expect) = (&row["input"], &row["expect"]);
        if let Some(frame) = expect.get("frame_hex") {
            drpc_frame(input, &bytes(frame));
        } else if let Some(text) = expect.get("hex") {
            let value = input["value"].as_str().unwrap().parse().unwrap();
            let mut out = Vec::new();
            drpc::put_varint(&mut out, value);
            assert_eq!(out, bytes(text));
            assert_eq!(drpc::read_varint(&out), Ok(Some((value, out.len()))));
        } else if let Some(frames) = input.get("frames_hex") {
            drpc_packets(frames, expect);
        } else if let Some(exchange) = expect.get("bytes_hex") {
            drpc_exchange(input, &bytes(exchange));
        }
    }
}

fn drpc_frame(input: &Value, expected: &[u8]) {
    let body = match input.get("data_hex") {
        Some(data) => bytes(data),
        None => drpc::error_body(
            input["code"].as_u64().unwrap(),
            input["text"].as_str().unwrap(),
        )
        .to_vec(),
    };
    let frame = drpc::Frame {
        kind: drpc::Kind::from(input["kind"].as_u64().unwrap() as u8),
        stream: input["stream"].as_u64().unwrap(),
        message: input["message"].as_u64().unwrap(),
        done: input["done"].as_bool().unwrap_or(true),
        control: input["control"].as_bool().unwrap_or(false),
        body: &body,
    };
    let mut out = Vec::new();
    frame.encode(&mut out);
    assert_eq!(out, expected);
    assert_eq!(drpc::Frame::decode(&out), Ok(Some((frame, out.len()))));
    for cut in 0..out.len() {
        assert_eq!(drpc::Frame::decode(&out[..cut]), Ok(None));
    }
}

fn drpc_packets(frames: &Value, expect: &Value) {
    let mut decoder = drpc::Decoder::new();
    for frame in frames.as_array().unwrap() {
        decoder.push(&bytes(frame));
    }
    for packet in expect["packets"].as_array().unwrap() {
        let got = decoder.next_packet().unwrap().unwrap();
        assert_eq!(
            got.kind,
            drpc::Kind::from(packet["kind"].as_u64().unwrap() as u8)
        );
        assert_eq!(got.message, packet["message"].as_u64().unwrap());
        assert_eq!(got.control, packet["control"].as_bool().unwrap());
        assert_eq!(got.body, packet["data"].as_str().unwrap().as_bytes());
    }
    let end = decoder.next_packet();
    assert_eq!(end.is_err(), expect.get("error").is_some());
}

fn drpc_exchange(input: &Value, expected: &[u8]) {
    let mut encoder = drpc::Encoder::new();
    let mut out = Vec::new();
    if let Some(path) = input.get("rpc") {
        encoder.put(
            drpc::Kind::Invoke,
            path.as_str().unwrap().as_bytes(),
            &mut out,
        );
    }
    let body = input.get("request_hex").or(input.get("response_hex"));
    encoder.put(drpc::Kind::Message, &bytes(body.unwrap()), &mut out);
    encoder.put(drpc::Kind::CloseSend, &[], &mut out);
    assert_eq!(out, expected);
}

#[test]
fn protobuf_messages_have_the_vectors_bytes() {
    for row in rows("wire_proto.json") {
        let expected = bytes(&row["expect"]["hex"]);
        let message = row["input"]["message"].as_str().unwrap();
        let short = message.rsplit('.').next().unwrap();
        let again = recode(short, &expected);
        // `derp_latency` of one entry and sorted maps make the encoding unique.
        assert_eq!(again, expected, "{}", row["name"]);
    }
}

fn recode(name: &str, bytes: &[u8]) -> Vec<u8> {
    fn through<M: Message + Default>(bytes: &[u8]) -> Vec<u8> {
        M::decode(bytes).expect("decodes").encode_to_vec()
    }
    match name {
        "CoordinateRequest" => through::<tailnet::CoordinateRequest>(bytes),
        "CoordinateResponse" => through::<tailnet::CoordinateResponse>(bytes),
        "DERPMap" => {
            let map = tailnet::DerpMap::decode(bytes).unwrap();
            let map = derp_map::DerpMap::from(map);
            tailnet::DerpMap::from(&map).encode_to_vec()
        }
        "RefreshResumeTokenResponse" => through::<tailnet::RefreshResumeTokenResponse>(bytes),
        "Manifest" => through::<agent::Manifest>(bytes),
        "UpdateLifecycleRequest" => through::<agent::UpdateLifecycleRequest>(bytes),
        "UpdateStartupRequest" => through::<agent::UpdateStartupRequest>(bytes),
        "UpdateStatsResponse" => through::<agent::UpdateStatsResponse>(bytes),
        "GetResourcesMonitoringConfigurationResponse" => {
            through::<agent::GetResourcesMonitoringConfigurationResponse>(bytes)
        }
        other => panic!("no such message: {other}"),
    }
}

#[test]
fn protobuf_fields_mean_what_they_should() {
    let rows: HashMap<String, Vec<u8>> = rows("wire_proto.json")
        .into_iter()
        .map(|row| {
            let name = row["name"].as_str().unwrap().to_owned();
            (name, bytes(&row["expect"]["hex"]))
        })
        .collect();
    let request =
        tailnet::CoordinateRequest::decode(&rows["request: update self (agent)"][..]).unwrap();
    let node = request.update_self.unwrap().node.unwrap();
    assert_eq!((node.key.len(), node.preferred_derp), (34, 999));
    assert_eq!(node.addresses, node.allowed_ips);
    assert_eq!(
        node.derp_latency,
        BTreeMap::from([("999-v4".to_owned(), 0.0125)])
    );
    let response = tailnet::CoordinateResponse::decode(&rows["response: lost"][..]).unwrap();
    assert_eq!(
        response.peer_updates[0].kind(),
        tailnet::coordinate_response::peer_update::Kind::Lost
    );
}

#[test]
fn rest_bodies_are_read_and_written_without_losing_fields() {
    for row in rows("wire_rest.json") {
        let path = row["input"]["path"].as_str().unwrap();
        let body = &row["expect"]["body"];
        let again = match (row["input"]["method"].as_str().unwrap(), path) {
            (_, "/api/v2/buildinfo") => through::<rest::BuildInfo>(body),
            (_, "/api/v2/users/me") => through::<rest::User>(body),
            (_, "/api/v2/users/me/keys") => through::<rest::NewKey>(body),
            (_, "/api/v2/deployment/ssh") => through::<rest::SshConfig>(body),
            (_, path) if path.starts_with("/api/v2/workspaces?") => {
                through::<rest::Workspaces>(body)
            }
            (_, path) if path.starts_with("/api/v2/users/me/workspace/") => {
                through::<rest::Workspace>(body)
            }
            (_, path) if path.ends_with("/connection") => through::<rest::ConnectionInfo>(body),
            (_, path) if path.starts_with("/api/v2/templateversions/") => {
                through::<rest::TemplateVersion>(body)
            }
            (_, path) if path.contains("/coordinate?") => through::<rest::ErrorBody>(body),
            ("GET", path) if path.starts_with("/api/v2/workspaceagents/") => {
                through::<rest::WorkspaceAgent>(body)
            }
            _ => continue,
        };
        contained(body, &again, path);
    }
}

fn through<T: serde::Serialize + serde::de::DeserializeOwned>(body: &Value) -> Value {
    let value: T = serde_json::from_value(body.clone()).expect("reads");
    serde_json::to_value(value).expect("writes")
}

/// Every field of `least` is in `got` with the same value (dates may differ in form).
fn contained(least: &Value, got: &Value, at: &str) {
    match (least, got) {
        (Value::Object(least), Value::Object(got)) => {
            for (key, value) in least {
                // Field of a paid feature, which nothing here uses.
                if key == "has_ai_seat" {
                    continue;
                }
                let got = got.get(key).unwrap_or_else(|| panic!("{at}: no {key}"));
                contained(value, got, &format!("{at} {key}"));
            }
        }
        (Value::Array(least), Value::Array(got)) => {
            assert_eq!(least.len(), got.len(), "{at}");
            for (least, got) in least.iter().zip(got) {
                contained(least, got, at);
            }
        }
        _ => assert_eq!(least, got, "{at}"),
    }
}

/// Calls of a recorded direction: per stream, its packets.
fn replay(session: &Value, direction: &str, role: yamux::Role) -> HashMap<u32, Vec<drpc::Packet>> {
    let now = Instant::now();
    let mut side = yamux::Session::new(role, yamux::Config::default(), now);
    let mut streams: HashMap<u32, drpc::Decoder> = HashMap::new();
    let mut calls: HashMap<u32, Vec<drpc::Packet>> = HashMap::new();
    for piece in session["stream"].as_array().unwrap() {
        let data = bytes(&piece["hex"]);
        if piece["dir"] != direction {
            // The other side's openings, so that this side knows the streams.
            if data.len() == 12 && data[1] == 1 && data[3] & 1 != 0 && role == yamux::Role::Client {
                side.open().unwrap();
            }
            continue;
        }
        side.handle_input(&data, now).unwrap();
        side.poll_output();
        while let Some(event) = side.poll_event() {
            if let yamux::Event::Data(id, body) = event {
                side.consumed(id, body.len());
                let decoder = streams.entry(id).or_default();
                decoder.push(&body);
                while let Some(packet) = decoder.next_packet().unwrap() {
                    calls.entry(id).or_default().push(packet);
                }
            }
        }
    }
    calls
}

#[test]
fn recorded_control_sessions_decode_to_the_last_byte() {
    for name in ["cli", "cli_short", "agent", "agent_short"] {
        let session = read(&format!("live/control_session_{name}.json"));
        let requests = replay(&session, "c2s", yamux::Role::Server);
        let answers = replay(&session, "s2c", yamux::Role::Client);
        assert!(requests.len() >= 3 && answers.len() >= 3, "{name}");
        let mut nodes = 0;
        for (id, packets) in &requests {
            assert_eq!(packets[0].kind, drpc::Kind::Invoke, "{name} {id}");
            let path = std::str::from_utf8(&packets[0].body).unwrap();
            for packet in packets.iter().filter(|p| p.kind == drpc::Kind::Message) {
                if path == tailnet::COORDINATE {
                    let request = tailnet::CoordinateRequest::decode(&packet.body[..]).unwrap();
                    assert_eq!(request.encoded_len(), packet.body.len());
                    nodes += usize::from(request.update_self.is_some());
                }
            }
            for packet in answers.get(id).into_iter().flatten() {
                if packet.kind != drpc::Kind::Message {
                    continue;
                }
                let body = &packet.body[..];
                let length = match path {
                    tailnet::COORDINATE => tailnet::CoordinateResponse::decode(body)
                        .unwrap()
                        .encoded_len(),
                    tailnet::STREAM_DERP_MAPS => {
                        let map = tailnet::DerpMap::decode(body).unwrap();
                        assert!(map.home_params.is_some());
                        map.encoded_len()
                    }
                    agent::GET_MANIFEST => agent::Manifest::decode(body).unwrap().encoded_len(),
                    agent::UPDATE_STATS => agent::UpdateStatsResponse::decode(body)
                        .unwrap()
                        .encoded_len(),
                    _ => continue,
                };
                assert_eq!(length, body.len(), "{name} {path}");
            }
        }
        assert!(nodes > 0, "{name}");
    }
}

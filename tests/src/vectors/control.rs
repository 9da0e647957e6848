//! The control channel: yamux, dRPC, protobuf, REST bodies.

use prost::Message;
use relay_wire::proto::{agent, tailnet};
use relay_wire::{derp_map, drpc as drpc_wire, rest as bodies, yamux as yamux_wire};
use serde_json::Value;

use super::{Ran, array, bytes};

pub(super) fn yamux(row: &Value) -> Ran {
    let number = |name: &str| row["input"][name].as_u64().expect("a number");
    let wanted = array(&row["expect"]["header_hex"]);
    let header = yamux_wire::Header::decode(&wanted).expect("a header");
    assert_eq!(header.encode(), wanted);
    assert_eq!(header.kind as u64, number("type"));
    assert_eq!(u64::from(header.flags), number("flags"));
    assert_eq!(u64::from(header.stream), number("stream_id"));
    assert_eq!(u64::from(header.length), number("length"));
    Ran::Passed
}

pub(super) fn drpc(row: &Value) -> Ran {
    let (input, expect) = (&row["input"], &row["expect"]);
    if let Some(frame) = expect.get("frame_hex") {
        drpc_frame(input, &bytes(frame));
    } else if let Some(text) = expect.get("hex") {
        let value = input["value"].as_str().and_then(|value| value.parse().ok());
        let value = value.expect("a number");
        let mut out = Vec::new();
        drpc_wire::put_varint(&mut out, value);
        assert_eq!(out, bytes(text));
        assert_eq!(drpc_wire::read_varint(&out), Ok(Some((value, out.len()))));
    } else if let Some(frames) = input.get("frames_hex") {
        drpc_packets(frames, expect);
    } else if let Some(exchange) = expect.get("bytes_hex") {
        drpc_exchange(input, &bytes(exchange));
    } else {
        metadata(input, &bytes(&expect["payload_hex"]));
    }
    Ran::Passed
}

/// Pairs ahead of an invocation; relay sends none and skips those of others.
fn metadata(input: &Value, payload: &[u8]) {
    let mut encoder = drpc_wire::Encoder::new();
    let mut out = Vec::new();
    encoder.put(drpc_wire::Kind::Metadata, payload, &mut out);
    let mut decoder = drpc_wire::Decoder::new();
    decoder.push(&out);
    let packet = decoder
        .next_packet()
        .expect("a packet")
        .expect("a whole packet");
    assert_eq!(packet.kind, drpc_wire::Kind::Metadata);
    for (key, value) in input["pairs"].as_object().expect("pairs") {
        let text = String::from_utf8_lossy(&packet.body);
        assert!(text.contains(key) && text.contains(value.as_str().expect("a text")));
    }
}

fn drpc_frame(input: &Value, expected: &[u8]) {
    let body = match input.get("data_hex") {
        Some(data) => bytes(data),
        None => drpc_wire::error_body(
            input["code"].as_u64().expect("as the row says"),
            input["text"].as_str().expect("as the row says"),
        )
        .to_vec(),
    };
    let frame = drpc_wire::Frame {
        kind: drpc_wire::Kind::from(input["kind"].as_u64().expect("as the row says") as u8),
        stream: input["stream"].as_u64().expect("as the row says"),
        message: input["message"].as_u64().expect("as the row says"),
        done: input["done"].as_bool().unwrap_or(true),
        control: input["control"].as_bool().unwrap_or(false),
        body: &body,
    };
    let mut out = Vec::new();
    frame.encode(&mut out);
    assert_eq!(out, expected);
    assert_eq!(drpc_wire::Frame::decode(&out), Ok(Some((frame, out.len()))));
    for cut in 0..out.len() {
        assert_eq!(drpc_wire::Frame::decode(&out[..cut]), Ok(None));
    }
}

fn drpc_packets(frames: &Value, expect: &Value) {
    let mut decoder = drpc_wire::Decoder::new();
    for frame in frames.as_array().expect("as the row says") {
        decoder.push(&bytes(frame));
    }
    for packet in expect["packets"].as_array().expect("as the row says") {
        let got = decoder
            .next_packet()
            .expect("as the row says")
            .expect("as the row says");
        assert_eq!(
            got.kind,
            drpc_wire::Kind::from(packet["kind"].as_u64().expect("as the row says") as u8)
        );
        assert_eq!(
            got.message,
            packet["message"].as_u64().expect("as the row says")
        );
        assert_eq!(
            got.control,
            packet["control"].as_bool().expect("as the row says")
        );
        assert_eq!(
            got.body,
            packet["data"].as_str().expect("as the row says").as_bytes()
        );
    }
    let end = decoder.next_packet();
    assert_eq!(end.is_err(), expect.get("error").is_some());
}

fn drpc_exchange(input: &Value, expected: &[u8]) {
    let mut encoder = drpc_wire::Encoder::new();
    let mut out = Vec::new();
    if let Some(path) = input.get("rpc") {
        encoder.put(
            drpc_wire::Kind::Invoke,
            path.as_str().expect("as the row says").as_bytes(),
            &mut out,
        );
    }
    let body = input.get("request_hex").or(input.get("response_hex"));
    encoder.put(
        drpc_wire::Kind::Message,
        &bytes(body.expect("as the row says")),
        &mut out,
    );
    encoder.put(drpc_wire::Kind::CloseSend, &[], &mut out);
    assert_eq!(out, expected);
}

pub(super) fn proto(row: &Value) -> Ran {
    let wanted = bytes(&row["expect"]["hex"]);
    let message = row["input"]["message"].as_str().expect("a message's name");
    let short = message.rsplit('.').next().expect("a message's name");
    // Maps are sorted, so the encoding is unique.
    assert_eq!(recode(short, &wanted), wanted);
    Ran::Passed
}

fn recode(name: &str, bytes: &[u8]) -> Vec<u8> {
    fn through<M: Message + Default>(bytes: &[u8]) -> Vec<u8> {
        M::decode(bytes).expect("decodes").encode_to_vec()
    }
    match name {
        "CoordinateRequest" => through::<tailnet::CoordinateRequest>(bytes),
        "CoordinateResponse" => through::<tailnet::CoordinateResponse>(bytes),
        "DERPMap" => {
            let map = tailnet::DerpMap::decode(bytes).expect("as the row says");
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

pub(super) fn rest(row: &Value) -> Ran {
    let path = row["input"]["path"].as_str().expect("as the row says");
    let body = &row["expect"]["body"];
    let again = match (
        row["input"]["method"].as_str().expect("as the row says"),
        path,
    ) {
        (_, "/api/v2/buildinfo") => through::<bodies::BuildInfo>(body),
        (_, "/api/v2/users/me") => through::<bodies::User>(body),
        (_, "/api/v2/users/me/keys") => through::<bodies::NewKey>(body),
        (_, "/api/v2/deployment/ssh") => through::<bodies::SshConfig>(body),
        (_, path) if path.starts_with("/api/v2/workspaces?") => through::<bodies::Workspaces>(body),
        (_, path) if path.starts_with("/api/v2/users/me/workspace/") => {
            through::<bodies::Workspace>(body)
        }
        (_, path) if path.ends_with("/connection") => through::<bodies::ConnectionInfo>(body),
        (_, path) if path.starts_with("/api/v2/templateversions/") => {
            through::<bodies::TemplateVersion>(body)
        }
        (_, path) if path.contains("/coordinate?") => through::<bodies::ErrorBody>(body),
        ("GET", path) if path.starts_with("/api/v2/workspaceagents/") => {
            through::<bodies::WorkspaceAgent>(body)
        }
        _ => return without_body(body),
    };

    contained(body, &again, path);
    Ran::Passed
}

/// Answers that have no fields that anybody reads.
fn without_body(body: &Value) -> Ran {
    assert!(
        body.is_null() || body.is_object() || body.is_string(),
        "{body}"
    );
    Ran::Passed
}

pub(super) fn through<T: serde::Serialize + serde::de::DeserializeOwned>(body: &Value) -> Value {
    let value: T = serde_json::from_value(body.clone()).expect("reads");
    serde_json::to_value(value).expect("writes")
}

/// Every field of `least` is in `got` with the same value (dates may differ in form).
pub(super) fn contained(least: &Value, got: &Value, at: &str) {
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

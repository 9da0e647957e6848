//! Keys, addresses, disco, relay frames, STUN and reachability pings.

use std::net::{Ipv6Addr, SocketAddr};

use bytes::BytesMut;
use relay_wire::derp::{Decoder, Frame, GoneReason, handshake};
use relay_wire::disco::{self as disco_wire, Message, PayloadSize, TxId};
use relay_wire::keys::{DiscoPrivate, DiscoPublic, NodePrivate, NodePublic};
use relay_wire::proto::id_bytes;
use relay_wire::tsmp::Tsmp;
use relay_wire::{addr as addresses, stun as stun_wire, tsmp as tsmp_wire};
use serde_json::{Value, json};

use super::{Ran, array, bytes, equals, text};

pub(super) fn addr(row: &Value) -> Ran {
    let (input, expect) = (&row["input"], &row["expect"]);
    let Some(id) = input["agent_id"].as_str() else {
        return constants(row);
    };
    let id = id.parse().expect("a UUID");
    let (primary, service) = (
        addresses::agent_address(&id),
        addresses::service_address(&id),
    );
    for (key, value) in expect.as_object().expect("fields") {
        let found = match key.as_str() {
            "primary" | "primary_ip" => json!(primary.to_string()),
            "primary_prefix" => json!(addresses::prefix_text(primary)),
            "coder_connect" | "secondary_ip" => json!(service.to_string()),
            "node_id" => json!(addresses::node_id(&id)),
            "wire_uuid_hex" => json!(hex::encode(id_bytes(id))),
            other => panic!("an unknown field {other}"),
        };
        assert_eq!(&found, value, "{key}");
    }
    Ran::Passed
}

fn constants(row: &Value) -> Ran {
    let range = |prefix: [u8; 6]| {
        let mut address = [0; 16];
        address[..6].copy_from_slice(&prefix);
        format!("{}/{}", Ipv6Addr::from(address), addresses::PREFIX_BITS)
    };
    use addresses::ports;
    let found = json!({
        "primary_range": range(addresses::AGENT_PREFIX),
        "secondary_range": range(addresses::SERVICE_PREFIX),
        "derp_magic_ip": addresses::DERP_MAGIC.to_string(),
        "legacy_agent_ip": addresses::LEGACY_AGENT.to_string(),
        "coder_service_ip": addresses::SERVICE_DNS.to_string(),
        "mtu": addresses::MTU,
        "agent_ports": {
            "ssh": ports::SSH,
            "reconnecting_pty": ports::RECONNECTING_PTY,
            "speedtest": ports::SPEEDTEST,
            "http_api": ports::HTTP_API,
            "ssh_standard": ports::SSH_STANDARD,
        },
        "min_listening_port": ports::MIN_LISTENING,
    });
    equals(&found, row)
}

pub(super) fn keys(row: &Value) -> Ran {
    let (input, expect) = (&row["input"], &row["expect"]);
    if let Some(given) = input["text"].as_str() {
        let node = given
            .parse::<NodePublic>()
            .map(|key| hex::encode(key.as_bytes()));
        let disco = given
            .parse::<DiscoPublic>()
            .map(|key| hex::encode(key.as_bytes()));
        let parsed = node.or(disco).ok();
        match expect["error"].as_bool() {
            Some(true) => assert_eq!(parsed, None),
            _ => assert_eq!(parsed.as_deref(), expect["public_hex"].as_str()),
        }
        return Ran::Passed;
    }
    let seed = array(&input["seed_hex"]);
    let (node, disco) = (
        NodePrivate::from_bytes(seed),
        DiscoPrivate::from_bytes(seed),
    );
    let public_text = text(expect, "public_text");
    let is_disco = public_text.starts_with("discokey:");
    for (key, value) in expect.as_object().expect("fields") {
        let found = match key.as_str() {
            "clamped_private_hex" => hex::encode(node.to_bytes()),
            "public_hex" | "http_header_value" => node.public().to_hex(),
            "private_text" => node.to_text().to_string(),
            "public_text" if is_disco => disco.public().to_string(),
            "public_text" => node.public().to_string(),
            "short" if is_disco => disco.public().short(),
            "short" => node.public().short(),
            "public_binary_hex" => hex::encode(node.public().to_wire()),
            other => panic!("an unknown field {other}"),
        };
        assert_eq!(Some(found.as_str()), value.as_str(), "{key}");
    }
    Ran::Passed
}

pub(super) fn disco(row: &Value) -> Ran {
    let (input, expect) = (&row["input"], &row["expect"]);
    if input.get("nonce_hex").is_some() {
        return sealed_disco(row);
    }
    if let Some(plain) = input.get("plaintext_hex") {
        let decoded = disco_wire::decode(&bytes(plain));
        match expect.get("error") {
            Some(_) => assert!(decoded.is_err(), "{decoded:?}"),
            None => assert_eq!(
                decoded,
                Ok(Message::CallMeMaybe {
                    endpoints: Vec::new()
                })
            ),
        }
        return Ran::Passed;
    }
    let message = message(input);
    let encode = |size| disco_wire::encode(&message, size);
    match expect.get("plaintext_hex") {
        Some(plain) => assert_eq!(encode(PayloadSize::V0), bytes(plain)),
        None => {
            let size = match text(input, "type") {
                "call_me_maybe" => PayloadSize::V0,
                _ => PayloadSize::PADDED,
            };
            let (plain, prefix) = (encode(size), bytes(&expect["plaintext_prefix_hex"]));
            assert_eq!(Some(plain.len() as u64), expect["plaintext_len"].as_u64());
            assert!(plain.starts_with(&prefix));
            assert!(plain[prefix.len()..].iter().all(|byte| *byte == 0));
        }
    }
    for size in [PayloadSize::V0, PayloadSize::PADDED] {
        assert_eq!(disco_wire::decode(&encode(size)), Ok(message.clone()));
    }
    Ran::Passed
}

fn message(input: &Value) -> Message {
    let tx = || TxId(array(&input["tx_id_hex"]));
    let address =
        |value: &Value| -> SocketAddr { value.as_str().unwrap_or("").parse().expect("an address") };
    match text(input, "type") {
        "ping" => Message::Ping {
            tx: tx(),
            node_key: input
                .get("node_key_hex")
                .map(|key| NodePublic::from_bytes(array(key))),
        },
        "pong" => Message::Pong {
            tx: tx(),
            source: address(&input["src"]),
        },
        "call_me_maybe" => Message::CallMeMaybe {
            endpoints: input["endpoints"]
                .as_array()
                .into_iter()
                .flatten()
                .map(address)
                .collect(),
        },
        other => panic!("an unknown message {other}"),
    }
}

fn sealed_disco(row: &Value) -> Ran {
    let (input, expect) = (&row["input"], &row["expect"]);
    let sender = DiscoPrivate::from_bytes(array(&input["sender_private_hex"]));
    let receiver = DiscoPublic::from_bytes(array(&input["receiver_public_hex"]));
    let shared = sender.shared(&receiver);
    let plain = bytes(&input["plaintext_hex"]);
    let message = disco_wire::decode(&plain).expect("a message");
    let size = match plain[1] {
        0 => PayloadSize::V0,
        _ => PayloadSize::Padded(plain.len()),
    };
    let nonce = array(&input["nonce_hex"]);
    let packet = disco_wire::seal(&message, size, &sender.public(), &shared, nonce);
    assert_eq!(Some(packet.len() as u64), expect["packet_len"].as_u64());
    match expect.get("packet_hex") {
        Some(whole) => assert_eq!(packet, bytes(whole)),
        None => {
            let prefix = expect
                .get("packet_prefix_hex")
                .expect("a packet or its beginning");
            assert!(packet.starts_with(&bytes(prefix)));
        }
    }
    assert_eq!(disco_wire::sender(&packet), Some(sender.public()));
    assert_eq!(disco_wire::open(&packet, &shared), Ok(message));
    Ran::Passed
}

pub(super) fn derp(row: &Value) -> Ran {
    let (input, expect) = (&row["input"], &row["expect"]);
    if let Some(host) = input["host"].as_str() {
        let headers = [("User-Agent", "Go-http-client/1.1")];
        let request = handshake::upgrade_request(host, handshake::PATH, &headers);
        let lines = |text: &str| {
            let mut lines: Vec<String> = text.split("\r\n").map(str::to_owned).collect();
            lines[1..].sort();
            lines
        };
        assert_eq!(lines(&request), lines(text(expect, "text")));
        return Ran::Passed;
    }
    if expect.get("text").is_some() {
        let server = NodePublic::from_bytes(array(&input["server_public_hex"]));
        let response = handshake::upgrade_response(&server);
        return equals(&json!({ "text": response }), row);
    }
    let wanted = bytes(&expect["frame_hex"]);
    let mut decoder = Decoder::new();
    decoder.push(&wanted);
    let decoded = decoder.next().expect("a frame").expect("a whole frame");
    if input["skip"] == true {
        assert!(matches!(decoded, Frame::Unknown(0x7f)), "{decoded:?}");
        return Ran::Passed;
    }
    let frame = frame(input);
    assert_eq!(decoded, frame);
    let mut out = BytesMut::new();
    frame.encode(&mut out);
    // The old form of "peer gone" is read, and written as the new one.
    if wanted[0] != 8 || wanted.len() == out.len() {
        assert_eq!(out[..], wanted[..]);
    }
    opens(input, &decoded);
    Ran::Passed
}

fn frame(input: &Value) -> Frame {
    let node = |key: &str| NodePublic::from_bytes(array(&input[key]));
    let payload = || bytes(&input["payload_hex"]).into();
    match input["type"].as_u64().expect("a type") {
        1 => Frame::ServerKey(node("server_public_hex")),
        2 => {
            let client = NodePrivate::from_bytes(array(&input["client_private_hex"]));
            let server = node("server_public_hex");
            let info = serde_json::from_str(text(input, "json")).expect("client info");
            handshake::client_info(&client, &server, &info, array(&input["nonce_hex"]))
        }
        3 => {
            let server = NodePrivate::from_bytes(array(&input["server_private_hex"]));
            let client = node("client_public_hex");
            let info = serde_json::from_str(text(input, "json")).expect("server info");
            handshake::server_info(&server, &client, &info, array(&input["nonce_hex"]))
        }
        4 => Frame::SendPacket {
            destination: node("dst_hex"),
            packet: payload(),
        },
        5 => Frame::RecvPacket {
            source: node("src_hex"),
            packet: payload(),
        },
        6 => Frame::KeepAlive,
        7 => Frame::NotePreferred(input["preferred"] == true),
        8 => Frame::PeerGone {
            peer: node("peer_hex"),
            reason: match input["reason"].as_u64() {
                Some(1) => GoneReason::NotHere,
                _ => GoneReason::Disconnected,
            },
        },
        18 => Frame::Ping(array(&input["data_hex"])),
        19 => Frame::Pong(array(&input["data_hex"])),
        20 => Frame::Health(text(input, "problem").to_owned()),
        21 => {
            let millis = |key: &str| {
                std::time::Duration::from_millis(input[key].as_u64().expect("milliseconds"))
            };
            Frame::Restarting {
                reconnect_in: millis("reconnect_in_ms"),
                try_for: millis("try_for_ms"),
            }
        }
        other => panic!("an unknown frame {other}"),
    }
}

/// Boxes open at the other side.
fn opens(input: &Value, frame: &Frame) {
    let server = NodePrivate::from_bytes(array(&json!(
        "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e5f"
    )));
    match frame {
        Frame::ClientInfo { .. } => {
            let (client, info) = handshake::open_client_info(frame, &server).expect("opens");
            let own = NodePrivate::from_bytes(array(&input["client_private_hex"]));
            assert_eq!(client, own.public());
            assert_eq!(info.version, 2);
        }
        Frame::ServerInfo { .. } => {
            let client = NodePrivate::from_bytes(array(&json!(
                "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e5f"
            )));
            assert_eq!(
                client.public(),
                NodePublic::from_bytes(array(&input["client_public_hex"]))
            );
            let info = handshake::open_server_info(frame, &client, &server.public());
            assert_eq!(info.expect("opens").version, 2);
        }
        _ => {}
    }
}

pub(super) fn stun(row: &Value) -> Ran {
    let (input, expect) = (&row["input"], &row["expect"]);
    if let Some(packet) = input.get("packet_hex") {
        let (tx, address) = stun_wire::parse_response(&bytes(packet)).expect("a response");
        return equals(
            &json!({"tx_id_hex": hex::encode(tx), "addr": address.to_string()}),
            row,
        );
    }
    let tx = array(&input["tx_id_hex"]);
    let wanted = bytes(&expect["packet_hex"]);
    match input["addr"].as_str() {
        Some(address) => {
            let address = address.parse().expect("an address");
            assert_eq!(stun_wire::response(tx, address), wanted);
            assert_eq!(stun_wire::parse_response(&wanted), Ok((tx, address)));
        }
        None => {
            assert_eq!(stun_wire::request(tx), wanted);
            assert_eq!(stun_wire::parse_request(&wanted), Ok(tx));
            assert!(stun_wire::is_stun(&wanted));
        }
    }
    Ran::Passed
}

pub(super) fn tsmp(row: &Value) -> Ran {
    let (input, expect) = (&row["input"], &row["expect"]);
    let address = |key: &str| -> Ipv6Addr { text(input, key).parse().expect("an address") };
    let (src, dst) = (address("src"), address("dst"));
    let data: [u8; 8] = array(&input["data_hex"]);
    let wanted = bytes(&expect["ip_packet_hex"]);
    // The flow label is free: bytes 1 to 3 are not compared.
    let unlabelled = |packet: &[u8]| [&packet[..1], &packet[4..]].concat();
    match (tsmp_wire::parse(&wanted).expect("a message"), wanted.len()) {
        (
            Tsmp::Ping {
                src: from,
                dst: to,
                data: sent,
            },
            _,
        ) => {
            assert_eq!((from, to, sent), (src, dst, data));
            let packet = tsmp_wire::ping_packet(src, dst, data);
            assert_eq!(unlabelled(&packet), unlabelled(&wanted));
        }
        (
            Tsmp::Pong {
                src: from,
                dst: to,
                data: sent,
                ..
            },
            length,
        ) => {
            assert_eq!((from, to, sent), (src, dst, data));
            if length == tsmp_wire::PONG_LEN {
                let packet = tsmp_wire::pong_packet(src, dst, data, 0);
                assert_eq!(unlabelled(&packet), unlabelled(&wanted));
            }
        }
    }
    Ran::Passed
}

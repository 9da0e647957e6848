//! Properties of every parser, over arbitrary bytes and over bytes that are nearly right.

#[path = "../fuzz/src/lib.rs"]
#[allow(unreachable_pub)]
mod bodies;

use proptest::collection::vec;
use proptest::prelude::*;

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..300)
}

fn cuts() -> impl Strategy<Value = Vec<u8>> {
    vec(prop_oneof![Just(0u8), 0u8..20, any::<u8>()], 1..5)
}

/// Frames of DERP with bodies of about the right length.
fn derp_stream() -> impl Strategy<Value = Vec<u8>> {
    vec((0u8..0x18, vec(any::<u8>(), 0..90)), 0..8).prop_map(|frames| {
        let mut stream = Vec::new();
        for (kind, body) in frames {
            stream.push(kind);
            stream.extend_from_slice(&(body.len() as u32).to_be_bytes());
            stream.extend_from_slice(&body);
        }
        stream
    })
}

/// Frames of yamux on few streams, so that they meet.
fn yamux_stream() -> impl Strategy<Value = Vec<u8>> {
    let frame = (0u8..4, 0u16..16, 0u32..4, vec(any::<u8>(), 0..40));
    vec(frame, 0..12).prop_map(|frames| {
        let mut stream = Vec::new();
        for (kind, flags, id, body) in frames {
            stream.extend_from_slice(&[0, kind]);
            stream.extend_from_slice(&flags.to_be_bytes());
            stream.extend_from_slice(&id.to_be_bytes());
            stream.extend_from_slice(&(body.len() as u32).to_be_bytes());
            if kind == 0 {
                stream.extend_from_slice(&body);
            }
        }
        stream
    })
}

/// Frames of dRPC whose numbers mostly grow.
fn drpc_stream() -> impl Strategy<Value = Vec<u8>> {
    let frame = (any::<u8>(), 0u64..2, vec(any::<u8>(), 0..40));
    vec(frame, 0..8).prop_map(|frames| {
        let (mut stream, mut message) = (Vec::new(), 1);
        for (control, step, body) in frames {
            message += step;
            stream.push(control & 0x8f);
            relay_wire::drpc::put_varint(&mut stream, 1);
            relay_wire::drpc::put_varint(&mut stream, message);
            relay_wire::drpc::put_varint(&mut stream, body.len() as u64);
            stream.extend_from_slice(&body);
        }
        stream
    })
}

fn stun_packet() -> impl Strategy<Value = Vec<u8>> {
    (any::<bool>(), bytes()).prop_map(|(response, mut body)| {
        body.truncate(body.len() & !3);
        let mut packet = vec![u8::from(response), 1];
        packet.extend_from_slice(&(body.len() as u16).to_be_bytes());
        packet.extend_from_slice(&[0x21, 0x12, 0xa4, 0x42]);
        packet.extend_from_slice(&[7; 12]);
        packet.extend_from_slice(&body);
        packet
    })
}

fn tsmp_packet() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 40..60).prop_map(|mut packet| {
        let length = (packet.len() - 40) as u16;
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&length.to_be_bytes());
        packet[6] = 99;
        if let Some(kind) = packet.get_mut(40) {
            *kind = if *kind & 1 == 0 { b'p' } else { b'o' };
        }
        packet
    })
}

/// Lines of a file of wg-quick, most of them right.
fn wg_line() -> impl Strategy<Value = String> {
    let key = any::<[u8; 32]>().prop_map(|bytes| {
        let nearly = "=".repeat(usize::from(bytes[0] % 8 != 0));
        base64_of(&bytes).trim_end_matches('=').to_owned() + &nearly
    });
    let name = prop::sample::select(vec![
        "PrivateKey",
        "publickey",
        "PresharedKey",
        "Address",
        "AllowedIPs",
        "Endpoint",
        "MTU",
        "PersistentKeepalive",
        "ListenPort",
        "DNS",
    ]);
    let value = prop_oneof![
        key,
        "[0-9]{0,6}",
        "[0-9.:/\\[\\]]{0,20}",
        Just("10.0.0.1/24, fd00::1/64".to_owned()),
        Just("[2001:db8::1]:51820".to_owned()),
        Just("off".to_owned()),
    ];
    prop_oneof![
        Just("[Interface]".to_owned()),
        Just("[Peer]".to_owned()),
        (name, value).prop_map(|(name, value)| format!("{name} = {value}")),
        "\\PC{0,20}",
    ]
}

fn base64_of(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

proptest! {
    #[test]
    fn a_forward_is_read_from_its_own_name(
        kind in "tcp|udp|unix|reverse|[a-z]{0,4}",
        rest in "[0-9a-c:/., \\[\\]-]{0,24}",
    ) {
        use relay_wire::forwards::AnyForward;
        let text = format!("{kind}://{rest}");
        for forward in AnyForward::parse(&text).into_iter().flatten().take(20) {
            let name = forward.to_string();
            prop_assert_eq!(AnyForward::parse(&name), Ok(vec![forward]), "{}", text);
        }
    }
}

proptest! {
    #[test]
    fn disco_bears_any_bytes(bytes in bytes(), kind in 0u8..5, version in 0u8..3) {
        bodies::disco(&bytes);
        bodies::disco(&[&[kind, version], &bytes[..]].concat());
        bodies::disco(&[&relay_wire::disco::MAGIC[..], &bytes].concat());
    }

    #[test]
    fn derp_frames_do_not_depend_on_cuts(
        cuts in cuts(),
        bytes in prop_oneof![derp_stream(), bytes()],
    ) {
        bodies::derp_frames(&cuts, &bytes);
    }

    #[test]
    fn stun_bears_any_bytes(bytes in prop_oneof![stun_packet(), bytes()]) {
        bodies::stun(&bytes);
    }

    #[test]
    fn what_ends_on_one_machine_say_bears_any_bytes(mut bytes in bytes(), kind in 0..4u8, at in prop_oneof![Just(0), Just(8usize)]) {
        // The byte that tells what kind of message it is.
        if let Some(byte) = bytes.get_mut(at) {
            *byte = kind;
        }
        bodies::same_host(&bytes);
    }

    #[test]
    fn a_stun_answer_names_the_address(tx in any::<[u8; 12]>(), address in any::<std::net::SocketAddr>()) {
        bodies::stun_answer(tx, address);
    }

    #[test]
    fn a_speed_tests_lines_bear_any_bytes(
        bytes in bytes(),
        version in 1i64..4,
        time in any::<i64>(),
        direction in -1i64..3,
        error in ".{0,20}",
    ) {
        bodies::speedtest(&bytes);
        let numbers = format!(r#"{{"version":{version},"time":{time},"direction":{direction}}}"#);
        bodies::speedtest(numbers.as_bytes());
        bodies::speedtest(&relay_wire::speedtest::answer_line(Some(&error)));
    }

    #[test]
    fn tsmp_bears_any_bytes(bytes in prop_oneof![tsmp_packet(), bytes()]) {
        bodies::tsmp(&bytes);
    }

    #[test]
    fn yamux_does_not_depend_on_cuts(
        cuts in cuts(),
        bytes in prop_oneof![yamux_stream(), bytes()],
    ) {
        bodies::yamux(&cuts, &bytes);
    }

    #[test]
    fn drpc_does_not_depend_on_cuts(cuts in cuts(), bytes in prop_oneof![drpc_stream(), bytes()]) {
        bodies::drpc(&cuts, &bytes);
        let _ = bodies::with_cuts(&bytes);
    }

    #[test]
    fn coordination_messages_bear_any_bytes(bytes in bytes()) {
        bodies::proto_tailnet(&bytes);
    }

    #[test]
    fn specifications_bear_any_text(text in "[0-9:,.\\[\\]\" -]{0,30}", wild in "\\PC{0,40}") {
        bodies::specs(&text);
        bodies::specs(&wild);
    }

    #[test]
    fn specifications_read_the_same_when_spelled_out(
        bind in prop::option::of(any::<std::net::Ipv4Addr>()), local in 1u16..65000, remote in 1u16..65000, more in 0u16..9,
    ) {
        let bind = bind.map(|ip| format!("{ip}:")).unwrap_or_default();
        bodies::specs(&format!("{bind}{local}-{}:{remote}-{}", local + more, remote + more));
    }

    #[test]
    fn files_of_wg_quick_bear_any_text(
        lines in vec(wg_line(), 0..12), forward in "[0-9:.\\[\\]]{0,24}", wild in "\\PC{0,40}",
    ) {
        bodies::wg(&lines.join("\n"));
        bodies::wg(&forward);
        bodies::wg(&wild);
    }

    #[test]
    fn names_bear_any_text(text in "[a-c./-]{0,16}", wild in "\\PC{0,40}") {
        bodies::names(&text);
        bodies::names(&wild);
    }

    #[test]
    fn relay_maps_bear_any_json(
        bytes in bytes(), id in any::<u16>(), stun in any::<i32>(), derp in any::<i32>(), host in "[a-z.:\\[\\]]{0,12}",
    ) {
        bodies::derp_map_json(&bytes);
        let text = format!(
            r#"{{"Regions": {{"{id}": {{"RegionID": {id}, "EmbeddedRelay": true, "Nodes": [{{
                "HostName": "{host}", "STUNPort": {stun}, "DERPPort": {derp}}}]}}}}}}"#
        );
        bodies::derp_map_json(text.as_bytes());
    }
}

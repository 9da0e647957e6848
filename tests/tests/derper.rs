//! relay's side of the relay and STUN protocols against Tailscale's own `derper -dev`.
//!
//! The server is built from the Go module proxy; a machine without Go, or without a way to the
//! proxy, says so and the test ends there.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use relay_lab::cluster::alone;
use relay_lab::needs::{Need, program};
use relay_lab::net::{Host, Lab};
use relay_lab::process::{Process, clean};
use relay_lab::{PATIENCE, needs, poll, say};
use relay_wire::derp::handshake::{self, ClientInfo};
use relay_wire::derp::{Decoder, Frame};
use relay_wire::keys::{NodePrivate, NodePublic};
use relay_wire::stun;

const MODULE: &str = "tailscale.com/cmd/derper@v1.102.3";
const DERP_PORT: u16 = 3340;

#[test]
fn two_peers_talk_through_it_and_learn_their_addresses() {
    needs!(Need::Namespaces);
    let Some(derper) = derper() else { return };
    let _alone = alone();
    let mut lab = Lab::new();
    let (server, left, right) = (lab.host("derper"), lab.host("left"), lab.host("right"));
    let home = tempfile::tempdir().expect("temporary folder");
    let mut command = clean(Command::new(derper), home.path());
    command
        .args(["-dev", "-c"])
        .arg(home.path().join("derper.json"));
    let _derper = Process::start("derper", Some(&server), command);
    let up = poll(PATIENCE, || {
        server
            .listens(Ipv4Addr::LOCALHOST.into(), DERP_PORT)
            .then_some(())
    });
    assert!(up.is_some(), "derper does not listen");

    let (mut left_end, mut right_end) = (Peer::join(&left, &server), Peer::join(&right, &server));
    for size in [1_usize, 1400, 65_000] {
        let packet = vec![size.to_le_bytes()[0]; size];
        left_end.send(&right_end.key.public(), &packet);
        right_end.expect(&left_end.key.public(), &packet);
        right_end.send(&left_end.key.public(), &packet);
        left_end.expect(&right_end.key.public(), &packet);
    }

    let socket = left.udp((Ipv4Addr::UNSPECIFIED, 0));
    socket
        .set_read_timeout(Some(Duration::from_secs(1)))
        .expect("time-out");
    let answer = poll(PATIENCE, || {
        let request = stun::request([7; 12]);
        socket
            .send_to(&request, (server.ipv4, stun::DEFAULT_PORT))
            .ok()?;
        let mut buffer = [0; 512];
        let count = socket.recv(&mut buffer).ok()?;
        stun::parse_response(&buffer[..count]).ok()
    });
    let (tx, seen) = answer.expect("no STUN answer");
    assert_eq!(tx, [7; 12]);
    assert_eq!(seen.ip(), left.ipv4);
}

struct Peer {
    key: NodePrivate,
    stream: TcpStream,
    decoder: Decoder,
}

impl Peer {
    fn join(host: &Host, server: &Host) -> Peer {
        let key = NodePrivate::generate(&mut rand::rng());
        let mut stream = host.connect((server.ipv4, DERP_PORT)).expect("connect");
        let name = format!("{}:{DERP_PORT}", server.ipv4);
        let request = handshake::upgrade_request(&name, handshake::PATH, &[]);
        stream.write_all(request.as_bytes()).expect("request");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream
                .read_exact(&mut byte)
                .expect("the head of the answer");
            head.push(byte[0]);
        }
        assert!(
            head.starts_with(b"HTTP/1.1 101"),
            "{}",
            String::from_utf8_lossy(&head)
        );
        let decoder = Decoder::new();
        let mut peer = Peer {
            key,
            stream,
            decoder,
        };
        let Frame::ServerKey(relay) = peer.next() else {
            panic!("the first frame is not the relay's key");
        };
        let info = ClientInfo::default();
        let introduction = handshake::client_info(&peer.key, &relay, &info, rand::random());
        peer.write(&introduction);
        let granted = peer.next();
        handshake::open_server_info(&granted, &peer.key, &relay).expect("server info");
        peer.write(&Frame::NotePreferred(true));
        peer
    }

    fn send(&mut self, to: &NodePublic, packet: &[u8]) {
        let packet = Bytes::copy_from_slice(packet);
        self.write(&Frame::SendPacket {
            destination: *to,
            packet,
        });
    }

    fn expect(&mut self, from: &NodePublic, expected: &[u8]) {
        loop {
            if let Frame::RecvPacket { source, packet } = self.next() {
                assert_eq!(&source, from);
                assert!(packet == expected, "{} bytes came", packet.len());
                return;
            }
        }
    }

    fn write(&mut self, frame: &Frame) {
        self.stream.write_all(&frame.to_bytes()).expect("write");
    }

    fn next(&mut self) -> Frame {
        loop {
            if let Some(frame) = self.decoder.next().expect("a frame") {
                return frame;
            }
            let mut buffer = [0; 4096];
            let count = self.stream.read(&mut buffer).expect("read");
            assert!(count > 0, "the relay closed the connection");
            self.decoder.push(&buffer[..count]);
        }
    }
}

/// Builds the server once a machine; `None`, with the reason told, where that cannot be done.
fn derper() -> Option<PathBuf> {
    let go = program("go")
        .inspect_err(|reason| say(format_args!("NOT RUN: {reason}")))
        .ok()?;
    let folder = std::env::temp_dir().join("relay-lab-derper");
    let binary = folder.join("derper");
    if binary.is_file() {
        return Some(binary);
    }
    let mut install = Command::new(go);
    install.args(["install", MODULE]).env("GOBIN", &folder);
    match install.output() {
        Ok(output) if output.status.success() => Some(binary),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            let line = text.lines().last().unwrap_or("no reason given");
            say(format_args!("NOT RUN: {MODULE} cannot be built: {line}"));
            None
        }
        Err(error) => {
            say(format_args!("NOT RUN: go does not start: {error}"));
            None
        }
    }
}

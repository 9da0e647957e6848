//! Sessions of a client that is written by hand: what OpenSSH's client has no option for.

use std::future::poll_fn;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::{Channel, serve};
use crate::ssh::channel::Link;
use crate::ssh::proto::codec::{Put, Reader};
use crate::ssh::proto::mux::Event;
use crate::ssh::proto::number;
use crate::ssh::{Options, Peer, Server, Workspace};

struct Client {
    link: Link,
    id: u32,
}

impl Client {
    fn new() -> Self {
        let link = Link::default();
        let mut open = vec![number::CHANNEL_OPEN];
        open.put_string("session").put_u32(0);
        open.put_u32(1 << 20).put_u32(1 << 15);
        let event = link.lock().receive(&open).unwrap();
        let Some(Event::Open { id, .. }) = event else {
            panic!("not asked");
        };
        let channel = Channel::new(link.clone(), id);
        channel.accept();
        let server = Server::new(Options::default(), Workspace::default()).unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let peer = Peer {
            remote: address,
            local: address,
        };
        tokio::spawn(serve(channel, Arc::new(server), Arc::new(peer)));
        Self { link, id }
    }

    fn request(&self, kind: &str, want_reply: bool, data: &[u8]) {
        let mut message = vec![number::CHANNEL_REQUEST];
        message.put_u32(self.id).put_string(kind);
        message.put_bool(want_reply).put(data);
        self.link.lock().receive(&message).unwrap();
    }

    fn exec(&self, command: &str) {
        let mut data = Vec::new();
        data.put_string(command);
        self.request("exec", true, &data);
    }

    fn signal(&self, name: &str) {
        let mut data = Vec::new();
        data.put_string(name);
        self.request("signal", false, &data);
    }

    /// The next message of this kind, without kind and number of the channel.
    async fn next(&self, kind: u8) -> Vec<u8> {
        let next = poll_fn(|cx| {
            let mut mux = self.link.lock();
            while let Some(message) = mux.next() {
                let mut out = Vec::new();
                mux.write(&message, &mut out);
                if out[0] == kind {
                    return Poll::Ready(out[5..].to_vec());
                }
            }
            assert!(mux.poll_ready(cx).is_pending());
            Poll::Pending
        });
        tokio::time::timeout(Duration::from_secs(60), next)
            .await
            .unwrap()
    }
}

#[tokio::test]
async fn a_clients_signal_reaches_the_program_and_its_end_is_told() {
    for (name, number) in [("TERM", 15), ("KILL", 9), ("USR1", 10), ("INT", 2)] {
        let client = Client::new();
        // A shell that waits for a program overhears an interrupt, if the program does.
        client.exec(match name {
            "TERM" => "trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done",
            _ => "echo ready; exec sleep 100",
        });
        client.next(number::CHANNEL_SUCCESS).await;
        client.next(number::CHANNEL_DATA).await;
        client.signal("NONE-SUCH");
        client.signal(name);
        let told = client.next(number::CHANNEL_REQUEST).await;
        let mut reader = Reader::new(&told);
        let kind = reader.text().unwrap();
        assert!(!reader.bool().unwrap());
        if name == "TERM" {
            assert_eq!((kind, reader.u32().unwrap()), ("exit-status", 3));
        } else {
            assert_eq!(
                (kind, reader.text().unwrap()),
                ("exit-signal", name),
                "{number}"
            );
        }
        client.next(number::CHANNEL_CLOSE).await;
    }
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused_and_the_session_goes_on() {
    let client = Client::new();
    for (kind, data) in [
        ("pty-req", &[0, 0][..]),
        ("env", &[0, 0, 0, 9]),
        ("window-change", &[]),
        ("x11-req", &[]),
        ("subsystem", b"\0\0\0\x04none"),
        ("exec", b"\0\0\0\x02a\0"),
    ] {
        client.request(kind, true, data);
        client.next(number::CHANNEL_FAILURE).await;
    }
    client.exec("exit 5");
    client.next(number::CHANNEL_SUCCESS).await;
    let told = client.next(number::CHANNEL_REQUEST).await;
    assert_eq!(told, b"\0\0\0\x0bexit-status\0\0\0\0\x05");
}

#[tokio::test]
async fn a_clients_variables_are_bounded() {
    let client = Client::new();
    let mut data = Vec::new();
    data.put_string("NAME").put_string(vec![b'x'; 50_000]);
    for answer in [
        number::CHANNEL_SUCCESS,
        number::CHANNEL_SUCCESS,
        number::CHANNEL_FAILURE,
    ] {
        client.request("env", true, &data);
        client.next(answer).await;
    }
}

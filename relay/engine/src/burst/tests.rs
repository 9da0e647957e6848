//! Bursts between sockets of loopback.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::*;

async fn bound() -> UdpSocket {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap()
}

async fn pair() -> (UdpSocket, UdpSocket) {
    let (sender, receiver) = (bound().await, bound().await);
    let to = receiver.local_addr().unwrap();
    sender.connect(to).await.unwrap();
    (sender, receiver)
}

fn of_sizes(sizes: &[usize]) -> Vec<Bytes> {
    let numbered = sizes.iter().enumerate();
    numbered
        .map(|(n, size)| vec![n as u8; *size].into())
        .collect()
}

/// Sends all of it, and returns how many datagrams each call took.
fn send_all(sender: &UdpSocket, mut payloads: &[Bytes]) -> Vec<usize> {
    let (mut outgoing, mut calls) = (Outgoing::default(), Vec::new());
    while !payloads.is_empty() {
        let count = outgoing.send(sender, None, payloads).unwrap();
        calls.push(count);
        payloads = &payloads[count..];
    }
    calls
}

/// Receives with an inbox until `count` datagrams came, and returns them with the receives it took.
async fn receive_all(receiver: &UdpSocket, count: usize) -> (Vec<Bytes>, usize) {
    let (mut inbox, mut all, mut receives) = (Inbox::default(), Vec::new(), 0);
    while all.len() < count {
        let ready = tokio::time::timeout(Duration::from_secs(5), receiver.readable());
        ready.await.expect("a datagram").unwrap();
        let received = inbox.receive(receiver, |_, datagram| {
            all.push(Bytes::copy_from_slice(datagram));
        });
        receives += usize::from(received.is_ok());
    }
    (all, receives)
}

#[tokio::test]
async fn a_burst_arrives_as_the_datagrams_it_is_made_of() {
    let (sender, receiver) = pair().await;
    let sizes = [[700; 20].as_slice(), &[33, 700, 0, 0, 9000, 9000, 1, 2]].concat();
    let payloads = of_sizes(&sizes);
    let calls = send_all(&sender, &payloads);
    assert_eq!(
        calls,
        [21, 1, 1, 1, 3, 1],
        "equal ones and a shorter last go together"
    );
    let mut buffer = vec![0; 65_536];
    for payload in &payloads {
        let got = tokio::time::timeout(Duration::from_secs(5), receiver.recv(&mut buffer));
        let got = got.await.expect("a datagram").unwrap();
        assert_eq!(buffer[..got], payload[..]);
    }
}

#[tokio::test]
async fn many_are_received_at_a_time_with_their_bounds() {
    for merged in [false, true] {
        let (sender, receiver) = pair().await;
        if merged {
            merge(&receiver);
        }
        let payloads = of_sizes(&[&[1200; 30][..], &[7, 0, 1, 1]].concat());
        send_all(&sender, &payloads);
        let (all, receives) = receive_all(&receiver, payloads.len()).await;
        assert_eq!(all, payloads);
        assert!(
            receives <= 3,
            "{receives} receives for {} datagrams",
            all.len()
        );
    }
}

#[tokio::test]
async fn a_burst_that_the_way_does_not_take_goes_in_single_datagrams() {
    let (sender, receiver) = pair().await;
    // With checksums off the kernel refuses to cut a burst.
    let off: nix::libc::c_int = 1;
    // SAFETY: pointer and length describe a live int.
    let done = unsafe {
        use std::os::fd::AsRawFd;
        nix::libc::setsockopt(
            sender.as_raw_fd(),
            nix::libc::SOL_SOCKET,
            nix::libc::SO_NO_CHECK,
            (&raw const off).cast(),
            size_of_val(&off) as _,
        )
    };
    assert_eq!(done, 0);
    let payloads = of_sizes(&[500; 10]);
    assert_eq!(send_all(&sender, &payloads), [1; 10]);
    assert_eq!(receive_all(&receiver, 10).await.0, payloads);
}

#[tokio::test]
async fn an_app_that_is_not_there_is_told() {
    let (sender, receiver) = pair().await;
    drop(receiver);
    let payloads = of_sizes(&[100; 4]);
    let mut outgoing = Outgoing::default();
    outgoing.send(&sender, None, &payloads).unwrap();
    let error = outgoing.send(&sender, None, &payloads).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

//! The socket against itself on loopback.

use std::time::Duration;

use super::*;

async fn receive_all(socket: &UdpSocket, count: usize) -> Vec<(SocketAddr, Vec<u8>)> {
    let mut buffers = ReceiveBuffers::default();
    let mut all = Vec::new();
    while all.len() < count {
        tokio::time::timeout(Duration::from_secs(5), socket.readable())
            .await
            .unwrap()
            .unwrap();
        let _ = socket.try_receive(&mut buffers, &mut |from, data, segment| {
            all.extend(
                data.chunks(segment)
                    .map(|datagram| (from, datagram.to_vec())),
            );
        });
    }
    all
}

fn burst(segment: usize, total: usize) -> Vec<u8> {
    (0..total).map(|n| (n / segment) as u8 ^ n as u8).collect()
}

async fn burst_arrives(offloads: UdpOffloads, to: [&str; 2]) {
    let mut sender = UdpSocket::bind(0, offloads).unwrap();
    let receiver = UdpSocket::bind(0, offloads).unwrap();
    for host in to {
        let to: SocketAddr = format!("{host}:{}", receiver.port()).parse().unwrap();
        let data = burst(1312, 1312 * 20 + 77);
        sender.try_send_burst(to, &data, 1312).unwrap();
        let got = receive_all(&receiver, 21).await;
        let joined: Vec<u8> = got.iter().flat_map(|(_, data)| data.clone()).collect();
        assert_eq!(joined, data);
        assert_eq!(got[20].1.len(), 77);
        assert_eq!(got[0].0.port(), sender.port());
        assert_eq!(
            got[0].0.is_ipv4(),
            to.is_ipv4(),
            "an IPv4 sender is not shown as mapped"
        );
    }
}

#[tokio::test]
async fn a_burst_arrives_in_order_with_offloads() {
    burst_arrives(UdpOffloads::default(), ["127.0.0.1", "[::1]"]).await;
}

#[tokio::test]
async fn a_burst_arrives_in_order_without_offloads() {
    let off = UdpOffloads {
        segmentation: false,
        coalescing: false,
    };
    burst_arrives(off, ["127.0.0.1", "[::1]"]).await;
}

#[tokio::test]
async fn a_full_burst_of_64_datagrams_is_one_send() {
    let mut sender = UdpSocket::bind(0, UdpOffloads::default()).unwrap();
    let receiver = UdpSocket::bind(0, UdpOffloads::default()).unwrap();
    let to: SocketAddr = format!("127.0.0.1:{}", receiver.port()).parse().unwrap();
    let data = burst(1000, 1000 * MAX_SEGMENTS);
    sender.try_send_burst(to, &data, 1000).unwrap();
    assert_eq!(
        receive_all(&receiver, MAX_SEGMENTS).await.len(),
        MAX_SEGMENTS
    );
}

#[tokio::test]
async fn nothing_there_would_block() {
    let socket = UdpSocket::bind(0, UdpOffloads::default()).unwrap();
    let mut buffers = ReceiveBuffers::default();
    let error = socket
        .try_receive(&mut buffers, &mut |_, _, _| ())
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    tokio::time::timeout(Duration::from_secs(1), socket.writable())
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let first = UdpSocket::bind(0, UdpOffloads::default()).unwrap();
    let error = UdpSocket::bind(first.port(), UdpOffloads::default()).unwrap_err();
    assert!(error.to_string().contains(&first.port().to_string()));
}

//! The STUN responder: tells a peer by which address it is seen.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use relay_wire::stun;
use tokio::net::UdpSocket;

use crate::metrics::Counts;

/// Answers requests for ever.
pub(crate) async fn serve(socket: UdpSocket, counts: Arc<Counts>) {
    // Requests are 40 bytes; whatever is longer than this is none.
    let mut buffer = [0; 1500];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, source)) => {
                if answer(&socket, &buffer[..length], source).await {
                    counts.stun.fetch_add(1, Ordering::Relaxed);
                }
            }
            // An earlier answer came back as unreachable: that is about its receiver.
            Err(error) => {
                tracing::trace!(%error, "STUN receive");
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Answers a request; whether it was one.
async fn answer(socket: &UdpSocket, packet: &[u8], source: SocketAddr) -> bool {
    let Ok(tx) = stun::parse_request(packet) else {
        return false;
    };
    if let Err(error) = socket.send_to(&stun::response(tx, source), source).await {
        tracing::debug!(%error, "a STUN answer was not sent");
    }
    true
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn requests_are_answered_and_nonsense_is_not() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let counts = Arc::new(Counts::default());
        let task = tokio::spawn(serve(server, Arc::clone(&counts)));
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for nonsense in [&b""[..], &[0; 20], &[0xff; 1400]] {
            client.send_to(nonsense, address).await.unwrap();
        }
        let tx = [7; 12];
        client.send_to(&stun::request(tx), address).await.unwrap();
        let mut buffer = [0; 1500];
        let wait = tokio::time::timeout(Duration::from_secs(5), client.recv(&mut buffer));
        let length = wait.await.unwrap().unwrap();
        let (answered, source) = stun::parse_response(&buffer[..length]).unwrap();
        assert_eq!((answered, source), (tx, client.local_addr().unwrap()));
        assert_eq!(counts.stun.load(Ordering::Relaxed), 1);
        task.abort();
    }
}

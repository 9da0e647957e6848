//! Running out of descriptors. A process of its own, because the limit is the whole process's.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::time::Duration;

use relay_engine::accept::Acceptor;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpStream;
use tokio::time::timeout;

#[tokio::test]
async fn accepting_pauses_at_the_limit_and_goes_on_below_it() {
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(64),
            maximum: hard,
        },
    )
    .unwrap();
    let local: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let mut acceptor = Acceptor::new(relay_engine::listen(local).unwrap());
    let address = acceptor.local_addr().unwrap();
    let mut pairs = Vec::new();
    let mut waiting = None;
    for _ in 0..60 {
        let Ok(client) = TcpStream::connect(address).await else {
            break;
        };
        match timeout(Duration::from_millis(100), acceptor.next()).await {
            Ok(accepted) => pairs.push((client, accepted.unwrap().0)),
            Err(_) => {
                waiting = Some(client);
                break;
            }
        }
    }
    assert!(
        waiting.is_some(),
        "the limit was not felt: {} pairs",
        pairs.len()
    );
    assert!(
        std::fs::File::open("/dev/null").is_ok(),
        "the reserve is gone"
    );
    pairs.truncate(2);
    let accepted = timeout(Duration::from_secs(2), acceptor.next()).await;
    assert!(accepted.expect("accepting goes on").is_ok());
    assert_eq!(
        relay_engine::limits::raise_descriptor_limit(),
        hard.unwrap_or(u64::MAX)
    );
}

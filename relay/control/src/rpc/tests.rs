use std::time::Duration;

use relay_wire::proto::tailnet::{CoordinateRequest, CoordinateResponse};
use tokio::io::DuplexStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as WsMessage;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::*;

async fn socket(io: DuplexStream, role: Role) -> WebSocketStream<DuplexStream> {
    WebSocketStream::from_raw_socket(io, role, Some(websocket_config())).await
}

async fn pair() -> (Mux, Mux) {
    let (near, far) = tokio::io::duplex(64 << 10);
    let client = Mux::client(socket(near, Role::Client).await);
    let server = Mux::server(socket(far, Role::Server).await, &Options::default());
    (client, server)
}

fn message(length: usize) -> CoordinateResponse {
    CoordinateResponse {
        error: "x".repeat(length),
        ..Default::default()
    }
}

async fn serve(mut server: Mux) {
    while let Some(stream) = server.accept().await {
        tokio::spawn(async move {
            let mut call = Incoming::read(stream).await.unwrap();
            match call.path.as_str() {
                "/echo" => {
                    let question: CoordinateResponse = call.request().await.unwrap();
                    call.reply(&question).await.unwrap();
                }
                "/both" => {
                    while let Some(m) = call.receiver.message().await.unwrap() {
                        let _: &CoordinateRequest = &m;
                        call.sender.send(&message(3)).await.unwrap();
                    }
                    call.sender.finish().await.unwrap();
                }
                _ => call.refuse(UNIMPLEMENTED, "Unimplemented").await.unwrap(),
            }
        });
    }
}

#[tokio::test]
async fn questions_of_any_size_are_answered() {
    let (client, server) = pair().await;
    tokio::spawn(serve(server));
    for length in [0, 1, 70_000, 3 << 20] {
        let answer: CoordinateResponse = client.unary("/echo", &message(length)).await.unwrap();
        assert_eq!(answer.error.len(), length);
    }
}

#[tokio::test]
async fn an_unknown_call_is_refused_with_code_12() {
    let (client, server) = pair().await;
    tokio::spawn(serve(server));
    let answer = client
        .unary::<CoordinateResponse>("/nothing", &message(1))
        .await;
    assert!(
        matches!(
            answer,
            Err(RpcError::Refused {
                code: UNIMPLEMENTED,
                ..
            })
        ),
        "{answer:?}"
    );
}

#[tokio::test]
async fn messages_go_both_ways_until_either_side_is_done() {
    let (client, server) = pair().await;
    tokio::spawn(serve(server));
    let (mut sender, mut receiver) = client.bidirectional("/both").await.unwrap();
    for _ in 0..3 {
        sender.send(&CoordinateRequest::default()).await.unwrap();
        let answer: CoordinateResponse = receiver.message().await.unwrap().unwrap();
        assert_eq!(answer.error, "xxx");
    }
    sender.finish().await.unwrap();
    assert_eq!(receiver.message::<CoordinateResponse>().await, Ok(None));
}

#[tokio::test]
async fn many_calls_at_once_do_not_mix() {
    let (client, server) = pair().await;
    tokio::spawn(serve(server));
    let calls = (0..200).map(|length| {
        let client = &client;
        async move {
            let answer: CoordinateResponse =
                client.unary("/echo", &message(length * 100)).await.unwrap();
            assert_eq!(answer.error.len(), length * 100);
        }
    });
    futures_util::future::join_all(calls).await;
}

#[tokio::test]
async fn the_end_of_a_session_ends_its_calls() {
    let (client, server) = pair().await;
    let (mut sender, mut receiver) = client.bidirectional("/both").await.unwrap();
    sender.send(&CoordinateRequest::default()).await.unwrap();
    server.shutdown();
    let end = receiver.message::<CoordinateResponse>().await;
    assert!(matches!(end, Err(RpcError::Session(_))), "{end:?}");
    client.closed().await;
    server.closed().await;
    assert!(client.open().await.is_err());
}

#[tokio::test]
async fn a_dropped_call_is_seen_by_the_other_side() {
    let (client, mut server) = pair().await;
    let (mut sender, receiver) = client.bidirectional("/both").await.unwrap();
    sender.send(&CoordinateRequest::default()).await.unwrap();
    let mut call = Incoming::read(server.accept().await.unwrap())
        .await
        .unwrap();
    let first: Option<CoordinateRequest> = call.receiver.message().await.unwrap();
    assert!(first.is_some());
    drop((sender, receiver));
    assert!(!matches!(
        call.receiver.message::<CoordinateRequest>().await,
        Ok(Some(_))
    ));
}

#[tokio::test]
async fn a_text_message_closes_with_1003() {
    use futures_util::{SinkExt, StreamExt};
    let (near, far) = tokio::io::duplex(4096);
    let _server = Mux::server(socket(far, Role::Server).await, &Options::default());
    let mut client = socket(near, Role::Client).await;
    client.send(WsMessage::text("hello")).await.unwrap();
    let code = loop {
        if let WsMessage::Close(frame) = client.next().await.unwrap().unwrap() {
            break frame.map(|frame| u16::from(frame.code));
        }
    };
    assert_eq!(code, Some(1003));
}

#[tokio::test]
async fn a_silent_peer_ends_the_session() {
    let (near, far) = tokio::io::duplex(4096);
    let options = Options {
        keepalive: Duration::from_millis(50),
        reply_within: Duration::from_millis(50),
    };
    let server = Mux::server(socket(far, Role::Server).await, &options);
    let reason = server.closed().await;
    assert!(reason.contains("keepalive"), "{reason}");
    drop(near);
}

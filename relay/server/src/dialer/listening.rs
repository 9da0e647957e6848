//! What listens in a workspace: asked of its agent, through the tunnel.

use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::timeout;
use uuid::Uuid;

use super::{Dial, DialError};
use crate::apps::ports::{ListeningPort, shown};
use crate::state::State;
use crate::store::Agent;

/// The agent's own API in the tunnel.
const AGENT_API: u16 = 4;
/// How long the agent may take to answer.
const ANSWER: Duration = Duration::from_secs(15);
/// The longest answer that is read.
const LONGEST: usize = 2 << 20;

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    /// The agent cannot be reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The agent answers, but not as it should.
    #[error("the agent does not tell its ports: {0}; is it older than the server?")]
    Answer(String),
}

#[derive(Deserialize)]
struct Answer {
    ports: Option<Vec<ListeningPort>>,
}

/// The ports of an agent that the dashboard shows.
pub(crate) async fn listening_ports(
    state: &State,
    agent: &Agent,
) -> Result<Vec<ListeningPort>, ListenError> {
    let urls: Vec<String> = agent.apps.iter().map(|(app, _)| app.url.clone()).collect();
    Ok(shown(ask(&*state.dialer, agent.id).await?, &urls))
}

async fn ask(dialer: &dyn Dial, agent: Uuid) -> Result<Vec<ListeningPort>, ListenError> {
    let stream = dialer
        .dial(agent, AGENT_API)
        .await
        .map_err(|error| match error {
            DialError::Refused => ListenError::Answer("it has no API".to_owned()),
            error => error.into(),
        })?;
    let answer = timeout(ANSWER, get(stream)).await;
    let body = answer.map_err(|_| DialError::TimedOut)?;
    let body = body.map_err(|error| ListenError::Answer(error.to_string()))?;
    let answer: Answer =
        serde_json::from_slice(&body).map_err(|error| ListenError::Answer(error.to_string()))?;
    Ok(answer.ports.unwrap_or_default())
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

async fn get(stream: TcpStream) -> Result<Bytes, AnyError> {
    let request = Request::get("/api/v0/listening-ports")
        .header(HOST, "agent")
        .body(Empty::<Bytes>::new())?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        if status != StatusCode::OK {
            return Err(AnyError::from(format!("it answers {status}")));
        }
        Ok(Limited::new(answer.into_body(), LONGEST)
            .collect()
            .await?
            .to_bytes())
    };
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        body = exchange.as_mut() => body,
        // What it brought last is still to be read.
        _ = connection => exchange.await,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::BoxFuture;
    use relay_tunnel::path::PathState;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// An agent that answers this, whatever it is asked.
    struct Agent(&'static str);

    impl Dial for Agent {
        fn dial(&self, _agent: Uuid, port: u16) -> BoxFuture<'_, Result<TcpStream, DialError>> {
            assert_eq!(port, 4);
            Box::pin(async {
                let listener = TcpListener::bind("127.0.0.1:0").await?;
                let stream = TcpStream::connect(listener.local_addr()?).await?;
                let answer = self.0;
                tokio::spawn(async move {
                    let (mut peer, _) = listener.accept().await.unwrap();
                    let mut head = [0; 1024];
                    let length = peer.read(&mut head).await.unwrap();
                    assert!(head[..length].starts_with(b"GET /api/v0/listening-ports "));
                    peer.write_all(answer.as_bytes()).await.unwrap();
                });
                Ok(stream)
            })
        }

        fn path(&self, _agent: Uuid) -> Option<PathState> {
            None
        }
    }

    async fn asked(answer: &'static str) -> Result<Vec<ListeningPort>, ListenError> {
        ask(&Agent(answer), Uuid::nil()).await
    }

    #[tokio::test]
    async fn the_agents_list_is_read() {
        let list = asked(concat!(
            "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n",
            r#"{"ports":[{"process_name":"web","network":"tcp","port":8000}]}"#
        ));
        assert_eq!(list.await.unwrap()[0].port, 8000);
        let none = asked("HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\n{\"ports\":null}");
        assert_eq!(none.await.unwrap(), []);
    }

    #[tokio::test]
    async fn an_answer_that_is_no_list_is_an_error() {
        for answer in [
            "",
            "SSH-2.0-x\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n[",
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{",
            "HTTP/1.1 200 OK\r\ncontent-length: 9999999\r\n\r\n{",
        ] {
            let error = asked(answer).await.unwrap_err();
            assert!(matches!(error, ListenError::Answer(_)), "{answer}: {error}");
        }
    }
}

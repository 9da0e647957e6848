//! The page over HTTP: `GET /metrics`, and nothing else.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::Error;
use crate::page::Page;
use crate::process::put_process;

/// How long the head of a request may take, and a connection may wait for one.
const HEAD: Duration = Duration::from_secs(30);
/// The longest head of a request.
const LONGEST_HEAD: usize = 16 << 10;
/// Connections at a time.
const CONNECTIONS: usize = 16;
/// Pause after a connection that could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// Puts figures on a page, each time it is asked for.
pub type Collect = Arc<dyn Fn(&mut Page) + Send + Sync>;

/// A socket on which figures will be served.
#[derive(Debug)]
pub struct Endpoint(TcpListener);

/// Opens the socket.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn open(address: SocketAddr) -> Result<Endpoint, Error> {
    let listener = TcpListener::bind(address).await;
    listener
        .map(Endpoint)
        .map_err(|source| Error::Listen { address, source })
}

impl Endpoint {
    /// Where it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.0.local_addr().ok()
    }

    /// Answers for ever.
    pub async fn serve(self, collect: Collect) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            // The semaphore is never closed.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            match self.0.accept().await {
                Ok((stream, _)) => {
                    let collect = Arc::clone(&collect);
                    tokio::spawn(async move {
                        answer_all(stream, collect).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "a connection for metrics was not accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

async fn answer_all(stream: TcpStream, collect: Collect) {
    let service = service_fn(move |request| {
        let answer = answer(&request, &collect);
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(LONGEST_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection for metrics ended");
    }
}

fn answer<B>(request: &Request<B>, collect: &Collect) -> Response<Full<Bytes>> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => {
            let mut page = Page::default();
            collect(&mut page);
            put_process(&mut page);
            (StatusCode::OK, page.text().to_owned())
        }
        (_, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, "GET is all.\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "See /metrics.\n".to_owned()),
    };
    let mut answer = Response::new(Full::new(text.into()));
    *answer.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::page::Metric;

    const ANSWER: Metric = Metric::gauge("answer", "To all.");

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn the_page_is_made_anew_for_each_request() {
        let endpoint = open("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = endpoint.address().unwrap();
        assert!(open(address).await.is_err());
        let asked = std::sync::atomic::AtomicU64::new(40);
        let count = move |page: &mut Page| {
            let before = asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            page.put(&ANSWER, (before + 1) as f64);
        };
        let serving = tokio::spawn(endpoint.serve(Arc::new(count)));
        assert!(get(address, "/metrics").await.contains("\nanswer 41\n"));
        let page = get(address, "/metrics").await;
        assert!(page.contains("\nanswer 42\n") && page.contains("version=0.0.4"));
        assert!(page.contains("\nprocess_open_fds "), "{page}");
        assert!(get(address, "/").await.starts_with("HTTP/1.1 404"));
        serving.abort();
    }
}

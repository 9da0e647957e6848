//! Asks the apps of this workspace how they are, each at its own pace.

use std::time::Instant;

use bytes::Bytes;
use http::header::{HOST, HeaderValue, LOCATION, USER_AGENT};
use http::{Method, Request};
use http_body_util::Empty;
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use relay_control::agent::{App, AppHealth, Healths};
use relay_tunnel::dial::{self, Target, TlsOptions};
use tokio::sync::watch;
use tokio::task::JoinSet;
use url::Url;

use crate::health::{Health, Probe, State};

/// So many times an app may send a probe elsewhere.
const REDIRECTS: usize = 10;

/// Checks whatever `apps` holds at the time, and tells what is found out; ends with `apps`.
pub(crate) async fn run(
    mut apps: watch::Receiver<Vec<App>>,
    tls: TlsOptions,
    told: watch::Sender<Healths>,
) {
    loop {
        let list = apps.borrow_and_update().clone();
        let mut checks = Checks::new(list, tls.clone());
        told.send_replace(Healths::new());
        tokio::select! {
            () = checks.run(&told) => {}
            changed = apps.changed() => if changed.is_err() { return },
        }
    }
}

struct Checks {
    checks: Vec<Check>,
    tls: TlsOptions,
    /// Which check, when it was due, and what it met.
    probes: JoinSet<(usize, Instant, Probe)>,
}

struct Check {
    app: App,
    health: Health,
    probing: bool,
}

impl Checks {
    fn new(apps: Vec<App>, tls: TlsOptions) -> Self {
        let now = Instant::now();
        let check = |app: App| Check {
            health: Health::new(&app.check_url, app.interval, app.threshold, now),
            probing: false,
            app,
        };
        Self {
            checks: apps.into_iter().map(check).collect(),
            tls,
            probes: JoinSet::new(),
        }
    }

    async fn run(&mut self, told: &watch::Sender<Healths>) {
        loop {
            let idle = self.checks.iter().filter(|check| !check.probing);
            let due = idle.filter_map(|check| check.health.poll_timeout());
            let due = due.map(|(due, _)| due).min();
            tokio::select! {
                () = at(due) => self.start(Instant::now()),
                Some(Ok((index, due, probe))) = self.probes.join_next() => {
                    self.note(index, due, probe, told);
                }
            }
        }
    }

    /// Starts the probes that are due.
    fn start(&mut self, now: Instant) {
        for (index, check) in self.checks.iter_mut().enumerate() {
            let Some((due, _)) = check.health.poll_timeout() else {
                continue;
            };
            if check.probing || due > now {
                continue;
            }
            check.probing = true;
            let (url, tls) = (check.app.check_url.clone(), self.tls.clone());
            let patience = check.health.patience();
            self.probes.spawn(async move {
                let met = tokio::time::timeout(patience, ask(&url, &tls)).await;
                let probe = met.unwrap_or(Err("no answer in time".to_owned()));
                let probe = probe.map_or_else(
                    |error| {
                        tracing::debug!(url, error, "an app's health check failed");
                        Probe::Failed
                    },
                    Probe::Status,
                );
                (index, now, probe)
            });
        }
    }

    fn note(&mut self, index: usize, due: Instant, probe: Probe, told: &watch::Sender<Healths>) {
        let Some(check) = self.checks.get_mut(index) else {
            return;
        };
        check.probing = false;
        check.health.handle_probe(probe, due);
        let found = self.checks.iter().filter_map(|check| {
            let health = match check.health.state() {
                State::Healthy => AppHealth::Healthy,
                State::Unhealthy => AppHealth::Unhealthy,
                // What is not known here may be known from an earlier run.
                State::Disabled | State::Initializing => return None,
            };
            Some((check.app.id, health))
        });
        let found: Healths = found.collect();
        told.send_if_modified(|now| {
            let changed = *now != found;
            *now = found;
            changed
        });
    }
}

/// The status of the answer to a GET, after redirections.
async fn ask(url: &str, tls: &TlsOptions) -> Result<u16, String> {
    let mut url: Url = url.parse().map_err(|error| format!("{error}"))?;
    for _ in 0..=REDIRECTS {
        let (status, location) = get(&url, tls).await?;
        match location {
            Some(location) if matches!(status, 301 | 302 | 303 | 307 | 308) => {
                url = url.join(&location).map_err(|error| error.to_string())?;
            }
            _ => return Ok(status),
        }
    }
    Err(format!("more than {REDIRECTS} redirections"))
}

async fn get(url: &Url, tls: &TlsOptions) -> Result<(u16, Option<String>), String> {
    let target = Target::from_url(url).map_err(|error| error.to_string())?;
    let host = HeaderValue::from_str(&target.host_header()).map_err(|error| error.to_string())?;
    let request = Request::builder()
        .method(Method::GET)
        .uri(&url[url::Position::BeforePath..url::Position::AfterQuery])
        .header(HOST, host)
        .header(USER_AGENT, concat!("relay/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let stream = dial::connect_to(&target, tls, dial::CONNECT_LIMIT);
    let stream = stream.await.map_err(|error| error.to_string())?;
    let (mut sender, connection) = handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let answer = async {
        let answer = sender.send_request(request).await?;
        let location = answer.headers().get(LOCATION);
        let location = location.and_then(|value| value.to_str().ok());
        Ok((answer.status().as_u16(), location.map(str::to_owned)))
    };
    let mut answer = std::pin::pin!(answer);
    // Both end here, the connection with its body unread.
    let answer: hyper::Result<_> = tokio::select! {
        answer = answer.as_mut() => answer,
        // It may have brought the answer, and ended over what came after it.
        ended = connection => match answer.await {
            Err(error) => Err(ended.err().unwrap_or(error)),
            answer => answer,
        },
    };
    answer.map_err(|error| error.to_string())
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use uuid::Uuid;

    use super::*;

    /// An app that answers every request with the next of these, the last one again and again.
    async fn app(answers: Vec<String>) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => break,
                    }
                }
                let count = asked.fetch_add(1, Ordering::Relaxed);
                let answer = &answers[count.min(answers.len() - 1)];
                // A body that never ends must not matter.
                let text = format!("HTTP/1.1 {answer}\r\ncontent-length: 9999999\r\n\r\nx");
                let _ = stream.write_all(text.as_bytes()).await;
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_secs(5)).await;
                    drop(stream);
                });
            }
        });
        address
    }

    async fn met(answers: &[&str]) -> Result<u16, String> {
        let address = app(answers.iter().map(|text| (*text).to_owned()).collect()).await;
        let url = format!("http://{address}/health?deep=1");
        ask(&url, &TlsOptions::default()).await
    }

    #[tokio::test]
    async fn redirections_are_followed_but_not_for_ever() {
        assert_eq!(met(&["204 No Content"]).await, Ok(204));
        let moved = "302 Found\r\nlocation: /elsewhere";
        assert_eq!(met(&[moved, "503 Busy"]).await, Ok(503));
        assert!(met(&[moved]).await.unwrap_err().contains("redirections"));
        assert_eq!(met(&["304 Not Modified"]).await, Ok(304));
    }

    #[tokio::test]
    async fn what_cannot_be_asked_is_a_failure() {
        for url in ["", "nonsense", "ftp://localhost/", "http://127.0.0.1:1/"] {
            assert!(ask(url, &TlsOptions::default()).await.is_err(), "{url}");
        }
    }

    #[tokio::test]
    async fn changes_of_health_are_told_and_nothing_else() {
        let broken = "500 Broken".to_owned();
        let answers = vec![
            "200 OK".to_owned(),
            broken.clone(),
            broken,
            "404 No".to_owned(),
        ];
        let address = app(answers).await;
        let checked = App {
            id: Uuid::from_u128(1),
            check_url: format!("http://{address}/"),
            interval: Duration::from_millis(250),
            threshold: 1,
        };
        let unchecked = App {
            id: Uuid::from_u128(2),
            check_url: String::new(),
            ..checked.clone()
        };
        let (_set, apps) = watch::channel(vec![checked.clone(), unchecked]);
        let (told, mut hear) = watch::channel(Healths::new());
        let start = Instant::now();
        tokio::spawn(run(apps, TlsOptions::default(), told));
        let mut heard = Vec::new();
        while heard.len() < 3 {
            hear.changed().await.unwrap();
            let now = hear.borrow_and_update().clone();
            if now.is_empty() {
                continue;
            }
            assert!(start.elapsed() >= checked.interval);
            assert_eq!(now.len(), 1);
            assert_eq!(now[0].0, checked.id);
            heard.push(now[0].1);
        }
        let expected = [AppHealth::Healthy, AppHealth::Unhealthy, AppHealth::Healthy];
        assert_eq!(heard, expected);
    }
}

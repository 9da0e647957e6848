//! A visitor who logs in and opens an app, from one redirect to the next.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::client::{APP_COOKIE, Site, name_of};
use super::head::{Head, bad, find_end};
use crate::load::PATIENCE;
use crate::routes::Account;

/// Most redirects from an app to the login and back.
const REDIRECTS: usize = 10;
/// From one try to the next while the agent is not there yet.
const AGAIN: Duration = Duration::from_millis(100);

#[derive(Deserialize)]
struct LoggedIn {
    session_token: String,
}

struct Page {
    status: u16,
    location: Option<String>,
    cookies: Vec<String>,
    body: Vec<u8>,
}

/// Logs in and opens the app at `host`; gives the site with the cookies that a browser then has.
///
/// # Errors
/// When no way leads to the app within `limit`.
pub(super) fn visit(account: &Account<'_>, host: &str, limit: Duration) -> io::Result<Site> {
    let bare = account.url.strip_prefix("http://").unwrap_or(account.url);
    let address: SocketAddr = bare.parse().map_err(|_| bad("the server has no address"))?;
    let body = serde_json::json!({"email": account.email, "password": account.password});
    let dashboard = Site {
        address,
        host: bare.to_owned(),
        cookies: Vec::new(),
    };
    let page = fetch(&dashboard, "/api/v2/users/login", Some(&body.to_string()))?;
    let LoggedIn { session_token } = serde_json::from_slice(&page.body)
        .map_err(|_| bad(format!("the login was answered {}", page.status)))?;
    let mut sites = [
        Site {
            cookies: vec![format!("coder_session_token={session_token}")],
            ..dashboard
        },
        Site {
            address,
            host: host.to_owned(),
            cookies: Vec::new(),
        },
    ];
    let end = Instant::now() + limit;
    loop {
        match open(&mut sites)? {
            200 => {
                let [_, app] = sites;
                let has = app
                    .cookies
                    .iter()
                    .any(|cookie| name_of(cookie) == APP_COOKIE);
                return has
                    .then_some(app)
                    .ok_or_else(|| bad("the app's answer brought no cookie"));
            }
            // The agent may still be connecting.
            404 | 502 if Instant::now() < end => thread::sleep(AGAIN),
            status => return Err(bad(format!("the app was answered {status}"))),
        }
    }
}

/// Follows redirects from the app's root to the end, and gives the last status.
fn open(sites: &mut [Site; 2]) -> io::Result<u16> {
    let (mut at, mut path) = (1, "/".to_owned());
    for _ in 0..REDIRECTS {
        let page = fetch(&sites[at], &path, None)?;
        for cookie in &page.cookies {
            sites[at].keep(cookie);
        }
        let Some(location) = page.location else {
            return Ok(page.status);
        };
        path = match location.strip_prefix("http://") {
            None => location,
            Some(rest) => {
                let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
                let known = sites.iter().position(|site| site.host == host);
                at = known.ok_or_else(|| bad(format!("a redirect leads to {host}")))?;
                format!("/{path}")
            }
        };
    }
    Err(bad("the redirects do not end"))
}

fn fetch(site: &Site, path: &str, body: Option<&str>) -> io::Result<Page> {
    let mut stream = TcpStream::connect_timeout(&site.address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = match body {
        None => site.head("GET", path, "Connection: close\r\n"),
        Some(body) => {
            let more = format!(
                "Connection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n",
                body.len()
            );
            site.head("POST", path, &more)
        }
    };
    request.extend(body.unwrap_or_default().as_bytes());
    stream.write_all(&request)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = find_end(&answer).ok_or_else(|| bad("an answer has no head"))?;
    let head = Head::parse(&answer[..end])?;
    Ok(Page {
        status: head.status,
        location: head.location.map(str::to_owned),
        cookies: head
            .cookies
            .iter()
            .map(|&cookie| cookie.to_owned())
            .collect(),
        body: answer[end..].to_vec(),
    })
}

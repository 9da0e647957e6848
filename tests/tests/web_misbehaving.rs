//! Requests, apps and agents that misbehave: each gets its answer or its end, the others are
//! served, and the server's memory stays flat.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use relay_lab::needs::Need;
use relay_lab::site::{Answer, Request, Site};
use relay_lab::web::WebApp;
use relay_lab::{PATIENCE, needs, poll, say};

/// KiB by which the server may grow, whatever is thrown at it: the buffers of its connections.
const GROWTH: u64 = 40 << 10;
/// More than would fit into those.
const MUCH: u64 = 160 << 20;

fn as_owner(site: &Site, app: &str, method: &str, target: &str) -> Request {
    let request = Request::new(method, &site.host(app, "alice"), target);
    request.header("Coder-Session-Token", &site.alice.session)
}

fn open(site: &Site, app: &str, target: &str) -> Answer {
    site.send(&as_owner(site, app, "GET", target))
}

/// Waits for an answer of this status.
fn until(site: &Site, app: &str, status: u16) -> Answer {
    let seen = poll(PATIENCE, || {
        let answer = open(site, app, "/");
        (answer.status == status).then_some(answer)
    });
    seen.unwrap_or_else(|| panic!("no {status}: {:?}", open(site, app, "/")))
}

/// The server's memory now, when it has been used.
fn memory(site: &Site) -> u64 {
    assert_eq!(open(site, "8001", "/").status, 200);
    site.server.memory()
}

fn assert_flat(site: &Site, before: u64) {
    let after = site.server.memory();
    say(format_args!("{before} KiB before, {after} KiB after"));
    assert!(after < before + GROWTH, "{before} KiB grew to {after} KiB");
}

/// A connection on which a request's head was sent.
fn begin(site: &Site, method: &str, target: &str, more: &str) -> TcpStream {
    let mut stream = site.connect();
    let head = as_owner(site, "8001", method, target).text();
    let head = head.trim_end_matches("\r\n");
    let head = format!("{head}\r\n{more}\r\n");
    stream.write_all(head.as_bytes()).expect("head");
    stream
}

#[test]
fn a_request_that_can_be_read_in_two_ways_reaches_no_app_as_two() {
    needs!(Need::Namespaces);
    let site = Site::start();
    let app = WebApp::start(&site.machine, 8001, "alice's first");
    let host = site.host("8001", "alice");
    let session = &site.alice.session;
    let inner = format!("GET /smuggled HTTP/1.1\r\nHost: {host}\r\nX: x\r\n\r\n");
    let chunked = |body: &str| format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let length = inner.len();
    let both = format!("0\r\n\r\n{inner}");
    let cases: Vec<(&str, String, String)> = vec![
        ("both lengths", format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n", both.len()), both.clone()),
        ("the other order", format!("Transfer-Encoding: chunked\r\nContent-Length: {}\r\n", both.len()), both.clone()),
        ("too short a length", "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n".into(), chunked(&inner)),
        ("two lengths", format!("Content-Length: 0\r\nContent-Length: {length}\r\n"), inner.clone()),
        ("a list of lengths", format!("Content-Length: 0, {length}\r\n"), inner.clone()),
        ("a signed length", format!("Content-Length: +{length}\r\n"), inner.clone()),
        ("a negative length", "Content-Length: -1\r\n".into(), inner.clone()),
        ("a length in hex", format!("Content-Length: 0x{length:x}\r\n"), inner.clone()),
        ("an empty length", "Content-Length: \r\n".into(), inner.clone()),
        ("a huge length", "Content-Length: 18446744073709551616\r\n".into(), inner.clone()),
        ("an unknown coding", "Transfer-Encoding: xchunked\r\n".into(), both.clone()),
        ("chunked and then not", "Transfer-Encoding: chunked, identity\r\n".into(), both.clone()),
        ("chunked twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n".into(), both.clone()),
        ("chunked and unknown", "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n".into(), both.clone()),
        ("a space before the colon", "Transfer-Encoding : chunked\r\n".into(), both.clone()),
        ("a tab before the value", "Transfer-Encoding:\tchunked\r\nContent-Length: 4\r\n".into(), both.clone()),
        ("a vertical tab", "Transfer-Encoding: \x0bchunked\r\n".into(), both.clone()),
        ("a folded line", "Transfer-Encoding:\r\n chunked\r\n".into(), both.clone()),
        ("a bare line feed", "X: y\nTransfer-Encoding: chunked\r\n".into(), both.clone()),
        ("a bare carriage return", "X: y\rTransfer-Encoding: chunked\r\n".into(), both.clone()),
        ("a null", "X: y\0\r\nTransfer-Encoding: chunked\r\n".into(), both.clone()),
        ("an underscore", "Transfer_Encoding: chunked\r\nContent-Length: 0\r\n".into(), both.clone()),
        ("a chunk in 0x", "Transfer-Encoding: chunked\r\n".into(), format!("0x{length:x}\r\n{inner}\r\n0\r\n\r\n")),
        ("a signed chunk", "Transfer-Encoding: chunked\r\n".into(), format!("+{length:x}\r\n{inner}\r\n0\r\n\r\n")),
        ("a huge chunk", "Transfer-Encoding: chunked\r\n".into(), format!("10000000000000000\r\n{both}")),
        ("a chunk of line feeds", "Transfer-Encoding: chunked\r\n".into(), format!("1\nx\n0\n\n{inner}")),
        ("an extension with a line feed", "Transfer-Encoding: chunked\r\n".into(), format!("1;\nx\r\nx\r\n0\r\n\r\n{inner}")),
        ("a chunk longer than it says", "Transfer-Encoding: chunked\r\n".into(), format!("1\r\nxyz\r\n{both}")),
        ("a trailer that is a length", "Transfer-Encoding: chunked\r\n".into(), format!("0\r\nContent-Length: {length}\r\n\r\n{inner}")),
        ("a dropped length", "Connection: content-length\r\nContent-Length: 0\r\n".into(), inner.clone()),
        ("a dropped coding", format!("Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\nContent-Length: {}\r\n", both.len()), both.clone()),
        ("an upgrade that is none", "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 777\r\n".into(), inner.clone()),
        ("an upgrade to h2c", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n".into(), inner.clone()),
        ("an expectation", format!("Expect: 100-continue\r\nContent-Length: {length}\r\n"), inner.clone()),
        ("no body at all", String::new(), inner.clone()),
    ];
    // What follows on the connection is not the owner's, and so has no way to the app.
    let last = "GET /last HTTP/1.1\r\nHost: 127.0.0.1:3000\r\nConnection: close\r\n\r\n";
    for (number, (name, headers, body)) in cases.iter().enumerate() {
        for method in ["POST", "GET"] {
            let text = format!(
                "{method} /{number} HTTP/1.1\r\nHost: {host}\r\nCoder-Session-Token: {session}\r\n\
                 {headers}\r\n{body}{last}"
            );
            let start = Instant::now();
            let mut stream = site.connect();
            let _ = stream.write_all(text.as_bytes());
            let _ = stream.shutdown(Shutdown::Write);
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            let took = start.elapsed();
            assert!(took < Duration::from_secs(10), "{name}: held for {took:?}");
        }
    }
    // The connections to the app that were used meanwhile are in step still.
    for number in 0..8 {
        let answer = open(&site, "8001", &format!("/after/{number}"));
        assert!(
            answer.body.contains(&format!("/after/{number}")),
            "{answer:?}"
        );
    }
    let seen = app.take_seen();
    let mut reached: Vec<&str> = Vec::new();
    for request in seen.iter().filter(|seen| !seen.line.contains("/after/")) {
        let case = cases.get(case_of(&request.line)).map(|(name, ..)| name);
        let name = *case.unwrap_or_else(|| panic!("{request:?}"));
        assert!(!reached.contains(&request.line.as_str()), "{name}: twice");
        reached.push(&request.line);
        let coded = !request.header("transfer-encoding").is_empty();
        let long = request.header("content-length");
        assert!(!coded || long.is_empty(), "{name}: {request:?}");
        assert!(
            long.parse::<u64>().is_ok() || long.is_empty(),
            "{name}: {request:?}"
        );
        let body = String::from_utf8_lossy(&request.body);
        assert!(!body.contains("/last"), "{name}: {request:?}");
    }
    let all = cases.len() * 2;
    say(format_args!(
        "{} of {all} reached the app, each as one",
        reached.len()
    ));
    assert!(reached.len() > 5, "the test sees nothing");
}

/// The number of the case that a request belongs to; none for what was hidden in one.
fn case_of(line: &str) -> usize {
    let target = line.split(' ').nth(1).unwrap_or_default();
    target.trim_start_matches('/').parse().unwrap_or(usize::MAX)
}

#[test]
fn huge_heads_are_refused_and_leave_no_trace() {
    needs!(Need::Namespaces);
    let site = Site::start();
    let app = WebApp::start(&site.machine, 8001, "alice's first");
    let before = memory(&site);
    app.take_seen();
    let (long, many) = ("x".repeat(1 << 20), "X: y\r\n".repeat(20_000));
    for host in [site.host("8001", "alice"), "127.0.0.1:3000".to_owned()] {
        for (line, more) in [
            (format!("GET /{long} HTTP/1.1"), String::new()),
            ("GET / HTTP/1.1".to_owned(), format!("X: {long}\r\n")),
            ("GET / HTTP/1.1".to_owned(), format!("{long}: x\r\n")),
            ("GET / HTTP/1.1".to_owned(), many.clone()),
        ] {
            let token = &site.alice.session;
            let head = format!("{line}\r\nHost: {host}\r\nCoder-Session-Token: {token}\r\n");
            let answer = site.raw(format!("{head}{more}\r\n").as_bytes());
            // It may be cut off before the answer is read.
            assert!(matches!(answer.status, 0 | 400 | 414 | 431), "{answer:?}");
        }
    }
    assert!(app.take_seen().is_empty());
    assert_flat(&site, before);
    // What an app may well want is let through.
    let cookie = format!("big={}", "x".repeat(30_000));
    let fine = as_owner(&site, "8001", "GET", "/").header("Cookie", &cookie);
    assert_eq!(site.send(&fine).status, 200);
}

/// Writes until nothing is taken any more, or all is written; says how much that was.
fn pour(stream: &mut TcpStream, most: u64) -> u64 {
    let stall = Duration::from_millis(1500);
    stream.set_write_timeout(Some(stall)).expect("time-out");
    let block = vec![b'x'; 64 << 10];
    let mut sent = 0;
    while sent < most {
        match stream.write(&block) {
            Ok(count) => sent += count as u64,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    sent
}

#[test]
fn bodies_without_an_end_are_held_nowhere() {
    needs!(Need::Namespaces);
    let site = Site::start();
    let app = WebApp::start(&site.machine, 8001, "alice's first");
    let before = memory(&site);

    // To an app that does not read: the sender waits.
    let more = format!("Content-Length: {}\r\n", u64::MAX >> 2);
    let mut stuck = begin(&site, "POST", "/silent", &more);
    let sent = pour(&mut stuck, MUCH);
    say(format_args!("{} MiB were taken by nobody", sent >> 20));
    assert!(sent < MUCH, "all of it went somewhere");
    assert_flat(&site, before);
    drop(stuck);

    // To an app that reads: all of it arrives.
    let more = format!("Content-Length: {MUCH}\r\n");
    let mut stream = begin(&site, "POST", "/length", &more);
    stream.set_write_timeout(Some(PATIENCE)).expect("time-out");
    let block = vec![b'x'; 64 << 10];
    let start = Instant::now();
    for _ in 0..MUCH >> 16 {
        stream.write_all(&block).expect("body");
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answer");
    assert!(answer.ends_with(&MUCH.to_string()), "{answer}");
    say(format_args!(
        "{} MiB in {:.1?}",
        MUCH >> 20,
        start.elapsed()
    ));
    assert_flat(&site, before);

    // From an app that does not stop: read for a while, then not at all.
    let mut endless = begin(&site, "GET", "/endless", "");
    let (mut got, mut buffer) = (0, vec![0; 256 << 10]);
    while got < MUCH {
        let count = endless.read(&mut buffer).expect("body");
        assert!(count > 0, "it ended after {got} bytes");
        got += count as u64;
    }
    assert_flat(&site, before);
    // Others are served while nobody reads that one.
    for _ in 0..20 {
        assert_eq!(open(&site, "8001", "/").status, 200);
    }
    assert_flat(&site, before);
    drop(endless);

    // To the dashboard and the API: no more than a form or a call needs.
    for (target, account) in [
        ("/login", None),
        ("/api/v2/users/login", None),
        ("/logout", Some(&site.alice)),
    ] {
        for more in [
            format!("Content-Length: {MUCH}\r\n"),
            "Transfer-Encoding: chunked\r\n".to_owned(),
        ] {
            let mut stream = site.connect();
            let cookie = account.map_or(String::new(), |account| {
                format!("Cookie: coder_session_token={}\r\n", account.session)
            });
            let head = format!(
                "POST {target} HTTP/1.1\r\nHost: 127.0.0.1:3000\r\n\
                 Content-Type: application/x-www-form-urlencoded\r\n{cookie}{more}\r\n"
            );
            stream.write_all(head.as_bytes()).expect("head");
            if more.starts_with('T') {
                let _ = stream.write_all(format!("{MUCH:x}\r\n").as_bytes());
            }
            let sent = pour(&mut stream, MUCH);
            assert!(sent < MUCH, "{target} took all of it");
        }
    }
    assert_flat(&site, before);
    let seen = app.seen();
    let kept: usize = seen.iter().map(|seen| seen.body.len()).sum();
    assert!(kept < 1 << 20, "the test itself holds {kept} bytes");
}

#[test]
fn a_slow_app_keeps_nobody_else_waiting() {
    needs!(Need::Namespaces);
    let site = Site::start();
    let app = WebApp::start(&site.machine, 8001, "alice's first");
    let before = memory(&site);
    let mut slow: Vec<TcpStream> = Vec::new();
    for number in 0..200 {
        let path = if number % 2 == 0 { "/silent" } else { "/drip" };
        slow.push(begin(&site, "GET", path, ""));
    }
    let all = poll(PATIENCE, || (app.seen().len() > 200).then_some(()));
    assert!(
        all.is_some(),
        "{} of them reached the app",
        app.seen().len()
    );
    let start = Instant::now();
    for _ in 0..10 {
        assert_eq!(open(&site, "8001", "/").status, 200);
    }
    let took = start.elapsed() / 10;
    say(format_args!("{took:.1?} each beside 200 slow ones"));
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_flat(&site, before);
    // The start of a slow answer is there at once.
    let mut head = [0; 15];
    slow[1].read_exact(&mut head).expect("the start");
    assert_eq!(&head, b"HTTP/1.1 200 OK");

    // The app dies in the middle: what was whole stays so, what was not breaks off.
    drop(app);
    for (number, stream) in slow.iter_mut().enumerate() {
        let mut rest = Vec::new();
        let ended = stream.read_to_end(&mut rest);
        let waited = ended.is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        assert!(!waited, "{number} hangs");
        let text = String::from_utf8_lossy(&rest);
        match number % 2 {
            0 => assert!(text.starts_with("HTTP/1.1 502 "), "{number}: {text}"),
            _ => {
                let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
                assert!(body.len() < 1000, "{number}: {text}");
            }
        }
    }
    let dead = open(&site, "8001", "/");
    assert_eq!(dead.status, 502);
    assert!(
        dead.body.contains("Nothing listens on port 8001"),
        "{dead:?}"
    );
    let _again = WebApp::start(&site.machine, 8001, "alice's first");
    assert_eq!(open(&site, "8001", "/").status, 200);
}

#[test]
fn a_lost_agent_gets_a_page_soon_and_the_next_one_is_used() {
    needs!(Need::Namespaces);
    let mut site = Site::start();
    let _app = WebApp::start(&site.machine, 8001, "alice's first");
    until(&site, "8001", 200);
    let mut open_answer = begin(&site, "GET", "/drip", "");
    let mut start = [0; 15];
    open_answer.read_exact(&mut start).expect("the start");
    site.alice.agent.signal(Signal::SIGKILL);
    let lost = Instant::now();
    let page = until(&site, "8001", 404);
    say(format_args!("told after {:.1?}", lost.elapsed()));
    assert!(page.body.contains("Application unavailable"), "{page:?}");
    assert!(page.body.contains("disconnected"), "{page:?}");
    // Known to be gone, it costs nobody a wait.
    let asked = Instant::now();
    assert_eq!(open(&site, "8001", "/").status, 404);
    assert!(
        asked.elapsed() < Duration::from_secs(3),
        "{:?}",
        asked.elapsed()
    );
    // Nobody else hears of that workspace.
    let host = site.host("8001", "alice");
    let other = Request::get(&host, "/").header("Coder-Session-Token", &site.bob.session);
    assert!(site.send(&other).body.contains("Application not found"));
    let mut rest = Vec::new();
    let ended = open_answer.read_to_end(&mut rest);
    assert!(
        !ended.is_err_and(|error| error.kind() == ErrorKind::WouldBlock),
        "the open answer hangs"
    );
    site.restart_agent();
    until(&site, "8001", 200);
}

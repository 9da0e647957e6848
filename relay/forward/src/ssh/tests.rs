//! Sessions and joined streams, against a server that plays what a workspace would do.

mod workspace;

use std::fs::File;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use relay_wire::remote_forward::RemoteForward;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::session::Ends;
use super::{Exit, Output, Plan, Signal, Size, Terminal, session, stdio};
use crate::Error;
use crate::event::Reporter;
use workspace::{Workspace, connected};

const PATIENCE: Duration = Duration::from_secs(20);

/// A session under way.
struct Running {
    input: Option<mpsc::Sender<Bytes>>,
    output: Option<mpsc::Receiver<Output>>,
    sizes: watch::Sender<Size>,
    signals: mpsc::Sender<Signal>,
    told: Arc<Mutex<Vec<String>>>,
    ended: JoinHandle<Result<Exit, Error>>,
}

impl Running {
    async fn start(workspace: &Workspace, plan: Plan) -> Self {
        let stream = connected(workspace).await;
        let (input, read) = mpsc::channel(4);
        let (printed, output) = mpsc::channel(4);
        let (sizes, size) = watch::channel(Size::default());
        let (signals, mut signalled) = mpsc::channel(4);
        let told = Arc::new(Mutex::new(Vec::new()));
        let copy = Arc::clone(&told);
        let report = Reporter::new(move |event| copy.lock().unwrap().push(event.to_string()));
        let ended = tokio::spawn(async move {
            let ends = Ends {
                input: read,
                output: printed,
                sizes: size,
                signals: &mut signalled,
            };
            session::run(stream, plan, ends, report).await
        });
        Self {
            input: Some(input),
            output: Some(output),
            sizes,
            signals,
            told,
            ended,
        }
    }

    /// All that it prints, by descriptor, and how it ended.
    async fn finish(mut self) -> (String, String, Result<Exit, Error>) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        if let Some(mut output) = self.output.take() {
            let collect = async {
                while let Some(chunk) = output.recv().await {
                    match chunk {
                        Output::Data(bytes) => out.extend_from_slice(&bytes),
                        Output::Error(bytes) => err.extend_from_slice(&bytes),
                    }
                }
            };
            tokio::time::timeout(PATIENCE, collect).await.unwrap();
        }
        let ended = tokio::time::timeout(PATIENCE, self.ended).await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (text(out), text(err), ended.unwrap())
    }

    fn told(&self) -> Arc<Mutex<Vec<String>>> {
        Arc::clone(&self.told)
    }
}

fn command(text: &str) -> Plan {
    Plan {
        command: Some(text.to_owned()),
        ..Plan::default()
    }
}

/// Waits until something was noted.
async fn noted(workspace: &Workspace, text: &str) {
    let wait = async {
        while !workspace.noted().iter().any(|noted| noted == text) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    assert!(waited.is_ok(), "no {text:?} in {:?}", workspace.noted());
}

#[tokio::test]
async fn a_command_prints_on_both_descriptors_and_its_status_comes_back() {
    let running = Running::start(&Workspace::default(), command("exit 7")).await;
    let (out, err, ended) = running.finish().await;
    assert_eq!((out.as_str(), err.as_str()), ("out", "err"));
    assert_eq!(ended.unwrap(), Exit::Status(7));
}

#[tokio::test]
async fn a_signal_that_ends_a_command_is_told_by_name() {
    let running = Running::start(&Workspace::default(), command("die")).await;
    assert_eq!(
        running.finish().await.2.unwrap(),
        Exit::Signal("TERM".to_owned())
    );
}

#[tokio::test]
async fn an_end_without_a_status_is_a_lost_connection() {
    for how in ["vanish", "break"] {
        let running = Running::start(&Workspace::default(), command(how)).await;
        let ended = running.finish().await.2;
        assert!(matches!(ended, Err(Error::SshLost(_))), "{how}: {ended:?}");
    }
}

#[tokio::test]
async fn input_is_carried_to_its_end_past_the_window() {
    let mut running = Running::start(&Workspace::default(), command("cat")).await;
    let input = running.input.take().unwrap();
    let chunk = Bytes::from(vec![b'x'; 60_000]);
    let feed = tokio::spawn(async move {
        for _ in 0..80 {
            input.send(chunk.clone()).await.unwrap();
        }
    });
    let (out, _, ended) = running.finish().await;
    feed.await.unwrap();
    assert_eq!(out.len(), 80 * 60_000);
    assert_eq!(ended.unwrap(), Exit::Status(0));
}

#[tokio::test]
async fn a_terminal_is_described_and_follows_changes_of_size() {
    let workspace = Workspace::default();
    let size = Size {
        columns: 100,
        rows: 30,
        ..Size::default()
    };
    let terminal = Terminal {
        name: "xterm".to_owned(),
        size,
        modes: vec![(53, 1), (0, 9), (200, 1)],
    };
    let plan = Plan {
        terminal: Some(terminal),
        environment: vec![("A".to_owned(), "b".to_owned())],
        ..Plan::default()
    };
    let running = Running::start(&workspace, plan).await;
    noted(&workspace, "xterm 100x30 [(ECHO, 1)]").await;
    assert_eq!(workspace.noted()[0], "A=b");
    running.sizes.send_replace(Size {
        columns: 120,
        ..size
    });
    noted(&workspace, "120x30").await;
    assert_eq!(running.finish().await.2.unwrap(), Exit::Status(0));
}

#[tokio::test]
async fn what_a_session_can_do_without_is_told_and_the_rest_ends_it() {
    let plan = Plan {
        environment: vec![("REFUSED".to_owned(), "x".to_owned())],
        ..command("exit 0")
    };
    let running = Running::start(&Workspace::default(), plan).await;
    let told = running.told();
    assert_eq!(running.finish().await.2.unwrap(), Exit::Status(0));
    assert_eq!(
        told.lock().unwrap()[1],
        "The workspace refuses the variable REFUSED"
    );
    let running = Running::start(&Workspace::default(), command("refuse")).await;
    let ended = running.finish().await.2;
    assert!(matches!(ended, Err(Error::SshRefused(_))), "{ended:?}");
}

#[tokio::test]
async fn a_signal_is_passed_on_and_the_commands_own_status_counts() {
    let workspace = Workspace::default();
    let running = Running::start(&workspace, command("wait")).await;
    running.signals.send(Signal::Terminate).await.unwrap();
    let (signals, ended) = (running.signals.clone(), running.finish().await.2);
    // Either the session was not open yet, or the command has heard of it.
    match ended.unwrap() {
        Exit::Status(42) => assert_eq!(workspace.noted(), ["TERM"]),
        exit => assert_eq!(exit, Exit::Interrupted(Signal::Terminate)),
    }
    drop(signals);
}

#[tokio::test]
async fn signals_end_a_session_with_a_terminal_and_one_whose_terminal_is_gone() {
    let terminal = Some(Terminal::default());
    for (plan, signal) in [
        (
            Plan {
                terminal,
                ..Plan::default()
            },
            Signal::Terminate,
        ),
        (command("wait"), Signal::Hangup),
    ] {
        let running = Running::start(&Workspace::default(), plan).await;
        while running.told.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        running.signals.send(signal).await.unwrap();
        assert_eq!(running.finish().await.2.unwrap(), Exit::Interrupted(signal));
    }
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_the_session() {
    let mut running = Running::start(&Workspace::default(), command("cat")).await;
    running.output = None;
    let input = running.input.clone().unwrap();
    input.send(Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(running.finish().await.2.unwrap(), Exit::OutputClosed);
}

/// Answers one connection when its question has ended.
async fn answer(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin) {
    let mut question = String::new();
    stream.read_to_string(&mut question).await.unwrap();
    let answer = format!("{question} answered");
    stream.write_all(answer.as_bytes()).await.unwrap();
}

#[tokio::test]
async fn forwards_lead_back_with_the_end_of_each_direction() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("l.sock");
    let (tcp, unix) = (
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
        UnixListener::bind(&socket).unwrap(),
    );
    let port = tcp.local_addr().unwrap().port();
    tokio::spawn(async move { answer(tcp.accept().await.unwrap().0).await });
    tokio::spawn(async move { answer(unix.accept().await.unwrap().0).await });
    for forward in [
        format!("8222:localhost:{port}"),
        format!("/r.sock:{}", socket.display()),
    ] {
        let workspace = Workspace::default();
        let plan = Plan {
            forwards: vec![forward.parse::<RemoteForward>().unwrap()],
            ..command("wait")
        };
        let running = Running::start(&workspace, plan).await;
        noted(&workspace, "question answered").await;
        running.signals.send(Signal::Hangup).await.unwrap();
        running.finish().await.2.unwrap();
    }
}

#[tokio::test]
async fn a_forward_that_leads_nowhere_is_refused_and_told() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let workspace = Workspace::default();
    let forward = format!("8222:127.0.0.1:{port}");
    let plan = Plan {
        forwards: vec![forward.parse().unwrap()],
        ..command("wait")
    };
    let running = Running::start(&workspace, plan).await;
    noted(&workspace, "refused").await;
    let expected = format!("Failed to dial for remote forward {forward}: connection refused");
    assert!(running.told.lock().unwrap().contains(&expected));
}

#[tokio::test]
async fn a_forward_that_the_workspace_refuses_ends_the_session() {
    let plan = Plan {
        forwards: vec!["1:localhost:1".parse().unwrap()],
        ..command("exit 0")
    };
    let ended = Running::start(&Workspace::default(), plan)
        .await
        .finish()
        .await
        .2;
    let error = ended.unwrap_err().to_string();
    assert!(error.contains("1:localhost:1"), "{error}");
}

#[tokio::test]
async fn the_ssh_agent_is_reached_only_when_it_is_forwarded() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let agent = UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move { answer(agent.accept().await.unwrap().0).await });
    for (agent, expected) in [(Some(socket), "question answered"), (None, "refused")] {
        let plan = Plan {
            agent,
            ..command("agent")
        };
        let running = Running::start(&Workspace::default(), plan).await;
        let (out, _, ended) = running.finish().await;
        assert_eq!((out.as_str(), ended.unwrap()), (expected, Exit::Status(0)));
    }
}

/// Two connected sockets.
async fn streams() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connecting = TcpStream::connect(listener.local_addr().unwrap());
    let (here, there) = tokio::join!(connecting, listener.accept());
    (here.unwrap(), there.unwrap().0)
}

#[tokio::test]
async fn the_end_of_input_is_passed_on_and_the_answer_still_comes() {
    for thread in [false, true] {
        let (here, there) = streams().await;
        tokio::spawn(answer(there));
        let (mut typed, input) = tokio::net::unix::pipe::pipe().unwrap();
        typed.write_all(b"question").await.unwrap();
        drop(typed);
        let (reader, writer) = std::io::pipe().unwrap();
        let output = match thread {
            true => stdio::written_by_thread(File::from(std::os::fd::OwnedFd::from(writer))),
            false => tokio::net::unix::pipe::Sender::from_owned_fd(writer.into())
                .map(stdio::Output::Pipe),
        };
        let joined = stdio::run(here, Box::new(input), output.unwrap());
        let exit = tokio::time::timeout(PATIENCE, joined).await.unwrap();
        assert_eq!(exit.unwrap(), Exit::Status(0));
        let mut printed = String::new();
        File::from(std::os::fd::OwnedFd::from(reader))
            .read_to_string(&mut printed)
            .unwrap();
        assert_eq!(printed, "question answered");
    }
}

#[tokio::test]
async fn a_reader_that_is_gone_ends_the_join_and_resets_the_stream() {
    let (here, mut there) = streams().await;
    let (_typed, input) = tokio::net::unix::pipe::pipe().unwrap();
    let (writer, reader) = tokio::net::unix::pipe::pipe().unwrap();
    let joined = tokio::spawn(stdio::run(
        here,
        Box::new(input),
        stdio::Output::Pipe(writer),
    ));
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!joined.is_finished());
    drop(reader);
    let exit = tokio::time::timeout(PATIENCE, joined).await.unwrap();
    assert_eq!(exit.unwrap().unwrap(), Exit::OutputClosed);
    let error = there.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_reset_stream_is_an_error() {
    let (here, there) = streams().await;
    let (_typed, input) = tokio::net::unix::pipe::pipe().unwrap();
    let (writer, _reader) = tokio::net::unix::pipe::pipe().unwrap();
    relay_engine::abort(there);
    let joined = stdio::run(here, Box::new(input), stdio::Output::Pipe(writer));
    let ended = tokio::time::timeout(PATIENCE, joined).await.unwrap();
    assert!(matches!(ended, Err(Error::SshLost(_))), "{ended:?}");
}

#[tokio::test]
async fn bulk_goes_both_ways_at_once_unchanged() {
    const SIZE: usize = 8 << 20;
    let (here, there) = streams().await;
    // The other side sends back all that it gets.
    let echo = tokio::spawn(async move {
        let (mut from, mut to) = there.into_split();
        tokio::io::copy(&mut from, &mut to).await.unwrap();
    });
    let pattern: Vec<u8> = (0..SIZE).map(|n| (n / 7) as u8).collect();
    let (input, mut feed) = std::io::pipe().unwrap();
    let sent = pattern.clone();
    let feeding = std::thread::spawn(move || feed.write_all(&sent).unwrap());
    let (mut reader, writer) = std::io::pipe().unwrap();
    let reading = std::thread::spawn(move || {
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        got
    });
    let input = tokio::net::unix::pipe::Receiver::from_owned_fd(input.into()).unwrap();
    let output = tokio::net::unix::pipe::Sender::from_owned_fd(writer.into()).unwrap();
    let exit = stdio::run(here, Box::new(input), stdio::Output::Pipe(output)).await;
    assert_eq!(exit.unwrap(), Exit::Status(0));
    echo.await.unwrap();
    feeding.join().unwrap();
    assert!(reading.join().unwrap() == pattern);
}

//! Forwards in both directions.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Stdio;

use relay_agent::ssh::Options;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::process::Child;

use crate::support::{Fixture, finish, has, until};

/// An app that answers with what it was sent, backwards, once its input has ended.
async fn app() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream));
        }
    });
    port
}

fn unix_app(path: &str) {
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream));
        }
    });
}

async fn answer(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin) {
    let mut text = Vec::new();
    stream.read_to_end(&mut text).await.unwrap();
    text.reverse();
    stream.write_all(&text).await.unwrap();
    stream.shutdown().await.unwrap();
}

async fn ask(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin) -> String {
    stream.write_all(b"stressed").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn ask_port(port: u16) -> String {
    ask(TcpStream::connect((Ipv4Addr::LOCALHOST, port))
        .await
        .unwrap())
    .await
}

async fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    listener.local_addr().unwrap().port()
}

/// Starts `ssh` with forwards and no program, and waits until they are there.
async fn forwarding(fixture: &Fixture, options: &[&str]) -> Child {
    let socket = fixture.path("control");
    let path = format!("ControlPath={socket}");
    let mut words = vec!["-MN", "-o", &path, "-o", "ExitOnForwardFailure=yes"];
    words.extend(options);
    let mut ssh = fixture.ssh(&words, "");
    let ssh = ssh.stderr(Stdio::piped()).spawn().unwrap();
    until("no master", || Path::new(&socket).exists()).await;
    // The master answers behind all forwards that it was started with.
    let check = finish(fixture.ssh(&["-o", &path], "true")).await;
    assert!(check.status.success(), "{check:?}");
    ssh
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_forward_reaches_what_the_workspace_reaches() {
    if !has("ssh") {
        return;
    }
    let fixture = Fixture::new().await;
    let (app, port) = (app().await, free_port().await);
    let spec = format!("{port}:localhost:{app}");
    let _ssh = forwarding(&fixture, &["-L", &spec]).await;
    for _ in 0..3 {
        assert_eq!(ask_port(port).await, "desserts");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_where_nothing_listens_is_told_with_the_reason() {
    if !has("ssh") {
        return;
    }
    let fixture = Fixture::new().await;
    let target = format!("127.0.0.1:{}", free_port().await);
    let output = finish(fixture.ssh(&["-v", "-W", &target], "")).await;
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("Connection refused"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dynamic_forward_dials_by_name() {
    if !has("ssh") {
        return;
    }
    let fixture = Fixture::new().await;
    let (app, port) = (app().await, free_port().await);
    let _ssh = forwarding(&fixture, &["-D", &port.to_string()]).await;
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
        .await
        .unwrap();
    // SOCKS 5 (RFC 1928): no authentication, then CONNECT to a name.
    stream.write_all(&[5, 1, 0]).await.unwrap();
    let mut chosen = [0; 2];
    stream.read_exact(&mut chosen).await.unwrap();
    assert_eq!(chosen, [5, 0]);
    let mut connect = vec![5, 1, 0, 3, 9];
    connect.extend_from_slice(b"localhost");
    connect.extend_from_slice(&app.to_be_bytes());
    stream.write_all(&connect).await.unwrap();
    let mut answer = [0; 10];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer[..2], [5, 0]);
    assert_eq!(ask(stream).await, "desserts");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reverse_forward_listens_in_the_workspace_until_it_is_cancelled() {
    if !has("ssh") {
        return;
    }
    let fixture = Fixture::new().await;
    let (app, port) = (app().await, free_port().await);
    let spec = format!("{port}:127.0.0.1:{app}");
    let mut ssh = forwarding(&fixture, &["-R", &spec]).await;
    assert_eq!(ask_port(port).await, "desserts");
    let path = format!("ControlPath={}", fixture.path("control"));
    let cancel = ["-o", &*path, "-O", "cancel", "-R", &*spec];
    let output = finish(fixture.ssh(&cancel, "")).await;
    assert!(output.status.success(), "{output:?}");
    // OpenSSH asks for it, and waits for no answer.
    until_refused(port).await;
    let forward = ["-o", &*path, "-O", "forward", "-R", "0:127.0.0.1:1"];
    let output = finish(fixture.ssh(&forward, "")).await;
    // The port that the workspace chose.
    let chosen = String::from_utf8(output.stdout).unwrap();
    let chosen: u16 = chosen.trim().parse().unwrap();
    assert!(
        TcpStream::connect((Ipv4Addr::LOCALHOST, chosen))
            .await
            .is_ok()
    );
    ssh.kill().await.unwrap();
    until_refused(chosen).await;
}

/// Returns once nobody listens at the port.
async fn until_refused(port: u16) {
    let refused = async {
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .await
            .is_ok()
        {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let limit = std::time::Duration::from_secs(20);
    let told = tokio::time::timeout(limit, refused).await;
    assert!(told.is_ok(), "port {port} is still served");
}

#[tokio::test(flavor = "multi_thread")]
async fn unix_sockets_are_forwarded_both_ways_and_removed() {
    if !has("ssh") {
        return;
    }
    let fixture = Fixture::new().await;
    let [here, there, app] = ["here", "new/there", "app"].map(|name| fixture.path(name));
    unix_app(&app);
    let (local, remote) = (format!("{here}:{app}"), format!("{there}:{app}"));
    let mut ssh = forwarding(&fixture, &["-L", &local, "-R", &remote]).await;
    for path in [&here, &there] {
        let stream = UnixStream::connect(path).await.unwrap();
        assert_eq!(ask(stream).await, "desserts", "{path}");
    }
    ssh.kill().await.unwrap();
    until("a socket is left", || !Path::new(&there).exists()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_blocked_is_refused_with_the_reason() {
    if !has("ssh") {
        return;
    }
    let options = Options {
        block_local_forwarding: true,
        block_reverse_forwarding: true,
        block_file_transfer: true,
    };
    let fixture = Fixture::with(options).await;
    let port = app().await;
    let output = finish(fixture.ssh(&["-v", "-W", &format!("127.0.0.1:{port}")], "")).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(said.contains("--block-local-port-forwarding"), "{said}");

    let reverse = format!("{}:127.0.0.1:{port}", free_port().await);
    let words = ["-o", "ExitOnForwardFailure=yes", "-R", &reverse];
    let output = finish(fixture.ssh(&words, "true")).await;
    assert!(!output.status.success(), "{output:?}");

    for command in [
        "rsync --server . /",
        "/usr/bin/scp -t /",
        " sftp x",
        "nc a 1",
    ] {
        let output = finish(fixture.ssh(&[], command)).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(65), "{command} {output:?}");
        assert!(said.contains("--block-file-transfer"), "{said}");
    }
    let output = finish(fixture.ssh(&[], "echo nc")).await;
    assert_eq!(output.stdout, b"nc\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_in_the_workspace_use_the_clients_keys() {
    if !["ssh", "ssh-agent", "ssh-keygen", "ssh-add"]
        .iter()
        .all(|name| has(name))
    {
        return;
    }
    let fixture = Fixture::new().await;
    let [key, socket] = ["key", "agent"].map(|name| fixture.path(name));
    let mut keygen = tokio::process::Command::new("ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "the key", "-f", &key]);
    assert!(finish(keygen).await.status.success());
    let mut agent = tokio::process::Command::new("ssh-agent");
    agent
        .args(["-D", "-a", &socket])
        .stdout(Stdio::null())
        .kill_on_drop(true);
    let _agent = agent.spawn().unwrap();
    until("no agent", || Path::new(&socket).exists()).await;
    let mut add = tokio::process::Command::new("ssh-add");
    add.args(["-q", &key]).env("SSH_AUTH_SOCK", &socket);
    assert!(finish(add).await.status.success());

    let mut ssh = fixture.ssh(
        &["-A"],
        "ssh-add -l; stat -c %a $SSH_AUTH_SOCK; echo $SSH_AUTH_SOCK",
    );
    ssh.env("SSH_AUTH_SOCK", &socket);
    let output = finish(ssh).await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("the key") && text.contains("600"), "{text}");
    let socket = text.lines().last().unwrap().to_owned();
    until("a socket is left", || !Path::new(&socket).exists()).await;
}

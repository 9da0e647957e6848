//! Shells and programs.

use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use crate::support::{Fixture, LONG, Window, finish, has, is_alive, random_file, same, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_programs_status_and_output_arrive() {
    if !has("ssh") {
        return;
    }
    let fixture = Fixture::new().await;
    let output = finish(fixture.ssh(&[], "echo out; echo err >&2; exit 7")).await;
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert_eq!(output.stdout, b"out\n");
    assert_eq!(output.stderr, b"err\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_a_signal_ended_is_told_as_that() {
    if !has("ssh") {
        return;
    }
    let fixture = Fixture::new().await;
    let output = finish(fixture.ssh(&["-v"], "kill -TERM $$")).await;
    // What OpenSSH makes of it.
    assert_eq!(output.status.code(), Some(255), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("exit-signal"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn input_goes_both_ways_at_once_and_ends() {
    if !has("ssh") {
        return;
    }
    let fixture = Fixture::new().await;
    let (from, to) = (fixture.path("from"), fixture.path("to"));
    random_file(from.as_ref(), 64);
    let mut ssh = fixture.ssh(&["-o", "RekeyLimit=8M"], "cat");
    ssh.stdin(std::fs::File::open(&from).unwrap());
    ssh.stdout(std::fs::File::create(&to).unwrap());
    let status = tokio::time::timeout(LONG, ssh.status());
    assert!(status.await.unwrap().unwrap().success());
    assert!(same(from, to));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_cipher_and_key_exchange_works() {
    if !has("ssh") {
        return;
    }
    let fixture = Fixture::new().await;
    for cipher in [
        "chacha20-poly1305@openssh.com",
        "aes256-gcm@openssh.com",
        "aes128-gcm@openssh.com",
    ] {
        for kex in ["curve25519-sha256", "ecdh-sha2-nistp256"] {
            let kex = format!("KexAlgorithms={kex}");
            let options = ["-c", cipher, "-o", &kex];
            let output = finish(fixture.ssh(&options, "echo hello")).await;
            assert_eq!(output.stdout, b"hello\n", "{cipher} {kex} {output:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_find_what_coders_tools_look_for() {
    if !has("ssh") {
        return;
    }
    let fixture = Fixture::new().await;
    let mut ssh = fixture.ssh(&["-o", "SetEnv=FROM_CLIENT=also"], "env; pwd");
    ssh.env("TERM", "xterm-256color");
    let output = finish(ssh).await;
    let text = String::from_utf8(output.stdout).unwrap();
    for line in [
        "CODER=true",
        "CODER_WORKSPACE_NAME=blue",
        "CODER_WORKSPACE_AGENT_NAME=main",
        "CODER_WORKSPACE_OWNER_NAME=dev",
        "VSCODE_PROXY_URI=http://{{port}}.example",
        "FROM_MANIFEST=yes",
        "FROM_CLIENT=also",
        fixture.files.path().to_str().unwrap(),
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
    assert!(text.contains("SSH_CONNECTION=127.0.0.1 "), "{text}");
    assert!(!text.contains("SSH_TTY="), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_without_a_terminal_reads_commands() {
    if !has("ssh") {
        return;
    }
    let fixture = Fixture::new().await;
    let mut ssh = fixture.ssh(&["-T"], "");
    ssh.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut ssh = ssh.spawn().unwrap();
    let mut stdin = ssh.stdin.take().unwrap();
    stdin.write_all(b"echo hello $0\nexit 3\n").await.unwrap();
    let output = ssh.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(3));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("hello -"), "a login shell: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_has_its_size_and_type_and_interrupts_programs() {
    if !has("ssh") {
        return;
    }
    let fixture = Fixture::new().await;
    let mut ssh = fixture.ssh(&["-tt"], "tty; echo $TERM $SSH_TTY; stty -a; cat");
    ssh.env("TERM", "vt220");
    ssh.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut ssh = ssh.spawn().unwrap();
    let mut stdin = ssh.stdin.take().unwrap();
    let mut lines = BufReader::new(ssh.stdout.take().unwrap()).lines();
    let tty = lines.next_line().await.unwrap().unwrap();
    let tty = tty.trim();
    assert!(tty.starts_with("/dev/pts/"), "{tty}");
    let line = lines.next_line().await.unwrap().unwrap();
    assert_eq!(line.trim(), format!("vt220 {tty}"));
    loop {
        let line = lines.next_line().await.unwrap().unwrap();
        if line.contains("echoke") {
            break;
        }
    }
    stdin.write_all(b"typed\n").await.unwrap();
    let echoed = lines.next_line().await.unwrap().unwrap();
    assert_eq!(echoed.trim(), "typed");
    let repeated = lines.next_line().await.unwrap().unwrap();
    assert_eq!(repeated.trim(), "typed");
    stdin.write_all(b"\x03").await.unwrap();
    let status = ssh.wait().await.unwrap();
    // A shell that runs one last command is that command; else it tells 128 and the signal.
    assert!([Some(255), Some(130)].contains(&status.code()), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_of_a_programs_last_words_arrive_from_a_terminal() {
    if !has("ssh") {
        return;
    }
    let fixture = Fixture::new().await;
    for _ in 0..10 {
        let output = finish(fixture.ssh(&["-tt"], "seq 1 20000; sleep 100 &")).await;
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.lines().count(), 20000);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_is_hung_up_when_its_client_goes() {
    if !has("ssh") {
        return;
    }
    let fixture = Fixture::new().await;
    for options in [&["-T"][..], &["-tt"]] {
        let mut ssh = fixture.ssh(options, "sleep 1000 & echo $! $$; sleep 1000; true");
        ssh.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut ssh = ssh.spawn().unwrap();
        let mut lines = BufReader::new(ssh.stdout.take().unwrap()).lines();
        let line = lines.next_line().await.unwrap().unwrap();
        let ids: Vec<_> = line.split_whitespace().collect();
        assert!(ids.iter().all(|id| is_alive(id)), "{ids:?}");
        ssh.kill().await.unwrap();
        until("programs are left", || !ids.iter().any(|id| is_alive(id))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_is_hung_up_when_the_server_goes() {
    if !has("ssh") {
        return;
    }
    let fixture = Fixture::new().await;
    let mut ssh = fixture.ssh(&["-T"], "sleep 1000 & echo $! $$; sleep 1000; true");
    ssh.stdout(Stdio::piped());
    let mut ssh = ssh.spawn().unwrap();
    let mut lines = BufReader::new(ssh.stdout.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().unwrap();
    let ids: Vec<_> = line.split_whitespace().collect();
    fixture.cut();
    until("programs are left", || !ids.iter().any(|id| is_alive(id))).await;
    let status = ssh.wait().await.unwrap();
    assert_eq!(status.code(), Some(255));
    assert!(status.signal().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_does_not_read_holds_up_no_other_channel() {
    if !has("ssh") {
        return;
    }
    let fixture = Fixture::new().await;
    let socket = fixture.path("control");
    let path = format!("ControlPath={socket}");
    let mut master = fixture.ssh(&["-MN", "-o", &path], "");
    let mut master = master.spawn().unwrap();
    until("no master", || std::fs::exists(&socket).unwrap()).await;
    // More than all buffers together, to a program that reads nothing.
    let mut stuck = fixture.ssh(&["-o", &path], "sleep 1000");
    stuck.stdin(std::fs::File::open("/dev/zero").unwrap());
    let mut stuck = stuck.spawn().unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let output = finish(fixture.ssh(&["-o", &path], "echo moves")).await;
    assert_eq!(output.stdout, b"moves\n", "{output:?}");
    stuck.kill().await.unwrap();
    master.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_sessions_share_a_connection() {
    if !has("ssh") {
        return;
    }
    let fixture = Fixture::new().await;
    let socket = fixture.path("control");
    let path = format!("ControlPath={socket}");
    let mut master = fixture.ssh(&["-MN", "-o", &path], "");
    let mut master = master.spawn().unwrap();
    until("no master", || std::fs::exists(&socket).unwrap()).await;
    let mut sessions = Vec::new();
    for number in 0..100 {
        let mut ssh = fixture.ssh(&["-o", &path], &format!("cat; exit {number}"));
        ssh.stdin(Stdio::piped()).stdout(Stdio::piped());
        sessions.push(ssh.spawn().unwrap());
    }
    // All are open at once: each has said something before the first ends.
    for (number, session) in sessions.iter_mut().enumerate() {
        let stdin = session.stdin.as_mut().unwrap();
        stdin
            .write_all(format!("{number:03}").as_bytes())
            .await
            .unwrap();
        let mut echo = [0; 3];
        let stdout = session.stdout.as_mut().unwrap();
        stdout.read_exact(&mut echo).await.unwrap();
        assert_eq!(echo, format!("{number:03}").as_bytes());
    }
    for (number, mut session) in sessions.into_iter().enumerate() {
        drop(session.stdin.take());
        let status = session.wait().await.unwrap();
        assert_eq!(status.code(), i32::try_from(number).ok());
    }
    master.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_follows_the_size_of_the_clients_window() {
    if !has("ssh") {
        return;
    }
    let fixture = Fixture::new().await;
    let window = Window::open();
    window.resize(40, 120);
    let command = "trap 'stty size' WINCH; stty size; while :; do sleep 0.05; done";
    let mut ssh = fixture.ssh(&["-tt"], command);
    ssh.stdin(window.program()).stdout(window.program());
    let mut ssh = ssh.spawn().unwrap();
    let lines = window.lines();
    let expect = |size: &str| while lines.recv_timeout(LONG).unwrap().trim() != size {};
    tokio::task::block_in_place(|| expect("40 120"));
    window.resize(50, 132);
    // It would come by itself if this were the window's own session.
    let id = Pid::from_raw(ssh.id().unwrap().cast_signed()).unwrap();
    kill_process(id, Signal::WINCH).unwrap();
    tokio::task::block_in_place(|| expect("50 132"));
    ssh.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_that_the_agent_ignores_end_programs_all_the_same() {
    if !has("ssh") {
        return;
    }
    let fixture = Fixture::elsewhere().await;
    let output = finish(fixture.ssh(&[], "grep SigIgn /proc/self/status")).await;
    let said = String::from_utf8(output.stdout).unwrap();
    let ignored = said.split_whitespace().nth(1).unwrap();
    // Signal 1 is the lowest bit; those above 31 are the C library's own, and programs' to agree on.
    let ignored = u64::from_str_radix(ignored, 16).unwrap() & 0x7fff_ffff;
    assert_eq!(ignored, 0, "{said}");
    // Control-C on a terminal.
    let mut ssh = fixture.ssh(&["-tt"], "echo ready; exec sleep 1000");
    ssh.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut ssh = ssh.spawn().unwrap();
    let mut lines = BufReader::new(ssh.stdout.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().unwrap();
    assert_eq!(line.trim(), "ready");
    let mut stdin = ssh.stdin.take().unwrap();
    // Again and again: a shell that is about to become the program may overhear one.
    let typing = async {
        while stdin.write_all(b"\x03").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        std::future::pending().await
    };
    let ended = async {
        tokio::select! {
            ended = ssh.wait() => ended.unwrap(),
            () = typing => unreachable!(),
        }
    };
    let ended = tokio::time::timeout(LONG, ended).await.unwrap();
    assert_eq!(ended.code(), Some(255));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_programs_when_the_agent_is_killed() {
    if !has("ssh") {
        return;
    }
    let fixture = Fixture::elsewhere().await;
    let mut clients = Vec::new();
    let mut ids = Vec::new();
    for options in [&["-T"][..], &["-tt"]] {
        let command = "sleep 1000 & (sleep 1000; true) & echo $! $$; sleep 1000; true";
        let mut ssh = fixture.ssh(options, command);
        ssh.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut ssh = ssh.spawn().unwrap();
        let mut lines = BufReader::new(ssh.stdout.take().unwrap()).lines();
        let line = lines.next_line().await.unwrap().unwrap();
        ids.extend(line.split_whitespace().map(str::to_owned));
        clients.push(ssh);
    }
    let all: Vec<String> = ids.iter().flat_map(|id| group(id)).collect();
    assert!(all.len() >= 8, "{all:?}");
    fixture.kill().await;
    until("programs are left", || !all.iter().any(|id| is_alive(id))).await;
}

/// The members of a process's group.
fn group(id: &str) -> Vec<String> {
    let group_of = |id: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        let behind = stat.rsplit_once(')')?.1;
        behind.split_whitespace().nth(2).map(str::to_owned)
    };
    let wanted = group_of(id).unwrap();
    let processes = std::fs::read_dir("/proc").unwrap();
    processes
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|id| group_of(id).as_ref() == Some(&wanted))
        .collect()
}

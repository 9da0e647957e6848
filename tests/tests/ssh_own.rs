//! `relay ssh`, without OpenSSH: statuses, signals, what leads back, and the terminal, which is as it
//! was whichever way a session ends.

use std::net::Ipv4Addr;
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use relay_lab::apps::{self, App};
use relay_lab::cluster::{Cluster, Options};
use relay_lab::needs::Need;
use relay_lab::process::{Finished, Process};
use relay_lab::pty::OnTerminal;
use relay_lab::{PATIENCE, needs, poll};

fn ssh(cluster: &Cluster, words: &[&str]) -> Command {
    let mut command = cluster.client_command();
    command.arg("ssh").args(words);
    command
}

fn run(cluster: &Cluster, words: &[&str]) -> Finished {
    cluster.run_on(&cluster.client, ssh(cluster, words))
}

fn start(cluster: &Cluster, words: &[&str]) -> Process {
    Process::start("ssh", Some(&cluster.client), ssh(cluster, words))
}

#[test]
fn commands_print_and_their_statuses_and_signals_come_back() {
    needs!(Need::Namespaces);
    let cluster = Cluster::start(Options::default());
    let finished = run(&cluster, &["dev", "echo out; echo err >&2; exit 7"]);
    assert_eq!(finished.code, 7, "{finished:?}");
    assert_eq!(finished.stdout.trim_end(), "out");
    assert_eq!(finished.stderr.trim_end(), "err");
    let finished = run(
        &cluster,
        &["-e", "LANG=a,b", "alice/dev.main", "--", "echo", "$LANG"],
    );
    assert_eq!(finished.success(), "a,b");
    assert_eq!(run(&cluster, &["dev", "kill -TERM $$"]).code, 128 + 15);
    // 64 MiB each way, through pipes.
    let mut counted = Command::new("sh");
    let binary = relay_lab::process::relay_binary();
    let script = format!(
        "head -c 67108864 /dev/zero | {0} ssh dev 'cat' | wc -c",
        binary.display()
    );
    counted.args(["-c", &script]);
    for (name, value) in ssh(&cluster, &[]).get_envs() {
        if let Some(value) = value {
            counted.env(name, value);
        }
    }
    assert_eq!(
        cluster.run_on(&cluster.client, counted).success(),
        "67108864"
    );
}

#[test]
fn mistakes_are_explained() {
    needs!(Need::Namespaces);
    let cluster = Cluster::start(Options::default());
    for (words, said) in [
        (&["nothing", "true"][..], "nothing"),
        (&["dev.other", "true"], "other"),
        (&["-R", "80", "dev"], "\"80\""),
        (&["-e", "novalue", "dev"], "novalue"),
        (&["-A", "dev"], "SSH_AUTH_SOCK"),
        (&["--stdio", "-R", "1:a:1", "dev"], "--remote-forward"),
        (&["--stdio", "dev", "true"], "--stdio"),
        (&["--wait", "perhaps", "dev"], "perhaps"),
        // What Coder's command has: how it is done without.
        (&["-G", "dev"], "agent-extra-socket"),
        (&["-c", "web", "dev"], "docker exec -it web sh"),
        (&["--container-user", "bob", "dev"], "--container-user"),
    ] {
        let mut command = ssh(&cluster, words);
        command.env_remove("SSH_AUTH_SOCK");
        let finished = cluster.run_on(&cluster.client, command);
        assert_eq!(finished.code, 1, "{words:?}: {finished:?}");
        let last = finished.stderr.lines().last().unwrap_or_default();
        assert!(
            last.starts_with("error: ") && last.contains(said),
            "{words:?}: {finished:?}"
        );
    }
}

#[test]
fn a_signal_reaches_the_command_and_a_second_one_ends_the_session() {
    needs!(Need::Namespaces);
    let cluster = Cluster::start(Options::default());
    let patient = "trap 'echo heard; exit 9' TERM; echo started; while :; do sleep 0.05; done";
    let mut session = start(&cluster, &["dev", patient]);
    wait_for(&session, "started");
    session.signal(Signal::SIGTERM);
    assert_eq!(
        session.wait(PATIENCE).code(),
        Some(9),
        "{}",
        session.output()
    );
    assert!(session.stdout().contains("heard"));

    let deaf = "trap '' INT TERM; echo started; sleep 86398.5";
    let mut session = start(&cluster, &["dev", deaf]);
    wait_for(&session, "started");
    session.signal(Signal::SIGINT);
    std::thread::sleep(Duration::from_millis(300));
    assert!(session.runs());
    session.signal(Signal::SIGINT);
    assert_eq!(session.wait(Duration::from_secs(4)).code(), Some(128 + 2));
}

#[test]
fn editors_read_what_the_way_is_like_and_a_log_is_kept() {
    needs!(Need::Namespaces);
    let cluster = Cluster::start(Options::default());
    let folder = cluster.folder().join("network");
    let network = folder.to_str().expect("path");
    let logs = cluster.folder().to_str().expect("path");
    let flags = ["--network-info-dir", network, "--log-dir", logs];
    let more = ["--network-info-interval", "100ms", "dev", "sleep 86398.75"];
    let mut session = start(&cluster, &[&flags[..], &more].concat());
    // Named after the process that started relay, which is this one.
    let file = folder.join(format!("{}.json", std::process::id()));
    let direct = poll(PATIENCE, || {
        let found: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).ok()?).ok()?;
        let measured = found["latency"].as_f64()? > 0.0;
        (found["p2p"] == true && measured).then_some(())
    });
    assert!(direct.is_some(), "{}", session.output());
    session.signal(Signal::SIGTERM);
    assert_eq!(session.wait(PATIENCE).code(), Some(128 + 15));
    assert!(!file.exists(), "the file is gone with the session");
    let log = cluster
        .folder()
        .join(format!("coder-ssh-{}.log", session.id()));
    let log = std::fs::read_to_string(log).expect("a log");
    assert!(log.contains("DEBUG"), "{log}");
}

fn wait_for(session: &Process, text: &str) {
    let came = poll(PATIENCE, || session.stdout().contains(text).then_some(()));
    assert!(came.is_some(), "{}", session.output());
}

#[test]
fn ports_sockets_and_the_ssh_agent_lead_back() {
    needs!(Need::Namespaces);
    let cluster = Cluster::start(Options::default());
    let _own = App::start(&cluster.client, (Ipv4Addr::LOCALHOST, 9000));
    let (here, there) = (
        cluster.folder().join("here"),
        cluster.folder().join("there"),
    );
    let listener = UnixListener::bind(&here).expect("socket");
    let serving = std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("accept");
        let mut lent = &stream;
        std::io::copy(&mut lent, &mut &stream).expect("echo");
    });
    let sockets = format!("{}:{}", there.display(), here.display());
    let agent = cluster.folder().join("agent");
    let identities = UnixListener::bind(&agent).expect("socket");
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = identities.accept().expect("accept");
        std::io::Write::write_all(&mut stream, b"identities").expect("answer");
    });
    let identity = agent.to_str().expect("path");
    let words = [
        "-R",
        "9090:localhost:9000",
        "-R",
        &sockets,
        "-A",
        "--identity-agent",
        identity,
    ];
    let asks = "socat -u UNIX:$SSH_AUTH_SOCK -; echo started; sleep 86398.25";
    let mut session = start(&cluster, &[&words[..], &["dev", asks]].concat());
    wait_for(&session, "started");
    assert!(
        session.stdout().contains("identities"),
        "{}",
        session.output()
    );
    answering.join().expect("agent");
    let back = cluster.workspace.local(9090).expect("-R listens");
    apps::echo(&back, b"from the workspace").expect("-R");
    let socket = std::os::unix::net::UnixStream::connect(&there).expect("-R socket listens");
    let mut lent = &socket;
    std::io::Write::write_all(&mut lent, b"question").expect("write");
    socket.shutdown(std::net::Shutdown::Write).expect("end");
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut lent, &mut answer).expect("answer");
    assert_eq!(answer, "question");
    serving.join().expect("server");
    session.interrupt();
    let closed = poll(PATIENCE, || {
        cluster.workspace.local(9090).is_err().then_some(())
    });
    assert!(closed.is_some(), "the listener outlives its session");
}

/// Ways for a session on a terminal to end, and the status that it ends with.
#[test]
fn the_terminal_is_as_it_was_whichever_way_a_session_ends() {
    needs!(Need::Namespaces);
    let mut cluster = Cluster::start(Options::default());
    for end in [
        "exit", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGINT", "remote", "lost",
    ] {
        let mut terminal = OnTerminal::start(&cluster.client, ssh(&cluster, &["dev"]));
        let before = format!("{:?}", terminal.modes());
        terminal.type_text("echo rea''dy $TERM\n");
        terminal.wait_for("ready");
        assert_ne!(
            format!("{:?}", terminal.modes()),
            before,
            "it must be raw meanwhile"
        );
        let signal = end.parse::<Signal>().ok();
        let expected = match (end, signal) {
            (_, Some(signal)) => {
                let id = Pid::from_raw(terminal.id().cast_signed());
                kill(id, signal).expect("signal");
                128 + signal as i32
            }
            ("exit", _) => {
                terminal.type_text("exit 5\n");
                5
            }
            ("remote", _) => {
                terminal.type_text("kill -9 $$\n");
                128 + 9
            }
            _ => {
                cluster.agents[0].kill();
                terminal.wait_for("Ctrl-C ends the session");
                terminal.type_text("\x03");
                128 + 2
            }
        };
        assert_eq!(
            terminal.wait(PATIENCE),
            expected,
            "{end}: {}",
            terminal.shown()
        );
        assert_eq!(format!("{:?}", terminal.modes()), before, "{end}");
    }
}

#[test]
fn a_deleted_workspace_ends_its_sessions() {
    needs!(Need::Namespaces);
    let mut cluster = Cluster::start(Options::default());
    let mut session = start(&cluster, &["dev", "echo started; sleep 86398.75"]);
    wait_for(&session, "started");
    cluster.administer(&["workspace", "delete", "alice/dev"]);
    cluster.agents[0].kill();
    let status = session.wait(PATIENCE);
    assert_eq!(status.code(), Some(255), "{}", session.output());
}

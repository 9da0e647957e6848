//! What a person sees: a table with rates on a terminal, plain lines elsewhere; and files.

use std::net::Ipv4Addr;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use relay_lab::apps::{self, App};
use relay_lab::cluster::{Cluster, Options};
use relay_lab::needs::Need;
use relay_lab::pty::OnTerminal;
use relay_lab::{PATIENCE, needs};

#[test]
fn a_terminal_has_a_table_and_a_pipe_has_lines() {
    needs!(Need::Namespaces);
    let cluster = Cluster::start(Options::default());
    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    let file = cluster.folder().join("forwards.toml");
    let sets = "[web]\nworkspace = \"dev\"\ntcp = [\"8080:8000\"]\n\n[other]\ntcp = [9000]\n";
    std::fs::write(&file, sets).expect("file");
    let file = file.to_str().expect("path");
    let words = ["port-forward", "--config", file, "--set", "web"];

    let mut command = cluster.client_command();
    command.args(words).env("TERM", "xterm");
    let mut terminal = OnTerminal::start(&cluster.client, command);
    terminal.wait_for("RECEIVED/s");
    terminal.wait_for("tcp 8080 -> 8000");
    let stream = cluster.client.local(8080).expect("connect");
    apps::download(stream, 8 << 20).expect("download");
    terminal.wait_for("8.0 MiB");
    let id = Pid::from_raw(terminal.id().cast_signed());
    kill(id, Signal::SIGINT).expect("signal");
    assert_eq!(terminal.wait(PATIENCE), 0, "{}", terminal.shown());
    terminal.wait_for("Received signal");

    let mut command = cluster.client_command();
    command.args(words);
    let plain = relay_lab::process::Process::start("plain", Some(&cluster.client), command);
    plain.wait_line("Ready!", PATIENCE);
    plain.wait_line("path: ", PATIENCE);
    let text = plain.stderr();
    assert!(
        !text.contains('\x1b') && !text.contains("RECEIVED"),
        "{text}"
    );
    assert_eq!(plain.stdout(), "");
}

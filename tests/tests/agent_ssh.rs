//! The agent's SSH server through a tunnel, as OpenSSH finds it on a forwarded port.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use relay_lab::cluster::{Cluster, Options};
use relay_lab::needs::Need;
use relay_lab::{PATIENCE, needs, poll, say};

/// A program of OpenSSH on the client's host.
fn program(cluster: &Cluster, program: &str, port: u16) -> Command {
    let mut command = Command::new(program);
    let port = format!("Port={port}");
    let options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null"];
    command.args(["-F", "none", "-o", &port, "-o", "LogLevel=ERROR"]);
    command.args(options.iter().flat_map(|option| ["-o", option]));
    command.stdin(Stdio::null());
    cluster.client.namespace.adopt(&mut command);
    command
}

fn ssh(cluster: &Cluster, port: u16, command: &str) -> Output {
    let mut ssh = program(cluster, "ssh", port);
    ssh.args(["dev@127.0.0.1", command]);
    ssh.output().expect("ssh")
}

#[test]
fn both_ports_are_the_agents_and_programs_have_its_workspace() {
    needs!(Need::Namespaces, Need::Program("ssh"));
    let cluster = Cluster::start(Options::default());
    let _forward = cluster.forward(&["--tcp", "2201:1,2222:22"]);
    for port in [2201, 2222] {
        let output = ssh(&cluster, port, "echo $CODER_WORKSPACE_NAME; exit 7");
        assert_eq!(output.status.code(), Some(7), "{output:?}");
        assert!(output.stdout.len() > 1, "{output:?}");
    }
    // The token is the agent's alone.
    let output = ssh(&cluster, 2222, "env; echo $SSH_CONNECTION");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!text.contains("CODER_AGENT_TOKEN"), "{text}");
    assert!(text.contains("fd7a:115c:a1e0:"), "{text}");
}

#[test]
fn a_file_goes_through_the_tunnel_and_back_unharmed() {
    needs!(Need::Namespaces, Need::Program("scp"));
    let cluster = Cluster::start(Options::default());
    let _forward = cluster.forward(&["--tcp", "2222:22"]);
    let at = |name: &str| {
        cluster
            .folder()
            .join(name)
            .to_str()
            .expect("path")
            .to_owned()
    };
    let [from, there, back] = ["from", "there", "back"].map(at);
    let bytes: Vec<u8> = (0..64_u32 << 18).flat_map(u32::to_be_bytes).collect();
    std::fs::write(&from, &bytes).expect("write");
    let remote = format!("dev@127.0.0.1:{there}");
    for (source, target) in [(&from, &remote), (&remote, &back)] {
        let mut scp = program(&cluster, "scp", 2222);
        let start = Instant::now();
        let output = scp.args([source, target]).output().expect("scp");
        assert!(output.status.success(), "{output:?}");
        say(format_args!("64 MiB by scp in {:.2?}", start.elapsed()));
    }
    assert!(std::fs::read(&back).expect("read") == bytes);
}

#[test]
fn a_program_ends_with_its_client_and_with_its_agent() {
    needs!(Need::Namespaces, Need::Program("ssh"));
    let mut cluster = Cluster::start(Options::default());
    let _forward = cluster.forward(&["--tcp", "2222:22"]);
    for kill_agent in [false, true] {
        let mut ssh = program(&cluster, "ssh", 2222);
        ssh.args(["dev@127.0.0.1", "sleep 1000 & echo $! $$; sleep 1000; true"]);
        let mut ssh = ssh.stdout(Stdio::piped()).spawn().expect("ssh");
        let mut line = String::new();
        let stdout = ssh.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("read");
        let ids: Vec<_> = line.split_whitespace().collect();
        assert!(ids.len() == 2 && ids.iter().all(|id| runs(id)), "{line}");
        if kill_agent {
            cluster.agents[0].kill();
        } else {
            ssh.kill().expect("kill");
        }
        let gone = poll(PATIENCE, || (!ids.iter().any(|id| runs(id))).then_some(()));
        assert!(gone.is_some(), "{ids:?} are left");
        let _ = ssh.kill();
        let _ = ssh.wait();
    }
}

fn runs(id: &str) -> bool {
    Path::new("/proc").join(id).exists()
}

/// Each of these brings `NoNewPrivileges` where a user's manager sets it (systemd.exec(5)).
#[test]
fn the_agents_unit_leaves_sudo_to_the_shells() {
    let unit = include_str!("../../relay/systemd/relay-agent.service");
    let sandboxing = [
        "DynamicUser",
        "Lock",
        "MemoryDeny",
        "NoNew",
        "Private",
        "Protect",
        "Restrict",
        "SystemCall",
    ];
    let settings = unit.lines().filter_map(|line| line.split_once('='));
    for (name, _) in settings.filter(|(name, _)| !name.starts_with('#')) {
        let taken = sandboxing.iter().any(|start| name.starts_with(start));
        assert!(!taken, "{name} takes sudo from the shells");
    }
}

//! The system's OpenSSH through the hosts that `relay config-ssh` makes.

use std::fs;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rand::RngCore;
use relay_lab::apps::{self, App};
use relay_lab::cluster::{Cluster, Options};
use relay_lab::needs::Need;
use relay_lab::process::{Finished, Process, clean, relay_binary};
use relay_lab::pty::OnTerminal;
use relay_lab::{PATIENCE, needs, poll, say};
use sha2::{Digest, Sha256};

/// A deployment whose client has its OpenSSH configured.
struct Configured {
    cluster: Cluster,
    config: PathBuf,
}

impl Configured {
    fn start() -> Configured {
        let cluster = Cluster::start(Options::default());
        let config = cluster.folder().join("ssh_config");
        let path = config.to_str().expect("path");
        let words = ["config-ssh", "--yes", "--ssh-config-file", path];
        cluster.run_client(&words).success();
        Configured { cluster, config }
    }

    /// A program of OpenSSH on the client's machine.
    fn command(&self, program: &str, words: &[&str]) -> Command {
        let mut command = self.plain(program);
        command
            .arg("-F")
            .arg(&self.config)
            .args(["-o", "BatchMode=yes"])
            .args(words);
        command
    }

    /// A program with what `relay` needs to find the deployment.
    fn plain(&self, program: &str) -> Command {
        let mut command = clean(Command::new(program), self.cluster.folder());
        command
            .env("CODER_URL", self.cluster.url())
            .env("CODER_SESSION_TOKEN", &self.cluster.session);
        command
    }

    fn run(&self, program: &str, words: &[&str]) -> Finished {
        let command = self.command(program, words);
        self.cluster.run_on(&self.cluster.client, command)
    }

    fn spawn(&self, words: &[&str]) -> Process {
        let command = self.command("ssh", words);
        Process::start("ssh", Some(&self.cluster.client), command)
    }

    fn path(&self, name: &str) -> String {
        let path = self.cluster.folder().join(name);
        path.to_str().expect("path").to_owned()
    }
}

/// Ids of processes whose command line has `text` in it.
fn processes_with(text: &str) -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|id| {
        let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.contains(text)
    })
    .collect()
}

/// Waits until no process has `text` in its command line.
fn none_is_left(text: &str, limit: Duration) {
    let start = Instant::now();
    let gone = poll(limit, || processes_with(text).is_empty().then_some(()));
    assert!(
        gone.is_some(),
        "still there with {text:?}: {:?}",
        processes_with(text)
    );
    say(format_args!(
        "nothing of {text:?} is left after {:.2?}",
        start.elapsed()
    ));
}

/// Waits until a process has `text` in its command line.
fn one_comes(text: &str) {
    let came = poll(PATIENCE, || {
        (!processes_with(text).is_empty()).then_some(())
    });
    assert!(came.is_some(), "no process with {text:?}");
}

fn write_random(path: &str, size: usize) -> [u8; 32] {
    let (mut file, mut hash) = (fs::File::create(path).expect("file"), Sha256::new());
    let mut chunk = vec![0; 1 << 20];
    rand::rng().fill_bytes(&mut chunk);
    for number in 0..size >> 20 {
        chunk[..8].copy_from_slice(&(number as u64).to_le_bytes());
        file.write_all(&chunk).expect("write");
        hash.update(&chunk);
    }
    hash.finalize().into()
}

fn hash_of(path: impl AsRef<Path>) -> [u8; 32] {
    let (mut file, mut hash) = (fs::File::open(path).expect("file"), Sha256::new());
    let mut chunk = vec![0; 1 << 20];
    while let Ok(count @ 1..) = file.read(&mut chunk) {
        hash.update(&chunk[..count]);
    }
    hash.finalize().into()
}

#[test]
fn every_name_of_a_host_leads_to_the_workspace_and_statuses_come_back() {
    needs!(Need::Namespaces, Need::Program("ssh"));
    let configured = Configured::start();
    for host in [
        "coder.dev",
        "dev.coder",
        "coder.dev.main",
        "coder.alice--dev",
        "coder.alice--dev--main",
        "main.dev.alice.coder",
    ] {
        let finished = configured.run("ssh", &[host, "echo here; exit 7"]);
        assert_eq!(
            (finished.code, finished.stdout.as_str()),
            (7, "here"),
            "{host}: {finished:?}"
        );
    }
    let start = Instant::now();
    configured.run("ssh", &["coder.dev", "true"]).success();
    say(format_args!(
        "`ssh coder.dev true` takes {:.0?}",
        start.elapsed()
    ));
    for (host, reason) in [("coder.other", "other"), ("coder.dev.other", "other")] {
        let finished = configured.run("ssh", &[host, "true"]);
        assert_eq!(finished.code, 255, "{finished:?}");
        assert!(finished.stderr.contains(reason), "{finished:?}");
    }
}

#[test]
fn local_remote_and_dynamic_forwards_carry_bytes() {
    needs!(Need::Namespaces, Need::Program("ssh"));
    let configured = Configured::start();
    let cluster = &configured.cluster;
    let _theirs = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    let _own = App::start(&cluster.client, (Ipv4Addr::LOCALHOST, 9000));
    let forwards = [
        "-L",
        "8080:localhost:8000",
        "-R",
        "9090:localhost:9000",
        "-D",
        "1080",
    ];
    let words = [
        &["-N", "-o", "ExitOnForwardFailure=yes"],
        &forwards[..],
        &["coder.dev"],
    ]
    .concat();
    let mut ssh = configured.spawn(&words);
    let up = || cluster.client.local(8080).ok();
    let local = poll(PATIENCE, up).unwrap_or_else(|| panic!("{}", ssh.output()));
    apps::echo(&local, b"to the workspace").expect("-L");
    let back = poll(PATIENCE, || cluster.workspace.local(9090).ok()).expect("-R listens");
    apps::echo(&back, b"from the workspace").expect("-R");

    let mut dynamic = cluster.client.local(1080).expect("-D listens");
    // SOCKS5 (RFC 1928): no authentication; connect to localhost:8000.
    dynamic.write_all(&[5, 1, 0]).expect("greeting");
    let mut answer = [0; 2];
    dynamic.read_exact(&mut answer).expect("method");
    assert_eq!(answer, [5, 0]);
    let request = [&[5, 1, 0, 3, 9][..], b"localhost", &8000_u16.to_be_bytes()].concat();
    dynamic.write_all(&request).expect("request");
    let mut answer = [0; 10];
    dynamic.read_exact(&mut answer).expect("answer");
    assert_eq!(answer[..2], [5, 0]);
    apps::echo(&dynamic, b"by SOCKS").expect("-D");
    assert!(ssh.runs());
}

#[test]
fn files_arrive_unchanged_by_scp_sftp_and_rsync() {
    const SIZE: usize = 256 << 20;
    needs!(
        Need::Namespaces,
        Need::Program("ssh"),
        Need::Program("rsync")
    );
    let configured = Configured::start();
    let (file, there, back) = (
        configured.path("file"),
        configured.path("there"),
        configured.path("back"),
    );
    let hash = write_random(&file, SIZE);
    let start = Instant::now();
    configured
        .run("scp", &["-q", &file, &format!("coder.dev:{there}")])
        .success();
    let up = start.elapsed();
    configured
        .run("scp", &["-q", &format!("coder.dev:{there}"), &back])
        .success();
    let down = start.elapsed() - up;
    assert!(
        hash_of(&there) == hash && hash_of(&back) == hash,
        "scp changes bytes"
    );
    say(format_args!("scp of 256 MiB: {up:.2?} up, {down:.2?} down"));

    fs::remove_file(&there)
        .and_then(|()| fs::remove_file(&back))
        .expect("remove");
    let batch = configured.path("batch");
    let script = format!("put {file} {there}\nget {there} {back}\nls -l {there}\nrm {there}\n");
    fs::write(&batch, script).expect("batch");
    configured
        .run("sftp", &["-b", &batch, "coder.dev"])
        .success();
    assert!(
        hash_of(&back) == hash && !Path::new(&there).exists(),
        "sftp changes bytes"
    );

    let (from, to) = (configured.path("from"), configured.path("to"));
    for number in 0..100 {
        let folder = format!("{from}/{}", number % 7);
        fs::create_dir_all(&folder).expect("folder");
        fs::write(format!("{folder}/{number}"), vec![number; 5000]).expect("file");
    }
    let shell = format!("ssh -F {} -o BatchMode=yes", configured.config.display());
    let mut rsync = configured.plain("rsync");
    rsync.args([
        "-a",
        "-e",
        &shell,
        &format!("{from}/"),
        &format!("coder.dev:{to}"),
    ]);
    let client = &configured.cluster.client;
    configured.cluster.run_on(client, rsync).success();
    for number in 0..100_u8 {
        let copy = fs::read(format!("{to}/{}/{number}", number % 7)).expect("copy");
        assert_eq!(copy, vec![number; 5000]);
    }
}

#[test]
fn a_hundred_sessions_share_one_connection() {
    const SESSIONS: usize = 100;
    needs!(Need::Namespaces, Need::Program("ssh"));
    let configured = Configured::start();
    let control = format!("ControlPath={}", configured.path("control"));
    let words = ["-N", "-o", "ControlMaster=yes", "-o", &control, "coder.dev"];
    let mut master = configured.spawn(&words);
    let up = poll(PATIENCE, || {
        Path::new(&configured.path("control"))
            .exists()
            .then_some(())
    });
    assert!(up.is_some(), "{}", master.output());
    let start = Instant::now();
    let sessions: Vec<_> = (0..SESSIONS)
        .map(|number| {
            // Each waits for a line from the last one's arrival: all are open at once.
            let command = format!(
                "touch {0}/open-{number}; while [ ! -e {0}/go ]; do sleep 0.1; done; echo {number}; exit {1}",
                configured.cluster.folder().display(),
                number % 50
            );
            configured.spawn(&["-o", "ControlMaster=no", "-o", &control, "coder.dev", &command])
        })
        .collect();
    let all_open = || {
        let open = |number: &usize| Path::new(&configured.path(&format!("open-{number}"))).exists();
        (0..SESSIONS).all(|number| open(&number)).then_some(())
    };
    assert!(poll(PATIENCE, all_open).is_some(), "{}", master.output());
    say(format_args!(
        "{SESSIONS} sessions are open after {:.2?}",
        start.elapsed()
    ));
    fs::write(configured.path("go"), "").expect("go");
    for (number, mut session) in sessions.into_iter().enumerate() {
        let status = session.wait(PATIENCE);
        assert_eq!(
            status.code(),
            Some((number % 50) as i32),
            "{}",
            session.output()
        );
        assert_eq!(session.stdout(), number.to_string());
    }
    assert!(master.runs());
}

#[test]
fn a_terminal_follows_the_size_of_the_one_here() {
    needs!(Need::Namespaces, Need::Program("ssh"));
    let configured = Configured::start();
    let client = &configured.cluster.client;
    let mut own = configured.cluster.client_command();
    own.args(["ssh", "dev"]);
    for command in [configured.command("ssh", &["coder.dev"]), own] {
        let mut terminal = OnTerminal::start(client, command);
        let before = terminal.modes();
        terminal.type_text("stty size; echo rea''dy\n");
        terminal.wait_for("ready");
        terminal.wait_for("24 80");
        terminal.resize(101, 37);
        let resized = poll(PATIENCE, || {
            terminal.type_text("stty size\n");
            std::thread::sleep(Duration::from_millis(100));
            terminal.shown().contains("37 101").then_some(())
        });
        assert!(resized.is_some(), "{}", terminal.shown());
        terminal.type_text("exit 3\n");
        assert_eq!(terminal.wait(PATIENCE), 3);
        assert_eq!(format!("{:?}", terminal.modes()), format!("{before:?}"));
    }
}

#[test]
fn a_killed_ssh_leaves_nothing_behind_on_either_side() {
    needs!(Need::Namespaces, Need::Program("ssh"));
    let configured = Configured::start();
    let proxy = format!("{} ssh --stdio", relay_binary().display());
    // Here the command line is another text than there.
    let mut ssh = configured.spawn(&["coder.dev", "exec sleep $((86399)).25"]);
    one_comes("sleep 86399.25");
    one_comes(&proxy);
    ssh.kill();
    none_is_left(&proxy, PATIENCE);
    none_is_left("sleep 86399.25", PATIENCE);
}

#[test]
fn a_killed_proxy_ends_ssh() {
    needs!(Need::Namespaces, Need::Program("ssh"));
    let configured = Configured::start();
    let proxy = format!("{} ssh --stdio", relay_binary().display());
    let mut ssh = configured.spawn(&["coder.dev", "exec sleep $((86399)).5"]);
    one_comes("sleep 86399.5");
    for id in processes_with(&proxy) {
        kill(id, Signal::SIGKILL);
    }
    assert_eq!(ssh.wait(PATIENCE).code(), Some(255));
    none_is_left(&proxy, PATIENCE);
    // The connection to the server was closed, so this is no machine that sleeps.
    none_is_left("sleep 86399.5", PATIENCE);
}

#[test]
fn a_killed_agent_ends_ssh_when_it_is_back() {
    needs!(Need::Namespaces, Need::Program("ssh"));
    let mut configured = Configured::start();
    let proxy = format!("{} ssh --stdio", relay_binary().display());
    let mut ssh = configured.spawn(&["coder.dev", "exec sleep $((86399)).75"]);
    one_comes("sleep 86399.75");
    configured.cluster.agents[0].kill();
    none_is_left("sleep 86399.75", PATIENCE);
    configured.cluster.agents[0] = configured.cluster.start_agent(0);
    assert_eq!(ssh.wait(PATIENCE).code(), Some(255), "{}", ssh.output());
    none_is_left(&proxy, PATIENCE);
}

fn kill(id: u32, signal: Signal) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(id.cast_signed()), signal);
}

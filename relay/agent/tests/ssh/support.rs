//! A server on a loopback port, and OpenSSH's programs that are pointed at it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use relay_agent::ssh::{Options, Peer, Server, Workspace};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

/// Nothing here takes longer on a machine that is not broken.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// A server and a place for files.
pub(crate) struct Fixture {
    pub(crate) port: u16,
    pub(crate) files: TempDir,
    server: Place,
}

/// Where a server runs.
enum Place {
    Here(tokio::task::JoinHandle<()>),
    Elsewhere(Child),
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.cut();
    }
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        Self::with(Options::default()).await
    }

    pub(crate) async fn with(options: Options) -> Self {
        let files = tempfile::tempdir().unwrap();
        let (listener, server) = server(options, files.path()).await;
        Self {
            port: listener.local_addr().unwrap().port(),
            files,
            server: Place::Here(tokio::spawn(serve(listener, server))),
        }
    }

    /// With the server in a process of its own, which can be killed. It was started as a script starts
    /// something behind `nohup` and before `&`: signals for the script are ignored.
    pub(crate) async fn elsewhere() -> Self {
        let files = tempfile::tempdir().unwrap();
        let mut server = Command::new("sh");
        server.args(["-c", "trap '' HUP INT QUIT; exec \"$@\"", "sh"]);
        server.arg(std::env::current_exe().unwrap());
        server.args(["--exact", "support::serve_elsewhere", "--nocapture"]);
        server.env(ELSEWHERE, files.path());
        server.stdout(Stdio::piped()).kill_on_drop(true);
        let mut server = server.spawn().unwrap();
        let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
        let port = loop {
            let line = lines.next_line().await.unwrap().unwrap();
            if let Some(port) = line.strip_prefix("port ") {
                break port.parse().unwrap();
            }
        };
        Self {
            port,
            files,
            server: Place::Elsewhere(server),
        }
    }

    /// Kills a server that is elsewhere.
    pub(crate) async fn kill(mut self) {
        if let Place::Elsewhere(server) = &mut self.server {
            server.kill().await.unwrap();
        }
    }

    /// A path below the fixture's place for files.
    pub(crate) fn path(&self, name: &str) -> String {
        self.files.path().join(name).to_str().unwrap().to_owned()
    }

    /// `program` with the options that all of OpenSSH's programs take.
    pub(crate) fn program(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).kill_on_drop(true);
        command.args(self.options());
        command
    }

    pub(crate) fn options(&self) -> Vec<String> {
        let port = format!("Port={}", self.port);
        let words = [
            "-F",
            "none",
            "-o",
            &port,
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "LogLevel=ERROR",
            "-o",
            "BatchMode=yes",
        ];
        words.map(str::to_owned).to_vec()
    }

    /// `ssh` to the server with these words of its own.
    pub(crate) fn ssh(&self, options: &[&str], command: &str) -> Command {
        let mut ssh = self.program("ssh");
        ssh.args(options).arg("dev@127.0.0.1");
        if !command.is_empty() {
            ssh.arg(command);
        }
        ssh
    }

    /// Ends the server's side as when its tunnel is cut.
    pub(crate) fn cut(&self) {
        if let Place::Here(server) = &self.server {
            server.abort();
        }
    }
}

/// Where a server that is elsewhere has its files.
const ELSEWHERE: &str = "SSH_TEST_ELSEWHERE";

/// No test: the server that [`Fixture::elsewhere`] starts.
#[tokio::test(flavor = "multi_thread")]
async fn serve_elsewhere() {
    if let Some(files) = std::env::var_os(ELSEWHERE) {
        let (listener, server) = server(Options::default(), files.as_ref()).await;
        println!("\nport {}", listener.local_addr().unwrap().port());
        serve(listener, server).await;
    }
}

async fn server(options: Options, files: &Path) -> (TcpListener, Arc<Server>) {
    let workspace = Workspace {
        id: uuid::Uuid::from_u128(7),
        agent: "main".to_owned(),
        name: "blue".to_owned(),
        owner: "dev".to_owned(),
        directory: files.to_str().unwrap().to_owned(),
        environment: BTreeMap::from([("FROM_MANIFEST".to_owned(), "yes".to_owned())]),
        port_template: "http://{{port}}.example".to_owned(),
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    (listener, Arc::new(Server::new(options, workspace).unwrap()))
}

/// A terminal of this side, for programs that want one.
pub(crate) struct Window(OwnedFd);

impl Window {
    pub(crate) fn open() -> Self {
        let window = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&window).unwrap();
        unlockpt(&window).unwrap();
        Self(window)
    }

    pub(crate) fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.0, size).unwrap();
    }

    /// The side of it that is a program's.
    pub(crate) fn program(&self) -> OwnedFd {
        let path = ptsname(&self.0, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).unwrap()
    }

    /// What is written on it.
    pub(crate) fn lines(&self) -> std::sync::mpsc::Receiver<String> {
        use std::io::BufRead;
        let window = std::fs::File::from(self.0.try_clone().unwrap());
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in std::io::BufReader::new(window).lines() {
                let Ok(line) = line else { return };
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        lines
    }
}

async fn serve(listener: TcpListener, server: Arc<Server>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, remote)) = listener.accept().await {
        let local: SocketAddr = stream.local_addr().unwrap();
        stream.set_nodelay(true).unwrap();
        let peer = Peer { remote, local };
        connections.spawn(Arc::clone(&server).serve(stream, peer));
    }
}

/// Runs a program to its end.
pub(crate) async fn finish(mut command: Command) -> Output {
    let output = command.output();
    tokio::time::timeout(LONG, output).await.unwrap().unwrap()
}

/// Waits until `check` holds.
pub(crate) async fn until(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + LONG;
    while !check() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Whether a process is there, and is more than an entry that its parent has yet to read.
pub(crate) fn is_alive(id: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", id.trim()));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

/// Whether the program can be run here; says so if not, and fails where that is not allowed.
pub(crate) fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(["/usr/bin".into(), "/usr/sbin".into()])
        .any(|directory| directory.join(program).is_file());
    let required = std::env::var_os("RELAY_REQUIRE_ALL").is_some_and(|value| !value.is_empty());
    assert!(found || !required, "{program} is not installed");
    if !found {
        println!("skipped: {program} is not installed");
    }
    found
}

/// Makes a file of so many MiB that no compression makes shorter.
pub(crate) fn random_file(path: &Path, mebibytes: usize) {
    use std::io::{Read, Write};
    let mut from = std::fs::File::open("/dev/urandom").unwrap().take(1 << 20);
    let mut block = Vec::new();
    from.read_to_end(&mut block).unwrap();
    let mut file = std::fs::File::create(path).unwrap();
    for number in 0..mebibytes {
        block[..8].copy_from_slice(&number.to_be_bytes());
        file.write_all(&block).unwrap();
    }
}

/// Whether two files have the same bytes.
pub(crate) fn same(one: impl AsRef<Path>, other: impl AsRef<Path>) -> bool {
    use std::io::BufRead;
    let open = |path: &Path| {
        std::io::BufReader::with_capacity(1 << 20, std::fs::File::open(path).unwrap())
    };
    let (mut one, mut other) = (open(one.as_ref()), open(other.as_ref()));
    loop {
        let (left, right) = (one.fill_buf().unwrap(), other.fill_buf().unwrap());
        let count = left.len().min(right.len());
        if count == 0 {
            return left.len() == right.len();
        }
        if left[..count] != right[..count] {
            return false;
        }
        one.consume(count);
        other.consume(count);
    }
}

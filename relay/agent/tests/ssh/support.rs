//! A server on a loopback port, and OpenSSH's programs that are pointed at it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use relay_agent::ssh::{Options, Peer, Server, Workspace};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::task::JoinSet;

/// Nothing here takes longer on a machine that is not broken.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// A server and a place for files.
pub(crate) struct Fixture {
    pub(crate) port: u16,
    pub(crate) files: TempDir,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        Self::with(Options::default()).await
    }

    pub(crate) async fn with(options: Options) -> Self {
        let files = tempfile::tempdir().unwrap();
        let workspace = Workspace {
            id: uuid::Uuid::from_u128(7),
            agent: "main".to_owned(),
            name: "blue".to_owned(),
            owner: "dev".to_owned(),
            directory: files.path().to_str().unwrap().to_owned(),
            environment: BTreeMap::from([("FROM_MANIFEST".to_owned(), "yes".to_owned())]),
            port_template: "http://{{port}}.example".to_owned(),
        };
        let server = Arc::new(Server::new(options, workspace).unwrap());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        Self {
            port,
            files,
            server: tokio::spawn(serve(listener, server)),
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
        self.server.abort();
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
    use std::io::{BufRead, BufReader};
    let open = |path: &Path| BufReader::with_capacity(1 << 20, std::fs::File::open(path).unwrap());
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

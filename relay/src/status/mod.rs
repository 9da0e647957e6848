//! How running commands of this user tell each other about themselves: each has a Unix socket in a folder of the user's
//! own, on which it writes one JSON document to whoever connects. A socket of a process that was killed is removed by the
//! next who looks.

mod folder;
mod read;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use relay_forward::event::Path;
use relay_forward::{Monitor, Snapshot};
use relay_tunnel::path::Reason;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

pub(crate) use read::{Silent, all};

use crate::duration::milliseconds;

/// How long whoever asked may take to read.
const PATIENCE: Duration = Duration::from_secs(5);
/// Forwards of one command that are shown.
pub(crate) const SHOWN: usize = 1000;

/// A running command.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Running {
    pub(crate) pid: u32,
    /// `port-forward` or `ssh`.
    pub(crate) command: String,
    pub(crate) started: DateTime<Utc>,
    /// How bytes are moved between sockets; none where that is not done.
    pub(crate) engine: Option<String>,
    /// None until the tunnel is open.
    pub(crate) tunnel: Option<Tunnel>,
    #[serde(flatten)]
    pub(crate) forwards: Forwards,
}

/// What is forwarded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Forwards {
    /// Of many, the first.
    pub(crate) forwards: Vec<Forwarded>,
    /// All there are.
    pub(crate) forwards_total: usize,
}

impl Forwards {
    /// So many forwards, the first of which are shown.
    pub(crate) fn of(rows: impl Iterator<Item = Forwarded>, total: usize) -> Self {
        Self {
            forwards: rows.take(SHOWN).collect(),
            forwards_total: total,
        }
    }
}

/// The tunnel of a running command.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Tunnel {
    pub(crate) workspace: String,
    pub(crate) agent: String,
    pub(crate) direct: bool,
    /// The workspace is on this machine, and connections go past the tunnel. False in documents of
    /// other versions.
    #[serde(default)]
    pub(crate) same_host: bool,
    /// The agent's address, or the relay's name.
    pub(crate) via: Option<String>,
    /// Why it is not direct.
    pub(crate) reason: Option<String>,
    pub(crate) explanation: Option<String>,
    /// None when the agent does not answer now.
    pub(crate) rtt_ms: Option<f64>,
    pub(crate) mtu: u16,
    pub(crate) handshake_age_seconds: Option<f64>,
    /// Bytes of packets to the agent, and from it.
    pub(crate) sent_bytes: u64,
    pub(crate) received_bytes: u64,
    pub(crate) stack: String,
}

/// A forward, and what went through it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Forwarded {
    /// `tcp`, `udp`, `unix` or `reverse`.
    pub(crate) kind: String,
    /// This machine's side, and the workspace's.
    pub(crate) here: String,
    pub(crate) there: String,
    /// What went through it, where that is counted.
    #[serde(flatten)]
    pub(crate) traffic: Option<Traffic>,
}

/// What went through a forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Traffic {
    /// Connections that are open, and all so far; flows of UDP are not counted.
    pub(crate) open: u64,
    pub(crate) connections: u64,
    /// Bytes to the workspace, and from it.
    pub(crate) sent_bytes: u64,
    pub(crate) received_bytes: u64,
}

impl From<Snapshot> for Tunnel {
    fn from(seen: Snapshot) -> Self {
        let route = &seen.route;
        Self {
            workspace: format!("{}/{}", seen.owner, seen.workspace),
            agent: seen.agent,
            same_host: seen.same_host,
            direct: matches!(route.path, Some(Path::Direct(_))),
            via: route.path.as_ref().map(|path| match path {
                Path::Direct(address) => address.to_string(),
                Path::Relayed(name) => name.clone(),
            }),
            reason: route.reason.map(Reason::code).map(str::to_owned),
            explanation: route.reason.map(|reason| reason.to_string()),
            rtt_ms: seen.rtt.map(milliseconds),
            mtu: seen.mtu,
            handshake_age_seconds: seen.handshake_age.map(|age| milliseconds(age) / 1e3),
            sent_bytes: seen.sent,
            received_bytes: seen.received,
            stack: seen.stack.to_string(),
        }
    }
}

/// Says what is forwarded at the moment.
pub(crate) type Look = Arc<dyn Fn() -> Forwards + Send + Sync>;

/// A command that tells about itself until this is dropped.
pub(crate) struct Published {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl Drop for Published {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Tells about this command from now on. Without a folder to do that in, the command goes on without.
pub(crate) fn publish(
    command: &str,
    engine: Option<String>,
    monitor: Monitor,
    look: Look,
) -> Option<Published> {
    let running = Running {
        pid: std::process::id(),
        command: command.to_owned(),
        started: Utc::now(),
        engine,
        tunnel: None,
        forwards: Forwards::default(),
    };
    let opened = folder::find().and_then(|folder| {
        let path = folder.join(folder::name(running.pid));
        Ok((UnixListener::bind(&path)?, path))
    });
    match opened {
        Ok((listener, path)) => {
            let task = tokio::spawn(serve(listener, running, monitor, look));
            Some(Published { path, task })
        }
        Err(error) => {
            tracing::debug!(%error, "this command is not in `relay status`");
            None
        }
    }
}

async fn serve(listener: UnixListener, running: Running, monitor: Monitor, look: Look) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "a question about this command was not accepted");
                tokio::time::sleep(PATIENCE).await;
                continue;
            }
        };
        let now = Running {
            tunnel: monitor.snapshot().await.map(Tunnel::from),
            forwards: look(),
            ..running.clone()
        };
        // One after the other: whoever asks is this user's own `relay status`.
        let _ = tokio::time::timeout(PATIENCE, tell(stream, &now)).await;
    }
}

async fn tell(mut stream: UnixStream, running: &Running) -> std::io::Result<()> {
    let document = serde_json::to_vec(running)?;
    stream.write_all(&document).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_command_is_seen_while_it_runs_and_not_after() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path();
        let path = folder.join(folder::name(std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let running = Running {
            pid: std::process::id(),
            command: "port-forward".to_owned(),
            started: Utc::now(),
            engine: Some("auto".to_owned()),
            tunnel: None,
            forwards: Forwards::default(),
        };
        let row = Forwarded {
            kind: "tcp".to_owned(),
            here: "8080".to_owned(),
            there: "8000".to_owned(),
            traffic: Some(Traffic {
                open: 1,
                connections: 2,
                sent_bytes: 3,
                received_bytes: 4,
            }),
        };
        let rows = Forwards::of([row.clone()].into_iter(), 1);
        let look: Look = Arc::new(move || rows.clone());
        let task = tokio::spawn(serve(listener, running, Monitor::default(), look));
        let published = Published {
            path: path.clone(),
            task,
        };
        let (found, silent) = read::all_in(folder).await.unwrap();
        assert!(silent.is_empty());
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].forwards.forwards, [row]);
        drop(published);
        assert!(!path.exists());
        assert!(read::all_in(folder).await.unwrap().0.is_empty());
    }

    #[tokio::test]
    async fn the_socket_of_a_killed_command_is_removed() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(folder::name(1));
        // Nobody listens there any more, and the file stays.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let other = home.path().join("notes.txt");
        std::fs::write(&other, "not ours").unwrap();
        let (found, silent) = read::all_in(home.path()).await.unwrap();
        assert!(found.is_empty() && silent.is_empty());
        assert!(!path.exists() && other.exists());
    }

    #[tokio::test]
    async fn what_is_no_answer_is_told_with_its_process() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(folder::name(7));
        let listener = UnixListener::bind(&path).unwrap();
        let answering = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"{\"pid\":").await.unwrap();
        });
        let (found, silent) = read::all_in(home.path()).await.unwrap();
        answering.await.unwrap();
        assert!(found.is_empty());
        assert_eq!(silent.len(), 1);
        assert_eq!(silent[0].pid, Some(7));
    }
}

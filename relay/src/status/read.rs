//! Asks all running commands.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use super::{Running, folder};

/// How long a command may take to answer; it pings its agent meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest answer that is read.
const LONGEST: u64 = 16 << 20;

/// A command that is there and does not tell about itself.
#[derive(Clone, Debug)]
pub(crate) struct Silent {
    pub(crate) pid: Option<u32>,
    pub(crate) reason: String,
}

/// All running commands of this user, the oldest first, and those that do not answer.
///
/// # Errors
/// When the folder cannot be used.
pub(crate) async fn all() -> io::Result<(Vec<Running>, Vec<Silent>)> {
    all_in(&folder::find()?).await
}

pub(super) async fn all_in(folder: &Path) -> io::Result<(Vec<Running>, Vec<Silent>)> {
    let mut asking = JoinSet::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if let Some(pid) = folder::process(&path) {
            asking.spawn(async move { (pid, ask(path).await) });
        }
    }
    let (mut running, mut silent) = (Vec::new(), Vec::new());
    for (pid, answer) in asking.join_all().await {
        match answer {
            Ok(Some(found)) => running.push(found),
            Ok(None) => {}
            Err(error) => silent.push(Silent {
                pid: Some(pid),
                reason: error.to_string(),
            }),
        }
    }
    running.sort_by_key(|found| (found.started, found.pid));
    silent.sort_by_key(|found| found.pid);
    Ok((running, silent))
}

/// Asks one; none is there no more.
async fn ask(path: PathBuf) -> io::Result<Option<Running>> {
    let stream = match UnixStream::connect(&path).await {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            // It was killed. Another who looks may have been faster.
            let _ = std::fs::remove_file(&path);
            return Ok(None);
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = Vec::new();
    let mut stream = stream.take(LONGEST);
    let reading = stream.read_to_end(&mut text);
    let Ok(read) = tokio::time::timeout(PATIENCE, reading).await else {
        let seconds = PATIENCE.as_secs();
        return Err(io::Error::other(format!(
            "no answer within {seconds} seconds"
        )));
    };
    read?;
    let running = serde_json::from_slice(&text);
    running.map(Some).map_err(|error| {
        io::Error::other(format!(
            "its answer does not read ({error}): is it of another version?"
        ))
    })
}

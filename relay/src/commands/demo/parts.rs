//! The processes of a demo, and that nothing of them stays behind: neither a process nor a file.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// How long a part may take to end by itself.
const FAREWELL: Duration = Duration::from_secs(3);
const INTERRUPTED: i32 = 130;

/// The temporary folder and all processes. Ends them, in the order opposite to their start, when
/// dropped or when the user interrupts.
pub(super) struct Stage(Arc<Shared>);

struct Shared {
    folder: Mutex<Option<TempDir>>,
    data: PathBuf,
    binary: PathBuf,
    children: Mutex<Vec<Child>>,
    /// The proof is done: an interrupt is the normal end.
    done: AtomicBool,
    /// A signal came: whoever else sees a part end has nothing to say about it.
    ending: AtomicBool,
}

impl Stage {
    /// Makes the folder, and takes over Ctrl-C.
    pub(super) fn new() -> Result<Stage> {
        let folder = TempDir::with_prefix("relay-demo-").context("cannot make a folder")?;
        let shared = Arc::new(Shared {
            data: folder.path().join("data"),
            folder: Mutex::new(Some(folder)),
            binary: std::env::current_exe().context("cannot find the running binary")?,
            children: Mutex::default(),
            done: AtomicBool::new(false),
            ending: AtomicBool::new(false),
        });
        end_on_signal(Arc::clone(&shared))?;
        Ok(Stage(shared))
    }

    /// The server's data directory.
    pub(super) fn data(&self) -> &PathBuf {
        &self.0.data
    }

    /// This binary, steered by nothing but its arguments: neither the session nor the configuration
    /// of the user who runs the demo is touched.
    pub(super) fn relay(&self) -> Command {
        let mut command = Command::new(&self.0.binary);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            let steers = text.starts_with("CODER_") || text.starts_with("RELAY_");
            if steers && text != "RELAY_LOG" {
                command.env_remove(name);
            }
        }
        command.env("CODER_CONFIG_DIR", self.0.data.with_file_name("config"));
        if let Some(folder) = self.0.data.parent() {
            // Where the forward tells `relay status` of itself.
            command.env("XDG_RUNTIME_DIR", folder);
        }
        command
    }

    /// Starts a part that runs until the end.
    pub(super) fn start(&self, name: &'static str, mut command: Command) -> Result<Part> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        die_with_parent(&mut command);
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start `{name}`"))?;
        let lines = Lines::default();
        if let Some(stderr) = child.stderr.take() {
            lines.follow(stderr)?;
        }
        let id = child.id();
        lock(&self.0.children).push(child);
        let shared = Arc::clone(&self.0);
        Ok(Part {
            name,
            id,
            lines,
            shared,
        })
    }

    /// Runs `relay server WORDS` on the demo's data and gives what it prints.
    pub(super) fn administer(&self, words: &[&str], input: &str) -> Result<String> {
        let mut command = self.relay();
        command
            .arg("server")
            .args(words)
            .arg("--data-dir")
            .arg(self.data());
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let what = || format!("`relay server {}`", words.join(" "));
        let mut child = command.spawn().with_context(what)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A command that reads no input has closed it, which is fine.
            let _ = writeln!(stdin, "{input}");
        }
        let output = child.wait_with_output().with_context(what)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{}: {}", what(), crate::output::one_line(&said));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Stays until the user has seen enough, or a part ends.
    pub(super) fn stay(&self) -> Result<()> {
        self.0.done.store(true, Ordering::Relaxed);
        loop {
            std::thread::sleep(Duration::from_millis(200));
            let mut ended = None;
            for child in lock(&self.0.children).iter_mut() {
                ended = ended.or(child.try_wait()?);
            }
            let Some(status) = ended else { continue };
            // The same Ctrl-C reaches every process of the group, in any order.
            std::thread::sleep(Duration::from_millis(300));
            if self.0.ending.load(Ordering::Relaxed) {
                std::thread::sleep(5 * FAREWELL);
            }
            bail!("a part of the demo ended: {status}");
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Shared {
    fn end(&self) {
        let mut children = lock(&self.children);
        while let Some(mut child) = children.pop() {
            let pid = Pid::from_raw(child.id().cast_signed());
            let _ = kill(pid, Signal::SIGTERM);
            let start = Instant::now();
            while matches!(child.try_wait(), Ok(None)) && start.elapsed() < FAREWELL {
                std::thread::sleep(Duration::from_millis(5));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        drop(lock(&self.folder).take());
    }
}

/// A running part of the demo.
pub(super) struct Part {
    name: &'static str,
    id: u32,
    lines: Lines,
    shared: Arc<Shared>,
}

impl Part {
    /// Waits until `happened`; an error with the part's last words when it ends or takes too long.
    pub(super) fn wait_for(&self, limit: Duration, happened: impl Fn() -> bool) -> Result<()> {
        let start = Instant::now();
        while !happened() {
            if self.has_ended() {
                bail!("`{}` ended: {}", self.name, self.last_words());
            }
            if start.elapsed() > limit {
                bail!(
                    "`{}` is not ready after {} s: {}",
                    self.name,
                    limit.as_secs(),
                    self.last_words()
                );
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Whether a line with this text was printed.
    pub(super) fn said(&self, text: &str) -> bool {
        self.line_with(text).is_some()
    }

    /// The last line with this text.
    pub(super) fn line_with(&self, text: &str) -> Option<String> {
        let lines = lock(&self.lines.0);
        lines.iter().rev().find(|line| line.contains(text)).cloned()
    }

    fn has_ended(&self) -> bool {
        let mut children = lock(&self.shared.children);
        let own = children.iter_mut().find(|child| child.id() == self.id);
        own.is_none_or(|child| !matches!(child.try_wait(), Ok(None)))
    }

    fn last_words(&self) -> String {
        let lines = lock(&self.lines.0);
        match lines.last() {
            Some(line) => line.clone(),
            None => "it said nothing".to_owned(),
        }
    }
}

/// What a part printed on stderr; the newest lines are kept.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    const KEPT: usize = 1000;

    fn follow(&self, from: impl Read + Send + 'static) -> Result<()> {
        let kept = Arc::clone(&self.0);
        let read = move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                tracing::debug!("{line}");
                let mut kept = lock(&kept);
                if kept.len() >= Self::KEPT {
                    kept.remove(0);
                }
                kept.push(line);
            }
        };
        std::thread::Builder::new().spawn(read)?;
        Ok(())
    }
}

/// On SIGINT, SIGTERM or SIGHUP, ends all and exits.
fn end_on_signal(shared: Arc<Shared>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let wait = move || {
        runtime.block_on(any_signal());
        shared.ending.store(true, Ordering::Relaxed);
        let code = if shared.done.load(Ordering::Relaxed) {
            0
        } else {
            INTERRUPTED
        };
        shared.end();
        std::process::exit(code);
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(wait)?;
    Ok(())
}

async fn any_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let kinds = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ];
    let Ok(mut signals) = kinds.into_iter().map(signal).collect::<Result<Vec<_>, _>>() else {
        return std::future::pending().await;
    };
    std::future::poll_fn(|context| {
        let came = signals
            .iter_mut()
            .any(|signal| signal.poll_recv(context).is_ready());
        if came {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
}

/// A part of the demo must not outlive it, not even when the demo is killed.
fn die_with_parent(command: &mut Command) {
    let die = || nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(std::io::Error::from);
    // SAFETY: between fork and exec only prctl(2) is called, which is async-signal-safe.
    unsafe { command.pre_exec(die) };
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

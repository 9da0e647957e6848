//! Programs that a test runs: output by lines, signals, memory. A dropped process is killed.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::net::Host;

/// The binary under test: `RELAY_BIN`, else the newest build in the target folder.
///
/// # Panics
/// When there is none.
pub fn relay_binary() -> PathBuf {
    if let Some(path) = std::env::var_os("RELAY_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().expect("path of the test");
    let target = test.ancestors().nth(3).expect("target folder");
    let built = ["debug/relay", "release/relay"].map(|name| target.join(name));
    let newest = built
        .into_iter()
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .max();
    newest
        .expect("no relay binary: run `cargo xtask test`, or set RELAY_BIN")
        .1
}

/// A running program.
pub struct Process {
    name: String,
    child: Child,
    started: Instant,
    /// The test itself ended it.
    killed: bool,
    stdout: Lines,
    stderr: Lines,
}

impl Process {
    /// Starts `command` in a host, or in the test's own network.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(name: &str, host: Option<&Host>, command: Command) -> Process {
        Process::spawn(name, host, command, Stdio::null())
    }

    /// Starts it in a host's network and in no container, whatever relay is in: a program that
    /// stands for another machine's.
    ///
    /// # Panics
    /// When it does not start.
    pub fn outside(name: &str, host: &Host, mut command: Command) -> Process {
        host.namespace.adopt(&mut command);
        Process::start(name, None, command)
    }

    /// Starts it with a pipe to its standard input.
    ///
    /// # Panics
    /// When it does not start.
    pub fn with_input(
        name: &str,
        host: Option<&Host>,
        command: Command,
    ) -> (Process, std::process::ChildStdin) {
        let mut process = Process::spawn(name, host, command, Stdio::piped());
        let input = process.child.stdin.take().expect("standard input");
        (process, input)
    }

    fn spawn(name: &str, host: Option<&Host>, mut command: Command, input: Stdio) -> Process {
        if let Some(host) = host {
            command = host.run(command);
        }
        command
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // SAFETY: between fork and exec only setrlimit(2) and prctl(2) are called, which are
        // async-signal-safe.
        unsafe { command.pre_exec(usual_limits) };
        let started = Instant::now();
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("start {name}: {error}"));
        Process {
            name: name.to_owned(),
            stdout: Lines::follow(child.stdout.take().expect("stdout")),
            stderr: Lines::follow(child.stderr.take().expect("stderr")),
            child,
            started,
            killed: false,
        }
    }

    /// When it was started.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line on stderr that contains `text`, however early it came.
    ///
    /// # Panics
    /// With all output, when the line does not come or the program ends first.
    pub fn wait_line(&self, text: &str, limit: Duration) -> String {
        self.wait_nth_line(text, 1, limit)
    }

    /// Waits for the `count`-th line that contains `text`.
    ///
    /// # Panics
    /// As [`Process::wait_line`].
    pub fn wait_nth_line(&self, text: &str, count: usize, limit: Duration) -> String {
        match self.stderr.wait(text, count, limit) {
            Some(line) => line,
            None => panic!(
                "{}: no line {count} with {text:?} within {limit:?}\n{}",
                self.name,
                self.output()
            ),
        }
    }

    /// Waits until something like that is on standard output, however early it came.
    ///
    /// # Panics
    /// With all output, when it does not come or the program ends first.
    pub fn wait_output(&self, text: &str, limit: Duration) -> String {
        match self.stdout.wait(text, 1, limit) {
            Some(line) => line,
            None => panic!(
                "{}: no {text:?} on stdout within {limit:?}\n{}",
                self.name,
                self.output()
            ),
        }
    }

    /// The lines of stderr so far that contain `text`.
    pub fn count_lines(&self, text: &str) -> usize {
        self.stderr.count(text)
    }

    /// All that it printed so far, for messages.
    pub fn output(&self) -> String {
        format!(
            "--- stdout of {0}\n{1}\n--- stderr of {0}\n{2}",
            self.name,
            self.stdout.text(),
            self.stderr.text()
        )
    }

    /// Standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// Standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(self.pid(), signal);
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it goes on for longer than `limit`.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let ended = crate::poll(limit, || self.child.try_wait().expect("wait"));
        let Some(status) = ended else {
            panic!(
                "{} still runs after {limit:?}\n{}",
                self.name,
                self.output()
            );
        };
        self.stdout.wait_end();
        self.stderr.wait_end();
        status
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Kills it without a warning.
    pub fn kill(&mut self) {
        self.killed = true;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Interrupts it, as Ctrl-C does, and waits for its end.
    pub fn interrupt(&mut self) -> ExitStatus {
        self.signal(Signal::SIGINT);
        self.wait(crate::PATIENCE)
    }

    /// RssAnon + RssShmem of the process and of its children, in KiB.
    pub fn memory(&self) -> u64 {
        let own = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children"));
        let children = children.unwrap_or_default();
        std::iter::once(own)
            .chain(children.split_whitespace().filter_map(|id| id.parse().ok()))
            .map(memory_of)
            .sum()
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let crashed =
            matches!(self.child.try_wait(), Ok(Some(status)) if status.signal().is_some());
        let crashed = crashed && !self.killed;
        self.kill();
        if crashed || std::thread::panicking() {
            crate::say(self.output());
        }
    }
}

impl Process {
    /// The processor time of its threads, those that ended not counted
    /// (`/proc/PID/task/TID/schedstat`).
    ///
    /// # Panics
    /// When the program has ended.
    pub fn processor_time(&self) -> Duration {
        let folder = format!("/proc/{}/task", self.id());
        let threads = std::fs::read_dir(folder).expect("threads").flatten();
        let nanos = threads.filter_map(|thread| {
            let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(nanos.sum())
    }
}

/// Runs relay to its end.
pub fn run_relay(host: Option<&Host>, home: &Path, args: &[&str]) -> Finished {
    let mut command = relay(home);
    command.args(args);
    let mut process = Process::start(&format!("relay {}", args.join(" ")), host, command);
    let status = process.wait(crate::PATIENCE);
    Finished {
        code: status.code().unwrap_or(-1),
        stdout: process.stdout(),
        stderr: process.stderr(),
    }
}

/// The binary under test, with nothing of the user's environment that could steer it.
pub fn relay(home: &Path) -> Command {
    clean(Command::new(relay_binary()), home)
}

/// Takes from a command what steers relay, and gives it a home of its own.
pub fn clean(mut command: Command, home: &Path) -> Command {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CODER_") || text.starts_with("RELAY_") || text.starts_with("XDG_") {
            command.env_remove(name);
        }
    }
    // What the log tells, and which stack is under test, is for whoever runs the tests to say.
    for name in ["RELAY_LOG", "RELAY_STACK"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    // Sockets of running commands, too, are the test's own.
    command.env("HOME", home).env("XDG_RUNTIME_DIR", home);
    command.env("NO_COLOR", "1");
    command
}

/// A program that ended.
#[derive(Debug)]
pub struct Finished {
    /// Exit status; −1 after a signal.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// Asserts success and gives standard output without its last line break.
    ///
    /// # Panics
    /// With all output, when the program failed.
    pub fn success(&self) -> &str {
        assert_eq!(self.code, 0, "{}\n{}", self.stdout, self.stderr);
        self.stdout.trim_end()
    }
}

/// Lines as they come out of a program.
struct Lines(Arc<(Mutex<Seen>, Condvar)>);

#[derive(Default)]
struct Seen {
    lines: Vec<String>,
    ended: bool,
}

impl Lines {
    fn follow(from: impl Read + Send + 'static) -> Lines {
        let shared = Arc::new((Mutex::new(Seen::default()), Condvar::new()));
        let writer = Arc::clone(&shared);
        std::thread::spawn(move || {
            let mut reader = BufReader::new(from);
            let mut line = Vec::new();
            loop {
                line.clear();
                let count = reader.read_until(b'\n', &mut line).unwrap_or(0);
                let (seen, changed) = &*writer;
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                if count == 0 {
                    seen.ended = true;
                    changed.notify_all();
                    return;
                }
                let text = String::from_utf8_lossy(&line);
                seen.lines.push(text.trim_end_matches('\n').to_owned());
                changed.notify_all();
            }
        });
        Lines(shared)
    }

    fn wait(&self, text: &str, count: usize, limit: Duration) -> Option<String> {
        let deadline = Instant::now() + limit;
        let (seen, changed) = &*self.0;
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let mut found = seen.lines.iter().filter(|line| line.contains(text));
            if let Some(line) = found.nth(count - 1) {
                return Some(line.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if seen.ended || left.is_zero() {
                return None;
            }
            let waited = changed.wait_timeout(seen, left);
            seen = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn count(&self, text: &str) -> usize {
        let seen = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.lines.iter().filter(|line| line.contains(text)).count()
    }

    fn text(&self) -> String {
        let seen = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.lines.join("\n")
    }

    /// Waits a moment for the last bytes of a program that ended.
    fn wait_end(&self) {
        let ended = || {
            self.0
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .ended
        };
        crate::poll(Duration::from_secs(2), || ended().then_some(()));
    }
}

fn memory_of(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    status
        .lines()
        .filter(|line| line.starts_with("RssAnon:") || line.starts_with("RssShmem:"))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum()
}

/// A test may raise its own limit; what it starts gets the usual one, and ends with its parent.
fn usual_limits() -> std::io::Result<()> {
    const SOFT: u64 = 1024;
    const HARD: u64 = 20_000;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, SOFT.min(hard), HARD.min(hard))?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    Ok(())
}

/// Raises the test's own limit of descriptors as far as it may, and says how many it may have.
pub fn raise_own_descriptor_limit() -> u64 {
    const WANTED: u64 = 65_536;
    if setrlimit(Resource::RLIMIT_NOFILE, WANTED, WANTED).is_err()
        && let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft)
}

//! Child processes: started, waited for until they say they are ready, and what they cost.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};

use crate::Error;

/// A running child; ended when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    lines: Mutex<Receiver<String>>,
    seen: Vec<String>,
}

impl Process {
    /// Starts `command`, with stderr read line by line and stdout thrown away.
    ///
    /// # Errors
    /// [`Error::Start`] when the program cannot be run.
    pub fn start(name: &str, command: &mut Command) -> Result<Self, Error> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| Error::Start {
                program: name.to_owned(),
                source,
            })?;
        let (sender, lines) = mpsc::channel();
        if let Some(stderr) = child.stderr.take() {
            thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        Ok(Self {
            name: name.to_owned(),
            child,
            lines: Mutex::new(lines),
            seen: Vec::new(),
        })
    }

    /// Waits until a line that contains `text` was printed, and gives it.
    ///
    /// # Errors
    /// [`Error::NotReady`] with the last lines when it ends or `limit` passes.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<String, Error> {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            // The lock is only there to share the value; nobody can have panicked holding it.
            let lines = self.lines.get_mut().unwrap_or_else(PoisonError::into_inner);
            match lines.recv_timeout(left) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(text) {
                        return Ok(line);
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return Err(self.not_ready(limit));
                }
            }
        }
    }

    fn not_ready(&self, limit: Duration) -> Error {
        let last = self.seen.len().saturating_sub(5);
        Error::NotReady {
            program: self.name.clone(),
            seconds: limit.as_secs(),
            output: self.seen[last..].join(" | "),
        }
    }

    /// How many lines so far contain `text`.
    pub fn count(&mut self, text: &str) -> usize {
        let lines = self.lines.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.seen.extend(lines.try_iter());
        self.seen.iter().filter(|line| line.contains(text)).count()
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// The error of a program that did not get ready in `limit`.
    pub(crate) fn unready(&mut self, limit: Duration) -> Error {
        let lines = self.lines.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.seen.extend(lines.try_iter());
        self.not_ready(limit)
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        let _ = kill(pid, Signal::SIGTERM);
        let end = Instant::now() + Duration::from_secs(3);
        while Instant::now() < end {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command to its end and gives what it printed on stdout.
///
/// # Errors
/// [`Error::Start`] when it cannot be run, [`Error::NotReady`] with its stderr when it fails.
pub fn run(name: &str, command: &mut Command, input: Option<&str>) -> Result<String, Error> {
    use std::io::Write;
    let start = |source| Error::Start {
        program: name.to_owned(),
        source,
    };
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(start)?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        stdin.write_all(input.as_bytes()).map_err(start)?;
    }
    let output = child.wait_with_output().map_err(start)?;
    if !output.status.success() {
        let output = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::NotReady {
            program: name.to_owned(),
            seconds: 0,
            output,
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The processes whose cost counts for a route: some roots and all that they started.
#[derive(Clone, Debug, Default)]
pub struct Family(Vec<u32>);

impl Family {
    /// The family of `roots`.
    pub fn of(roots: impl IntoIterator<Item = u32>) -> Self {
        Self(roots.into_iter().collect())
    }

    /// CPU time used so far by all members, user and system; of members that ended, as far as
    /// their parent lives and waited for them.
    pub fn cpu(&self) -> Duration {
        let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
        let used: u64 = self.members().into_iter().filter_map(cpu_ticks).sum();
        Duration::from_secs_f64(used as f64 / ticks as f64)
    }

    /// Anonymous and shared memory of all members, MiB. A page that several of them share counts
    /// once (Pss_Anon + Pss_Shmem of `/proc/PID/smaps_rollup`); where that cannot be read, once for
    /// each (RssAnon + RssShmem of `/proc/PID/status`).
    pub fn memory(&self) -> f64 {
        let kib: u64 = self.members().into_iter().filter_map(memory_kib).sum();
        kib as f64 / 1024.0
    }

    fn members(&self) -> Vec<u32> {
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        for (pid, parent) in processes() {
            children.entry(parent).or_default().push(pid);
        }
        let mut members = self.0.clone();
        let mut next = 0;
        while let Some(pid) = members.get(next) {
            if let Some(more) = children.get(pid) {
                members.extend(more);
            }
            next += 1;
        }
        members
    }
}

fn processes() -> Vec<(u32, u32)> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, stat_field(pid, 4)?.try_into().ok()?)))
        .collect()
}

/// Its own, and that of children that ended and were waited for.
fn cpu_ticks(pid: u32) -> Option<u64> {
    (14..=17).map(|field| stat_field(pid, field)).sum()
}

/// Field `number` (proc(5) counts from 1) of `/proc/PID/stat`; the name in field 2 may hold blanks.
fn stat_field(pid: u32, number: usize) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(number - 3)?.parse().ok()
}

fn memory_kib(pid: u32) -> Option<u64> {
    let shared = sum_of(
        format!("/proc/{pid}/smaps_rollup"),
        &["Pss_Anon:", "Pss_Shmem:"],
    );
    shared.or_else(|| sum_of(format!("/proc/{pid}/status"), &["RssAnon:", "RssShmem:"]))
}

/// The sum of some lines `NAME: NUMBER kB`; `None` unless all are there.
fn sum_of(file: String, names: &[&str]) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let field = |name: &&str| -> Option<u64> {
        let line = text.lines().find(|line| line.starts_with(*name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    names.iter().map(field).sum()
}

/// The first line of a file, trimmed; empty when it cannot be read.
pub(crate) fn first_line(path: impl AsRef<Path>) -> String {
    let mut text = String::new();
    if let Ok(file) = fs::File::open(path) {
        let _ = file.take(4096).read_to_string(&mut text);
    }
    text.lines().next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_counts_what_its_members_use() {
        let own = Family::of([std::process::id()]);
        let end = Instant::now() + Duration::from_millis(60);
        while Instant::now() < end {
            std::hint::spin_loop();
        }
        assert!(own.cpu() > Duration::ZERO);
        assert!(own.memory() > 0.1);
    }

    #[test]
    fn a_family_counts_children_that_ended() {
        let mut command = Command::new("sh");
        let busy =
            "sh -c 'i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done'; echo done >&2; sleep 9";
        command.args(["-c", busy]);
        let mut parent = Process::start("sh", &mut command).unwrap();
        parent.wait_for("done", Duration::from_secs(20)).unwrap();
        let used = Family::of([parent.id()]).cpu();
        assert!(used >= Duration::from_millis(20), "{used:?}");
    }

    #[test]
    fn lines_that_are_missing_make_no_sum() {
        let status = format!("/proc/{}/status", std::process::id());
        assert!(sum_of(status.clone(), &["RssAnon:"]).unwrap() > 0);
        assert_eq!(sum_of(status, &["RssAnon:", "Nothing:"]), None);
    }

    #[test]
    fn a_program_that_ends_early_is_reported_with_its_words() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such thing >&2"]);
        let mut process = Process::start("sh", &mut command).unwrap();
        let error = process
            .wait_for("Ready", Duration::from_secs(5))
            .unwrap_err();
        assert!(error.to_string().contains("no such thing"), "{error}");
    }
}

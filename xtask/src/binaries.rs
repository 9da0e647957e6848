//! Runs the binaries of the tests, two at a time: most of what they do is wait for each other's
//! processes, and one by one leaves half of a small machine idle.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::run::{cargo, root, say};

/// How many run at once.
const AT_ONCE: usize = 2;

/// How long one may run: one that hangs shall say what it printed before the whole run is ended.
const LIMIT: Duration = Duration::from_secs(600);

/// How long a process that outlives its test may hold up the test's output.
const TAIL: Duration = Duration::from_secs(2);

/// Those that look at what belongs to the whole machine, such as the programs in its kernel, or
/// compare times: one by one, after all others.
const ALONE: [&str; 7] = [
    "benches/tests/direct.rs",
    "tests/tests/bench.rs",
    "tests/tests/clients.rs",
    "tests/tests/idle.rs",
    "tests/tests/loops.rs",
    "tests/tests/ranges.rs",
    "tests/tests/sockmap.rs",
];

/// A test binary as cargo built it.
struct Binary {
    /// Its source, from the workspace's folder on.
    source: String,
    executable: PathBuf,
    /// The folder of its package, where cargo runs it too.
    package: PathBuf,
}

/// Builds what `words` select of `cargo test`, and runs it with `env`. Every binary runs; the
/// error names those that failed.
pub(crate) fn run(words: &[&str], env: &[(&str, String)]) -> Result<()> {
    let binaries = build(words)?;
    let (alone, rest): (Vec<_>, Vec<_>) = binaries
        .into_iter()
        .partition(|binary| ALONE.contains(&binary.source.as_str()));
    let mut failed = all(rest, AT_ONCE, env);
    failed.extend(all(alone, 1, env));
    if !failed.is_empty() {
        bail!("these tests failed:\n  {}", failed.join("\n  "));
    }
    Ok(())
}

/// Builds the binaries without running them.
fn build(words: &[&str]) -> Result<Vec<Binary>> {
    let mut command = cargo(&["test", "--no-run"]);
    command
        .args(words)
        .arg("--message-format=json-render-diagnostics")
        .current_dir(root())
        .stdout(Stdio::piped());
    say(format_args!("$ cargo test --no-run {}", words.join(" ")));
    let mut child = command.spawn().context("cannot start cargo")?;
    let messages = child.stdout.take().context("cargo has no output")?;
    let mut binaries = Vec::new();
    for line in BufReader::new(messages).lines() {
        let line = line.context("cannot read what cargo says")?;
        let message = serde_json::from_str(&line).unwrap_or_default();
        binaries.extend(binary(&message));
    }
    let status = child.wait().context("cannot wait for cargo")?;
    if !status.success() {
        bail!("the tests do not build: {status}");
    }
    // Cargo names them as it comes to them, in another order each time.
    binaries.sort_by(|a, b| a.source.cmp(&b.source));
    Ok(binaries)
}

/// What a message of cargo says of a test binary, if it is about one.
fn binary(message: &Value) -> Option<Binary> {
    let is_test = message["reason"] == "compiler-artifact" && message["profile"]["test"] == true;
    let executable = message["executable"].as_str().filter(|_| is_test)?;
    let source = Path::new(message["target"]["src_path"].as_str()?);
    let package = Path::new(message["manifest_path"].as_str()?).parent()?;
    Some(Binary {
        source: source.strip_prefix(root()).ok()?.display().to_string(),
        executable: executable.into(),
        package: package.to_owned(),
    })
}

/// Runs all, some at once, and returns which failed and how.
fn all(binaries: Vec<Binary>, at_once: usize, env: &[(&str, String)]) -> Vec<String> {
    let waiting = Mutex::new(binaries.into_iter());
    let failed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some(binary) = lock(&waiting).next() {
                    if let Some(how) = one(&binary, env) {
                        lock(&failed).push(format!("{}: {how}", binary.source));
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Runs one, prints what it printed, and says how it failed if it did.
fn one(binary: &Binary, env: &[(&str, String)]) -> Option<String> {
    let start = Instant::now();
    let (output, how) = match start_of(binary, env) {
        Ok((child, output)) => {
            let how = end_of(child);
            (output.end(), how)
        }
        Err(error) => (Vec::new(), Some(format!("{error:#}"))),
    };
    let mut stderr = std::io::stderr().lock();
    let (source, took) = (&binary.source, start.elapsed().as_secs_f64());
    let _ = writeln!(stderr, "     Running {source}, {took:.1} s");
    let _ = stderr.write_all(&output);
    how
}

fn start_of(binary: &Binary, env: &[(&str, String)]) -> Result<(Child, Output)> {
    let (reader, writer) = std::io::pipe()?;
    let mut command = Command::new(&binary.executable);
    command
        .current_dir(&binary.package)
        .env("CARGO_MANIFEST_DIR", &binary.package)
        .envs(env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let child = command.spawn().context("cannot start")?;
    Ok((child, Output::read(reader)))
}

/// Waits for the end, and says what was wrong with it.
fn end_of(mut child: Child) -> Option<String> {
    let wrong = |status: ExitStatus| (!status.success()).then(|| status.to_string());
    let limit = Instant::now() + LIMIT;
    while Instant::now() < limit {
        match child.try_wait() {
            Ok(Some(status)) => return wrong(status),
            Ok(None) => thread::sleep(Duration::from_millis(20)),
            Err(error) => return Some(error.to_string()),
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    Some(format!("ran longer than {} s", LIMIT.as_secs()))
}

/// What a process and its children print, gathered beside.
struct Output(Arc<(Mutex<Gathered>, Condvar)>);

#[derive(Default)]
struct Gathered {
    bytes: Vec<u8>,
    is_whole: bool,
}

impl Output {
    fn read(mut pipe: impl Read + Send + 'static) -> Output {
        let output = Output(Arc::default());
        let shared = Arc::clone(&output.0);
        thread::spawn(move || {
            let mut piece = [0; 8192];
            let (gathered, ended) = &*shared;
            while let Ok(length @ 1..) = pipe.read(&mut piece) {
                lock(gathered).bytes.extend_from_slice(&piece[..length]);
            }
            lock(gathered).is_whole = true;
            ended.notify_all();
        });
        output
    }

    /// All of it; a process that still holds the pipe is not waited for.
    fn end(self) -> Vec<u8> {
        let (gathered, ended) = &*self.0;
        let waited = ended.wait_timeout_while(lock(gathered), TAIL, |output| !output.is_whole);
        let (mut output, _) = waited.unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut output.bytes)
    }
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

//! The two ends that another program holds: commands from standard input, events to standard output.

use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, mpsc as std_mpsc};
use std::time::Duration;

use relay_forward::Handle;
use relay_wire::forwards::AnyForward;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::json;
use crate::output::one_line;

/// Events that may wait for a program that reads slowly; more are left out.
const WAITING: usize = 4096;
/// How often it is looked whether anybody still reads.
const LOOK: Duration = Duration::from_secs(1);
/// How long the last events may take.
const LAST: Duration = Duration::from_secs(1);
/// The longest command, bytes.
const LONGEST: u64 = 64 << 10;

/// Standard output, line by line, without ever waiting for whoever reads.
#[derive(Clone)]
pub(super) struct Events {
    lines: SyncSender<Value>,
    missed: Arc<AtomicU64>,
}

/// The thread that writes.
pub(super) struct Writer {
    /// Comes to its end when all is written.
    done: Receiver<()>,
}

impl Events {
    /// Starts to write. The receiver gets its value when nobody reads any more.
    pub(super) fn start() -> io::Result<(Self, Writer, oneshot::Receiver<()>)> {
        let (lines, queue) = sync_channel(WAITING);
        let missed = Arc::new(AtomicU64::new(0));
        let (tell_done, done) = std_mpsc::channel();
        let (tell_gone, gone) = oneshot::channel();
        let counted = Arc::clone(&missed);
        std::thread::Builder::new()
            .name("events".to_owned())
            .spawn(move || {
                if write_all(&queue, &counted).is_err() {
                    let _ = tell_gone.send(());
                }
                drop(tell_done);
            })?;
        Ok((Self { lines, missed }, Writer { done }, gone))
    }

    /// Writes a line, or counts it as missed.
    pub(super) fn tell(&self, line: Value) {
        if self.lines.try_send(line).is_err() {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Writer {
    /// Waits until all is written, not for ever.
    pub(super) fn finish(self) {
        let _ = self.done.recv_timeout(LAST);
    }
}

fn write_all(queue: &Receiver<Value>, missed: &AtomicU64) -> io::Result<()> {
    loop {
        match queue.recv_timeout(LOOK) {
            Ok(line) => {
                write(&line)?;
                let count = missed.swap(0, Ordering::Relaxed);
                if count > 0 {
                    write(&json::missed(count))?;
                }
            }
            Err(RecvTimeoutError::Timeout) => look()?,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

fn write(line: &Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// Fails when nobody can read standard output any more.
fn look() -> io::Result<()> {
    let stdout = io::stdout();
    let mut polled = [PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::empty())];
    poll(&mut polled, Some(&Timespec::default()))?;
    let gone = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
    match polled[0].revents().intersects(gone) {
        true => Err(io::ErrorKind::BrokenPipe.into()),
        false => Ok(()),
    }
}

/// A command, as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
enum Command {
    Add(Names),
    Remove(Names),
    List(bool),
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "name one forward, or a list of them, as text")]
enum Names {
    One(String),
    Several(Vec<String>),
}

impl Names {
    fn read(&self) -> Result<Vec<AnyForward>, String> {
        let names = match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Several(names) => names,
        };
        let mut forwards = Vec::new();
        for name in names {
            forwards.extend(AnyForward::parse(name).map_err(|error| error.to_string())?);
        }
        Ok(forwards)
    }
}

/// Does what standard input says, to its end. It never comes back.
pub(super) async fn obey(handle: Handle, events: Events) {
    let mut lines = lines();
    while let Some(line) = lines.recv().await {
        if line.trim().is_empty() {
            continue;
        }
        if let Err(message) = execute(&line, &handle, &events).await {
            events.tell(json::refused(&line, &one_line(&message)));
        }
    }
    std::future::pending().await
}

async fn execute(line: &str, handle: &Handle, events: &Events) -> Result<(), String> {
    let read = serde_json::from_str::<Command>(line);
    let command = read.map_err(|error| {
        let how =
            "write {\"add\": \"tcp://9000\"}, {\"remove\": \"tcp://9000\"} or {\"list\": true}";
        format!("this is no command ({error}); {how}")
    })?;
    let done = match command {
        Command::Add(names) => handle.add(names.read()?).await,
        Command::Remove(names) => handle.remove(names.read()?).await,
        Command::List(false) => Ok(()),
        Command::List(true) => {
            let (traffic, _) = handle.board().traffic(usize::MAX);
            events.tell(json::list(&traffic));
            Ok(())
        }
    };
    done.map_err(|error| error.to_string())
}

/// The lines of standard input, by a thread that ends with the process at the latest.
fn lines() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(1);
    if in_background() {
        return lines;
    }
    let started = std::thread::Builder::new()
        .name("commands".to_owned())
        .spawn(move || read(io::stdin(), |line| sender.blocking_send(line).is_ok()));
    if let Err(error) = started {
        tracing::warn!(%error, "commands are not read");
    }
    lines
}

/// Whether a read would stop this process: it runs in the background of a terminal.
fn in_background() -> bool {
    let stdin = io::stdin();
    stdin.is_terminal()
        && rustix::termios::tcgetpgrp(stdin.as_fd())
            .is_ok_and(|foreground| foreground != rustix::process::getpgrp())
}

/// Hands each line on, until nobody takes it; of one that is too long, its start.
fn read(from: impl Read, mut take: impl FnMut(String) -> bool) {
    let mut reader = BufReader::new(from);
    loop {
        let mut line = Vec::new();
        match (&mut reader).take(LONGEST).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let whole = line.ends_with(b"\n") || (line.len() as u64) < LONGEST;
        let text = String::from_utf8_lossy(&line).trim().to_owned();
        if !take(text) || (!whole && skip_line(&mut reader).is_err()) {
            return;
        }
    }
}

fn skip_line(reader: &mut impl BufRead) -> io::Result<()> {
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(());
        }
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let used = end.map_or(buffer.len(), |at| at + 1);
        reader.consume(used);
        if end.is_some() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(text: &str) -> Vec<String> {
        let mut lines = Vec::new();
        read(text.as_bytes(), |line| {
            lines.push(line);
            true
        });
        lines
    }

    #[test]
    fn lines_are_read_to_the_end_and_long_ones_are_cut() {
        assert_eq!(read_all("a\n\nb"), ["a", "", "b"]);
        let long = "x".repeat(200_000);
        let lines = read_all(&format!("{long}\nafter\n"));
        assert_eq!((lines.len(), lines[0].len()), (2, 64 << 10));
        assert_eq!(lines[1], "after");
    }

    #[test]
    fn commands_are_read_and_others_are_not() {
        let read = |text: &str| serde_json::from_str::<Command>(text);
        let Command::Add(names) = read(r#"{"add": ["tcp://1-2", "udp://3"]}"#).unwrap() else {
            panic!("another command")
        };
        assert_eq!(names.read().unwrap().len(), 3);
        assert!(matches!(read(r#"{"list": true}"#), Ok(Command::List(true))));
        for bad in [
            "",
            "x",
            "{}",
            "[]",
            r#"{"add": 1}"#,
            r#"{"frob": "x"}"#,
            r#"{"add": "a", "remove": "b"}"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        let Command::Remove(names) = read(r#"{"remove": "9000"}"#).unwrap() else {
            panic!("another command")
        };
        assert!(names.read().unwrap_err().contains("9000"));
    }
}

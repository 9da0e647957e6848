//! Standard input, output and error of a session, the terminal's size, and signals.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use nix::sys::signal::Signal as UnixSignal;
use relay_forward::ssh::{Console, Output, Signal, Size};
use rustix::event::{PollFd, PollFlags, poll};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

use super::terminal;

/// Read at once, at most.
const CHUNK: usize = 64 << 10;
/// Chunks on their way; more waits where it comes from.
const QUEUE: usize = 4;
/// How long the last of the output may take when nobody may be there to read it.
const FLUSH: Duration = Duration::from_secs(5);
/// Ctrl-C, as a raw terminal sends it.
const INTERRUPT: u8 = 3;

/// Whether the agent is away: what is typed then reaches nobody.
#[derive(Clone, Default)]
pub(super) struct Lost(Arc<AtomicBool>);

impl Lost {
    pub(super) fn set(&self, lost: bool) {
        self.0.store(lost, Ordering::Relaxed);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Ends when all output has been written.
pub(super) struct Flushed(oneshot::Receiver<()>);

impl Flushed {
    /// Waits for that, for a bounded time. The console must have been dropped.
    pub(super) async fn wait(self) {
        let _ = tokio::time::timeout(FLUSH, self.0).await;
    }
}

/// Opens the console. Blocking descriptors are left as they are, since other processes have them
/// too: threads read and write, and end with the process.
pub(super) fn open(raw: bool, lost: &Lost) -> io::Result<(Console, Flushed)> {
    let (signal_sender, signals) = mpsc::channel(QUEUE);
    watch_signals(&signal_sender)?;
    let (size_sender, sizes) = watch::channel(terminal::size());
    watch_size(size_sender, raw)?;
    let (typed, input) = mpsc::channel(QUEUE);
    let (lost, interrupt) = (lost.clone(), raw.then_some(signal_sender));
    let stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || read(stdin, &typed, &lost, interrupt.as_ref()))?;
    let (output, printed) = mpsc::channel(QUEUE);
    let (tell, flushed) = oneshot::channel();
    std::thread::Builder::new()
        .name("stdout".to_owned())
        .spawn(move || {
            // An error is told by the queue, which is closed.
            let _ = write(printed);
            drop(tell);
        })?;
    let console = Console {
        input,
        output,
        sizes,
        signals,
    };
    Ok((console, Flushed(flushed)))
}

/// Signals to this process, from now on.
pub(super) fn signals() -> io::Result<mpsc::Receiver<Signal>> {
    let (sender, signals) = mpsc::channel(QUEUE);
    watch_signals(&sender)?;
    Ok(signals)
}

fn watch_signals(to: &mpsc::Sender<Signal>) -> io::Result<()> {
    for (kind, told) in [
        (SignalKind::interrupt(), Signal::Interrupt),
        (SignalKind::quit(), Signal::Quit),
        (SignalKind::terminate(), Signal::Terminate),
        (SignalKind::hangup(), Signal::Hangup),
    ] {
        let (mut signal, to) = (signal(kind)?, to.clone());
        tokio::spawn(async move {
            while signal.recv().await.is_some() && to.send(told).await.is_ok() {}
        });
    }
    Ok(())
}

/// Tells changes of the terminal's size. Whoever was stopped may find the terminal changed, by the
/// shell that was used meanwhile.
fn watch_size(sizes: watch::Sender<Size>, raw: bool) -> io::Result<()> {
    let mut changed = signal(SignalKind::window_change())?;
    let mut continued = signal(SignalKind::from_raw(UnixSignal::SIGCONT as i32))?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                Some(()) = changed.recv() => {}
                Some(()) = continued.recv() => if raw { terminal::raw_again() },
                () = sizes.closed() => return,
            }
            let now = terminal::size();
            sizes.send_if_modified(|size| std::mem::replace(size, now) != now);
        }
    });
    Ok(())
}

fn read(
    mut stdin: File,
    typed: &mpsc::Sender<Bytes>,
    lost: &Lost,
    interrupt: Option<&mpsc::Sender<Signal>>,
) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = match stdin.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                wait(&stdin, PollFlags::IN);
                continue;
            }
            Ok(0) | Err(_) => return,
            Ok(read) => read,
        };
        let bytes = &buffer[..read];
        if let Some(interrupt) = interrupt
            && lost.get()
            && bytes.contains(&INTERRUPT)
        {
            let _ = interrupt.blocking_send(Signal::Interrupt);
            continue;
        }
        if typed.blocking_send(Bytes::copy_from_slice(bytes)).is_err() {
            return;
        }
    }
}

fn write(mut printed: mpsc::Receiver<Output>) -> io::Result<()> {
    let mut stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let mut stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    while let Some(chunk) = printed.blocking_recv() {
        match chunk {
            Output::Data(bytes) => write_all(&mut stdout, &bytes)?,
            // A closed stderr is nobody's error.
            Output::Error(bytes) => drop(write_all(&mut stderr, &bytes)),
        }
    }
    Ok(())
}

fn write_all(file: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => wait(file, PollFlags::OUT),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Waits for a descriptor that another process has made non-blocking.
fn wait(file: &File, what: PollFlags) {
    let _ = poll(&mut [PollFd::new(file, what)], None);
}

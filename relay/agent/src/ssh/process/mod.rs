//! Programs that are started for a peer, and their end.
//!
//! Each is the head of a session and process group of its own, with the agent's own user and rights.
//! When the channel or the agent ends, the group gets SIGHUP, as when a line is hung up.

mod guard;
pub(super) mod pty;
mod sys;

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, OnceLock, mpsc};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use guard::Guard;

/// A program to start.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    /// What it sees as its own name.
    pub(super) name: OsString,
    pub(super) arguments: Vec<OsString>,
    /// All of its environment.
    pub(super) environment: Vec<(OsString, OsString)>,
    pub(super) directory: PathBuf,
}

/// A program that runs.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    group: Group,
    /// None of them when it has a terminal.
    pub(super) stdin: Option<ChildStdin>,
    pub(super) stdout: Option<ChildStdout>,
    pub(super) stderr: Option<ChildStderr>,
}

/// A program's process group, as long as the program runs.
#[derive(Clone, Debug)]
pub(super) struct Group(Arc<AtomicI32>);

impl Group {
    fn of(child: &Child) -> Self {
        let id = child.id().map_or(0, u32::cast_signed);
        Self(Arc::new(AtomicI32::new(id)))
    }

    /// Sends a signal to all of it; says whether there was anybody to get it.
    pub(super) fn signal(&self, signal: Signal) -> bool {
        // Zero is no process: once the program was waited for, its number may be another's.
        let group = Pid::from_raw(self.0.load(Ordering::Acquire));
        group.is_some_and(|group| kill_process_group(group, signal).is_ok())
    }

    fn hang_up(&self) {
        self.signal(Signal::HUP);
        // One that was stopped could not see it.
        self.signal(Signal::CONT);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.group.hang_up();
        self.forget();
    }
}

impl Running {
    /// Waits for its end. Cancel safe.
    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait().await?;
        self.forget();
        Ok(status)
    }

    /// Its number may be another's from now on.
    fn forget(&self) {
        let group = self.group.0.swap(0, Ordering::AcqRel);
        if let Some(guard) = &starter().guard
            && group != 0
        {
            guard.remove(group);
        }
    }

    /// Its process group, to signal.
    pub(super) fn group(&self) -> Group {
        self.group.clone()
    }
}

/// Starts a program, on a terminal or on pipes.
///
/// # Errors
/// What the kernel says, such as that there is no such file.
pub(super) async fn start(program: Program, terminal: Option<OwnedFd>) -> io::Result<Running> {
    let mut command = Command::new(&program.path);
    command
        .arg0(&program.name)
        .args(&program.arguments)
        .env_clear()
        .envs(program.environment)
        .current_dir(&program.directory);
    let on_terminal = terminal.is_some();
    if let Some(terminal) = terminal {
        command
            .stdin(terminal.try_clone()?)
            .stdout(terminal.try_clone()?)
            .stderr(terminal);
    } else {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
    }
    sys::detach(&mut command, on_terminal);
    let mut child = spawn(command).await?;
    let group = Group::of(&child);
    if let Some(guard) = &starter().guard {
        guard.add(group.0.load(Ordering::Acquire));
    }
    Ok(Running {
        group,
        stdin: child.stdin.take(),
        stdout: child.stdout.take(),
        stderr: child.stderr.take(),
        child,
    })
}

/// What starts programs, made once for the process.
struct Starter {
    jobs: mpsc::Sender<Job>,
    guard: Option<Guard>,
}

/// A command for the thread that starts programs.
struct Job {
    command: Command,
    runtime: Handle,
    done: oneshot::Sender<io::Result<Child>>,
}

/// Programs are started by a thread that lives as long as the process: the signal that a program
/// gets at its parent's end comes at the end of the *thread* that started it (prctl(2),
/// `PR_SET_PDEATHSIG`).
fn starter() -> &'static Starter {
    static STARTER: OnceLock<Starter> = OnceLock::new();
    STARTER.get_or_init(|| {
        let guard = Guard::start().inspect_err(|error| {
            tracing::warn!(
                %error,
                "what programs of SSH clients have started will outlive this agent if it is killed"
            );
        });
        let (sender, jobs) = mpsc::channel::<Job>();
        let thread = std::thread::Builder::new().name("ssh-starter".to_owned());
        // Without it, every start fails.
        let _ = thread.spawn(move || {
            for job in jobs {
                start_one(job);
            }
        });
        Starter {
            jobs: sender,
            guard: guard.ok(),
        }
    })
}

fn start_one(job: Job) {
    let _context = job.runtime.enter();
    let child = tokio::process::Command::from(job.command).spawn();
    // Nobody waits any more: the program is hung up like one that ran.
    if let Err(Ok(child)) = job.done.send(child) {
        Group::of(&child).hang_up();
    }
}

async fn spawn(command: Command) -> io::Result<Child> {
    let (done, started) = oneshot::channel();
    let job = Job {
        command,
        runtime: Handle::current(),
        done,
    };
    let gone = || io::Error::other("the thread that starts programs is gone");
    starter().jobs.send(job).map_err(|_| gone())?;
    started.await.map_err(|_| gone())?
}

//! What the compiler cannot check: new processes behind a fork, and descriptors whose readiness the
//! runtime tells.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::libc;
use nix::sys::signal::{self, SigHandler, Signal};
use nix::unistd::ForkResult;
use rustix::process::{getppid, ioctl_tiocsctty, set_parent_process_death_signal, setsid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Makes the program the head of a session and process group of its own, with its standard input as
/// the controlling terminal if that is one, and has it hung up when this process dies. Whoever started
/// the agent may have had it ignore signals, as `nohup` does and a script's `&`; the program does not.
pub(super) fn detach(command: &mut Command, on_terminal: bool) {
    let parent = rustix::process::getpid();
    let prepare = move || {
        setsid()?;
        for signal in Signal::iterator() {
            // SAFETY: the handler is none of this program's code, and signal(2) is async-signal-safe.
            // Of the two signals that cannot be set it says so, and nothing is lost.
            let _ = unsafe { signal::signal(signal, SigHandler::SigDfl) };
        }
        if on_terminal {
            ioctl_tiocsctty(rustix::stdio::stdin())?;
        }
        set_parent_process_death_signal(Some(rustix::process::Signal::HUP))?;
        // The parent may have died before that.
        if getppid() != Some(parent) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe functions may be called, as another
    // thread may have held any lock. `prepare` makes system calls and nothing else; it allocates
    // nothing, and its errors are plain numbers.
    unsafe { command.pre_exec(prepare) };
}

/// Runs `work` in a process of its own that has `fd` and no other descriptor of this one.
pub(super) fn fork(fd: OwnedFd, work: fn(OwnedFd)) -> io::Result<()> {
    // SAFETY: the new process is a copy of this thread alone, so that it may call nothing that
    // could need a lock that another thread held: no allocation, no output, no destructors of
    // statics. `setsid`, `close_range` and `_exit` are system calls, and so is all that `work`
    // does, which is written for this place alone.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { .. } => Ok(()),
        ForkResult::Child => {
            // Signals that are for the terminal of the agent do not reach it.
            let _ = setsid();
            close_all_but(&fd);
            work(fd);
            // SAFETY: ends the process without anything that the copied threads left behind.
            unsafe { libc::_exit(0) }
        }
    }
}

/// Closes all descriptors but one: connections must end with the agent, not with its copy.
fn close_all_but(fd: &OwnedFd) {
    let kept = u32::try_from(fd.as_raw_fd()).unwrap_or(0);
    for (first, end) in [(0, kept), (kept + 1, u32::MAX)] {
        if first < end {
            // SAFETY: only this process's table of descriptors changes, and nothing in it uses
            // another descriptor after that.
            unsafe { libc::syscall(libc::SYS_close_range, first, end - 1, 0) };
        }
    }
}

/// Has the runtime tell when a descriptor that does not block can be read and written.
pub(super) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    let interest = Interest::READABLE | Interest::WRITABLE;
    // SAFETY: the descriptor must stay open for as long as it is registered. It is owned by what is
    // made here, which hands out no more than references to it, and unregisters it first when it
    // is dropped.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(|error| error.into_parts().1)
}

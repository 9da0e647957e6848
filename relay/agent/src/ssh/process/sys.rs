//! What the compiler cannot check: a new process between fork and exec, and descriptors whose
//! readiness the runtime tells.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Signal, getppid, ioctl_tiocsctty, set_parent_process_death_signal, setsid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Makes the program the head of a session and process group of its own, with its standard input as
/// the controlling terminal if that is one, and has it hung up when this process dies.
pub(super) fn detach(command: &mut Command, on_terminal: bool) {
    let parent = rustix::process::getpid();
    let prepare = move || {
        setsid()?;
        if on_terminal {
            ioctl_tiocsctty(rustix::stdio::stdin())?;
        }
        set_parent_process_death_signal(Some(Signal::HUP))?;
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

/// Has the runtime tell when a descriptor that does not block can be read and written.
pub(super) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    let interest = Interest::READABLE | Interest::WRITABLE;
    // SAFETY: the descriptor must stay open for as long as it is registered. It is owned by what is
    // made here, which hands out no more than references to it, and unregisters it first when it
    // is dropped.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(|error| error.into_parts().1)
}

//! A process that hangs up what is left of programs when the agent is killed and can do nothing any
//! more. The kernel tells a program of its parent's end (see `sys`), but not what that program has
//! started itself; whoever is in its process group hears it from here.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, kill_process_group};

use super::sys;

/// Process groups that are kept in mind; more of them are not hung up.
const GROUPS: usize = 4096;

/// The agent's end of a pipe. When the agent dies, in whatever way, the kernel closes it.
#[derive(Debug)]
pub(super) struct Guard(OwnedFd);

impl Guard {
    /// Starts the process.
    pub(super) fn start() -> io::Result<Self> {
        let (orders, agent) = pipe_with(PipeFlags::CLOEXEC)?;
        sys::fork(orders, watch)?;
        rustix::io::ioctl_fionbio(&agent, true)?;
        Ok(Self(agent))
    }

    /// Keeps a group in mind.
    pub(super) fn add(&self, group: i32) {
        self.order(group);
    }

    /// Forgets a group: its program has ended, and the number may be another's.
    pub(super) fn remove(&self, group: i32) {
        self.order(-group);
    }

    fn order(&self, number: i32) {
        // Without the guard programs are hung up all the same while the agent lives.
        let _ = rustix::io::write(&self.0, &number.to_ne_bytes());
    }
}

/// Reads numbers until the agent is gone. Runs in a process that is a copy of a single thread, so it
/// makes system calls and allocates nothing.
fn watch(orders: OwnedFd) {
    let mut groups = [0; GROUPS];
    let mut order = [0; 4];
    while let Ok(4) = read(orders.as_fd(), &mut order) {
        let number = i32::from_ne_bytes(order);
        let (old, new) = if number > 0 {
            (0, number)
        } else {
            (-number, 0)
        };
        if let Some(place) = groups.iter_mut().find(|group| **group == old) {
            *place = new;
        }
    }
    for signal in [Signal::HUP, Signal::CONT] {
        for group in groups {
            if let Some(group) = Pid::from_raw(group) {
                let _ = kill_process_group(group, signal);
            }
        }
    }
}

fn read(orders: std::os::fd::BorrowedFd<'_>, order: &mut [u8; 4]) -> rustix::io::Result<usize> {
    rustix::io::retry_on_intr(|| rustix::io::read(orders, &mut *order))
}

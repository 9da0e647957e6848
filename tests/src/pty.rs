//! A program on a terminal of its own: what a person would type and see.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::net::Host;

/// A program, its terminal, and all that was shown so far.
pub struct OnTerminal {
    child: Child,
    master: File,
    /// Kept open, so that the terminal outlives the program.
    slave: OwnedFd,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl OnTerminal {
    /// Starts a program in a host, on a terminal of 80 by 24.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(host: &Host, mut command: Command) -> OnTerminal {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC);
        let master = master.expect("terminal");
        grantpt(&master).expect("grantpt");
        unlockpt(&master).expect("unlockpt");
        let name = ptsname(&master, Vec::new()).expect("ptsname");
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = rustix::fs::open(&*name, flags, Mode::empty()).expect("slave");
        command = host.run(command);
        let end = || Stdio::from(slave.try_clone().expect("descriptor"));
        command.stdin(end()).stdout(end()).stderr(end());
        // SAFETY: between fork and exec only setsid(2), ioctl(2) and prctl(2) are called, which are
        // async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                rustix::process::setsid()?;
                rustix::process::ioctl_tiocsctty(std::io::stdin().as_fd())?;
                nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
                Ok(())
            });
        }
        let child = command.spawn().expect("start on a terminal");
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, copy) = (File::from(master), Arc::clone(&shown));
        let master = reader.try_clone().expect("descriptor");
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                let mut shown = copy.lock().unwrap_or_else(PoisonError::into_inner);
                shown.extend_from_slice(&buffer[..count]);
            }
        });
        let terminal = OnTerminal {
            child,
            master,
            slave,
            shown,
        };
        terminal.resize(80, 24);
        terminal
    }

    /// Types.
    ///
    /// # Panics
    /// When the terminal is gone.
    pub fn type_text(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).expect("typing");
    }

    /// Gives the terminal another size.
    ///
    /// # Panics
    /// When the terminal is gone.
    pub fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.master, size).expect("resize");
    }

    /// What the terminal is like.
    ///
    /// # Panics
    /// When it is gone.
    pub fn modes(&self) -> Termios {
        tcgetattr(&self.slave).expect("modes")
    }

    /// All that was shown.
    pub fn shown(&self) -> String {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&shown).into_owned()
    }

    /// Waits until something is shown.
    ///
    /// # Panics
    /// With all that was shown, when it does not come.
    pub fn wait_for(&self, text: &str) {
        let came = crate::poll(crate::PATIENCE, || {
            self.shown().contains(text).then_some(())
        });
        assert!(
            came.is_some(),
            "no {text:?} on the terminal:\n{}",
            self.shown()
        );
    }

    /// Waits for the program's end: its status, or 128 and the signal.
    ///
    /// # Panics
    /// With all that was shown, when it goes on.
    pub fn wait(&mut self, limit: Duration) -> i32 {
        let ended = crate::poll(limit, || self.child.try_wait().expect("wait"));
        let Some(status) = ended else {
            panic!("it still runs after {limit:?}:\n{}", self.shown());
        };
        let signal = status.signal().map(|signal| 128 + signal);
        status.code().or(signal).unwrap_or(-1)
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            crate::say(self.shown());
        }
    }
}

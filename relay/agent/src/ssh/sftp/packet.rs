//! Numbers of SFTP, and how answers are built.

use std::io;

use rustix::io::Errno;

use crate::ssh::proto::codec::{Put, u32_of};

/// The longest packet, bytes, as OpenSSH's.
pub(super) const LONGEST: usize = 256 << 10;
/// The most bytes of a file in one packet.
pub(super) const MOST_DATA: usize = LONGEST - 1024;

pub(super) const INIT: u8 = 1;
pub(super) const VERSION: u8 = 2;
pub(super) const OPEN: u8 = 3;
pub(super) const CLOSE: u8 = 4;
pub(super) const READ: u8 = 5;
pub(super) const WRITE: u8 = 6;
pub(super) const LSTAT: u8 = 7;
pub(super) const FSTAT: u8 = 8;
pub(super) const SETSTAT: u8 = 9;
pub(super) const FSETSTAT: u8 = 10;
pub(super) const OPENDIR: u8 = 11;
pub(super) const READDIR: u8 = 12;
pub(super) const REMOVE: u8 = 13;
pub(super) const MKDIR: u8 = 14;
pub(super) const RMDIR: u8 = 15;
pub(super) const REALPATH: u8 = 16;
pub(super) const STAT: u8 = 17;
pub(super) const RENAME: u8 = 18;
pub(super) const READLINK: u8 = 19;
pub(super) const SYMLINK: u8 = 20;
pub(super) const STATUS: u8 = 101;
pub(super) const HANDLE: u8 = 102;
pub(super) const DATA: u8 = 103;
pub(super) const NAME: u8 = 104;
pub(super) const ATTRS: u8 = 105;
pub(super) const EXTENDED: u8 = 200;
pub(super) const EXTENDED_REPLY: u8 = 201;

/// How something went (draft-ietf-secsh-filexfer-02 §7), with a text for people.
#[derive(Debug)]
pub(super) struct Status {
    pub(super) code: u32,
    pub(super) text: String,
}

impl Status {
    pub(super) fn new(code: u32, text: &str) -> Self {
        Self {
            code,
            text: text.to_owned(),
        }
    }

    pub(super) fn ok() -> Self {
        Self::new(0, "Success")
    }

    pub(super) fn end_of_file() -> Self {
        Self::new(1, "End of file")
    }

    pub(super) fn bad_message() -> Self {
        Self::new(5, "Bad message")
    }

    pub(super) fn unsupported() -> Self {
        Self::new(8, "Operation unsupported")
    }

    pub(super) fn no_such_handle() -> Self {
        Self::new(4, "No such handle")
    }
}

impl From<io::Error> for Status {
    fn from(error: io::Error) -> Self {
        let code = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => 2,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => 3,
            io::ErrorKind::Unsupported => 8,
            _ => 4,
        };
        // Without the number that Rust puts behind it.
        let text = error.to_string();
        let text = text.split(" (os error").next().unwrap_or_default();
        Self::new(code, text)
    }
}

impl From<Errno> for Status {
    fn from(error: Errno) -> Self {
        io::Error::from(error).into()
    }
}

impl From<crate::Error> for Status {
    fn from(_: crate::Error) -> Self {
        Self::bad_message()
    }
}

/// Appends an answer of a kind to a question, with what `fill` appends.
pub(super) fn say(out: &mut Vec<u8>, kind: u8, id: u32, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.put_u32(0).put_byte(kind).put_u32(id);
    fill(out);
    close(out, start);
}

/// Writes the length of the packet that began at `start`.
pub(super) fn close(out: &mut [u8], start: usize) {
    let length = u32_of(out.len() - start - 4);
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

//! Each question and its answer.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::attributes::{self, Attributes};
use super::extended::EXTENSIONS;
use super::listing::Listing;
use super::packet::{self, MOST_DATA, Status, close, say};
use super::paths;
use crate::ssh::proto::codec::{Put, Reader, u32_of};

/// Files and directories that a client may have open.
pub(super) const HANDLES: usize = 512;

/// What a client has open.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) home: PathBuf,
    handles: HashMap<u32, Handle>,
    next: u32,
}

#[derive(Debug)]
enum Handle {
    File { file: File, append: bool },
    Directory(Box<Listing>),
}

/// An answer that is not a status.
pub(super) enum Answer {
    Status(Status),
    Handle(u32),
    Attributes(std::fs::Metadata),
    /// A path, or the target of a link.
    Path(PathBuf),
    /// Entries, with their number in front.
    Names(Vec<u8>),
    Extended(Vec<u8>),
    /// It was written to the buffer already.
    Written,
}

const OK: fn(()) -> Answer = |()| Answer::Status(Status::ok());

impl Files {
    pub(super) fn new(home: PathBuf) -> Self {
        Self {
            home,
            handles: HashMap::new(),
            next: 0,
        }
    }

    /// Appends the answer to a question.
    pub(super) fn answer(&mut self, packet: &[u8], out: &mut Vec<u8>) {
        let mut reader = Reader::new(packet);
        let (Ok(kind), Ok(id)) = (reader.byte(), reader.u32()) else {
            return say_status(out, 0, &Status::bad_message());
        };
        if kind == packet::INIT {
            return say_version(out);
        }
        let answer = self.find(kind, id, reader, out);
        match answer.unwrap_or_else(Answer::Status) {
            Answer::Status(status) => say_status(out, id, &status),
            Answer::Handle(handle) => say(out, packet::HANDLE, id, |out| {
                out.put_string(handle.to_be_bytes());
            }),
            Answer::Attributes(metadata) => say(out, packet::ATTRS, id, |out| {
                attributes::write(out, &metadata);
            }),
            Answer::Path(path) => say(out, packet::NAME, id, |out| {
                let path = path.as_os_str().as_encoded_bytes();
                out.put_u32(1).put_string(path).put_string(path);
                attributes::write_none(out);
            }),
            Answer::Names(names) => say(out, packet::NAME, id, |out| {
                out.put(&names);
            }),
            Answer::Extended(reply) => say(out, packet::EXTENDED_REPLY, id, |out| {
                out.put(&reply);
            }),
            Answer::Written => {}
        }
    }

    fn find(
        &mut self,
        kind: u8,
        id: u32,
        mut reader: Reader<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Answer, Status> {
        match kind {
            packet::OPEN => self.open(reader),
            packet::CLOSE => {
                let handle = handle(&mut reader)?;
                let closed = self.handles.remove(&handle);
                closed.map(|_| OK(())).ok_or_else(Status::no_such_handle)
            }
            packet::READ => self.read(id, reader, out),
            packet::WRITE => self.write(reader).map(OK),
            packet::FSTAT => {
                let file = self.file(&mut reader)?;
                Ok(Answer::Attributes(file.metadata()?))
            }
            packet::FSETSTAT => {
                let file = self.file(&mut reader)?;
                Attributes::read(&mut reader)?.apply_to(file).map(OK)
            }
            packet::READDIR => match self.handles.get_mut(&handle(&mut reader)?) {
                Some(Handle::Directory(listing)) => listing.read().map(Answer::Names),
                _ => Err(Status::no_such_handle()),
            },
            packet::EXTENDED => self.extended(reader),
            _ => self.by_path(kind, reader),
        }
    }

    /// Questions that begin with a path.
    fn by_path(&mut self, kind: u8, mut reader: Reader<'_>) -> Result<Answer, Status> {
        let written = reader.string()?;
        let path = paths::absolute(written, &self.home);
        let mut second =
            || -> Result<PathBuf, Status> { Ok(paths::absolute(reader.string()?, &self.home)) };
        match kind {
            packet::STAT => Ok(Answer::Attributes(path.metadata()?)),
            packet::LSTAT => Ok(Answer::Attributes(path.symlink_metadata()?)),
            packet::SETSTAT => Attributes::read(&mut reader)?.apply(&path).map(OK),
            packet::OPENDIR => {
                let listing = Listing::open(path)?;
                self.insert(Handle::Directory(Box::new(listing)))
            }
            packet::REMOVE => Ok(OK(std::fs::remove_file(path)?)),
            packet::MKDIR => {
                let mode = Attributes::read(&mut reader)?.mode_or(0o777);
                let mut builder = std::fs::DirBuilder::new();
                Ok(OK(builder.mode(mode).create(path)?))
            }
            packet::RMDIR => Ok(OK(std::fs::remove_dir(path)?)),
            packet::REALPATH => Ok(Answer::Path(paths::canonical(&path))),
            packet::RENAME => rename(&path, &second()?).map(OK),
            packet::READLINK => Ok(Answer::Path(std::fs::read_link(path)?)),
            // The target comes first, as OpenSSH's clients and server have it, and as it is written.
            packet::SYMLINK => {
                let link = second()?;
                let target = std::ffi::OsStr::from_bytes(written);
                Ok(OK(std::os::unix::fs::symlink(target, link)?))
            }
            _ => Err(Status::unsupported()),
        }
    }

    fn insert(&mut self, handle: Handle) -> Result<Answer, Status> {
        if self.handles.len() >= HANDLES {
            return Err(Status::new(4, "Too many files are open"));
        }
        while self.handles.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let number = self.next;
        self.next = number.wrapping_add(1);
        self.handles.insert(number, handle);
        Ok(Answer::Handle(number))
    }

    /// The open file that a question is about.
    pub(super) fn file(&self, reader: &mut Reader<'_>) -> Result<&File, Status> {
        match self.handles.get(&handle(reader)?) {
            Some(Handle::File { file, .. }) => Ok(file),
            _ => Err(Status::no_such_handle()),
        }
    }

    fn open(&mut self, mut reader: Reader<'_>) -> Result<Answer, Status> {
        const FLAGS: [u32; 6] = [1, 2, 4, 8, 0x10, 0x20];
        let path = paths::absolute(reader.string()?, &self.home);
        let flags = reader.u32()?;
        let [read, write, append, create, truncate, exclusive] =
            FLAGS.map(|flag| flags & flag != 0);
        let mode = Attributes::read(&mut reader)?.mode_or(0o666);
        let mut options = OpenOptions::new();
        options.read(read || !(write || append)).write(write);
        options.append(append).mode(mode);
        if write || append {
            // Appending and truncating at once is for those who truncate by hand.
            options.create(create).truncate(truncate && !append);
            options.create_new(create && exclusive);
        }
        // A pipe without anybody at its other end must not hold up everything.
        let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
        options.custom_flags(flags.bits().cast_signed());
        let file = options.open(path)?;
        if truncate && append {
            file.set_len(0)?;
        }
        self.insert(Handle::File { file, append })
    }

    /// Reads straight into the answer.
    fn read(&self, id: u32, mut reader: Reader<'_>, out: &mut Vec<u8>) -> Result<Answer, Status> {
        let file = self.file(&mut reader)?;
        let (offset, length) = (reader.u64()?, reader.u32()? as usize);
        let start = out.len();
        out.put_u32(0).put_byte(packet::DATA).put_u32(id).put_u32(0);
        let head = out.len();
        out.resize(head + length.min(MOST_DATA), 0);
        let read = file.read_at(&mut out[head..], offset);
        let count = *read.as_ref().unwrap_or(&0);
        if count == 0 {
            out.truncate(start);
            return Err(read.map_or_else(Status::from, |_| Status::end_of_file()));
        }
        out.truncate(head + count);
        out[head - 4..head].copy_from_slice(&u32_of(count).to_be_bytes());
        close(out, start);
        Ok(Answer::Written)
    }

    fn write(&self, mut reader: Reader<'_>) -> Result<(), Status> {
        let handle = handle(&mut reader)?;
        let offset = reader.u64()?;
        let data = reader.string()?;
        match self.handles.get(&handle) {
            Some(Handle::File { file, append: true }) => Ok((&*file).write_all(data)?),
            Some(Handle::File { file, .. }) => Ok(file.write_all_at(data, offset)?),
            _ => Err(Status::no_such_handle()),
        }
    }
}

fn handle(reader: &mut Reader<'_>) -> Result<u32, Status> {
    let bytes = reader.string()?.try_into();
    bytes
        .map(u32::from_be_bytes)
        .map_err(|_| Status::no_such_handle())
}

/// Renames without replacing anything, which is what this version of the protocol asks for.
fn rename(from: &Path, to: &Path) -> Result<(), Status> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system that cannot.
        Err(Errno::INVAL | Errno::NOSYS) if to.symlink_metadata().is_err() => {
            Ok(std::fs::rename(from, to)?)
        }
        other => Ok(other?),
    }
}

fn say_status(out: &mut Vec<u8>, id: u32, status: &Status) {
    say(out, packet::STATUS, id, |out| {
        out.put_u32(status.code);
        out.put_string(&status.text).put_string("");
    });
}

fn say_version(out: &mut Vec<u8>) {
    let start = out.len();
    out.put_u32(0).put_byte(packet::VERSION).put_u32(3);
    for (name, version) in EXTENSIONS {
        out.put_string(name).put_string(version);
    }
    close(out, start);
}

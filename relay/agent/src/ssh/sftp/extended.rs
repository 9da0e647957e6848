//! OpenSSH's extensions (its PROTOCOL §4), and `copy-data` and `home-directory`
//! (draft-ietf-secsh-filexfer-extensions-00 §7 and §5).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::{StatVfs, StatVfsMountFlags, fstatvfs, statvfs};

use super::answer::{Answer, Files, HANDLES};
use super::attributes::Attributes;
use super::packet::{LONGEST, MOST_DATA, Status};
use super::paths;
use crate::ssh::proto::codec::{Put, Reader};

/// Names and versions.
pub(super) const EXTENSIONS: [(&str, &str); 10] = [
    ("posix-rename@openssh.com", "1"),
    ("statvfs@openssh.com", "2"),
    ("fstatvfs@openssh.com", "2"),
    ("hardlink@openssh.com", "1"),
    ("fsync@openssh.com", "1"),
    ("lsetstat@openssh.com", "1"),
    ("limits@openssh.com", "1"),
    ("expand-path@openssh.com", "1"),
    ("copy-data", "1"),
    ("home-directory", "1"),
];

impl Files {
    pub(super) fn extended(&self, mut reader: Reader<'_>) -> Result<Answer, Status> {
        let done = |()| Answer::Status(Status::ok());
        let name = reader.string()?;
        let path = |reader: &mut Reader<'_>| -> Result<PathBuf, Status> {
            Ok(paths::absolute(reader.string()?, &self.home))
        };
        match name {
            b"posix-rename@openssh.com" => {
                let (from, to) = (path(&mut reader)?, path(&mut reader)?);
                Ok(done(std::fs::rename(from, to)?))
            }
            b"statvfs@openssh.com" => Ok(room(&statvfs(path(&mut reader)?)?)),
            b"fstatvfs@openssh.com" => Ok(room(&fstatvfs(self.file(&mut reader)?)?)),
            b"hardlink@openssh.com" => {
                let (from, to) = (path(&mut reader)?, path(&mut reader)?);
                Ok(done(std::fs::hard_link(from, to)?))
            }
            b"fsync@openssh.com" => Ok(done(self.file(&mut reader)?.sync_all()?)),
            b"lsetstat@openssh.com" => {
                let path = path(&mut reader)?;
                let attributes = Attributes::read(&mut reader)?;
                attributes.apply_to_link(&path).map(done)
            }
            b"limits@openssh.com" => Ok(limits()),
            b"expand-path@openssh.com" => {
                let path = paths::expanded(reader.string()?, &self.home);
                Ok(Answer::Path(paths::canonical(&path)))
            }
            // There is one user here, whatever name is asked for.
            b"home-directory" => Ok(Answer::Path(self.home.clone())),
            b"copy-data" => {
                let from = self.file(&mut reader)?;
                let (start, length) = (reader.u64()?, reader.u64()?);
                let to = self.file(&mut reader)?;
                copy(from, start, length, to, reader.u64()?).map(done)
            }
            _ => Err(Status::unsupported()),
        }
    }
}

fn limits() -> Answer {
    let mut out = Vec::new();
    for limit in [LONGEST, MOST_DATA, MOST_DATA, HANDLES] {
        out.put_u64(limit as u64);
    }
    Answer::Extended(out)
}

fn room(found: &StatVfs) -> Answer {
    let mut flags = 0;
    for (flag, bit) in [
        (StatVfsMountFlags::RDONLY, 1),
        (StatVfsMountFlags::NOSUID, 2),
    ] {
        if found.f_flag.contains(flag) {
            flags |= bit;
        }
    }
    let mut out = Vec::new();
    for number in [
        found.f_bsize,
        found.f_frsize,
        found.f_blocks,
        found.f_bfree,
        found.f_bavail,
        found.f_files,
        found.f_ffree,
        found.f_favail,
        found.f_fsid,
        flags,
        found.f_namemax,
    ] {
        out.put_u64(number);
    }
    Answer::Extended(out)
}

/// Copies a part of a file to another place; a length of zero means all that is behind `start`.
fn copy(from: &File, start: u64, length: u64, to: &File, place: u64) -> Result<(), Status> {
    let mut left = if length == 0 { u64::MAX } else { length };
    let mut buffer = vec![0; MOST_DATA];
    let (mut start, mut place) = (start, place);
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(MOST_DATA).min(MOST_DATA);
        let count = from.read_at(&mut buffer[..most], start)?;
        if count == 0 {
            break;
        }
        to.write_all_at(&buffer[..count], place)?;
        let count = count as u64;
        left -= count;
        start = start.saturating_add(count);
        place = place.saturating_add(count);
    }
    Ok(())
}

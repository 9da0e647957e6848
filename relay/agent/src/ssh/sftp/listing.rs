//! Directories, with a line for people for each entry, like that of `ls -l`.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{Metadata, ReadDir};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use chrono::{DateTime, Local, TimeDelta};
use nix::unistd::{Gid, Group, Uid, User};

use super::attributes;
use super::packet::Status;
use crate::ssh::proto::codec::{Put, u32_of};

/// Entries of one answer.
const ENTRIES: usize = 128;

/// A directory that is being read.
#[derive(Debug)]
pub(super) struct Listing {
    path: PathBuf,
    /// What the kernel does not tell.
    dots: Vec<OsString>,
    entries: ReadDir,
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Listing {
    pub(super) fn open(path: PathBuf) -> std::io::Result<Self> {
        Ok(Self {
            entries: std::fs::read_dir(&path)?,
            path,
            dots: vec!["..".into(), ".".into()],
            users: HashMap::new(),
            groups: HashMap::new(),
        })
    }

    /// Appends the next entries, with their number in front.
    pub(super) fn read(&mut self) -> Result<Vec<u8>, Status> {
        let mut names = Vec::with_capacity(ENTRIES);
        while names.len() < ENTRIES {
            match self.dots.pop() {
                Some(dot) => names.push(dot),
                None => match self.entries.next() {
                    Some(entry) => names.push(entry?.file_name()),
                    None => break,
                },
            }
        }
        if names.is_empty() {
            return Err(Status::end_of_file());
        }
        let mut out = Vec::new();
        out.put_u32(u32_of(names.len()));
        for name in names {
            out.put_string(name.as_bytes());
            // It may have been removed since.
            match self.path.join(&name).symlink_metadata() {
                Ok(metadata) => {
                    let mut line = self.line(&metadata).into_bytes();
                    line.extend_from_slice(name.as_bytes());
                    out.put_string(line);
                    attributes::write(&mut out, &metadata);
                }
                Err(_) => {
                    out.put_string(name.as_bytes());
                    attributes::write_none(&mut out);
                }
            }
        }
        Ok(out)
    }

    fn line(&mut self, metadata: &Metadata) -> String {
        let (uid, gid) = (metadata.uid(), metadata.gid());
        let user = self.users.entry(uid).or_insert_with(|| {
            let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
            user.map_or_else(|| uid.to_string(), |user| user.name)
        });
        let group = self.groups.entry(gid).or_insert_with(|| {
            let group = Group::from_gid(Gid::from_raw(gid)).ok().flatten();
            group.map_or_else(|| gid.to_string(), |group| group.name)
        });
        format!(
            "{} {:>4} {user:<8} {group:<8} {:>8} {} ",
            mode(metadata.mode()),
            metadata.nlink(),
            metadata.size(),
            time(metadata.mtime()),
        )
    }
}

/// Like `drwxr-xr-x`.
fn mode(mode: u32) -> String {
    let kind = match mode & 0o170_000 {
        0o040_000 => 'd',
        0o120_000 => 'l',
        0o140_000 => 's',
        0o060_000 => 'b',
        0o020_000 => 'c',
        0o010_000 => 'p',
        _ => '-',
    };
    let mut out = String::from(kind);
    for (shift, special, letters) in [
        (6, 0o4000, ['S', 's']),
        (3, 0o2000, ['S', 's']),
        (0, 0o1000, ['T', 't']),
    ] {
        let bits = mode >> shift;
        out.push(if bits & 4 != 0 { 'r' } else { '-' });
        out.push(if bits & 2 != 0 { 'w' } else { '-' });
        let runs = bits & 1 != 0;
        out.push(match (mode & special != 0, runs) {
            (true, runs) => letters[usize::from(runs)],
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    out
}

/// The time of day for what changed in the last half year, else the year.
fn time(seconds: i64) -> String {
    let Some(time) = DateTime::from_timestamp(seconds, 0) else {
        return String::from("?");
    };
    let time = time.with_timezone(&Local);
    let age = Local::now() - time;
    let is_recent = age >= TimeDelta::zero() && age < TimeDelta::days(182);
    let form = if is_recent {
        "%b %e %H:%M"
    } else {
        "%b %e  %Y"
    };
    time.format(form).to_string()
}

#[cfg(test)]
mod tests {
    #[test]
    fn modes_are_written_as_ls_does() {
        for (mode, text) in [
            (0o100_644, "-rw-r--r--"),
            (0o041_777, "drwxrwxrwt"),
            (0o041_776, "drwxrwxrwT"),
            (0o104_755, "-rwsr-xr-x"),
            (0o102_644, "-rw-r-Sr--"),
            (0o120_777, "lrwxrwxrwx"),
        ] {
            assert_eq!(super::mode(mode), text);
        }
    }

    #[test]
    fn old_times_have_their_year() {
        assert!(super::time(1_000_000_000).ends_with("2001"));
        assert_eq!(super::time(i64::MAX), "?");
    }
}

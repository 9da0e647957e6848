//! File attributes (draft-ietf-secsh-filexfer-02 §5).

use std::fs::{File, Metadata, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, futimens, utimensat};

use super::packet::Status;
use crate::Error;
use crate::ssh::proto::codec::{Put, Reader};

const SIZE: u32 = 1;
const OWNER: u32 = 2;
const PERMISSIONS: u32 = 4;
const TIMES: u32 = 8;
const EXTENDED: u32 = 1 << 31;
/// The bits of a mode that can be changed.
const MODE: u32 = 0o7777;

/// What a client says of a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    size: Option<u64>,
    owner: Option<(u32, u32)>,
    permissions: Option<u32>,
    /// Of the last use and of the last change, seconds since 1970.
    times: Option<(u32, u32)>,
}

impl Attributes {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let flags = reader.u32()?;
        let mut found = Self::default();
        if flags & SIZE != 0 {
            found.size = Some(reader.u64()?);
        }
        if flags & OWNER != 0 {
            found.owner = Some((reader.u32()?, reader.u32()?));
        }
        if flags & PERMISSIONS != 0 {
            found.permissions = Some(reader.u32()?);
        }
        if flags & TIMES != 0 {
            found.times = Some((reader.u32()?, reader.u32()?));
        }
        if flags & EXTENDED != 0 {
            for _ in 0..reader.u32()? {
                let (_name, _value) = (reader.string()?, reader.string()?);
            }
        }
        Ok(found)
    }

    /// The mode for a new file or directory.
    pub(super) fn mode_or(&self, otherwise: u32) -> u32 {
        self.permissions.unwrap_or(otherwise) & MODE
    }

    /// Changes an open file.
    pub(super) fn apply_to(&self, file: &File) -> Result<(), Status> {
        if let Some(size) = self.size {
            file.set_len(size)?;
        }
        if let Some(mode) = self.permissions {
            file.set_permissions(Permissions::from_mode(mode & MODE))?;
        }
        if let Some(times) = self.timestamps() {
            futimens(file, &times)?;
        }
        if let Some((user, group)) = self.owner {
            fchown(file, Some(user), Some(group))?;
        }
        Ok(())
    }

    /// Changes a file by its path.
    pub(super) fn apply(&self, path: &Path) -> Result<(), Status> {
        if let Some(size) = self.size {
            std::fs::OpenOptions::new()
                .write(true)
                .open(path)?
                .set_len(size)?;
        }
        if let Some(mode) = self.permissions {
            std::fs::set_permissions(path, Permissions::from_mode(mode & MODE))?;
        }
        if let Some(times) = self.timestamps() {
            utimensat(CWD, path, &times, AtFlags::empty())?;
        }
        if let Some((user, group)) = self.owner {
            std::os::unix::fs::chown(path, Some(user), Some(group))?;
        }
        Ok(())
    }

    /// Changes a link itself, as far as a link has attributes.
    pub(super) fn apply_to_link(&self, path: &Path) -> Result<(), Status> {
        if self.size.is_some() {
            return Err(Status::bad_message());
        }
        if self.permissions.is_some() && path.is_symlink() {
            return Err(Status::unsupported());
        }
        if let Some(mode) = self.permissions {
            std::fs::set_permissions(path, Permissions::from_mode(mode & MODE))?;
        }
        if let Some(times) = self.timestamps() {
            utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        if let Some((user, group)) = self.owner {
            std::os::unix::fs::lchown(path, Some(user), Some(group))?;
        }
        Ok(())
    }

    fn timestamps(&self) -> Option<Timestamps> {
        let (used, changed) = self.times?;
        let at = |seconds: u32| Timespec {
            tv_sec: seconds.into(),
            tv_nsec: 0,
        };
        Some(Timestamps {
            last_access: at(used),
            last_modification: at(changed),
        })
    }
}

/// Appends what is known of a file.
pub(super) fn write(out: &mut Vec<u8>, metadata: &Metadata) {
    let seconds = |time: i64| u32::try_from(time.max(0)).unwrap_or(u32::MAX);
    out.put_u32(SIZE | OWNER | PERMISSIONS | TIMES)
        .put_u64(metadata.size())
        .put_u32(metadata.uid())
        .put_u32(metadata.gid())
        .put_u32(metadata.mode())
        .put_u32(seconds(metadata.atime()))
        .put_u32(seconds(metadata.mtime()));
}

/// Appends that nothing is known of a file.
pub(super) fn write_none(out: &mut Vec<u8>) {
    out.put_u32(0);
}

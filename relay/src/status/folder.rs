//! The folder of the sockets: the user's own, closed to all others.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, geteuid};

use crate::cli::environment;

const ENDING: &str = ".sock";

/// Finds the folder, and makes it where it is missing: in `$XDG_RUNTIME_DIR`, else in `/run/user`, else in the folder of
/// temporary files.
///
/// # Errors
/// When it cannot be made, or is not this user's alone.
pub(super) fn find() -> io::Result<PathBuf> {
    let user = geteuid();
    let runtime = environment("XDG_RUNTIME_DIR").map(PathBuf::from);
    let runtime = runtime.filter(|folder| folder.is_absolute());
    let usual = PathBuf::from(format!("/run/user/{user}"));
    let parent = runtime.into_iter().chain([usual]);
    let mut owned = parent.filter(|folder| is_owned(folder, user));
    let folder = match owned.next() {
        Some(parent) => parent.join("relay"),
        None => std::env::temp_dir().join(format!("relay-{user}")),
    };
    make(&folder, user)?;
    Ok(folder)
}

fn is_owned(folder: &Path, user: Uid) -> bool {
    let found = fs::metadata(folder);
    found.is_ok_and(|found| found.is_dir() && found.uid() == user.as_raw())
}

/// Makes a folder that is open to nobody else, or finds that it is one.
fn make(folder: &Path, user: Uid) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    // Not through a link that somebody else may have put there.
    let found = fs::symlink_metadata(folder)?;
    let private = found.is_dir() && found.uid() == user.as_raw() && found.mode() & 0o077 == 0;
    match private {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "{} is not a folder of this user alone: remove it",
            folder.display()
        ))),
    }
}

/// The name of a process's socket.
pub(super) fn name(pid: u32) -> String {
    format!("{pid}-{:08x}{ENDING}", rand_part())
}

/// Tells processes of different namespaces apart that have the same number.
fn rand_part() -> u32 {
    uuid::Uuid::new_v4().as_fields().0
}

/// The process that a socket's name tells, if it is one of ours.
pub(super) fn process(path: &Path) -> Option<u32> {
    let name = path.file_name()?.to_str()?.strip_suffix(ENDING)?;
    name.split_once('-')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_folder_that_others_may_enter_is_not_used() {
        let home = tempfile::tempdir().unwrap();
        let (user, folder) = (geteuid(), home.path().join("relay"));
        make(&folder, user).unwrap();
        make(&folder, user).unwrap();
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
        let link = home.path().join("link");
        symlink(&folder, &link).unwrap();
        assert!(make(&link, user).is_err());
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o750)).unwrap();
        assert!(make(&folder, user).is_err());
    }

    #[test]
    fn a_sockets_name_tells_its_process() {
        let path = Path::new("/run").join(name(4711));
        assert_eq!(process(&path), Some(4711));
        for other in ["x.sock", "notes.txt", "12-3", ".sock"] {
            assert_eq!(process(Path::new(other)), None, "{other}");
        }
    }
}

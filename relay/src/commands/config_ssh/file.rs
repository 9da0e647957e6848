//! The file itself: read whole, and replaced whole or not at all.

use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Permissions of a file and a folder that are made anew.
const FILE: u32 = 0o600;
const FOLDER: u32 = 0o700;
/// Links that are followed before it must be a circle.
const LINKS: usize = 40;

/// A configuration file, as it was read.
#[derive(Debug)]
pub(super) struct Config {
    /// Where it is, after all links.
    path: PathBuf,
    /// Its bytes; `None` when there is no such file.
    old: Option<Vec<u8>>,
}

impl Config {
    /// Reads a file. One that is not there is empty.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let path = follow(path)?;
        let old = read(&path)?;
        Ok(Self { path, old })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.old.as_deref().unwrap_or_default()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces the file at once. Mode and owner stay; other names of the file (hard links) keep
    /// the old one.
    pub(super) fn write(&self, new: &[u8]) -> Result<()> {
        let shown = self.path.display();
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let mut builder = fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(FOLDER)
            .create(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let made = tempfile::Builder::new()
            .prefix(".config-ssh-")
            .tempfile_in(folder);
        let mut file = made.with_context(|| format!("cannot write in {}", folder.display()))?;
        let write = |file: &mut File| {
            let mode = match fs::metadata(&self.path) {
                Ok(old) => {
                    let made = file.metadata()?;
                    if (old.uid(), old.gid()) != (made.uid(), made.gid()) {
                        fchown(&*file, Some(old.uid()), Some(old.gid()))?;
                    }
                    old.permissions().mode() & 0o7777
                }
                Err(_) => FILE,
            };
            file.set_permissions(Permissions::from_mode(mode))?;
            file.write_all(new)?;
            file.sync_all()
        };
        write(file.as_file_mut()).with_context(|| format!("cannot write {shown}"))?;
        ensure!(
            read(&self.path)? == self.old,
            "{shown} was changed meanwhile; nothing was written: run the command again"
        );
        file.persist(&self.path)
            .with_context(|| format!("cannot replace {shown}"))?;
        // The change is made; whether it outlives a power cut is the folder's business.
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
        Ok(())
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The file that a path leads to, even when it is not there: what is replaced is never a link.
fn follow(path: &Path) -> Result<PathBuf> {
    let mut path = std::path::absolute(path)?;
    for _ in 0..LINKS {
        match fs::read_link(&path) {
            Ok(target) => path = path.parent().unwrap_or(Path::new("/")).join(target),
            Err(_) => return Ok(path),
        }
    }
    anyhow::bail!("{} is a link to itself", path.display())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_new_file_is_private_and_so_is_its_folder() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(".ssh/config");
        Config::read(&path).unwrap().write(b"x").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"x");
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
    }

    #[test]
    fn the_mode_stays_and_links_lead_to_the_file() {
        let home = tempfile::tempdir().unwrap();
        let (file, link) = (home.path().join("dotfiles"), home.path().join("config"));
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        symlink("dotfiles", &link).unwrap();
        Config::read(&link).unwrap().write(b"new").unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert_eq!(mode(&file), 0o640);
        let names: Vec<_> = fs::read_dir(home.path()).unwrap().collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }

    #[test]
    fn a_link_that_leads_nowhere_gets_its_file_and_a_circle_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let (file, link) = (home.path().join("sub/file"), home.path().join("config"));
        symlink("sub/file", &link).unwrap();
        Config::read(&link).unwrap().write(b"new").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        let circle = home.path().join("circle");
        symlink("circle", &circle).unwrap();
        assert!(Config::read(&circle).is_err());
    }

    #[test]
    fn a_file_that_was_changed_meanwhile_is_left_alone() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("config");
        fs::write(&path, "old").unwrap();
        let config = Config::read(&path).unwrap();
        fs::write(&path, "theirs").unwrap();
        let error = config.write(b"new").unwrap_err();
        assert!(error.to_string().contains("changed meanwhile"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"theirs");
    }
}

//! Paths as a client writes them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// A client's path; a relative one begins at `home`.
pub(super) fn absolute(bytes: &[u8], home: &Path) -> PathBuf {
    home.join(OsStr::from_bytes(bytes))
}

/// A path with the home in the place of a leading `~`.
pub(super) fn expanded(bytes: &[u8], home: &Path) -> PathBuf {
    match bytes {
        b"~" => home.to_owned(),
        [b'~', b'/', rest @ ..] => {
            let start = rest.iter().position(|byte| *byte != b'/');
            absolute(start.map_or(&[], |start| &rest[start..]), home)
        }
        _ => absolute(bytes, home),
    }
}

/// The path without links, dots and doubled slashes. What is not there is taken as it is written.
pub(super) fn canonical(path: &Path) -> PathBuf {
    if let Ok(found) = path.canonicalize() {
        return found;
    }
    let plain = plain(path);
    match (plain.parent(), plain.file_name()) {
        (Some(parent), Some(name)) => match parent.canonicalize() {
            Ok(parent) => parent.join(name),
            Err(_) => plain,
        },
        _ => plain,
    }
}

/// The path without dots, by its words alone.
fn plain(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths_and_tildes_begin_at_the_home() {
        let home = Path::new("/home/dev");
        for (text, expected) in [
            ("", "/home/dev/"),
            ("x", "/home/dev/x"),
            ("/x", "/x"),
            ("~", "/home/dev"),
            ("~/x", "/home/dev/x"),
            ("~//x", "/home/dev/x"),
            ("~/", "/home/dev/"),
            ("~other", "/home/dev/~other"),
        ] {
            let path = expanded(text.as_bytes(), home);
            assert_eq!(path, Path::new(expected), "{text}");
        }
    }

    #[test]
    fn what_is_not_there_has_a_canonical_path_too() {
        for (text, expected) in [
            ("/", "/"),
            ("/../..", "/"),
            ("/proc/self/../version", "/proc/version"),
            ("/no-such/./a//b/../c", "/no-such/a/c"),
            ("/tmp/no-such-file", "/tmp/no-such-file"),
        ] {
            assert_eq!(canonical(Path::new(text)), Path::new(expected), "{text}");
        }
    }
}

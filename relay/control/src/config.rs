//! The configuration directory, which is Coder's own (coder_wire §1.3).

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use url::Url;

use crate::Error;

/// `~/.config/coderv2`, or wherever the user wants it.
#[derive(Clone, Debug)]
pub struct ConfigDir {
    path: PathBuf,
}

impl ConfigDir {
    /// A certain directory.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The default one: below `XDG_CONFIG_HOME`, else below `~/.config`.
    pub fn default_for(environment: impl Fn(&str) -> Option<String>) -> Self {
        let base = environment("XDG_CONFIG_HOME").filter(|path| !path.is_empty());
        let base = base.map(PathBuf::from).unwrap_or_else(|| {
            let home = environment("HOME").unwrap_or_else(|| "/".to_owned());
            Path::new(&home).join(".config")
        });
        Self::at(base.join("coderv2"))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The remembered URL.
    ///
    /// # Errors
    /// When the file cannot be read or holds no URL.
    pub fn url(&self) -> Result<Option<Url>, Error> {
        self.read("url")?.map(|text| parse_url(&text)).transpose()
    }

    /// The remembered token.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn token(&self) -> Result<Option<String>, Error> {
        self.read("session")
    }

    /// Remembers a session. One that is there is replaced only by `force`, or when it is the same.
    ///
    /// # Errors
    /// When there is another session, or a file cannot be written.
    pub fn remember(&self, url: &Url, token: &str, force: bool) -> Result<(), Error> {
        if let (Some(known), false) = (self.token()?, force)
            && known != token
        {
            let url = self
                .read("url")?
                .unwrap_or_else(|| "another deployment".to_owned());
            return Err(Error::SessionExists {
                path: self.path.clone(),
                url,
            });
        }
        fs::create_dir_all(&self.path).map_err(self.failed(""))?;
        self.write("url", url.as_str().trim_end_matches('/'))?;
        self.write("session", token)
    }

    /// Forgets the session; it is no error when there is none.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn forget(&self) -> Result<(), Error> {
        for name in ["session", "url"] {
            match fs::remove_file(self.path.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(self.failed(name)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn read(&self, name: &str) -> Result<Option<String>, Error> {
        match fs::read_to_string(self.path.join(name)) {
            Ok(text) => Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed(name)(error)),
        }
    }

    /// Writes beside and renames, so that a reader sees the old or the new text; 0600.
    fn write(&self, name: &str, text: &str) -> Result<(), Error> {
        let new = self.path.join(format!(".{name}.new"));
        let _ = fs::remove_file(&new);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)
            .map_err(self.failed(name))?;
        file.write_all(text.as_bytes()).map_err(self.failed(name))?;
        fs::rename(&new, self.path.join(name)).map_err(self.failed(name))
    }

    fn failed(&self, name: &str) -> impl FnOnce(io::Error) -> Error + use<> {
        let path = self.path.join(name);
        move |source| Error::File { path, source }
    }
}

/// Reads a deployment's URL; without a scheme it is https, or http for this machine.
///
/// # Errors
/// When it is none.
pub fn parse_url(text: &str) -> Result<Url, Error> {
    let text = text.trim();
    let full = match text.contains("://") {
        true => text.to_owned(),
        false if is_local(text) => format!("http://{text}"),
        false => format!("https://{text}"),
    };
    let url = Url::parse(&full).map_err(|_| Error::Url(text.to_owned()))?;
    match matches!(url.scheme(), "http" | "https") && url.host().is_some() {
        true => Ok(url),
        false => Err(Error::Url(text.to_owned())),
    }
}

fn is_local(text: &str) -> bool {
    ["localhost", "127.", "[::1]"]
        .iter()
        .any(|local| text.starts_with(local))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn scratch(name: &str) -> ConfigDir {
        let path = std::env::temp_dir().join(format!("relay-config-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        ConfigDir::at(path)
    }

    #[test]
    fn another_session_is_replaced_only_by_force() {
        let dir = scratch("force");
        let url = Url::parse("http://127.0.0.1:3000").unwrap();
        dir.remember(&url, "one", false).unwrap();
        dir.remember(&url, "one", false).unwrap();
        let error = dir.remember(&url, "two", false).unwrap_err().to_string();
        assert!(
            error.contains("--force") && error.contains("127.0.0.1:3000"),
            "{error}"
        );
        dir.remember(&url, "two", true).unwrap();
        assert_eq!(dir.token().unwrap().as_deref(), Some("two"));
        assert_eq!(dir.url().unwrap(), Some(url));
        let mode = fs::metadata(dir.path().join("session"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        dir.forget().unwrap();
        dir.forget().unwrap();
        assert_eq!(dir.token().unwrap(), None);
        fs::remove_dir_all(dir.path()).unwrap();
    }

    #[test]
    fn the_default_is_coders_directory() {
        let home = |name: &str| (name == "HOME").then(|| "/home/x".to_owned());
        assert_eq!(
            ConfigDir::default_for(home).path(),
            Path::new("/home/x/.config/coderv2")
        );
        let xdg = |name: &str| (name == "XDG_CONFIG_HOME").then(|| "/c".to_owned());
        assert_eq!(ConfigDir::default_for(xdg).path(), Path::new("/c/coderv2"));
    }

    #[test]
    fn urls_are_read_with_and_without_scheme() {
        assert_eq!(parse_url("relay.example.com").unwrap().scheme(), "https");
        assert_eq!(parse_url(" localhost:3000 ").unwrap().scheme(), "http");
        for bad in ["", "ftp://x", "http://"] {
            assert!(parse_url(bad).is_err(), "{bad}");
        }
    }
}

//! With which user, where and with what environment a peer's programs are started.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User};

use super::{Peer, Workspace};

/// Of the agent's own environment, what is for the agent alone: secrets of its own.
const PRIVATE: [&str; 2] = ["CODER_AGENT_TOKEN", "CODER_AGENT_TOKEN_FILE"];
/// Where a user without an entry in passwd(5) is.
const NOBODYS: (&str, &str) = ("/bin/sh", "/");

/// The user that the agent runs as.
#[derive(Clone, Debug)]
pub(super) struct Account {
    name: String,
    pub(super) home: PathBuf,
    pub(super) shell: PathBuf,
}

impl Account {
    /// As passwd(5) has it, or else as well as it can be guessed. Where users are kept elsewhere,
    /// this may take a while.
    pub(super) async fn own() -> std::io::Result<Self> {
        Ok(tokio::task::spawn_blocking(Self::look_up).await?)
    }

    fn look_up() -> Self {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let uid = Uid::current();
        let user = User::from_uid(uid).ok().flatten();
        let (name, home, shell) = match user {
            Some(user) => (Some(user.name), Some(user.dir), Some(user.shell)),
            None => (None, None, None),
        };
        let or = |found: Option<PathBuf>, name, otherwise: &str| {
            found
                .filter(|path| !path.as_os_str().is_empty())
                .or_else(|| variable(name).map(PathBuf::from))
                .unwrap_or_else(|| otherwise.into())
        };
        Self {
            name: name.unwrap_or_else(|| uid.to_string()),
            home: or(home, "HOME", NOBODYS.1),
            shell: or(shell, "SHELL", NOBODYS.0),
        }
    }
}

/// The workspace's directory if it is one, else the user's home, else the root.
pub(super) fn directory(workspace: &Workspace, account: &Account) -> PathBuf {
    let wanted = expand(&workspace.directory, account, &workspace.environment);
    [wanted.as_path(), &account.home]
        .into_iter()
        .find(|path| path.is_absolute() && path.is_dir())
        .unwrap_or(Path::new("/"))
        .to_owned()
}

/// Puts the home in the place of a leading `~`, and values in the place of `$NAME` and `${NAME}`.
fn expand(text: &str, account: &Account, more: &BTreeMap<String, String>) -> PathBuf {
    let home = account.home.to_string_lossy();
    let mut rest = text;
    let mut out = String::new();
    if text == "~" || text.starts_with("~/") {
        out.push_str(&home);
        rest = &text[1..];
    }
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let (name, behind) = match rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
            Some(braced) => braced,
            None => {
                let end = rest.find(|c: char| c != '_' && !c.is_ascii_alphanumeric());
                rest.split_at(end.unwrap_or(rest.len()))
            }
        };
        let value = match name {
            "HOME" => Some(home.clone().into_owned()),
            _ => more.get(name).cloned().or_else(|| std::env::var(name).ok()),
        };
        out.push_str(&value.unwrap_or_default());
        rest = behind;
    }
    out.push_str(rest);
    let path = PathBuf::from(out);
    if path.is_relative() && !text.is_empty() {
        return account.home.join(path);
    }
    path
}

/// A program's environment. What comes later wins.
pub(super) struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// The agent's own, the workspace's, what Coder's tools look for, and who the user is.
    pub(super) fn new(workspace: &Workspace, account: &Account, peer: &Peer) -> Self {
        let mut environment = Self(std::env::vars_os().collect());
        for name in PRIVATE {
            environment.0.remove(OsStr::new(name));
        }
        environment.set("USER", &account.name);
        environment.set("LOGNAME", &account.name);
        environment.set("HOME", &account.home);
        environment.set("SHELL", &account.shell);
        for (name, value) in &workspace.environment {
            environment.set(name, value);
        }
        environment.set("CODER", "true");
        environment.set("CODER_WORKSPACE_NAME", &workspace.name);
        environment.set("CODER_WORKSPACE_AGENT_NAME", &workspace.agent);
        environment.set("CODER_WORKSPACE_OWNER_NAME", &workspace.owner);
        if !workspace.port_template.is_empty() {
            environment.set("VSCODE_PROXY_URI", &workspace.port_template);
        }
        let (remote, local) = (peer.remote, peer.local);
        let (ip, port) = (remote.ip(), remote.port());
        environment.set("SSH_CLIENT", format!("{ip} {port} {}", local.port()));
        let connection = format!("{ip} {port} {} {}", local.ip(), local.port());
        environment.set("SSH_CONNECTION", connection);
        environment
    }

    /// Sets a variable, unless there can be none of that name or value.
    pub(super) fn set(&mut self, name: &str, value: impl AsRef<OsStr>) {
        let value = value.as_ref();
        let is_name = !name.is_empty() && !name.contains(['=', '\0']);
        if is_name && !value.as_encoded_bytes().contains(&0) {
            self.0.insert(name.into(), value.to_owned());
        }
    }

    pub(super) fn into_list(self) -> Vec<(OsString, OsString)> {
        self.0.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> Account {
        Account {
            name: "dev".to_owned(),
            home: "/home/dev".into(),
            shell: "/bin/sh".into(),
        }
    }

    #[test]
    fn a_directory_may_name_the_home_and_variables() {
        let more = [("PROJECT".to_owned(), "blue".to_owned())].into();
        for (text, expected) in [
            ("", ""),
            ("~", "/home/dev"),
            ("~/code", "/home/dev/code"),
            ("~other", "/home/dev/~other"),
            ("$HOME/code", "/home/dev/code"),
            ("/srv/${PROJECT}/x", "/srv/blue/x"),
            ("/srv/$PROJECT-2", "/srv/blue-2"),
            ("/srv/$NO_SUCH_VARIABLE/x", "/srv//x"),
            ("code", "/home/dev/code"),
            ("/a$", "/a"),
        ] {
            let path = expand(text, &account(), &more);
            assert_eq!(path, PathBuf::from(expected), "{text}");
        }
    }

    #[test]
    fn a_directory_that_is_none_is_the_home_or_the_root() {
        let mut workspace = Workspace {
            directory: "/proc/self".to_owned(),
            ..Workspace::default()
        };
        let mut account = account();
        assert_eq!(directory(&workspace, &account), Path::new("/proc/self"));
        workspace.directory = "/no/such/place".to_owned();
        account.home = "/tmp".into();
        assert_eq!(directory(&workspace, &account), Path::new("/tmp"));
        account.home = "/no/such/home".into();
        assert_eq!(directory(&workspace, &account), Path::new("/"));
    }

    #[test]
    fn what_cannot_be_a_variable_is_left_out() {
        let mut environment = Environment(BTreeMap::new());
        for (name, value) in [
            ("", "x"),
            ("A=B", "x"),
            ("A\0", "x"),
            ("A", "\0"),
            ("B", ""),
        ] {
            environment.set(name, value);
        }
        assert_eq!(environment.into_list(), [("B".into(), "".into())]);
    }
}

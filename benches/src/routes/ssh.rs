//! OpenSSH, as it comes: a server with a key of its own, and `ssh -L`.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{Deployment, OpenRoute, Tunnel, folder, free_port, inside, wait_for_port};
use crate::link::Hosts;
use crate::processes::{Family, Process, run};
use crate::{Error, Route};

/// `ssh -L` to an sshd that the near host reaches by itself.
pub(super) fn plain(hosts: &Hosts, port: u16) -> Result<OpenRoute, Error> {
    let server = Server::start(hosts, hosts.far_address())?;
    let (client, local, start) = server.connect(hosts, server.listen, port)?;
    Ok(OpenRoute {
        start: Some(start),
        folders: vec![server.folder],
        ..OpenRoute::plain(Route::Ssh, local, vec![client, server.process])
    })
}

/// `ssh -L` to an sshd on the workspace's loopback, reached by a forward of relay.
pub(super) fn through(
    deployment: &Deployment,
    hosts: &Hosts,
    port: u16,
) -> Result<OpenRoute, Error> {
    let server = Server::start(hosts, Ipv4Addr::LOCALHOST)?;
    let route = Route::SshTunnel;
    let mut open = deployment.forward(&Tunnel::of(route), hosts, server.listen.port())?;
    let (client, local, start) = server.connect(hosts, open.local, port)?;
    open.local = local;
    open.start = Some(start);
    open.processes.insert(0, client);
    open.processes.push(server.process);
    open.folders.push(server.folder);
    open.family = Family::of(open.processes.iter().map(Process::id));
    Ok(open)
}

struct Server {
    process: Process,
    listen: SocketAddr,
    folder: TempDir,
}

impl Server {
    fn start(hosts: &Hosts, address: Ipv4Addr) -> Result<Self, Error> {
        let folder = folder()?;
        make_keys(folder.path())?;
        make_separation_directory()?;
        let listen = inside(hosts.far(|| free_port(address)))?;
        let mut command = Command::new("/usr/sbin/sshd");
        command
            .args(["-D", "-e", "-f", "/dev/null", "-h"])
            .arg(folder.path().join("host"));
        let authorized = folder.path().join("authorized");
        let authorized = format!("AuthorizedKeysFile={}", authorized.display());
        for option in [
            &*format!("ListenAddress={listen}"),
            &authorized,
            "StrictModes=no",
            "UsePAM=no",
            "PidFile=none",
            "PermitRootLogin=yes",
            "MaxStartups=100",
        ] {
            command.args(["-o", option]);
        }
        let mut process = inside(hosts.far(|| Process::start("sshd", &mut command)))?;
        inside(hosts.far(|| wait_for_port(&mut process, listen)))?;
        Ok(Self {
            process,
            listen,
            folder,
        })
    }

    /// Starts `ssh -L` through `way`, which leads to the server.
    fn connect(
        &self,
        hosts: &Hosts,
        way: SocketAddr,
        port: u16,
    ) -> Result<(Process, SocketAddr, Duration), Error> {
        let local = inside(hosts.near(|| free_port(Ipv4Addr::LOCALHOST)))?;
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid());
        let user = user.ok().flatten();
        let user = user.map_or_else(|| "root".to_owned(), |user| user.name);
        let mut command = Command::new("ssh");
        command
            .args(["-N", "-F", "/dev/null", "-l", &user])
            .args(["-p", &way.port().to_string(), "-i"])
            .arg(self.folder.path().join("user"))
            .args(["-L", &format!("{local}:127.0.0.1:{port}")]);
        for option in [
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "ExitOnForwardFailure=yes",
            "LogLevel=ERROR",
        ] {
            command.args(["-o", option]);
        }
        command.arg(way.ip().to_string());
        let begin = Instant::now();
        let mut client = inside(hosts.near(|| Process::start("ssh", &mut command)))?;
        inside(hosts.near(|| wait_for_port(&mut client, local)))?;
        Ok((client, local, begin.elapsed()))
    }
}

fn make_keys(folder: &Path) -> Result<(), Error> {
    for key in ["host", "user"] {
        let mut command = Command::new("ssh-keygen");
        command
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(folder.join(key));
        run("ssh-keygen", &mut command, None)?;
    }
    let authorized = folder.join("authorized");
    fs::copy(folder.join("user.pub"), &authorized)
        .and_then(|_| fs::set_permissions(&authorized, fs::Permissions::from_mode(0o600)))
        .map_err(Error::system("cannot write the key"))
}

/// sshd refuses to start as root without it.
fn make_separation_directory() -> Result<(), Error> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let mut builder = fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o755)
        .create("/run/sshd")
        .map_err(Error::system("cannot make /run/sshd"))
}

//! Running with less: as an unprivileged user who may open the TUN device (where `/dev/net/tun` is
//! root's alone, a mount namespace gets a node of its own that everyone may open), or as in a
//! container that has no TUN device, no capability and no namespaces to make.

use std::path::Path;
use std::process::Command;

use crate::needs::program;

/// Does what [`wrap`] does, and nothing more; run in a new mount namespace.
pub(crate) const PROBE: &str = "set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /mnt
mknod -m 666 /mnt/tun c 10 200
mount --bind /mnt/tun /dev/net/tun
exec setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs \
  sh -c ': <>/dev/net/tun; unshare -Urn true'";

const SCRIPT: &str = "set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /mnt
mknod -m 666 /mnt/tun c 10 200
mount --bind /mnt/tun /dev/net/tun
exec setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs \"$@\"";

/// The command that runs `program` as user 65534, without any capability, with a TUN device.
///
/// # Panics
/// Where `unshare` is missing: ask for [`Need::Rootless`](crate::needs::Need::Rootless) first.
pub fn wrap(binary: &Path) -> Command {
    let unshare = program("unshare").unwrap_or_else(|reason| panic!("{reason}"));
    let mut command = Command::new(unshare);
    command.args(["-m", "sh", "-c", SCRIPT, "sh"]).arg(binary);
    command
}

/// Does what [`confine`] does, and sees that it is so.
pub(crate) const CONFINED_PROBE: &str = "set -e
mount -t tmpfs tmpfs /dev/net
echo 0 > /proc/sys/user/max_user_namespaces
exec setpriv --inh-caps=-all --bounding-set=-all --no-new-privs sh -c \
  'test ! -e /dev/net/tun && ! unshare -n true && ! unshare -Urn true' 2>/dev/null";

const CONFINED: &str = "set -e
mount -t tmpfs tmpfs /dev/net
echo 0 > /proc/sys/user/max_user_namespaces
exec setpriv --inh-caps=-all --bounding-set=-all --no-new-privs --pdeathsig KILL \"$@\"";

/// The same command without `/dev/net/tun`, without any capability, and without the right to make a
/// namespace.
///
/// # Panics
/// Where `unshare` is missing: ask for [`Need::Confined`](crate::needs::Need::Confined) first.
pub fn confine(command: &Command) -> Command {
    let unshare = program("unshare").unwrap_or_else(|reason| panic!("{reason}"));
    let mut confined = Command::new(unshare);
    let words = ["-m", "-U", "--map-root-user", "sh", "-c", CONFINED, "sh"];
    confined.args(words).arg(command.get_program());
    confined.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => confined.env(name, value),
            None => confined.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        confined.current_dir(folder);
    }
    confined
}

/// Whether every program that a test starts on a host runs [confined](confine):
/// `RELAY_LAB_CONFINED=1` asks for it.
pub fn all_are_confined() -> bool {
    std::env::var_os("RELAY_LAB_CONFINED").is_some_and(|value| value == "1")
}

//! Running as an unprivileged user who may open the TUN device. Where `/dev/net/tun` is root's
//! alone, a mount namespace gets a node of its own that everyone may open.

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

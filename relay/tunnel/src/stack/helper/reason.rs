//! Turns the step of the set-up that failed into one line that says what is missing and what to do.

use std::fs;

use rustix::io::Errno;

use super::protocol::Step;

/// What the machine says about user namespaces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Hints {
    /// AppArmor takes the capabilities of unprivileged user namespaces away.
    pub(super) apparmor: bool,
    /// The administrator switched unprivileged user namespaces off.
    pub(super) switched_off: bool,
}

impl Hints {
    pub(super) fn read() -> Self {
        let is = |path: &str, value: &str| {
            fs::read_to_string(path).is_ok_and(|text| text.trim() == value)
        };
        Self {
            apparmor: is(
                "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
                "1",
            ),
            switched_off: is("/proc/sys/kernel/unprivileged_userns_clone", "0")
                || is("/proc/sys/user/max_user_namespaces", "0"),
        }
    }
}

const APPARMOR: &str = "AppArmor restricts unprivileged user namespaces: allow them with \
    `sysctl kernel.apparmor_restrict_unprivileged_userns=0` or run relay as root";

pub(super) fn reason(step: Step, errno: Errno, hints: Hints) -> String {
    match (step, errno) {
        (Step::OpenDevice, Errno::NOENT | Errno::NODEV | Errno::NXIO) => "/dev/net/tun is \
            missing: load it with `modprobe tun`, or start the container with \
            `--device /dev/net/tun`"
            .into(),
        (Step::OpenDevice, Errno::ACCESS) => "/dev/net/tun may not be opened by this user: \
            `chmod 0666 /dev/net/tun`, or run relay as root"
            .into(),
        (Step::OpenDevice, Errno::PERM) => "this container may not use /dev/net/tun: start it \
            with `--device /dev/net/tun`"
            .into(),
        (Step::MakeInterface, Errno::PERM) if hints.apparmor => APPARMOR.into(),
        (Step::MakeInterface, Errno::PERM) => "no permission to make a network interface: \
            start the container with `--cap-add NET_ADMIN`, or run relay where user namespaces \
            are allowed"
            .into(),
        (Step::UserNamespace | Step::NetworkNamespace, Errno::NOSPC) => "the limit of \
            namespaces is reached or 0: raise `user.max_user_namespaces` and \
            `user.max_net_namespaces`"
            .into(),
        (Step::UserNamespace | Step::NetworkNamespace, _) if hints.switched_off => "user \
            namespaces are switched off on this machine: allow them with \
            `sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000`, or run \
            relay as root"
            .into(),
        (Step::UserNamespace | Step::NetworkNamespace, _) if hints.apparmor => APPARMOR.into(),
        (Step::UserNamespace | Step::NetworkNamespace, Errno::INVAL | Errno::NOSYS) => "this \
            kernel has no user or network namespaces: use one with CONFIG_USER_NS and \
            CONFIG_NET_NS"
            .into(),
        (Step::UserNamespace | Step::NetworkNamespace, _) => format!(
            "a network namespace was refused ({errno}): start the container with `--cap-add \
             NET_ADMIN --device /dev/net/tun`, or run relay where user namespaces are allowed"
        ),
        (Step::MakeInterface, _) => format!("making a TUN interface failed: {errno}"),
        (Step::OpenDevice, _) => format!("opening /dev/net/tun failed: {errno}"),
        (Step::UdpOffload | Step::Offload, _) => format!("setting TUN offloads failed: {errno}"),
        (Step::Configure, Errno::OPNOTSUPP | Errno::AFNOSUPPORT) => "IPv6 is switched off in \
            this kernel: start it without `ipv6.disable=1`"
            .into(),
        (Step::Configure, Errno::ACCESS) => "IPv6 is switched off for new interfaces here: set \
            `sysctl net.ipv6.conf.default.disable_ipv6=0`"
            .into(),
        (Step::Configure, Errno::EXIST) => "another interface of this container has the \
            tunnel's routes already: stop the other relay or tailscaled"
            .into(),
        (Step::Configure, _) => format!("giving the TUN interface its addresses failed: {errno}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_is_one_line_that_names_the_way_out() {
        let plain = Hints::default();
        let apparmor = Hints {
            apparmor: true,
            ..plain
        };
        let off = Hints {
            switched_off: true,
            ..plain
        };
        for (step, errno, hints, expected) in [
            (Step::OpenDevice, Errno::NOENT, plain, "modprobe tun"),
            (
                Step::OpenDevice,
                Errno::ACCESS,
                plain,
                "chmod 0666 /dev/net/tun",
            ),
            (
                Step::OpenDevice,
                Errno::PERM,
                plain,
                "--device /dev/net/tun",
            ),
            (
                Step::MakeInterface,
                Errno::PERM,
                apparmor,
                "apparmor_restrict",
            ),
            (
                Step::MakeInterface,
                Errno::PERM,
                plain,
                "--cap-add NET_ADMIN",
            ),
            (
                Step::UserNamespace,
                Errno::PERM,
                plain,
                "--cap-add NET_ADMIN",
            ),
            (
                Step::UserNamespace,
                Errno::PERM,
                off,
                "unprivileged_userns_clone=1",
            ),
            (
                Step::UserNamespace,
                Errno::PERM,
                apparmor,
                "apparmor_restrict",
            ),
            (
                Step::UserNamespace,
                Errno::NOSPC,
                plain,
                "max_user_namespaces",
            ),
            (Step::UserNamespace, Errno::INVAL, plain, "CONFIG_USER_NS"),
            (Step::Configure, Errno::ACCESS, plain, "disable_ipv6=0"),
        ] {
            let line = reason(step, errno, hints);
            assert!(line.contains(expected), "{line}");
            assert!(!line.contains('\n') && !line.contains("  "), "{line}");
        }
    }
}

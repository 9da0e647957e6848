//! `relay connect exists HOST`: what the section of `relay config-ssh` asks before it leads OpenSSH
//! through a tunnel. A host that Coder's VPN has is reached without one.

use std::net::{IpAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use clap::Subcommand;

/// How long the name may take: the VPN answers from this machine.
const PATIENCE: Duration = Duration::from_millis(200);
/// The VPN's addresses, fd60:627a:a42b::/48 (coder_facts §4.2).
const PREFIX: [u16; 3] = [0xfd60, 0x627a, 0xa42b];

/// Commands about Coder's VPN.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    question: Question,
}

#[derive(Subcommand)]
enum Question {
    /// Exit with 0 when the VPN has the host, with 1 when it has not.
    Exists {
        /// The host's name.
        host: String,
    },
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> ExitCode {
    let Question::Exists { host } = &args.question;
    let (tell, told) = mpsc::channel();
    let host = (host.clone(), 22);
    // Ends with the process: asking for a name cannot be called off.
    std::thread::spawn(move || {
        let found = host
            .to_socket_addrs()
            .is_ok_and(|mut addresses| addresses.any(|address| of_the_vpn(address.ip())));
        let _ = tell.send(found);
    });
    match told.recv_timeout(PATIENCE) {
        Ok(true) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn of_the_vpn(address: IpAddr) -> bool {
    match address {
        IpAddr::V6(address) => address.segments()[..3] == PREFIX,
        IpAddr::V4(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_vpns_addresses_count() {
        assert!(of_the_vpn("fd60:627a:a42b::1".parse().unwrap()));
        for other in ["fd7a:115c:a1e0::1", "fd60:627a:a42c::1", "127.0.0.1", "::1"] {
            assert!(!of_the_vpn(other.parse().unwrap()), "{other}");
        }
    }
}

//! Flags of every command that holds an end of tunnels open.

use std::time::Duration;

use clap::builder::BoolishValueParser;
use relay_engine::Engine;
use relay_tunnel::endpoint::{BUSY_POLL, MAX_LOOPS, MAX_MTU, StackChoice, usual_loops};
use relay_tunnel::stack::Offloads;

use crate::output;

/// How packets are moved.
#[derive(clap::Args)]
pub(super) struct TunnelArgs {
    /// TCP/IP stack inside the tunnel: kernel is the kernel's in a private network namespace, user
    /// is relay's own, which needs no device and no privileges; auto is kernel where it can be had
    #[arg(
        long,
        env = "RELAY_STACK",
        default_value = "auto",
        value_name = "STACK"
    )]
    #[arg(hide_env_values = true)]
    pub(super) stack: StackChoice,
    /// Largest packet inside the tunnel, in bytes: 1280 as towards Coder's own, or more where a path
    /// is found to carry it
    #[arg(long, default_value_t = MAX_MTU, value_name = "BYTES")]
    #[arg(value_parser = clap::value_parser!(u16).range(1280..=i64::from(MAX_MTU)))]
    pub(super) max_mtu: u16,
    #[command(flatten)]
    busy_poll: BusyPollArgs,
    #[command(flatten)]
    offloads: OffloadsArgs,
}

/// Which offloads are used.
#[derive(clap::Args)]
pub(super) struct OffloadsArgs {
    /// Offloads to leave unused: tun-tcp, tun-udp, udp-send, udp-receive, avx512, or all; for kernels,
    /// cards and processors that corrupt them
    #[arg(
        long,
        env = "RELAY_DISABLE_OFFLOADS",
        hide_env_values = true,
        value_name = "LIST"
    )]
    #[arg(default_value = "", hide_default_value = true, value_parser = Offloads::without)]
    disable_offloads: Offloads,
}

impl OffloadsArgs {
    /// Those that may be used.
    pub(super) fn allowed(&self) -> Offloads {
        self.disable_offloads
    }
}

/// Whether a stopped workspace is started.
#[derive(clap::Args)]
pub(super) struct AutostartArgs {
    /// Do not start a stopped workspace
    #[arg(long, env = "CODER_SSH_DISABLE_AUTOSTART", hide_env_values = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_value = "false")]
    #[arg(
        default_missing_value = "true",
        hide_default_value = true,
        hide_possible_values = true
    )]
    #[arg(value_parser = BoolishValueParser::new(), value_name = "BOOL")]
    disable_autostart: bool,
}

impl AutostartArgs {
    /// Whether it may be.
    pub(super) fn allowed(&self) -> bool {
        !self.disable_autostart
    }
}

/// How connections are carried between this machine's sockets and the tunnel's.
#[derive(clap::Args)]
pub(super) struct EngineArgs {
    /// How bytes are moved: auto, copy, splice, io-uring or sockmap
    #[arg(long, default_value = "auto", value_name = "ENGINE")]
    engine: Engine,
}

impl EngineArgs {
    /// The engine to use: the one asked for, or what takes its place on this machine, which is
    /// said. Not before the helper that has to be alone when it is forked.
    pub(super) fn choose(&self) -> Engine {
        match self.engine.check() {
            Ok(()) => self.engine,
            Err(error) => {
                let instead = Engine::default();
                output::notice(format_args!("{error}; using {instead}"));
                instead
            }
        }
    }
}

/// How many loops an end of many tunnels has.
#[derive(clap::Args)]
pub(super) struct LoopsArgs {
    /// Loops that share the peers among them, a thread each; a peer belongs to one [default: one for
    /// every two cores, at most 4]
    #[arg(
        long,
        env = "RELAY_LOOPS",
        hide_env_values = true,
        value_name = "NUMBER"
    )]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_LOOPS)))]
    loops: Option<u8>,
}

impl LoopsArgs {
    /// What was asked for, or else what suits the machine.
    pub(super) fn count(&self) -> u8 {
        self.loops.unwrap_or_else(usual_loops)
    }
}

impl TunnelArgs {
    /// Which offloads may be used.
    pub(super) fn offloads(&self) -> Offloads {
        self.offloads.allowed()
    }

    /// How long to look for an answer before sleeping.
    pub(super) fn busy_poll(&self) -> Duration {
        self.busy_poll.duration()
    }
}

/// Whether to wait awake.
#[derive(clap::Args)]
pub(super) struct BusyPollArgs {
    /// How long to look for an answer to a small message before sleeping, in microseconds: spares
    /// small messages the time of being woken; 0 turns it off
    #[arg(
        long,
        env = "RELAY_BUSY_POLL",
        hide_env_values = true,
        value_name = "MICROSECONDS"
    )]
    #[arg(default_value_t = BUSY_POLL, value_parser = clap::value_parser!(u64).range(..=1000))]
    busy_poll: u64,
}

impl BusyPollArgs {
    /// How long to look for an answer before sleeping.
    pub(super) fn duration(&self) -> Duration {
        Duration::from_micros(self.busy_poll)
    }
}

//! `relay netcheck`: what this machine and its network let relay do.

mod machine;
mod show;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use relay_control::rest::Client;
use relay_tunnel::netcheck::{self, Findings};
use relay_tunnel::stack::NetHelper;
use relay_wire::derp_map::DerpMap;

use self::machine::Machine;
use super::block_on;
use crate::cli::Global;
use crate::output::{self, Format};

/// How long the control plane may take.
const PATIENCE: Duration = Duration::from_secs(10);

const EXAMPLES: &str = "\
Examples:
  relay netcheck              what works here, what does not, and what helps
  relay netcheck -o json      the same for programs

Exits with 1 when a tunnel cannot work from here: no session at a control plane that answers, or no
relay that answers.";

/// Flags of `relay netcheck`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// How to print the results
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

/// What is known about the control plane.
struct Control {
    url: Option<String>,
    /// How long it took to answer, and who is signed in.
    answer: Result<(Duration, String)>,
}

/// Everything that was found.
struct Report {
    control: Control,
    /// None without a map of relays.
    network: Option<Findings>,
    machine: Machine,
    interfaces: Vec<machine::Interface>,
}

/// Runs the command.
pub(crate) fn run(args: &Args, global: &Global) -> Result<()> {
    // Before the first thread: the helper must be alone when it is forked.
    let helper = NetHelper::spawn().map_err(|error| error.to_string());
    let report = block_on(async {
        let (control, map) = ask_control(global.client()).await;
        let network = match map {
            Some(map) => Some(netcheck::check(&map, &global.tls()).await?),
            None => None,
        };
        Ok(Report {
            control,
            network,
            machine: Machine::try_out(helper),
            interfaces: machine::interfaces(),
        })
    })?;
    match args.output {
        Format::Json => output::json(&show::document(&report))?,
        Format::Text => output::result(show::text(&report))?,
    }
    let faults = report.faults();
    ensure!(
        faults.is_empty(),
        "no tunnel can work from here: {}",
        faults.join("; ")
    );
    Ok(())
}

/// Asks the control plane who is signed in and which relays there are.
async fn ask_control(client: Result<Client>) -> (Control, Option<DerpMap>) {
    let client = match client {
        Ok(client) => client,
        Err(error) => {
            let control = Control {
                url: None,
                answer: Err(error),
            };
            return (control, None);
        }
    };
    let ask = async {
        // The first request opens the connection; the second shows how long an answer takes.
        let user = client.me().await?;
        let start = Instant::now();
        client.buildinfo().await?;
        let took = start.elapsed();
        let map = client.relays().await?.derp_map;
        anyhow::Ok((took, user.username, map))
    };
    let asked = tokio::time::timeout(PATIENCE, ask).await;
    let asked = asked.unwrap_or_else(|_| {
        let (url, limit) = (client.url(), PATIENCE.as_secs());
        Err(anyhow::anyhow!(
            "no answer from {url} within {limit} seconds"
        ))
    });
    let (answer, map) = match asked {
        Ok((took, user, map)) => (Ok((took, user)), map),
        Err(error) => (Err(error), None),
    };
    let url = Some(client.url().to_string());
    (Control { url, answer }, map)
}

impl Report {
    /// Why no tunnel can work.
    fn faults(&self) -> Vec<&'static str> {
        let relays = |found: &Findings| found.relays.iter().any(|relay| relay.time.is_ok());
        let mut faults = Vec::new();
        if self.control.answer.is_err() {
            faults.push("the control plane cannot be used");
        } else if !self.network.as_ref().is_some_and(relays) {
            faults.push("no relay answers");
        }
        faults
    }
}

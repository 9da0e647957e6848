//! `relay list`: the workspaces that the session may see.

use anyhow::Result;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use relay_wire::rest::Workspace;

use super::block_on;
use crate::cli::Global;
use crate::output::{self, Format};

/// Flags of `relay list`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Those of all owners
    #[arg(short, long)]
    all: bool,
    /// How to print them
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    #[arg(alias = "format")]
    output: Format,
}

/// Runs the command.
pub(crate) fn run(args: Args, global: &Global) -> Result<()> {
    let client = global.client()?;
    let query = if args.all { "" } else { "owner:me" };
    let workspaces = block_on(async { Ok(client.workspaces(query).await?) })?;
    match args.output {
        Format::Json => output::json(&workspaces),
        Format::Text if workspaces.is_empty() => {
            output::notice("No workspaces.");
            Ok(())
        }
        Format::Text => output::result(table(&workspaces)),
    }
}

fn table(workspaces: &[Workspace]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(NOTHING)
        .set_header(["WORKSPACE", "STATUS", "AGENTS"]);
    for workspace in workspaces {
        let agents = workspace
            .agents()
            .map(|agent| format!("{} ({})", agent.name, agent.status));
        table.add_row([
            format!("{}/{}", workspace.owner_name, workspace.name),
            workspace.latest_build.status.to_string(),
            agents.collect::<Vec<_>>().join(", "),
        ]);
    }
    table
}

//! `cargo xtask test`.

use anyhow::Result;

use crate::binaries;
use crate::run;
use crate::tools;

/// Flags of `cargo xtask test`.
#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Test the binary of the dev profile: it is built sooner, and slower
    #[arg(long)]
    dev: bool,
    /// Fail where a test would be skipped (CI does)
    #[arg(long)]
    strict: bool,
    /// Words for `cargo test`, such as the name of a test
    #[arg(last = true)]
    rest: Vec<String>,
}

impl Args {
    /// What CI asks for: a test that cannot run there must fail, not hide.
    pub(crate) fn strict() -> Args {
        Args {
            strict: true,
            ..Args::default()
        }
    }
}

/// Runs every test. End-to-end tests run the binary that `RELAY_BIN` names: the release build,
/// because that is what users run and what the bounds on time and memory are about.
pub(crate) fn run(args: &Args) -> Result<()> {
    tools::provide()?;
    let mut env = vec![("RELAY_BIN", build(args.dev)?)];
    if args.strict {
        env.push(("RELAY_REQUIRE_ALL", "1".into()));
    }
    if !args.rest.is_empty() {
        let mut test = run::cargo(&["test", "--workspace", "--no-fail-fast"]);
        test.args(&args.rest).envs(env);
        return run::checked(test.current_dir(run::root()));
    }
    binaries::run(&["--workspace"], &env)?;
    let mut documentation = run::cargo(&["test", "--workspace", "--doc"]);
    run::checked(documentation.current_dir(run::root()))
}

/// The tests that ask most of relay's own TCP and bound no time: it recovers, refuses, resets, bears
/// many.
const OF_TUNNELS: [&str; 4] = ["endpoint", "relayed", "sockets", "many"];

/// Runs those tests of tunnels again with relay's own TCP, in containers without TUN device,
/// capabilities and namespaces.
pub(crate) fn user_stack() -> Result<()> {
    let mut words = vec!["--workspace"];
    words.extend(OF_TUNNELS.iter().flat_map(|name| ["--test", name]));
    let env = [
        ("RELAY_BIN", build(false)?),
        ("RELAY_STACK", "user".into()),
        ("RELAY_LAB_CONFINED", "1".into()),
        ("RELAY_REQUIRE_ALL", "1".into()),
    ];
    binaries::run(&words, &env)
}

/// Builds the binary and says where it is.
fn build(dev: bool) -> Result<String> {
    // With other packages selected, dependencies would have other features, and everything would
    // be built twice: the release as `cargo run` selects, the dev build as the tests do.
    let mut build = run::cargo(&["build", "--bin", "relay"]);
    build.arg(if dev { "--workspace" } else { "--release" });
    run::checked(build.current_dir(run::root()))?;
    let profile = if dev { "debug" } else { "release" };
    let binary = run::target_dir()?.join(profile).join("relay");
    Ok(binary.display().to_string())
}

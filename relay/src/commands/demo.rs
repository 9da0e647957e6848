//! `relay demo`: the 60-second proof. Server, agent and forward run as on three machines, each by
//! the command that a user would type, with a sample app behind them.

mod app;
mod parts;
mod transfer;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use self::parts::{Part, Stage};
use self::transfer::Moved;
use crate::cli::Global;
use crate::output;

const GIB: u64 = 1 << 30;
/// Tried first, so that the URL is easy to remember.
const FAVOURITE_PORT: u16 = 8080;
const START: Duration = Duration::from_secs(30);
/// How long the direct path may take; it is there after milliseconds.
const DIRECT: Duration = Duration::from_secs(10);

/// Flags of `relay demo`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Exit after the proof: 0 when every byte was right
    #[arg(long)]
    once: bool,
}

/// Runs the command.
pub(crate) fn run(args: Args, _global: &Global) -> Result<()> {
    let stage = Stage::new()?;
    let app = app::start().context("cannot start the sample app")?;
    let (_server, url) = start_server(&stage)?;
    let account = create_account(&stage)?;
    let agent = start_agent(&stage, &url, &account)?;
    let (_forward, local) = start_forward(&stage, &url, &account, app)?;
    output::result(format_args!("server     {url}"))?;

    let page = transfer::page(local).context("the page does not come through the forward")?;
    ensure!(page.body == app::PAGE, "the page came through changed");
    output::result(format_args!(
        "page       through the tunnel in {:.1} ms",
        page.took.as_secs_f64() * 1e3
    ))?;
    output::result(format_args!("path       {}", path(&agent)))?;

    let expected = app::expected_hash(GIB);
    let tunnel = transfer::gibibyte(local, GIB, "through the tunnel")?;
    report("tunnel", &tunnel, expected)?;
    let plain = transfer::gibibyte(app, GIB, "plain loopback")?;
    report("loopback", &plain, expected)?;
    output::result(format_args!(
        "ratio      {:.2} of plain loopback, measured just now",
        tunnel.gigabits() / plain.gigabits()
    ))?;
    if args.once {
        return Ok(());
    }
    output::result(format_args!("try        curl http://{local}/"))?;
    output::notice("Ctrl-C ends the demo.");
    stage.stay()
}

fn report(name: &str, moved: &Moved, expected: [u8; 32]) -> Result<()> {
    let verdict = if moved.hash == expected {
        "hash ok"
    } else {
        "HASH DIFFERS"
    };
    output::result(format_args!(
        "{name:<10} 1 GiB in {:.2} s, {:.2} Gbit/s, {verdict}",
        moved.took.as_secs_f64(),
        moved.gigabits()
    ))?;
    ensure!(
        moved.hash == expected,
        "{name}: the bytes that arrived are not the bytes that were sent"
    );
    Ok(())
}

fn start_server(stage: &Stage) -> Result<(Part, String)> {
    let address = free_address()?;
    let mut command = stage.relay();
    command
        .args(["server", "--http-address", &address.to_string()])
        .args(["--stun-address", "none", "--data-dir"])
        .arg(stage.data());
    let server = stage.start("relay server", command)?;
    server.wait_for(START, || transfer::is_up(address))?;
    Ok((server, format!("http://{address}")))
}

/// What the forward and the agent sign in with.
struct Account {
    session: String,
    agent_token: String,
}

fn create_account(stage: &Stage) -> Result<Account> {
    let password = uuid::Uuid::new_v4().to_string();
    let user = ["user", "create", "demo", "--email", "demo@example.com"];
    let user = [&user[..], &["--password-stdin", "--admin"]].concat();
    stage.administer(&user, &password)?;
    let session = stage.administer(&["token", "create", "demo"], "")?;
    let workspace = ["workspace", "create", "demo/demo", "--agent", "main"];
    let workspace = [&workspace[..], &["-o", "json"]].concat();
    let made: Workspace = serde_json::from_str(&stage.administer(&workspace, "")?)
        .context("`relay server workspace create` printed something else than a workspace")?;
    let agent = made.agents.into_iter().next();
    Ok(Account {
        session,
        agent_token: agent.context("the workspace has no agent")?.token,
    })
}

#[derive(Deserialize)]
struct Workspace {
    agents: Vec<Agent>,
}

#[derive(Deserialize)]
struct Agent {
    token: String,
}

fn start_agent(stage: &Stage, url: &str, account: &Account) -> Result<Part> {
    let mut command = stage.relay();
    command
        .args(["agent", "--url", url])
        .env("RELAY_LOG", "info,relay_agent=debug")
        .env("CODER_AGENT_TOKEN", &account.agent_token);
    let agent = stage.start("relay agent", command)?;
    agent.wait_for(START, || agent.said("ready"))?;
    Ok(agent)
}

fn start_forward(
    stage: &Stage,
    url: &str,
    account: &Account,
    app: SocketAddr,
) -> Result<(Part, SocketAddr)> {
    let favourite = SocketAddr::from((Ipv4Addr::LOCALHOST, FAVOURITE_PORT));
    let local = match TcpListener::bind(favourite) {
        Ok(_) => favourite,
        Err(_) => free_address()?,
    };
    let mut command = stage.relay();
    command
        .args(["port-forward", "demo", "--always-tunnel", "--tcp"])
        .arg(format!("{}:{}:{}", local.ip(), local.port(), app.port()))
        .env("CODER_URL", url)
        .env("CODER_SESSION_TOKEN", &account.session);
    let forward = stage.start("relay port-forward", command)?;
    forward.wait_for(START, || forward.said("Ready!"))?;
    Ok((forward, local))
}

/// How the two ends reach each other, as the agent logs it.
fn path(agent: &Part) -> String {
    const MARK: &str = "path is ";
    let newest = || {
        let line = agent.line_with(MARK)?;
        line.split_once(MARK).map(|(_, path)| path.to_owned())
    };
    let start = Instant::now();
    loop {
        match newest() {
            Some(path) if path.starts_with("direct") || start.elapsed() > DIRECT => return path,
            None if start.elapsed() > DIRECT => return "unknown".to_owned(),
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// A port that is free now.
fn free_address() -> Result<SocketAddr> {
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port is free on 127.0.0.1")?;
    Ok(listener.local_addr()?)
}

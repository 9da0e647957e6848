//! `relay login` and `relay logout`: the session that the other commands use.

use std::io::{self, IsTerminal, Write};

use anyhow::{Context, Result, bail, ensure};
use relay_control::config::parse_url;
use relay_control::rest::Client;
use url::Url;

use super::block_on;
use crate::cli::Global;
use crate::output;

const EXAMPLES: &str = "\
Examples:
  relay login https://relay.example.com                asks for a token
  relay login https://relay.example.com --token TOKEN
  relay login http://127.0.0.1:3000 < token-file";

/// Flags of `relay login`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// URL of the deployment
    #[arg(value_name = "URL")]
    address: Option<String>,
    /// Replace the session that is remembered now
    #[arg(long)]
    force: bool,
    /// Remember the given token itself instead of a new key made with it
    #[arg(long)]
    use_token_as_session: bool,
}

/// Flags of `relay logout`.
#[derive(clap::Args)]
pub(crate) struct LogoutArgs {
    /// Accepted for Coder's scripts: nothing is asked
    #[arg(short, long, hide = true)]
    yes: bool,
}

/// Signs in.
pub(crate) fn run(args: Args, global: &Global) -> Result<()> {
    let config = global.config();
    let url = match args.address.clone().or_else(|| global.url()) {
        Some(text) => parse_url(&text)?,
        None => bail!("no URL: write `relay login URL`, for example https://relay.example.com"),
    };
    if let (Some(_), false) = (config.token()?, args.force) {
        let known = config
            .url()?
            .map_or_else(|| "another deployment".to_owned(), String::from);
        let path = config.path().to_owned();
        return Err(relay_control::Error::SessionExists { path, url: known }.into());
    }
    let token = match global.token() {
        Some(token) => token,
        None => ask(&url)?,
    };
    let client = Client::new(&url, global.access(token.clone())?);
    let (name, session) = block_on(async {
        let user = client.me().await?;
        let session = match args.use_token_as_session {
            true => token,
            false => client.create_key().await?,
        };
        Ok((user.username, session))
    })?;
    config.remember(&url, &session, args.force)?;
    output::notice(format_args!("Signed in to {url} as {name}"));
    Ok(())
}

/// Reads the token from standard input.
fn ask(url: &Url) -> Result<String> {
    if io::stdin().is_terminal() {
        let page = url.join("cli-auth").unwrap_or_else(|_| url.clone());
        output::notice(format_args!("Open {page} and copy the token from there."));
        let _ = write!(io::stderr().lock(), "Token: ");
    }
    let mut line = String::new();
    io::stdin()
        .read_line(&mut line)
        .context("cannot read the token from standard input")?;
    let token = line.trim();
    ensure!(
        !token.is_empty(),
        "no token: give --token, or write one to standard input"
    );
    Ok(token.to_owned())
}

/// Forgets the session, here and at the deployment.
pub(crate) fn logout(_args: LogoutArgs, global: &Global) -> Result<()> {
    let config = global.config();
    let (Some(url), Some(token)) = (config.url()?, config.token()?) else {
        bail!(
            "not signed in: {} holds no session",
            config.path().display()
        );
    };
    let client = Client::new(&url, global.access(token)?);
    if let Err(error) = block_on(async { Ok(client.logout().await?) }) {
        tracing::warn!("the deployment was not told: {error}");
    }
    config.forget()?;
    output::notice(format_args!("Signed out of {url}"));
    Ok(())
}

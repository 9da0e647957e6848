//! A program that embeds a forward. `embed URL TOKEN WORKSPACE FORWARD`, for example
//! `embed https://relay.example.com TOKEN dev tcp://8080:8000`, until Ctrl-C.
#![allow(clippy::print_stderr)]

use relay_forward::event::Reporter;
use relay_forward::{Access, AnyForward, Client, Forwarder, NetHelper, Options, Wanted, parse_url};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [url, token, workspace, forward] = words.try_into().map_err(|_| "give four words")?;
    // Before the process has threads: it forks.
    let helper = NetHelper::spawn()?;
    let access = Access {
        token,
        ..Access::default()
    };
    let options = Options::new(Client::new(&parse_url(&url)?, access), workspace.parse()?);
    let wanted = Wanted {
        forwards: AnyForward::parse(&forward)?,
        ..Wanted::default()
    };
    let report = Reporter::new(|event| eprintln!("{event}"));
    let forwarder = Forwarder::new(options, helper).report(report);
    let until = async { drop(tokio::signal::ctrl_c().await) };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(forwarder.run(wanted, until))?)
}

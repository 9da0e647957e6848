//! The vector files through the real code.
//!
//! Each row of a file is run alone; a row fails when its runner panics or returns an error. Rows
//! that need a part which is not built are left, and counted as such.

mod agent;
mod apps;
mod control;
mod forward;
mod live;
mod proxy;
mod shares;
mod wire;

use std::cell::RefCell;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde_json::Value;

/// What became of a row that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ran {
    /// It holds.
    Passed,
    /// Nothing can run it yet.
    Left,
}

/// The result of a file.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Rows that hold.
    pub passed: usize,
    /// All rows.
    pub total: usize,
    /// Names of the rows that fail, with what was wrong.
    pub failed: Vec<(String, String)>,
    /// Names of the rows that nothing runs.
    pub left: Vec<String>,
}

type Rows = fn(&Value) -> Ran;

/// How a file is run.
enum Runner {
    /// An array of `{name, input, expect}`.
    Rows(Rows),
    /// A recorded session.
    Session(fn(&Value)),
}

fn runner(file: &str) -> Option<Runner> {
    let rows = |rows: Rows| Some(Runner::Rows(rows));
    match file {
        "wire_addr.json" | "tailnet_addr.json" => rows(wire::addr),
        "wire_keys.json" => rows(wire::keys),
        "wire_disco.json" => rows(wire::disco),
        "wire_derp.json" => rows(wire::derp),
        "wire_stun.json" => rows(wire::stun),
        "wire_tsmp.json" => rows(wire::tsmp),
        "wire_yamux.json" => rows(control::yamux),
        "wire_drpc.json" => rows(control::drpc),
        "wire_proto.json" => rows(control::proto),
        "wire_rest.json" => rows(control::rest),
        "portforward_spec.json" => rows(forward::spec),
        "portforward_listen.json" => rows(forward::listen),
        "workspace_name.json" => rows(forward::workspace_name),
        "remote_forward.json" => rows(forward::remote_forward),
        "app_hostname.json" => rows(apps::hostname),
        "hostname_pattern.json" => rows(apps::pattern),
        "redirect_sanitize.json" => rows(apps::redirect_sanitize),
        "cookies_strip.json" => rows(apps::cookies_strip),
        "forwarded_headers.json" => rows(apps::forwarded_headers),
        "names.json" => rows(apps::names),
        "cors.json" => rows(apps::cors),
        "auth_flow.json" => rows(apps::auth_flow),
        "app_access.json" => rows(apps::app_access),
        "port_share_api.json" => rows(shares::port_share_api),
        "app_stats.json" => rows(apps::app_stats),
        "listening_ports.json" => rows(agent::listening_ports),
        "app_health.json" => rows(agent::app_health),
        "derp_session.json" => Some(Runner::Session(live::derp)),
        "derp_session_cli.json" | "derp_session_cli_websocket.json" => {
            Some(Runner::Session(live::derp_cli))
        }
        "control_session_agent.json"
        | "control_session_agent_short.json"
        | "control_session_cli.json"
        | "control_session_cli_short.json" => Some(Runner::Session(live::control)),
        "rest_session.json" => Some(Runner::Session(live::rest)),
        "stun_session.json" => Some(Runner::Session(live::stun)),
        "udp_session.json" => Some(Runner::Session(live::udp)),
        _ => None,
    }
}

/// Where the repository keeps its copy.
pub fn own_copy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors")
}

/// All vector files below a folder, sorted.
///
/// # Errors
/// When the folder cannot be read.
pub fn files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Runs a file; `None` when nothing runs it.
///
/// # Errors
/// When it cannot be read or is no JSON.
pub fn run(path: &Path) -> anyhow::Result<Option<Outcome>> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let Some(runner) = runner(name) else {
        return Ok(None);
    };
    let content: Value = serde_json::from_str(&fs::read_to_string(path)?)?;
    let mut outcome = Outcome::default();
    match runner {
        Runner::Rows(rows) => {
            for row in content.as_array().into_iter().flatten() {
                let name = row["name"].as_str().unwrap_or("(without a name)");
                outcome.add(name, guarded(|| rows(row)));
            }
        }
        Runner::Session(session) => {
            let ran = guarded(|| {
                session(&content);
                Ran::Passed
            });
            outcome.add("the whole session", ran);
        }
    }
    Ok(Some(outcome))
}

impl Outcome {
    fn add(&mut self, name: &str, ran: Result<Ran, String>) {
        self.total += 1;
        match ran {
            Ok(Ran::Passed) => self.passed += 1,
            Ok(Ran::Left) => self.left.push(name.to_owned()),
            Err(reason) => self.failed.push((name.to_owned(), reason)),
        }
    }
}

thread_local! {
    static REASON: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs a row; a panic becomes its message.
fn guarded(run: impl FnOnce() -> Ran) -> Result<Ran, String> {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(|info| {
        REASON.with_borrow_mut(|reason| *reason = info.to_string().replace('\n', " "));
    }));
    let ran = catch_unwind(AssertUnwindSafe(run));
    std::panic::set_hook(before);
    ran.map_err(|_| REASON.take())
}

/// The bytes of a hexadecimal text.
fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().expect("a hexadecimal text")).expect("hexadecimal digits")
}

fn array<const N: usize>(value: &Value) -> [u8; N] {
    bytes(value).try_into().expect("so many bytes")
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// Compares what was found with the row's `expect`.
fn equals(found: &Value, row: &Value) -> Ran {
    assert_eq!(found, &row["expect"]);
    Ran::Passed
}

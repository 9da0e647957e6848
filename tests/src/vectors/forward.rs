//! Port specifications, what is listened on, what leads back, names of workspaces.

use std::net::SocketAddr;

use relay_wire::Error;
use relay_wire::names::{WorkspaceName, normalize_ssh, pick_agent, ssh_host};
use relay_wire::remote_forward::{REMOTE_BIND, RemoteForward};
use relay_wire::spec::{Forward, Listen, SpecError, SpecReason, parse_specs, plan};
use serde_json::{Value, json};

use super::{Ran, equals, text};

fn list(input: &Value, key: &str) -> Vec<String> {
    let items = input[key].as_array().into_iter().flatten();
    items
        .map(|item| item.as_str().unwrap_or_default().to_owned())
        .collect()
}

fn parse(input: &Value) -> Result<Vec<Forward>, SpecError> {
    parse_specs(&list(input, "tcp"), &list(input, "udp"))
}

pub(super) fn spec(row: &Value) -> Ran {
    let found = match parse(&row["input"]) {
        Ok(forwards) => {
            let forwards: Vec<Value> = forwards.iter().map(forward).collect();
            json!({ "ok": forwards })
        }
        Err(error) => json!({ "error": class(&error) }),
    };
    equals(&found, row)
}

fn forward(forward: &Forward) -> Value {
    json!({
        "proto": forward.proto.as_str(),
        "bind": forward.bind.map(|bind| bind.to_string()),
        "local": forward.local,
        "remote": forward.remote,
    })
}

fn class(error: &SpecError) -> &'static str {
    match error {
        SpecError::Spec { reason, .. } => match reason {
            SpecReason::Shape => "invalid_spec",
            SpecReason::Address(_) => "invalid_ip",
            SpecReason::PortZero => "port_zero",
            SpecReason::PortTooLarge(_) => "port_out_of_range",
            SpecReason::Reversed(_) => "range_reversed",
            SpecReason::Lengths { .. } => "range_length_mismatch",
        },
        SpecError::Duplicate { .. } => "duplicate_local",
        SpecError::NoForwards => "no_forwards",
        SpecError::List(_) => "invalid_list",
    }
}

pub(super) fn listen(row: &Value) -> Ran {
    let input = &row["input"];
    let attempts = plan(&parse(input).expect("specifications"));
    if row["expect"].get("attempts_in_order").is_some() {
        let attempts: Vec<Value> = attempts.iter().map(attempt).collect();
        let found =
            json!({"attempts_in_order": attempts, "then_when_agent_reachable_stderr": "Ready!"});
        return equals(&found, row);
    }
    let busy: Vec<SocketAddr> = list(input, "busy")
        .iter()
        .map(|text| text.parse().expect("an address"))
        .collect();
    let mut listening = Vec::new();
    for attempt in attempts {
        let taken = busy.contains(&attempt.address);
        if taken && attempt.required {
            let what = format!("listen '{}://{}'", attempt.forward.proto, attempt.address);
            let found = json!({
                "running": false,
                "exit": "nonzero",
                "listening": [],
                "error_contains": what,
            });
            return equals(&found, row);
        }
        if !taken {
            listening.push(attempt.address.to_string());
        }
    }
    equals(
        &json!({"running": true, "listening": listening, "warning_printed": false}),
        row,
    )
}

fn attempt(attempt: &Listen) -> Value {
    json!({
        "proto": attempt.forward.proto.as_str(),
        "listen": attempt.address.to_string(),
        "dial": format!("127.0.0.1:{}", attempt.forward.remote),
        "fatal_if_bind_fails": attempt.required,
        "stderr": attempt.notice(),
    })
}

pub(super) fn workspace_name(row: &Value) -> Ran {
    let input = &row["input"];
    let value = text(input, "value");
    let found = match text(input, "op") {
        "ssh_normalize" => json!({ "ok": normalize_ssh(value) }),
        "ssh_host" => {
            json!({ "ok": ssh_host(value, text(input, "prefix"), text(input, "suffix")) })
        }
        "cli_workspace" => match value.parse::<WorkspaceName>() {
            Ok(name) => json!({"ok": {
                "owner": name.owner_or_me(),
                "workspace": name.workspace,
                "agent": name.agent.unwrap_or_default(),
            }}),
            Err(_) => json!({ "error": "invalid_identifier" }),
        },
        "pick_agent" => {
            let agents = list(input, "agents");
            let name = Some(text(input, "name")).filter(|name| !name.is_empty());
            match pick_agent(&agents, name, String::as_str) {
                Ok(agent) => json!({ "ok": agent }),
                Err(Error::NoAgents) => json!({ "error": "no_agents" }),
                Err(Error::SeveralAgents(_)) => json!({ "error": "several_agents" }),
                Err(_) => json!({ "error": "agent_not_found" }),
            }
        }
        other => panic!("an unknown operation {other}"),
    };
    equals(&found, row)
}

pub(super) fn remote_forward(row: &Value) -> Ran {
    let found = match row["input"].as_str().expect("a text").parse() {
        Ok(RemoteForward::Tcp { remote, host, port }) => json!({"ok": {
            "kind": "tcp",
            "remote": format!("{REMOTE_BIND}:{remote}"),
            "local_host": host,
            "local_port": port,
        }}),
        Ok(RemoteForward::Unix { remote, local }) => {
            json!({"ok": {"kind": "unix", "remote": remote, "local": local}})
        }
        Err(_) => json!({ "error": "invalid_remote_forward" }),
    };
    equals(&found, row)
}

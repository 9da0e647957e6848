//! What the agent tells of its machine, and the server's view of it.

use std::time::{Duration, Instant};

use relay_agent::health::{Health, Probe};
use relay_agent::listening;
use relay_server::apps::ports::{self, ListeningPort};
use serde_json::{Value, json};

use super::{Ran, equals, text};

pub(super) fn listening_ports(row: &Value) -> Ran {
    let input = &row["input"];
    if let Some(port) = input["port"].as_i64() {
        return equals(&json!({ "allowed": ports::allowed(port).is_some() }), row);
    }
    if let Some(table) = input["proc_net_tcp"].as_str() {
        let found: Vec<Value> = listening::parse(table)
            .iter()
            .map(|l| json!({"address": l.address.ip().to_string(), "port": l.address.port()}))
            .collect();
        return equals(&json!({ "listening": found }), row);
    }
    let listening = input["listening"].as_array().expect("a list");
    let listening = listening
        .iter()
        .map(|found| ListeningPort {
            process_name: text(found, "process_name").to_owned(),
            network: "tcp".to_owned(),
            port: found["port"]
                .as_u64()
                .and_then(|port| port.try_into().ok())
                .expect("a port"),
        })
        .collect();
    let urls = input["coder_app_urls"].as_array().into_iter().flatten();
    let urls: Vec<String> = urls
        .filter_map(|url| url.as_str().map(str::to_owned))
        .collect();
    equals(&json!({ "ports": ports::shown(listening, &urls) }), row)
}

pub(super) fn app_health(row: &Value) -> Ran {
    let input = &row["input"];
    let number = |key: &str| input[key].as_u64().expect("a number");
    let mut now = Instant::now();
    let interval = Duration::from_secs(number("interval_s"));
    let threshold = u32::try_from(number("threshold")).expect("a threshold");
    let mut health = Health::new(text(input, "url"), interval, threshold, now);
    let mut states = vec![health.state().as_str()];
    for probe in input["probe_results_in_order"]
        .as_array()
        .into_iter()
        .flatten()
    {
        now += Duration::from_secs(5);
        let status = probe.as_u64().and_then(|status| u16::try_from(status).ok());
        health.handle_probe(status.map_or(Probe::Failed, Probe::Status), now);
        states.push(health.state().as_str());
    }
    equals(
        &json!({ "state_initially_then_after_each_probe": states }),
        row,
    )
}

//! Bad input: one clear line with the offending text, the right exit status, nothing half-started.

use std::net::Ipv4Addr;

use relay_lab::cluster::{Cluster, Options};
use relay_lab::needs;
use relay_lab::needs::Need;
use relay_lab::process::{Finished, run_relay};

/// Asserts an exit status and one line of explanation that contains all `words`.
fn explained(finished: &Finished, code: i32, words: &[&str]) {
    assert_eq!(finished.code, code, "{finished:?}");
    let last = finished.stderr.lines().last().unwrap_or_default();
    for word in words {
        assert!(last.contains(word), "no {word:?} in {finished:?}");
    }
    assert!(!finished.stderr.contains("panicked"), "{finished:?}");
}

#[test]
fn mistakes_that_need_no_server_are_explained() {
    let home = tempfile::tempdir().expect("temporary folder");
    let relay = |args: &[&str]| run_relay(None, home.path(), args);
    explained(&relay(&["port-forward"]), 2, &["WORKSPACE"]);
    explained(&relay(&["port-forward", "dev", "--frob"]), 2, &["--frob"]);
    explained(&relay(&["frobnicate"]), 2, &["frobnicate"]);
    explained(&relay(&["port-forward", "dev", "--tcp"]), 2, &["--tcp"]);
    for spec in [
        "80:",
        "8080:0",
        "70000",
        "9-8",
        "1-3:1-2",
        "*:80",
        "1.2.3.999:80",
        "a",
    ] {
        let words = ["port-forward", "dev", "--tcp", spec, "--dry-run"];
        explained(&relay(&words), 1, &[spec]);
    }
    let twice = [
        "port-forward",
        "dev",
        "--tcp",
        "8080,127.0.0.1:8080",
        "--dry-run",
    ];
    explained(&relay(&twice), 1, &["8080"]);
    let engine = [
        "port-forward",
        "dev",
        "--tcp",
        "1",
        "--dry-run",
        "--engine",
        "warp",
    ];
    explained(&relay(&engine), 1, &["warp", "sockmap"]);
    let stack = [
        "port-forward",
        "dev",
        "--tcp",
        "1",
        "--dry-run",
        "--stack",
        "warp",
    ];
    explained(&relay(&stack), 1, &["warp", "user"]);
    explained(&relay(&["agent"]), 1, &["--url"]);
    explained(
        &relay(&["agent", "--url", "ftp://x", "--token", "t"]),
        1,
        &["ftp://x"],
    );
}

#[test]
fn a_dry_run_prints_the_forwards_and_needs_no_server() {
    let home = tempfile::tempdir().expect("temporary folder");
    let args = [
        "port-forward",
        "dev",
        "--tcp",
        "65535,[::1]:80-81:90-91",
        "--udp",
        "53",
    ];
    let args = [&args[..], &["--dry-run", "-o", "json"]].concat();
    let finished = run_relay(None, home.path(), &args);
    let list: serde_json::Value = serde_json::from_str(finished.success()).expect("JSON");
    let list = list.as_array().expect("array");
    assert_eq!(list.len(), 4);
    assert_eq!(list[0]["local"], 65_535);
    assert!(list[0]["bind"].is_null());
    assert_eq!(list[1]["bind"], "::1");
    assert_eq!(list[2]["remote"], 91);
    assert_eq!(list[3]["proto"], "udp");
}

#[test]
fn mistakes_about_the_deployment_are_explained() {
    needs!(Need::Namespaces);
    let cluster = Cluster::start(Options {
        agents: vec!["main", "gpu"],
        ..Options::default()
    });
    let relay = |words: &[&str]| cluster.run_client(words);
    explained(
        &relay(&["port-forward", "nope", "--tcp", "8080"]),
        1,
        &["nope"],
    );
    explained(
        &relay(&["port-forward", "dev", "--tcp", "8080"]),
        1,
        &["main", "gpu"],
    );
    explained(
        &relay(&["port-forward", "dev.cpu", "--tcp", "8080"]),
        1,
        &["cpu"],
    );
    explained(
        &relay(&["port-forward", "dev.main"]),
        1,
        &["no port-forwards requested"],
    );
    let wrong = [
        "--token",
        "wrong-token",
        "port-forward",
        "dev.main",
        "--tcp",
        "8080",
    ];
    explained(&relay(&wrong), 1, &["token"]);
    let away = "http://127.0.0.1:9";
    let unreachable = ["--url", away, "port-forward", "dev.main", "--tcp", "8080"];
    explained(&relay(&unreachable), 1, &["127.0.0.1:9"]);

    let _busy = cluster.client.listen((Ipv4Addr::LOCALHOST, 8081));
    let in_use = relay(&["port-forward", "dev.main", "--tcp", "8080,8081"]);
    explained(&in_use, 1, &["8081"]);
    assert!(
        cluster.client.local(8080).is_err(),
        "a listener stayed behind"
    );

    let agents = relay(&["port-forward", "dev.gpu", "--tcp", "8080", "--dry-run"]);
    assert_eq!(agents.code, 0, "{agents:?}");
}

#[test]
fn an_agent_with_a_wrong_token_says_so() {
    needs!(Need::Namespaces);
    let cluster = Cluster::start(Options::default());
    let url = cluster.url();
    let words = [
        "agent",
        "--url",
        &url,
        "--token",
        "00000000-0000-4000-8000-000000000000",
    ];
    let finished = run_relay(Some(&cluster.workspace), cluster.folder(), &words);
    explained(&finished, 1, &["token"]);
}

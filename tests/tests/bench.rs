//! `relay bench` as a user runs it, in its shortest form.

use std::time::Duration;

use nix::sys::signal::Signal;
use relay_lab::needs;
use relay_lab::needs::Need;
use relay_lab::net::Lab;
use relay_lab::process::{Finished, Process, relay};
use relay_lab::{PATIENCE, say, unconfined_only};
use tempfile::TempDir;

/// Runs `relay bench WORDS -o json` on a host of its own, without what the user may have installed.
fn bench(words: &[&str]) -> Finished {
    bench_with(words, |_| {})
}

/// The same, with something done to the process while it runs.
fn bench_with(words: &[&str], meanwhile: impl Fn(&Process)) -> Finished {
    let (mut lab, home) = (Lab::new(), TempDir::new().expect("folder"));
    let host = lab.host("bench");
    let mut command = relay(home.path());
    command
        .args(["bench", "-o", "json"])
        .args(words)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let mut process = Process::start("relay bench", Some(&host), command);
    meanwhile(&process);
    let status = process.wait(2 * PATIENCE);
    Finished {
        code: status.code().unwrap_or(-1),
        stdout: process.stdout(),
        stderr: process.stderr(),
    }
}

fn json(finished: &Finished) -> serde_json::Value {
    serde_json::from_str(&finished.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}\n{}", finished.stdout, finished.stderr))
}

#[test]
fn a_short_soak_has_no_bad_byte_whichever_end_uses_its_offloads() {
    needs!(Need::Namespaces);
    // The time without a byte is told, not judged: this machine may be busy with other tests.
    let words = ["--soak", "--soak-gib", "0.2", "--soak-seconds", "2"];
    let finished = bench(&[&words[..], &["--soak-stall-ms", "20000"]].concat());
    finished.success();
    let report = json(&finished);
    let parts = report["parts"].as_array().expect("parts");
    let names: Vec<_> = parts.iter().map(|part| part["name"].as_str()).collect();
    assert_eq!(names.len(), 5, "{names:?}");
    let goal = (0.2 * f64::from(1 << 30) / 4.0) as u64;
    for part in parts {
        say(part);
        assert_eq!(part["bad"], 0, "{part}");
        let least = if part["name"] == "over rekeys" {
            1
        } else {
            goal
        };
        assert!(part["bytes"].as_u64() >= Some(least), "{part}");
    }
}

#[test]
fn a_soak_that_stalls_longer_than_accepted_fails_and_says_so() {
    needs!(Need::Namespaces);
    let words = ["--soak", "--soak-gib", "0.01", "--soak-seconds", "0"];
    let finished = bench(&[&words[..], &["--soak-stall-ms", "0"]].concat());
    assert_eq!(finished.code, 1, "{}", finished.stdout);
    let said = finished.stderr.contains("more than 0 ms");
    assert!(said, "{}", finished.stderr);
    assert_eq!(json(&finished)["parts"][0]["bad"], 0);
}

#[test]
fn a_soak_that_is_stopped_for_a_moment_goes_on_and_tells_the_pause() {
    needs!(Need::Namespaces);
    const PAUSE: Duration = Duration::from_millis(150);
    let words = ["--soak", "--soak-gib", "0", "--soak-seconds", "4"];
    let words = [&words[..], &["--soak-stall-ms", "20000"]].concat();
    let finished = bench_with(&words, |process| {
        // Long enough that streams run; a pause before that would prove nothing.
        std::thread::sleep(Duration::from_secs(2));
        for _ in 0..4 {
            process.signal(Signal::SIGSTOP);
            std::thread::sleep(PAUSE);
            process.signal(Signal::SIGCONT);
            std::thread::sleep(PAUSE);
        }
    });
    finished.success();
    let part = &json(&finished)["parts"][0];
    assert_eq!(part["bad"], 0, "{part}");
    assert!(part["pause_ms"].as_f64() > Some(100.0), "{part}");
}

#[test]
fn ssh_through_the_tunnel_is_measured_and_a_missing_peer_is_named() {
    needs!(
        Need::Namespaces,
        Need::Program("ssh"),
        Need::Program("sshd"),
        Need::Program("ssh-keygen")
    );
    unconfined_only!("sshd gives rights up that nobody has there");
    let short = ["--rounds", "1", "--seconds", "0.1", "--memory-gib", "0.01"];
    let routes = ["--route", "ssh-tunnel", "--route", "dumbpipe"];
    let finished = bench(&[&short[..], &routes[..]].concat());
    finished.success();
    let report = json(&finished);
    let rows = report["rows"].as_array().expect("rows");
    let figure = |name: &str| {
        let row = rows.iter().find(|row| row["figure"] == name);
        let row = row.unwrap_or_else(|| panic!("no {name}\n{}", finished.stderr));
        row["summary"]["median"].as_f64().expect("a number")
    };
    for name in ["tcp-up1", "tcp-down8", "cpu-up1", "ping-p50", "memory-bulk"] {
        assert!(figure(name) > 0.0, "{name}");
    }
    let missing = report["missing"]["dumbpipe"].as_str().unwrap_or_default();
    assert!(missing.contains("cargo install"), "{report}");
}

#[test]
fn the_dashboard_is_measured_beside_the_app_itself_as_a_browser_reaches_it() {
    needs!(Need::Namespaces);
    let short = ["--rounds", "1", "--seconds", "0.1", "--memory-gib", "0"];
    let finished = bench(&[&short[..], &["--route", "dashboard"]].concat());
    finished.success();
    let report = json(&finished);
    let rows = report["rows"].as_array().expect("rows");
    let figure = |route: &str, name: &str| {
        let is = |row: &&serde_json::Value| row["figure"] == name && row["route"] == route;
        let row = rows.iter().find(is);
        let row = row.unwrap_or_else(|| panic!("no {name} of {route}\n{}", finished.stderr));
        row["summary"]["median"].as_f64().expect("a number")
    };
    for name in [
        "http-rate1",
        "http-rate16",
        "http-p50",
        "http-p99",
        "http-up",
    ] {
        assert!(figure("direct", name) > 0.0, "{name}");
        assert!(figure("dashboard", name) > 0.0, "{name}");
    }
    for name in ["http-cpu-down", "http-cpu-up", "http-no-cookie"] {
        say(format!("{name} {}", figure("dashboard", name)));
    }
    let socket = figure("dashboard", "http-websocket");
    assert!(socket > 0.0 && socket < 1024.0, "{socket} KiB");
    let raw =
        |row: &serde_json::Value| row["figure"].as_str().is_some_and(|f| f.starts_with("tcp"));
    assert!(
        !rows.iter().any(raw),
        "an HTTP route has no figures of plain TCP"
    );
}

//! The command line without a network: specs, dry runs, mistakes and their exit statuses.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

fn relay(home: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_relay"));
    command
        .args(words)
        .env_clear()
        .env("HOME", home)
        .stdin(Stdio::null());
    command
}

fn run(words: &[&str]) -> Output {
    let home = tempfile::tempdir().unwrap();
    relay(home.path(), words).output().unwrap()
}

fn planned(command: &mut Command) -> Value {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Asserts a status and one line on stderr that holds `words`.
fn explained(words: &[&str], status: i32, expected: &[&str]) {
    let output = run(words);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{words:?}: {text}");
    assert_eq!(text.lines().count(), 1, "{words:?}: {text}");
    assert!(text.starts_with("error: "), "{words:?}: {text}");
    for word in expected {
        assert!(text.contains(word), "{words:?} lacks {word:?}: {text}");
    }
    assert!(output.stdout.is_empty());
}

const DRY: [&str; 5] = ["port-forward", "dev", "--dry-run", "-o", "json"];

#[test]
fn a_dry_run_prints_the_plan_without_a_server() {
    let home = tempfile::tempdir().unwrap();
    let words = [
        &DRY[..],
        &["-p", "8080:80", "--tcp", "[::1]:65535", "--udp", "53"],
    ]
    .concat();
    assert_eq!(
        planned(&mut relay(home.path(), &words)),
        json!([
            {"proto": "tcp", "bind": null, "local": 8080, "remote": 80},
            {"proto": "tcp", "bind": "::1", "local": 65535, "remote": 65535},
            {"proto": "udp", "bind": null, "local": 53, "remote": 53},
        ])
    );
}

#[test]
fn the_environment_comes_before_the_flags_and_an_empty_flag_clears_it() {
    let home = tempfile::tempdir().unwrap();
    let locals = |words: &[&str]| {
        let words = [&DRY[..], words].concat();
        let mut command = relay(home.path(), &words);
        command
            .env("CODER_PORT_FORWARD_TCP", "1,2")
            .env("CODER_PORT_FORWARD_UDP", "9");
        let plan = planned(&mut command);
        let plan = plan.as_array().unwrap().iter();
        plan.map(|forward| forward["local"].as_u64().unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(locals(&["--tcp", "3"]), [1, 2, 3, 9]);
    assert_eq!(locals(&["--tcp", "", "--tcp", "3"]), [3, 9]);
}

#[test]
fn a_dry_run_for_people_says_where_it_would_listen() {
    let output = run(&["tunnel", "dev", "--tcp", "8080:80", "--dry-run"]);
    assert_eq!(
        String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .collect::<Vec<_>>(),
        [
            "Forwarding 'tcp://[::1]:8080' locally to 'tcp://127.0.0.1:80' in the workspace",
            "Forwarding 'tcp://127.0.0.1:8080' locally to 'tcp://127.0.0.1:80' in the workspace",
        ]
    );
}

#[test]
fn unknown_flags_and_missing_arguments_exit_with_2() {
    explained(&[], 2, &["port-forward", "login"]);
    explained(&["frobnicate"], 2, &["frobnicate"]);
    explained(&["port-forward"], 2, &["WORKSPACE"]);
    explained(&["port-forward", "dev", "other"], 2, &["other"]);
    explained(&["port-forward", "dev", "--frob"], 2, &["--frob"]);
    explained(&["list", "--frob"], 2, &["--frob"]);
    for flag in [
        "--tcp", "--udp", "--stack", "--engine", "--output", "--url", "--token",
    ] {
        explained(&["port-forward", "dev", flag], 2, &[flag]);
    }
}

#[test]
fn bad_values_exit_with_1_and_are_named() {
    for spec in [
        "80:",
        "0",
        "70000",
        "9-8",
        "1-3:1-2",
        "*:80",
        "1.2.3.999:80",
        "a",
        "1,,2",
    ] {
        let piece = if spec == "1,,2" { "\"\"" } else { spec };
        explained(&["port-forward", "dev", "--tcp", spec], 1, &[piece, "tcp"]);
        explained(&["port-forward", "dev", "--udp", spec], 1, &[piece, "udp"]);
    }
    explained(
        &["port-forward", "dev", "--tcp", "80,127.0.0.1:80"],
        1,
        &["127.0.0.1:80"],
    );
    explained(&["port-forward", "dev", "--tcp", "\"80"], 1, &["\"80"]);
    explained(&["port-forward", "dev"], 1, &["no port-forwards requested"]);
    explained(
        &["port-forward", "a/b/c", "--tcp", "1", "--dry-run"],
        1,
        &["a/b/c"],
    );
    let with = |flag, value| {
        [
            "port-forward",
            "dev",
            "--tcp",
            "1",
            "--dry-run",
            flag,
            value,
        ]
    };
    explained(&with("--engine", "warp"), 1, &["warp", "splice", "sockmap"]);
    explained(&with("--stack", "tower"), 1, &["tower", "kernel"]);
    explained(&with("--output", "xml"), 1, &["xml", "json"]);
    explained(&["list", "--verbose=perhaps"], 1, &["perhaps"]);
}

#[test]
fn commands_without_a_session_say_how_to_get_one() {
    explained(&["list"], 1, &["relay login"]);
    explained(&["port-forward", "dev", "--tcp", "1"], 1, &["relay login"]);
    explained(
        &["list", "--url", "http://127.0.0.1:9"],
        1,
        &["CODER_SESSION_TOKEN"],
    );
    explained(
        &["list", "--url", "ftp://x", "--token", "t"],
        1,
        &["ftp://x"],
    );
    explained(&["login"], 1, &["relay login URL"]);
    explained(&["login", "http://127.0.0.1:9"], 1, &["--token"]);
    explained(&["logout"], 1, &["not signed in"]);
}

#[test]
fn an_unreachable_deployment_is_named() {
    let at = ["--url", "http://127.0.0.1:9", "--token", "t"];
    explained(&[&at[..], &["list"]].concat(), 1, &["http://127.0.0.1:9"]);
    explained(
        &[&at[..], &["port-forward", "dev", "--tcp", "1"]].concat(),
        1,
        &["127.0.0.1:9"],
    );
    explained(
        &["login", "http://127.0.0.1:9", "--token", "t"],
        1,
        &["http://127.0.0.1:9"],
    );
}

#[test]
fn login_leaves_an_existing_session_alone_unless_forced() {
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join(".config/coderv2");
    std::fs::create_dir_all(&config).unwrap();
    std::fs::write(config.join("url"), "https://coder.example.com\n").unwrap();
    std::fs::write(config.join("session"), "precious").unwrap();
    let words = ["login", "http://127.0.0.1:9", "--token", "t"];
    let output = relay(home.path(), &words).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text.contains("--force") && text.contains("coder.example.com"),
        "{text}"
    );
    let forced = [&words[..], &["--force"]].concat();
    let output = relay(home.path(), &forced).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("http://127.0.0.1:9"), "{text}");
    assert_eq!(
        std::fs::read_to_string(config.join("session")).unwrap(),
        "precious"
    );
}

#[test]
fn a_signal_before_anything_is_ready_ends_a_forward_with_success() {
    // It takes connections and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let home = tempfile::tempdir().unwrap();
        let words = [
            "--url",
            &url,
            "--token",
            "t",
            "port-forward",
            "dev",
            "--tcp",
            "1",
        ];
        let mut command = relay(home.path(), &words);
        let child = command
            .stderr(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Its request says that it is past its start.
        drop(silent.accept().map(|(stream, _)| std::mem::forget(stream)));
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{signal}: {output:?}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn help_shows_examples_and_a_link_named_coder_is_the_same_program() {
    let home = tempfile::tempdir().unwrap();
    let link = home.path().join("coder");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_relay"), &link).unwrap();
    let output = Command::new(&link)
        .args(["port-forward", "--help"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    for example in [
        "--tcp 8080:8000",
        "5000-5009",
        "--udp 5353:53",
        "0.0.0.0:8080:80",
    ] {
        assert!(text.contains(example), "{text}");
    }
}

//! `relay server template` and workspaces made from templates, on a database of their own.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn server(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_relay"));
        command
            .arg("server")
            .args(words)
            .env_clear()
            .env("HOME", self.path())
            .current_dir(self.path())
            .stdin(Stdio::null());
        command.output().unwrap()
    }

    fn json(&self, words: &[&str]) -> Value {
        let output = self.server(&[words, &["-o", "json"]].concat());
        assert!(output.status.success(), "{words:?}: {output:?}");
        assert!(output.stderr.is_empty(), "{words:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Asserts a status and one line on stderr that holds `words`.
    fn refused(&self, words: &[&str], status: i32, expected: &[&str]) {
        let output = self.server(words);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{words:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{words:?}: {text}");
        for word in expected {
            assert!(text.contains(word), "{words:?} lacks {word:?}: {text}");
        }
        assert!(output.stdout.is_empty());
    }
}

const WEB: &str = r#"
resource "coder_agent" "box" {
  os = data.coder_provisioner.me.os
}
resource "coder_app" "site" {
  agent_id  = coder_agent.box.id
  slug      = "site"
  url       = "http://localhost:3000"
  subdomain = true
}
"#;

#[test]
fn a_template_is_added_listed_and_set() {
    let home = Home::new();
    std::fs::write(home.path().join("main.tf"), WEB).unwrap();
    let added = home.json(&["template", "add", "main.tf", "--name", "web"]);
    assert_eq!(added["name"], "web");
    assert_eq!(added["max_share_level"], "public");
    assert_eq!(added["cors_behavior"], "simple");
    assert_eq!(added["agents"], json!(["box"]));
    assert_eq!(added["apps"], json!(["site"]));
    assert_eq!(home.json(&["template", "list"]), json!([added]));
    let words = ["template", "set", "web", "--max-share-level"];
    let set = home.json(&[&words[..], &["authenticated"]].concat());
    assert_eq!(set["max_share_level"], "authenticated");
    assert_eq!(set["cors_behavior"], "simple");
    let set = home.json(&["template", "set", "web", "--cors-behavior", "passthru"]);
    assert_eq!(set["max_share_level"], "authenticated");
    assert_eq!(set["cors_behavior"], "passthru");
    let listed = home.server(&["template", "ls"]);
    let text = String::from_utf8(listed.stdout).unwrap();
    for word in [
        "TEMPLATE",
        "web",
        "authenticated",
        "passthru",
        "box",
        "site",
    ] {
        assert!(text.contains(word), "{text}");
    }
    home.refused(
        &[&words[..], &["everybody"]].concat(),
        1,
        &["everybody", "organization"],
    );
    home.refused(&["template", "set", "web"], 2, &["--max-share-level"]);
    let words = ["template", "set", "nope", "--cors-behavior", "simple"];
    home.refused(&words, 1, &["nope", "relay server template list"]);
}

#[test]
fn a_workspace_has_its_templates_agents_unless_others_are_named() {
    let home = Home::new();
    std::fs::write(home.path().join("main.tf"), WEB).unwrap();
    home.json(&["template", "add", "main.tf", "--name", "web"]);
    let email = [
        "--email",
        "alice@example.com",
        "--password",
        "correct-horse-7",
    ];
    home.json(&[&["user", "create", "alice"][..], &email].concat());
    let agents = |words: &[&str]| {
        let made = home.json(&[&["workspace", "create"][..], words].concat());
        let agents = made["agents"].as_array().unwrap().clone();
        let names = agents.iter().map(|agent| agent["name"].clone());
        names.collect::<Vec<_>>()
    };
    assert_eq!(agents(&["alice/a", "--template", "web"]), ["box"]);
    let named = ["alice/b", "--template", "web", "--agent", "main"];
    assert_eq!(agents(&named), ["main"]);
    assert_eq!(agents(&["alice/c"]), ["main"]);
    let templates: Vec<_> = home
        .json(&["workspace", "list"])
        .as_array()
        .unwrap()
        .iter()
        .map(|workspace| workspace["template"].clone())
        .collect();
    assert_eq!(templates, [json!("web"), json!("web"), Value::Null]);
    let words = ["workspace", "create", "alice/d", "--template", "nope"];
    home.refused(&words, 1, &["nope", "relay server template list"]);
    let words = [
        &["workspace", "create", "alice/d", "--template", "web"][..],
        &["--agent", "x", "--agent", "y"],
    ];
    home.refused(&words.concat(), 1, &["site", "box"]);
}

#[test]
fn a_template_file_that_cannot_be_used_is_named_with_the_line() {
    let home = Home::new();
    let add = ["template", "add", "main.tf", "--name", "web"];
    home.refused(&add, 1, &["main.tf", "No such file"]);
    let broken = WEB.replace("\"http://localhost:3000\"", "\"http://${var.host}:3000\"");
    std::fs::write(home.path().join("main.tf"), broken).unwrap();
    home.refused(&add, 1, &["main.tf", "line 8", "url is not a literal"]);
    std::fs::write(home.path().join("main.tf"), WEB).unwrap();
    home.refused(&["template", "add", "main.tf"], 2, &["--name"]);
    let words = ["template", "add", "main.tf", "--name", "a b"];
    home.refused(&words, 1, &["a b", "hyphens"]);
    assert_eq!(home.json(&["template", "list"]), json!([]));
}

//! Wrong words: one line that says what is wrong, and nothing is started.

use relay_lab::process::run_relay;

#[test]
fn mistakes_are_explained_before_anything_is_asked() {
    let home = tempfile::tempdir().expect("temporary folder");
    let file = home.path().join("forwards.toml");
    let sets = "[web]\nworkspace = \"dev\"\ntcp = [\"80:\"]\n";
    std::fs::write(&file, sets).expect("file");
    let good = home.path().join("good.toml");
    std::fs::write(&good, "[a]\ntcp = [1]\n[b]\ntcp = [2]\n").expect("file");
    let (file, good) = (file.to_str().expect("path"), good.to_str().expect("path"));
    for (words, code, said) in [
        (&["dev", "-R", "0:3000"][..], 1, "0:3000"),
        (&["dev", "-R", "8080:host"], 1, "8080:host"),
        (&["dev", "-R"], 2, "--reverse"),
        (&["dev", "--unix", "8080:8000"], 1, "8080:8000"),
        (&["dev", "--unix", "l.sock"], 1, "l.sock"),
        (&["dev", "--set", "web"], 2, "--config"),
        (&["--config", "/nowhere.toml"], 1, "/nowhere.toml"),
        (&["--config", file], 1, "line 3, web.tcp"),
        (&["--config", good], 1, "--set: a, b"),
        (&["--config", good, "--set", "c"], 1, "\"c\""),
        (&["--config", good, "--set", "a"], 1, "WORKSPACE"),
        (&["dev", "-o", "yaml"], 1, "yaml"),
        (&["dev", "-o", "json", "--dry-run"], 1, "no port-forwards"),
        (&["dev"], 1, "--auto"),
    ] {
        let finished = run_relay(None, home.path(), &[&["port-forward"], words].concat());
        assert_eq!(finished.code, code, "{words:?}: {finished:?}");
        let last = finished.stderr.lines().last().unwrap_or_default();
        assert!(last.contains(said), "{words:?}: {finished:?}");
    }
}

#[test]
fn a_dry_run_shows_every_kind() {
    let home = tempfile::tempdir().expect("temporary folder");
    let words = [
        "port-forward",
        "dev",
        "--dry-run",
        "--tcp",
        "8080:8000",
        "-R",
        "8081:3000",
        "--unix",
        "l.sock:/r.sock",
        "--auto",
    ];
    let text = run_relay(None, home.path(), &words);
    for said in [
        "127.0.0.1:8080",
        "'127.0.0.1:8081' in the workspace",
        "'l.sock' locally",
        "whatever",
    ] {
        assert!(text.success().contains(said), "{text:?}");
    }
    let json = run_relay(None, home.path(), &[&words[..], &["-o", "json"]].concat());
    let list: serde_json::Value = serde_json::from_str(json.success()).expect("JSON");
    assert_eq!(list[0]["remote"], 8000);
    assert_eq!(
        (&list[1]["kind"], &list[2]["kind"]),
        (&"unix".into(), &"reverse".into())
    );
}

//! `relay config-ssh` on a file that is somebody's.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};

use relay_lab::cluster::{Cluster, Options};
use relay_lab::needs;
use relay_lab::needs::Need;

const OWN: &str =
    "Host *\n\tForwardAgent no\n\n# mine, with a tab at its end\t\nHost other\n\tPort 2222\n";

#[test]
fn the_file_changes_in_its_section_alone_and_the_change_can_be_undone() {
    needs!(Need::Namespaces);
    let cluster = Cluster::start(Options::default());
    let (file, link) = (
        cluster.folder().join("dotfiles"),
        cluster.folder().join("config"),
    );
    fs::write(&file, OWN).expect("file");
    fs::set_permissions(&file, Permissions::from_mode(0o640)).expect("mode");
    symlink("dotfiles", &link).expect("link");
    let path = link.to_str().expect("path");
    let run = |words: &[&str]| {
        let words = [&["config-ssh", "--ssh-config-file", path], words].concat();
        cluster.run_client(&words)
    };
    let content = || fs::read_to_string(&file).expect("file");

    let shown = run(&["--dry-run"]);
    assert!(shown.success().contains("+Host coder.*"), "{shown:?}");
    let unread = run(&[]);
    assert!(
        unread.code == 1 && unread.stderr.contains("--yes"),
        "{unread:?}"
    );
    assert_eq!(content(), OWN);

    run(&["--yes", "-o", "ForwardAgent=yes", "--wait", "no"]).success();
    let first = content();
    assert!(first.starts_with(OWN) && first.contains("\n# :ssh-option=ForwardAgent=yes\n"));
    assert!(link.is_symlink());
    assert_eq!(
        fs::metadata(&file).expect("file").permissions().mode() & 0o777,
        0o640
    );
    let again = run(&["--use-previous-options"]);
    assert!(again.stderr.contains("as it should be"), "{again:?}");
    // Below the section is somebody's, too.
    fs::write(&file, format!("{first}Host last\n")).expect("file");
    run(&["--yes"]).success();
    let second = content();
    assert!(
        second.starts_with(OWN) && second.ends_with("Host last\n"),
        "{second}"
    );
    assert!(!second.contains("ForwardAgent=yes"));
    run(&["--yes", "--remove"]).success();
    assert_eq!(content(), format!("{OWN}Host last\n"));

    fs::write(&file, "# ------------START-CODER-----------\nHost x\n").expect("file");
    let refused = run(&["--yes"]);
    assert!(
        refused.code == 1 && refused.stderr.contains("line 1"),
        "{refused:?}"
    );
    assert_eq!(content(), "# ------------START-CODER-----------\nHost x\n");
}

#[test]
fn questions_are_answered_on_standard_input() {
    needs!(Need::Namespaces);
    let cluster = Cluster::start(Options::default());
    let file = cluster.folder().join("config");
    let run = |words: &[&str], typed: &str| {
        let mut command: Command = cluster.client_command();
        command
            .arg("config-ssh")
            .arg("--ssh-config-file")
            .arg(&file);
        command
            .args(words)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped());
        cluster.client.namespace.adopt(&mut command);
        let mut child = command.spawn().expect("start");
        let mut stdin = child.stdin.take().expect("stdin");
        stdin.write_all(typed.as_bytes()).expect("typing");
        drop(stdin);
        child.wait_with_output().expect("end").status.code()
    };
    let content = || fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(run(&[], "no\n"), Some(1));
    assert_eq!(content(), "");
    assert_eq!(run(&["-o", "Compression=yes"], "yes\n"), Some(0));
    assert!(content().contains("\tCompression=yes\n"));
    // The new options are declined, so the remembered ones stay and nothing changes.
    assert_eq!(run(&[], "no\n"), Some(0));
    assert!(content().contains("\tCompression=yes\n"));
    assert_eq!(run(&[], "yes\nyes\n"), Some(0));
    assert!(!content().contains("Compression"));
}

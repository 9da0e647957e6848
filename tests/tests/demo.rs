//! `relay demo --once`: the proof that a newcomer sees first.

use std::process::Command;

use relay_lab::cluster::alone;
use relay_lab::needs::Need;
use relay_lab::net::Lab;
use relay_lab::process::{Process, clean, relay, relay_binary};
use relay_lab::{needs, rootless, say, unconfined_only};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(300);

fn shows_direct_and_ok(mut demo: Process) {
    let status = demo.wait(LONG);
    assert!(status.success(), "{status}\n{}", demo.output());
    let text = demo.stdout() + &demo.stderr();
    say(&text);
    assert!(
        text.contains("direct") && text.contains("hash ok"),
        "{text}"
    );
}

#[test]
fn the_demo_succeeds_as_root() {
    needs!(Need::Namespaces);
    let _alone = alone();
    let home = tempfile::tempdir().expect("temporary folder");
    let host = Lab::new().host("laptop");
    let mut command = relay(home.path());
    command.args(["demo", "--once"]);
    shows_direct_and_ok(Process::start("demo", Some(&host), command));
    let left: Vec<_> = std::fs::read_dir(home.path()).expect("home").collect();
    assert!(left.is_empty(), "the demo left {left:?} in the user's home");
}

#[test]
fn the_demo_succeeds_without_root() {
    needs!(Need::Namespaces, Need::Rootless);
    unconfined_only!("this user may open the TUN device");
    let _alone = alone();
    let folder = tempfile::tempdir().expect("temporary folder");
    let everyone = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(folder.path(), everyone).expect("permissions");
    let binary = folder.path().join("relay");
    std::fs::copy(relay_binary(), &binary).expect("copy");
    let host = Lab::new().host("laptop");
    let mut command: Command = clean(rootless::wrap(&binary), folder.path());
    command.args(["demo", "--once"]);
    shows_direct_and_ok(Process::start("demo", Some(&host), command));
}

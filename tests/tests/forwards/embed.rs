//! A program that embeds a forward: the example of the library, as it is.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;

use relay_lab::apps::{self, App};
use relay_lab::cluster::{Cluster, Options};
use relay_lab::needs::Need;
use relay_lab::process::{Process, clean};
use relay_lab::{PATIENCE, needs};

/// Built beside the tests, as every example of the workspace is.
fn example() -> PathBuf {
    let test = std::env::current_exe().expect("path of the test");
    let built = test.ancestors().nth(2).expect("target folder");
    let example = built.join("examples/embed");
    assert!(
        example.exists(),
        "no {}: run `cargo xtask test`, or `cargo build -p relay-forward --examples`",
        example.display()
    );
    example
}

#[test]
fn a_host_program_forwards_a_port_by_the_library() {
    needs!(Need::Namespaces);
    let cluster = Cluster::start(Options::default());
    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    let mut command = clean(Command::new(example()), cluster.folder());
    command.args([&cluster.url(), &cluster.session, "dev", "tcp://8080:8000"]);
    let mut host = Process::start("embed", Some(&cluster.client), command);
    host.wait_line("Ready!", PATIENCE);
    let stream = cluster.client.local(8080).expect("connect");
    apps::echo(&stream, b"embedded").expect("echo");
    assert!(host.interrupt().success(), "{}", host.output());
}

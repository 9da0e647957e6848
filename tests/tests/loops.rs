//! An agent whose loops share its clients: every client is served the same, whichever way it comes.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use relay_lab::apps::{self, App, Ticker};
use relay_lab::cluster::{Cluster, Options};
use relay_lab::needs::Need;
use relay_lab::process::Process;
use relay_lab::{PATIENCE, needs, poll, say};

const LOOPS: usize = 3;
const CLIENTS: u16 = 5;
/// Where the first client listens; the others follow.
const FIRST: u16 = 8100;
const MIB: u64 = 1 << 20;
/// What each client moves each way.
const BULK: u64 = 32 * MIB;
/// Looked at to see whether a loop sleeps.
const REST: Duration = Duration::from_secs(5);

fn three_loops() -> Cluster {
    Cluster::start(Options {
        agent_flags: vec!["--loops", "3"],
        ..Options::default()
    })
}

fn forwards(cluster: &Cluster) -> Vec<Process> {
    let forward = |port| {
        let spec = format!("{port}:8000");
        cluster.forward(&["--tcp", &spec, "--udp", &spec])
    };
    (FIRST..FIRST + CLIENTS).map(forward).collect()
}

/// Checked bulk both ways through all clients at once.
fn bulk(cluster: &Cluster, bytes: u64) {
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for port in FIRST..FIRST + CLIENTS {
            scope.spawn(move || {
                let up = cluster.client.local(port).expect("connect");
                apps::upload(up, bytes).expect("every byte up");
                let down = cluster.client.local(port).expect("connect");
                apps::download(down, bytes).expect("every byte down");
            });
        }
    });
    say(format_args!(
        "{} MiB each way for each of {CLIENTS}: {:.1?}",
        bytes / MIB,
        begin.elapsed()
    ));
}

/// How often each loop but the first, by name, went to sleep: it had woken up for something.
fn sleeps(agent: &Process) -> BTreeMap<String, u64> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", agent.id())).expect("the agent runs");
    let each = tasks.filter_map(|task| {
        let folder = task.ok()?.path();
        let name = std::fs::read_to_string(folder.join("comm")).ok()?;
        let status = std::fs::read_to_string(folder.join("status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("voluntary"))?;
        let count = line.split_whitespace().nth(1)?.parse().ok()?;
        Some((name.trim().to_owned(), count))
    });
    each.filter(|(name, _)| name.starts_with("relay-loop-"))
        .collect()
}

/// Asserts that each loop worked since `before`.
fn assert_used(agent: &Process, before: &BTreeMap<String, u64>) {
    let now = sleeps(agent);
    let woken = now.iter().map(|(name, count)| count - before[name]);
    let woken: Vec<u64> = woken.collect();
    say(format_args!(
        "the loops but the first woke up {woken:?} times"
    ));
    assert_eq!(woken.len(), LOOPS - 1);
    assert!(
        woken.iter().all(|count| *count >= 10),
        "a loop had nothing to do: {woken:?}"
    );
}

#[test]
fn clients_of_every_loop_go_straight_and_fall_back_to_the_relay() {
    needs!(Need::Namespaces, Need::Nft);
    let cluster = three_loops();
    let agent = &cluster.agents[0];
    assert_eq!(sleeps(agent).len(), LOOPS - 1, "threads of loops");
    let at_rest = poll(PATIENCE, || {
        let before = sleeps(agent);
        std::thread::sleep(REST);
        (sleeps(agent) == before).then_some(())
    });
    assert!(at_rest.is_some(), "idle loops wake up again and again");
    say(format_args!(
        "agent of {LOOPS} loops, alone: {} KiB",
        agent.memory()
    ));

    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    cluster.workspace.count_udp_from(&cluster.client);
    let mut clients = forwards(&cluster);
    let before = sleeps(agent);
    bulk(&cluster, BULK);
    assert_used(agent, &before);
    let direct = cluster.workspace.counted();
    let all = u64::from(CLIENTS) * BULK;
    assert!(
        direct > all / 10 * 9,
        "{direct} bytes of {all} went directly"
    );
    for port in FIRST..FIRST + CLIENTS {
        cluster.udp_echo(port, &[7; 1200]);
    }

    let tickers: Vec<Ticker> = (FIRST..FIRST + CLIENTS)
        .map(|port| Ticker::start(cluster.client.local(port).expect("connect")))
        .collect();
    let progress = |what: &str| {
        for (number, ticker) in tickers.iter().enumerate() {
            assert!(ticker.progress(20, PATIENCE), "client {number} {what}");
        }
    };
    progress("has no echoes");
    cluster.client.block_udp(&cluster.workspace);
    progress("does not fall back");
    let before = sleeps(agent);
    bulk(&cluster, 4 * MIB);
    assert_used(agent, &before);
    cluster.client.unblock_udp(&cluster.workspace);
    progress("does not go on");
    for ticker in tickers {
        ticker.stop().expect("a whole stream");
    }

    // One leaves and comes back, and the others do not notice.
    let other = Ticker::start(cluster.client.local(FIRST).expect("connect"));
    clients[1].interrupt();
    let spec = format!("{}:8000", FIRST + 1);
    clients[1] = cluster.forward(&["--tcp", &spec]);
    let stream = cluster.client.local(FIRST + 1).expect("connect");
    apps::upload(stream, MIB).expect("every byte");
    assert!(other.progress(20, PATIENCE));
    other.stop().expect("a whole stream");
}

#[test]
fn clients_of_every_loop_are_served_by_the_relay_alone() {
    needs!(Need::Namespaces, Need::Nft);
    let cluster = three_loops();
    cluster.client.block_udp(&cluster.workspace);
    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    let _clients = forwards(&cluster);
    let before = sleeps(&cluster.agents[0]);
    bulk(&cluster, BULK / 2);
    assert_used(&cluster.agents[0], &before);
    for port in FIRST..FIRST + CLIENTS {
        cluster.udp_echo(port, &[7; 1200]);
    }
}

//! One agent with many clients: who moves much does not starve those who move little, and what was
//! used for it is given back.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use relay_lab::apps::{self, App, Ticker};
use relay_lab::cluster::{Cluster, Options};
use relay_lab::needs::Need;
use relay_lab::process::Process;
use relay_lab::{PATIENCE, needs, poll, say};

const CLIENTS: u16 = 20;
/// Where the first client listens; the others follow.
const FIRST: u16 = 8100;
/// What an idle client may cost the agent, KiB.
const IDLE_CLIENT: u64 = 256;
/// What a client in use may cost it, KiB: bursts both ways, and what its streams have in transit.
const BUSY_CLIENT: u64 = 4096;
/// What its streams have in transit besides, KiB, where that is not in the kernel: as much as a buffer
/// of relay's own TCP may hold.
const IN_TRANSIT: u64 = 16 << 10;
/// How much more than before the bursts the agent may hold when all is quiet, KiB, and from when.
const LEFT_OVER: u64 = 1024;
const RELEASE: Duration = Duration::from_secs(20);
/// An echo of a client that moves little, while others move all they can and both cores are busy.
const LONGEST_ECHO: Duration = Duration::from_millis(500);
/// Echoes waited for, client after client.
const ECHOES: u64 = 10;

#[test]
fn two_bulk_clients_starve_none_of_eighteen_others_and_memory_comes_back() {
    needs!(Need::Namespaces);
    let cluster = Cluster::start(Options::default());
    // Two apps, so that the bulk's app is not what the echoes wait for.
    let _bulk_app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    let _echo_app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8001));
    let agent = &cluster.agents[0];
    let alone = agent.memory();
    let _forwards: Vec<Process> = (0..CLIENTS)
        .map(|index| {
            let remote = if index < 2 { 8000 } else { 8001 };
            cluster.forward(&["--tcp", &format!("{}:{remote}", FIRST + index)])
        })
        .collect();
    let tickers: Vec<Ticker> = (2..CLIENTS)
        .map(|index| Ticker::start(cluster.client.local(FIRST + index).expect("connect")))
        .collect();
    for ticker in &tickers {
        assert!(ticker.progress(20, PATIENCE), "no echoes before the bulk");
    }
    let idle = agent.memory();
    let calm = longest(&tickers);

    let (up, down) = (
        Bulk::start(&cluster, FIRST, apps::upload),
        Bulk::start(&cluster, FIRST + 1, apps::download),
    );
    assert!(up.moves() && down.moves(), "the bulk does not start");
    longest(&tickers);
    let begin = Instant::now();
    for ticker in &tickers {
        assert!(ticker.progress(ECHOES, PATIENCE), "starved");
    }
    let (took, worst, busy) = (begin.elapsed(), longest(&tickers), agent.memory());
    let (up, down) = (up.stop(), down.stop());
    say(format_args!(
        "longest echo {calm:?} alone, {worst:?} beside {up} MiB up and {down} MiB down, \
         {took:.1?} for {ECHOES} of each in turn"
    ));
    for ticker in tickers {
        ticker.stop().expect("a whole stream");
    }
    let back = poll(RELEASE, || {
        (agent.memory() <= idle + LEFT_OVER).then_some(())
    });
    say(format_args!(
        "agent {alone} KiB alone, {idle} with {CLIENTS} clients, {busy} under load, {} after",
        agent.memory()
    ));
    assert!(worst < LONGEST_ECHO, "an echo took {worst:?}");
    let clients = u64::from(CLIENTS);
    assert!(idle < alone + clients * IDLE_CLIENT, "{idle} KiB idle");
    let busy_client = match needs::stack() {
        "user" => BUSY_CLIENT + IN_TRANSIT,
        _ => BUSY_CLIENT,
    };
    assert!(busy < idle + 2 * busy_client, "{busy} KiB under load");
    assert!(back.is_some(), "memory does not come back");
}

/// The longest echo of any since the last call.
fn longest(tickers: &[Ticker]) -> Duration {
    let each = tickers.iter().map(Ticker::take_longest);
    each.max().unwrap_or_default()
}

/// Hash-checked transfers through one client, one after another.
struct Bulk {
    stop: Arc<AtomicBool>,
    mebibytes: Arc<AtomicU64>,
    thread: JoinHandle<std::io::Result<()>>,
}

/// One transfer, MiB.
const PIECE: u64 = 16;

impl Bulk {
    fn start(
        cluster: &Cluster,
        port: u16,
        transfer: fn(std::net::TcpStream, u64) -> std::io::Result<Duration>,
    ) -> Bulk {
        let (stop, mebibytes) = <(Arc<AtomicBool>, Arc<AtomicU64>)>::default();
        let (stopped, moved) = (Arc::clone(&stop), Arc::clone(&mebibytes));
        let host = cluster.client.clone();
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                transfer(host.local(port)?, PIECE << 20)?;
                moved.fetch_add(PIECE, Ordering::Relaxed);
            }
            Ok(())
        });
        Bulk {
            stop,
            mebibytes,
            thread,
        }
    }

    /// Whether a first transfer comes through.
    fn moves(&self) -> bool {
        let moved = || (self.mebibytes.load(Ordering::Relaxed) > 0).then_some(());
        poll(PATIENCE, moved).is_some()
    }

    /// Ends it and gives the MiB that it moved.
    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.join().expect("the thread of the bulk");
        ended.expect("every byte right");
        self.mebibytes.load(Ordering::Relaxed)
    }
}

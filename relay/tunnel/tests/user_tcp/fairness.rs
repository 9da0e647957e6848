//! A stream of relay's own TCP and one of the kernel's send over one link at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

/// Neither may have more than three times what the other has.
const FAIR: std::ops::RangeInclusive<f64> = 1.0 / 3.0..=3.0;
/// Not counted: until then they have found their shares.
const WARM_UP: Duration = Duration::from_secs(4);
const MEASURED: Duration = Duration::from_secs(12);

/// 100 Mbit/s and 20 ms, with a queue of twice what that holds.
fn link() -> PathOptions {
    PathOptions {
        rate: mbit(100),
        queue: 500_000,
        delay: Duration::from_millis(10),
        ..PathOptions::default()
    }
}

/// What relay's stream got for each byte of the kernel's.
async fn share(algorithm: Algorithm, kernels: &str) -> Option<f64> {
    let config = Config {
        algorithm,
        ..config()
    };
    let (mut lab, kernel) = Lab::new(config, link(), Work::Receive)?;
    lab.is_shared = true;
    lab.paths[1].options.rate = 0;
    let (received, mut incoming) = (Arc::new(AtomicU64::new(0)), kernel.incoming());
    let counter = Arc::clone(&received);
    let receiver = tokio::spawn(async move {
        let mut stream = incoming.recv().await.unwrap().accept().await.unwrap();
        let mut block = vec![0; 256 << 10];
        while let Ok(count @ 1..) = stream.read(&mut block).await {
            counter.fetch_add(count as u64, Ordering::Relaxed);
        }
    });
    let name = kernels.to_owned();
    let sender = tokio::spawn(async move {
        let remote = SocketAddrV6::new(USER, 80, 0, 0);
        let mut stream = kernel.connect(KERNEL, remote).await.unwrap();
        let socket = socket2::SockRef::from(&stream);
        socket.set_tcp_congestion(name.as_bytes()).unwrap();
        kernel_sends(&mut stream, u64::MAX).await;
    });
    lab.connect(80, Work::Send(u64::MAX));
    let totals = |lab: &Lab| (received.load(Ordering::Relaxed), lab.flows[1].received);
    lab.run_for(WARM_UP).await;
    let before = totals(&lab);
    lab.run_for(MEASURED).await;
    let after = totals(&lab);
    receiver.abort();
    sender.abort();
    let rate = |bytes: u64| bytes as f64 * 8e-6 / MEASURED.as_secs_f64();
    let (user, kernel) = (rate(after.0 - before.0), rate(after.1 - before.1));
    println!(
        "{algorithm:?} beside the kernel's {kernels}: {user:.1} and {kernel:.1} Mbit/s, {:.2} to one",
        user / kernel
    );
    Some(user / kernel)
}

impl Lab {
    async fn run_for(&mut self, time: Duration) {
        let begun = Clock::now();
        let mut injections = self.kernel.injections();
        while begun.elapsed() < time {
            self.turn(&mut injections).await;
        }
    }
}

/// Beside both of the kernel's.
async fn is_fair(algorithm: Algorithm) {
    static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    if !is_long() {
        println!("skip: it takes 32 s of a quiet machine; RELAY_LONG=1 runs it");
        return;
    }
    let _alone = ALONE.lock().await;
    for kernels in ["cubic", "bbr"] {
        let Some(ratio) = share(algorithm, kernels).await else {
            return;
        };
        assert!(
            FAIR.contains(&ratio),
            "{algorithm:?}, {kernels}: {ratio:.2}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cubic_shares_a_link_with_streams_of_the_kernel() {
    is_fair(Algorithm::Cubic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bbr_shares_a_link_with_streams_of_the_kernel() {
    is_fair(Algorithm::Bbr).await;
}

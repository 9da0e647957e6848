//! Data crosses bad paths: complete, in order, and fast enough.

#![allow(clippy::print_stdout)]

mod sim;

use std::time::Duration;

use relay_tcp::{Algorithm, CloseReason, Config, Instant, Timer};
use sim::Sim;
use sim::app::App;
use sim::path::{PathOptions, mbit};

fn config(algorithm: Algorithm) -> Config {
    Config {
        mtu: 1420,
        algorithm,
        ..Config::default()
    }
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Megabits per second of one upload of `total` bytes.
fn rate(seed: u64, paths: [PathOptions; 2], config: Config, total: u64) -> f64 {
    let mut sim = Sim::with_paths(seed, paths);
    sim.burst = Duration::from_micros(50);
    let flow = sim.connect([config.clone(), config], App::upload(total), Duration::ZERO);
    assert!(sim.run(Duration::from_secs(600)), "it never ends");
    let end = sim.flows[flow].apps[1]
        .finished_at
        .expect("the end was read");
    let rate = total as f64 * 8e-6 / end.since(Instant::from_millis(1000)).as_secs_f64();
    let path = &sim.paths[0];
    println!(
        "{rate:.0} Mbit/s; {} packets, {} lost, {} overflowed, queue at most {} KiB; {} timeouts",
        path.sent,
        path.lost,
        path.overflowed,
        path.deepest >> 10,
        sim.timers_fired
            .iter()
            .filter(|(.., timer)| *timer == Timer::Retransmission)
            .count(),
    );
    rate
}

fn there_and_back(there: PathOptions) -> [PathOptions; 2] {
    let back = PathOptions {
        delay: there.delay,
        ..PathOptions::default()
    };
    [there, back]
}

#[test]
fn a_transfer_over_a_clean_path_ends_in_order_on_both_sides() {
    let mut sim = Sim::new(1, PathOptions::default());
    let config = config(Algorithm::Bbr);
    let flow = sim.connect(
        [config.clone(), config],
        App::upload(1 << 20),
        Duration::ZERO,
    );
    assert!(sim.run(Duration::from_secs(60)));
    let flow = &sim.flows[flow];
    assert_eq!(flow.apps[1].received, 1 << 20);
    assert_eq!(flow.events[1].closed, Some(CloseReason::Finished));
    assert!(flow.events[0].connected && flow.events[0].finished);
    // Nothing was sent twice.
    let segments = (1 << 20) / (1420 - 60 - 12) + 1;
    assert!(sim.paths[0].sent < segments + 40, "{}", sim.paths[0].sent);
    assert_eq!(sim.pools[0].used() + sim.pools[1].used(), 0);
}

#[test]
fn little_waits_to_be_sent_whatever_the_window() {
    const WINDOW: u64 = 512 << 10;
    for algorithm in [Algorithm::Bbr, Algorithm::Cubic] {
        let path = PathOptions {
            rate: mbit(400),
            ..PathOptions::default()
        };
        let mut sim = Sim::new(5, path);
        let ends = [algorithm, algorithm].map(|algorithm| Config {
            receive_buffer_max: WINDOW,
            ..config(algorithm)
        });
        let reserve = ends[0].send_reserve;
        sim.connect(ends, App::upload(20 << 20), Duration::ZERO);
        let mut most = 0;
        while !sim.run(millis(1)) {
            most = most.max(sim.pools[0].used() as u64);
        }
        // Pieces of both ends of it may be used in part.
        let bound = WINDOW + reserve + (32 << 10);
        assert!(most <= bound, "{algorithm:?}: {} KiB", most >> 10);
    }
}

#[test]
fn one_percent_of_loss_does_not_stop_a_stream() {
    let path = PathOptions {
        loss: 0.01,
        ..PathOptions::default()
    };
    let rate = rate(2, there_and_back(path), config(Algorithm::Bbr), 200 << 20);
    assert!(rate > 1000.0, "{rate:.0} Mbit/s");
}

/// Ends that are busy, and a rate and a queue like those of a fast network: every flight loses some by
/// chance, and now and then twice as many.
#[test]
fn random_loss_is_not_taken_for_congestion() {
    const TOTAL: u64 = 128 << 20;
    let there = PathOptions {
        rate: mbit(1300),
        queue: 1400 << 10,
        loss: 0.01,
        ..PathOptions::default()
    };
    let back = PathOptions {
        loss: 0.01,
        ..PathOptions::default()
    };
    let rate = |seed| {
        let mut sim = Sim::with_paths(seed, [there.clone(), back.clone()]);
        sim.burst = Duration::from_micros(50);
        sim.late = millis(1);
        let ends = [config(Algorithm::Bbr), config(Algorithm::Bbr)];
        let flow = sim.connect(ends, App::upload(TOTAL), Duration::ZERO);
        assert!(sim.run(Duration::from_secs(60)), "it never ends");
        let end = sim.flows[flow].apps[1].finished_at;
        let end = end.expect("the end was read");
        let rate = TOTAL as f64 * 8e-6 / end.since(Instant::from_millis(1000)).as_secs_f64();
        println!("seed {seed}: {rate:.0} Mbit/s, {} came twice", sim.twice);
        rate
    };
    let mut rates: Vec<f64> = (1..=9).map(rate).collect();
    rates.sort_by(f64::total_cmp);
    assert!(rates[4] > 850.0 && rates[0] > 600.0, "{rates:.0?}");
}

/// Queues of half of what the path holds, and four flows: loss is real, and stays.
#[test]
fn bbr_bounds_the_loss_of_a_shallow_queue() {
    let path = PathOptions {
        rate: mbit(20),
        queue: 25_000,
        ..PathOptions::default()
    };
    for seed in 1..=3 {
        let mut sim = Sim::with_paths(seed, there_and_back(path.clone()));
        sim.burst = Duration::from_micros(50);
        for index in 0..4 {
            let ends = [config(Algorithm::Bbr), config(Algorithm::Bbr)];
            sim.connect(ends, App::upload(u64::MAX / 4), millis(700 * index));
        }
        sim.run(Duration::from_secs(10));
        let before = (sim.paths[0].sent, sim.paths[0].overflowed);
        sim.run(Duration::from_secs(20));
        let sent = (sim.paths[0].sent - before.0) as f64;
        let lost = (sim.paths[0].overflowed - before.1) as f64 / sent;
        println!("seed {seed}: {:.1} % lost", 100.0 * lost);
        assert!(lost < 0.07, "seed {seed}: {lost:.3} lost");
    }
}

#[test]
fn a_long_path_with_loss_is_well_used() {
    let path = PathOptions {
        rate: mbit(300),
        queue: 1 << 20,
        delay: millis(20),
        loss: 0.005,
        ..PathOptions::default()
    };
    let rate = rate(3, there_and_back(path), config(Algorithm::Bbr), 100 << 20);
    assert!(rate > 180.0, "{rate:.0} Mbit/s");
}

#[test]
fn a_clean_bottleneck_is_filled_whatever_its_queue() {
    for algorithm in [Algorithm::Bbr, Algorithm::Cubic] {
        for queue in [64 << 10, 256 << 10, 2 << 20] {
            let path = PathOptions {
                rate: mbit(100),
                queue,
                ..PathOptions::default()
            };
            print!("{algorithm:?}, queue of {} KiB: ", queue >> 10);
            let rate = rate(4, there_and_back(path), config(algorithm), 50 << 20);
            assert!(rate > 75.0, "{rate:.0} Mbit/s");
        }
    }
}

#[test]
fn bbr_keeps_a_deep_queue_short() {
    let path = PathOptions {
        rate: mbit(100),
        queue: 8 << 20,
        ..PathOptions::default()
    };
    let mut sim = Sim::with_paths(5, there_and_back(path));
    let config = config(Algorithm::Bbr);
    sim.connect(
        [config.clone(), config],
        App::upload(400 << 20),
        Duration::ZERO,
    );
    sim.run(Duration::from_secs(5));
    sim.paths[0].deepest = 0;
    sim.run(Duration::from_secs(10));
    // The path itself holds 250 kB.
    assert!(
        sim.paths[0].deepest < 500_000,
        "{} bytes",
        sim.paths[0].deepest
    );
}

/// Megabits per second that each of several flows gets of a shared bottleneck, after a while.
fn shares(seed: u64, path: PathOptions, algorithms: &[Algorithm]) -> Vec<f64> {
    const WARM: Duration = Duration::from_secs(10);
    const MEASURED: Duration = Duration::from_secs(20);
    let mut sim = Sim::with_paths(seed, there_and_back(path));
    sim.burst = Duration::from_micros(50);
    for (&algorithm, index) in algorithms.iter().zip(0..) {
        let ends = [config(algorithm), config(algorithm)];
        sim.connect(ends, App::upload(u64::MAX / 4), millis(700 * index));
    }
    sim.run(WARM);
    let received =
        |sim: &Sim| -> Vec<u64> { sim.flows.iter().map(|flow| flow.apps[1].received).collect() };
    let before = received(&sim);
    sim.run(MEASURED);
    let rates: Vec<f64> = received(&sim)
        .iter()
        .zip(before)
        .map(|(after, before)| (after - before) as f64 * 8e-6 / MEASURED.as_secs_f64())
        .collect();
    println!("{algorithms:?} share {rates:.0?} Mbit/s");
    rates
}

#[test]
fn flows_share_a_bottleneck() {
    use Algorithm::{Bbr, Cubic};
    // One and a half times what the path holds.
    let path = PathOptions {
        rate: mbit(20),
        queue: 75_000,
        ..PathOptions::default()
    };
    for flows in [
        &[Bbr, Bbr][..],
        &[Cubic, Cubic],
        &[Bbr, Cubic],
        &[Bbr, Bbr, Cubic, Cubic],
    ] {
        // Who has most differs from seed to seed.
        let mut ratios: Vec<f64> = (5..8)
            .map(|seed| {
                let mut rates = shares(seed, path.clone(), flows);
                let all = rates.iter().sum::<f64>();
                assert!(all > 16.0, "{flows:?} share {rates:.1?} Mbit/s");
                rates.sort_by(f64::total_cmp);
                rates[rates.len() - 1] / rates[0]
            })
            .collect();
        ratios.sort_by(f64::total_cmp);
        assert!(ratios[1] < 3.0, "{flows:?} share {ratios:.2?}");
    }
}

#[test]
fn machines_that_are_busy_do_not_stop_a_stream() {
    let path = PathOptions {
        rate: mbit(1000),
        queue: 2 << 20,
        delay: Duration::from_micros(200),
        ..PathOptions::default()
    };
    let mut sim = Sim::with_paths(7, there_and_back(path));
    // Everything that happens is noticed up to 30 ms late, in round trips of less than one.
    sim.late = millis(30);
    let flow = sim.connect(
        [config(Algorithm::Bbr), config(Algorithm::Bbr)],
        App::upload(u64::MAX / 4),
        Duration::ZERO,
    );
    sim.run(Duration::from_secs(4));
    let before = sim.flows[flow].apps[1].received;
    sim.run(Duration::from_secs(1));
    let rate = (sim.flows[flow].apps[1].received - before) as f64 * 8e-6;
    assert!(rate > 50.0, "{rate:.0} Mbit/s");
}

/// 300 Mbit/s and 10 ms; each packet is up to 1 ms late, and one of a hundred 3 ms more.
fn reordering(loss: f64) -> PathOptions {
    PathOptions {
        rate: mbit(300),
        queue: 1 << 20,
        delay: millis(5),
        jitter: millis(1),
        reorder: 0.01,
        loss,
        ..PathOptions::default()
    }
}

/// Megabits per second of an upload of 20 MiB where acknowledgements change places as well, and how
/// many segments were sent again for nothing.
fn rate_among_reordering(seed: u64, config: Config, there: PathOptions) -> (f64, u64) {
    const TOTAL: u64 = 20 << 20;
    let back = PathOptions {
        rate: 0,
        ..there.clone()
    };
    let mut sim = Sim::with_paths(seed, [there, back]);
    let flow = sim.connect([config.clone(), config], App::upload(TOTAL), Duration::ZERO);
    assert!(sim.run(Duration::from_secs(60)), "it never ends");
    let end = sim.flows[flow].apps[1]
        .finished_at
        .expect("the end was read");
    let rate = TOTAL as f64 * 8e-6 / end.since(Instant::from_millis(1000)).as_secs_f64();
    let path = &sim.paths[0];
    println!(
        "{rate:.0} Mbit/s; {} packets, {} lost, {} overflowed, {} came twice",
        path.sent, path.lost, path.overflowed, sim.twice
    );
    (rate, sim.twice)
}

#[test]
fn reordering_does_not_stop_a_stream() {
    for (algorithm, loss) in [
        (Algorithm::Bbr, 0.01),
        (Algorithm::Bbr, 0.0),
        (Algorithm::Cubic, 0.0),
    ] {
        print!("{algorithm:?}, {loss}: ");
        let (rate, twice) = rate_among_reordering(9, config(algorithm), reordering(loss));
        assert!(rate > 200.0, "{algorithm:?}, {loss}: {rate:.0} Mbit/s");
        // One of a hundred in about 15,600 segments is late.
        assert!(twice < 40, "{algorithm:?}, {loss}: {twice} came twice");
    }
}

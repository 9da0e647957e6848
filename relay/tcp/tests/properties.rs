//! Whatever the path does: what is read is what was written, in order; it ends; memory stays within
//! its bounds and is given back.

mod sim;

use std::time::Duration;

use proptest::prelude::*;
use relay_tcp::{Algorithm, CloseReason, Config};
use sim::Sim;
use sim::app::App;
use sim::path::PathOptions;

fn path() -> impl Strategy<Value = PathOptions> {
    let faults = (0.0..0.15_f64, 0.0..0.1_f64, 0.0..0.05_f64, 0.0..0.2_f64);
    let shape = (
        prop_oneof![Just(0_u64), 100_000_u64..50_000_000],
        10_000_u64..500_000,
        0_u64..80,
        0_u64..10,
        1_u64..40,
        any::<bool>(),
    );
    (faults, shape).prop_map(
        |((loss, duplicate, corrupt, reorder), (rate, queue, delay, jitter, detour, clean))| {
            let share = if clean { 0.0 } else { 1.0 };
            PathOptions {
                rate,
                queue,
                delay: Duration::from_millis(delay),
                jitter: Duration::from_millis(jitter),
                loss: loss * share,
                duplicate: duplicate * share,
                corrupt: corrupt * share,
                reorder: reorder * share,
                detour: Duration::from_millis(detour),
                mark_above: (queue % 3 == 0).then_some(queue / 4),
                ..PathOptions::default()
            }
        },
    )
}

fn config() -> impl Strategy<Value = Config> {
    let extensions = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let sizes = (576_u16..9000, 4_000_u64..2_000_000, 4_000_u64..2_000_000);
    let choices = any::<[bool; 3]>();
    (extensions, sizes, choices).prop_map(|(extensions, (mtu, receive, send), choices)| {
        let (timestamps, sack, window_scaling, ecn) = extensions;
        let [bbr, early_data, patient_acks] = choices;
        Config {
            mtu,
            algorithm: if bbr {
                Algorithm::Bbr
            } else {
                Algorithm::Cubic
            },
            receive_buffer: receive.min(256 << 10),
            receive_buffer_max: receive,
            send_reserve: send.min(128 << 10),
            send_buffer_max: send,
            timestamps,
            sack,
            window_scaling,
            ecn,
            early_data,
            patient_acks,
            ..Config::default()
        }
    })
}

fn app(side: u64) -> impl Strategy<Value = App> {
    let write = (0_u64..400_000, 0_u64..20_000, 0_u64..20);
    let read = (0_usize..50_000, 0_u64..20, any::<bool>());
    (write, read).prop_map(
        move |((total, chunk, pause), (read_chunk, read_pause, answers))| App {
            // Small chunks would take hours of virtual time.
            chunk: if chunk < 1000 { 0 } else { chunk },
            pause: Duration::from_millis(pause),
            read_chunk: if read_chunk < 1000 { 0 } else { read_chunk },
            read_pause: Duration::from_millis(read_pause),
            answers: answers && side == 1,
            ..App::new(side, total)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn what_is_read_is_what_was_written(
        seed: u64, paths in [path(), path()], configs in [config(), config()],
        client in app(0), server in app(1), burst in 0_u64..3,
    ) {
        let mut sim = Sim::with_paths(seed, paths);
        sim.burst = Duration::from_millis(burst);
        let totals = [client.total, server.total];
        let limits: Vec<u64> = (0..2).map(|side| {
            // Sent and not acknowledged, unread, and pieces that are not full.
            configs[side].send_buffer_max + 2 * configs[1 - side].receive_buffer_max + (256 << 10)
        }).collect();
        let flow = sim.connect(configs, [client, server], Duration::ZERO);
        let mut done = false;
        for _ in 0..60 {
            done = sim.run(Duration::from_secs(60));
            for (pool, limit) in sim.pools.iter().zip(&limits) {
                prop_assert!((pool.used() as u64) < *limit, "{} bytes of memory", pool.used());
            }
            if done {
                break;
            }
        }
        prop_assert!(done, "it never ends: {:?}", sim.flows[flow].ends);
        let flow = &sim.flows[flow];
        prop_assert_eq!([flow.apps[1].received, flow.apps[0].received], totals);
        for side in 0..2 {
            let reason = flow.events[side].closed;
            prop_assert!(matches!(reason, None | Some(CloseReason::Finished)), "{reason:?}");
        }
        prop_assert_eq!(sim.pools[0].used() + sim.pools[1].used(), 0);
    }
}

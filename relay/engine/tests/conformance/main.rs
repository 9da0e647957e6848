//! What an application can see of a pump, the same for every engine: every byte, every kind of end,
//! held-back senders, and nothing left over.
//!
//! `RELAY_CONFORMANCE_MIB=10240 cargo test --release -p relay-engine --test conformance bulk` moves
//! ten gigabytes with each engine.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod ends;
mod flow;
mod joined;
mod many;
mod process;
mod support;

use std::future::Future;
use std::sync::{Mutex, PoisonError};

use relay_engine::Engine;
use tokio::runtime::Builder;

/// The kinds of runtime that engines have to live in.
#[derive(Clone, Copy, PartialEq)]
enum Runtime {
    OneThread,
    Threads,
}

/// One test of the suite at a time: memory and descriptors are the whole process's.
static TURN: Mutex<()> = Mutex::new(());

/// Descriptors that may be kept for the next pump: idle pipes, and what belongs to a ring.
const KEPT: usize = 24;

/// From how many bytes on [`Engine::Sockmap`] joins a connection: as usual, or each from its first.
const AS_USUAL: u64 = relay_engine::test_support::JOIN_AFTER;
const AT_ONCE: u64 = 0;

/// Runs one test with one engine, which joins each connection at once if it joins any, and looks at
/// what it leaves behind.
fn run<F: Future<Output = ()>>(engine: Engine, runtime: Runtime, test: impl FnOnce(Engine) -> F) {
    run_joining(AT_ONCE, engine, runtime, test);
}

fn run_joining<F: Future<Output = ()>>(
    after: u64,
    engine: Engine,
    runtime: Runtime,
    test: impl FnOnce(Engine) -> F,
) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    relay_engine::test_support::join_after(after);
    if let Err(error) = engine.check() {
        assert!(std::env::var_os("RELAY_REQUIRE_ALL").is_none(), "{error}");
        return eprintln!("skipped: {error}");
    }
    relay_engine::limits::raise_descriptor_limit();
    let before = support::descriptors();
    let mut builder = match runtime {
        Runtime::OneThread => Builder::new_current_thread(),
        Runtime::Threads => Builder::new_multi_thread(),
    };
    let runtime = builder.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test(engine));
    drop(runtime);
    let left = support::descriptors().saturating_sub(before);
    assert!(left <= KEPT, "{engine} left {left} descriptors open");
}

macro_rules! suite {
    ($name:ident, $engine:expr, $runtime:expr, $after:expr, [$($room:ident::$test:ident,)*]) => {
        mod $name {
            use super::*;

            $(
                #[test]
                fn $test() {
                    run_joining($after, $engine, $runtime, $room::$test);
                }
            )*
        }
    };
}

macro_rules! every_engine {
    ($($name:ident: $engine:expr, $runtime:expr $(, $after:expr)?;)*) => {
        $(
            suite!($name, $engine, $runtime, [$($after,)? AS_USUAL][0], [
                flow::bulk_arrives_whole_both_ways_at_once,
                flow::random_pieces_arrive_whole,
                flow::a_unix_socket_is_an_end_too,
                flow::a_reader_that_stops_and_goes_gets_everything,
                flow::slow_readers_hold_senders_back_in_bounded_memory,
                flow::messages_go_to_and_fro_without_waiting,
                flow::what_was_moved_is_told_meanwhile,
                ends::the_end_of_one_direction_leaves_the_other_open,
                ends::a_reset_is_carried_from_either_side,
                ends::a_reset_is_carried_after_the_end_of_a_direction,
                ends::a_reset_is_carried_while_the_other_side_does_not_read,
                ends::what_was_sent_before_a_reset_still_arrives,
                ends::a_socket_that_was_refused_resets_the_other,
                ends::bytes_queued_at_an_immediate_close_arrive_whole,
                ends::a_reset_with_bytes_queued_ends_all,
                ends::a_dropped_pump_closes_both_sides,
                many::hundreds_of_pumps_run_at_once,
                many::three_thousand_connections_come_and_go,
                process::a_killed_process_leaves_nobody_waiting,
            ]);
        )*
    };
}

every_engine! {
    copy: Engine::Copy, Runtime::OneThread;
    splice: Engine::Splice, Runtime::OneThread;
    auto_on_threads: Engine::Auto, Runtime::Threads;
    io_uring: Engine::IoUring, Runtime::OneThread;
    io_uring_on_threads: Engine::IoUring, Runtime::Threads;
    sockmap: Engine::Sockmap, Runtime::OneThread;
    sockmap_at_once: Engine::Sockmap, Runtime::OneThread, AT_ONCE;
}

#[test]
fn an_idle_pump_is_small() {
    run(Engine::Auto, Runtime::OneThread, |_| async {
        for engine in Engine::ALL {
            let (_left, a) = support::tcp_pair().await;
            let (b, _right) = support::tcp_pair().await;
            let pump = relay_engine::pump(a, b, engine);
            let size = std::mem::size_of_val(&pump);
            assert!(size < 4096, "{engine}: {size}");
        }
    });
}

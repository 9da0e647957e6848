//! The harness against its own app, without a forwarder.

use std::time::Duration;

use relay_benches::runner::{Plan, Progress, run};
use relay_benches::{Figure, Route};

struct Steps {
    announced: usize,
    taken: usize,
}

impl Progress for Steps {
    fn steps(&mut self, count: usize) {
        self.announced = count;
    }

    fn step(&mut self, _: &str) {
        self.taken += 1;
    }
}

#[test]
fn the_direct_route_has_every_figure_but_those_of_a_forwarder() {
    let plan = Plan {
        program: "relay".into(),
        routes: vec![Route::Direct],
        rounds: 2,
        length: Duration::from_millis(100),
        memory_gib: 0.0,
        link: None,
    };
    let mut steps = Steps {
        announced: 0,
        taken: 0,
    };
    let report = run(&plan, &mut steps).unwrap();
    assert_eq!(steps.announced, steps.taken);
    for figure in [
        Figure::TcpUp1,
        Figure::TcpDown8,
        Figure::PingP50,
        Figure::Connections16,
    ] {
        let row = report.row(Route::Direct, figure).unwrap();
        assert_eq!(row.samples.len(), 2, "{figure}");
        assert!(row.summary.min > 0.0, "{figure}");
    }
    assert!(report.row(Route::Direct, Figure::CpuUp1).is_none());
    assert!(report.missing.is_empty());
}

#[test]
fn a_route_whose_program_is_missing_is_an_error_that_names_it() {
    let plan = Plan {
        program: "/no/such/relay".into(),
        routes: vec![Route::P2p],
        rounds: 1,
        length: Duration::from_millis(10),
        memory_gib: 0.0,
        link: None,
    };
    let error = run(
        &plan,
        &mut Steps {
            announced: 0,
            taken: 0,
        },
    )
    .unwrap_err();
    assert!(error.to_string().contains("relay server"), "{error}");
}

#[test]
fn an_emulated_link_sets_the_round_trip() {
    if !nix::unistd::geteuid().is_root() || !std::path::Path::new("/dev/net/tun").exists() {
        let required = std::env::var_os("RELAY_REQUIRE_ALL");
        assert!(
            required.is_none_or(|value| value.is_empty()),
            "nothing may be skipped here"
        );
        println!("skip: an emulated link takes root and /dev/net/tun");
        return;
    }
    let plan = Plan {
        program: "relay".into(),
        routes: vec![Route::Direct],
        rounds: 1,
        length: Duration::from_millis(500),
        memory_gib: 0.0,
        link: Some("20ms,0%,100mbit".parse().unwrap()),
    };
    let report = run(
        &plan,
        &mut Steps {
            announced: 0,
            taken: 0,
        },
    )
    .unwrap();
    let ping = report
        .row(Route::Direct, Figure::PingP50)
        .unwrap()
        .summary
        .median;
    assert!((19_500.0..40_000.0).contains(&ping), "{ping} µs");
    let rate = report
        .row(Route::Direct, Figure::TcpUp1)
        .unwrap()
        .summary
        .median;
    assert!(rate < 0.11, "{rate} Gbit/s over a path of 0.1");
}

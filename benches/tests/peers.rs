//! Each peer that is installed, from its start to its end. What is not installed is skipped, but
//! the two that come as packages.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use relay_benches::link::Hosts;
use relay_benches::load::App;
use relay_benches::routes::{open, require_installed};
use relay_benches::{Error, Route, load};

fn strict() -> bool {
    std::env::var_os("RELAY_REQUIRE_ALL").is_some_and(|value| !value.is_empty())
}

fn skip(why: &dyn std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "skip: {why}");
}

/// Puts the route up and down again, with a byte through it in between.
fn try_out(route: Route) {
    if let Err(error) = require_installed(route) {
        let package = matches!(route, Route::Socat | Route::Haproxy);
        assert!(
            !(strict() && package),
            "nothing may be skipped here: {error}"
        );
        skip(&error);
        return;
    }
    let lives_in_namespaces = !matches!(
        route,
        Route::Socat | Route::Haproxy | Route::Rathole | Route::Bore
    );
    if lives_in_namespaces && !nix::unistd::geteuid().is_root() {
        skip(&format_args!("{route} takes root"));
        return;
    }
    let app = App::start().expect("app");
    let peer = match open(route, &Hosts::Same, app.port(), None) {
        Ok(peer) => peer,
        // onetun takes another peer's program at the far end.
        Err(Error::NotInstalled { program, .. }) if route == Route::Onetun => {
            skip(&format_args!("{program} is not installed"));
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let local = peer.local;
    let times = peer.drive(&Hosts::Same, &app, |_| {
        load::ping_pong(local, Duration::from_millis(50))
    });
    assert!(!times.expect("host").expect("echoes").is_empty());
    assert!(peer.family.memory() > 0.1);
    assert!(peer.start.is_some());
    let memory_of = peer.family.clone();
    drop(peer);
    assert_eq!(memory_of.memory(), 0.0, "a process of {route} stays behind");
    if !lives_in_namespaces {
        let answers = TcpStream::connect(local).and_then(|mut stream| {
            stream.write_all(b"ex")?;
            stream.read_exact(&mut [0])
        });
        assert!(answers.is_err(), "{route} still forwards");
    }
}

macro_rules! tests {
    ($($name:ident: $route:ident,)*) => {
        $(#[test]
        fn $name() {
            try_out(Route::$route);
        })*

        #[test]
        fn every_peer_is_tried() {
            let tried = [$(Route::$route),*];
            assert!(Route::peers().iter().all(|route| tried.contains(route)));
        }
    };
}

tests! {
    onetun_comes_and_goes: Onetun,
    boringtun_comes_and_goes: Boringtun,
    gotatun_comes_and_goes: Gotatun,
    rathole_comes_and_goes: Rathole,
    bore_comes_and_goes: Bore,
    dumbpipe_comes_and_goes: Dumbpipe,
    socat_comes_and_goes: Socat,
    haproxy_comes_and_goes: Haproxy,
}

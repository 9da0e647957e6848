//! Two kernel stacks joined back to back: what one writes, the other reads, without WireGuard or
//! a network between them. A machine that cannot have a kernel stack skips with its reason.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod early;
mod pair;
mod places;
mod streams;

/// Says that a test cannot run here, and why. Where everything must run, that is a failure; a
/// program that a test runs once more elsewhere only tells its reason.
fn skip(reason: impl std::fmt::Display) {
    let required = std::env::var_os("RELAY_REQUIRE_ALL").is_some_and(|value| !value.is_empty());
    assert!(
        !required || places::inside(),
        "nothing may be skipped here: {reason}"
    );
    println!("skip: {reason}");
}

//! The dashboard and the apps behind it, in a real browser: Chromium, with nothing between it and
//! the server but loopback. Pictures of the pages are left in `target/screenshots`.

mod cross_origin;
mod open;
mod share;
mod support;

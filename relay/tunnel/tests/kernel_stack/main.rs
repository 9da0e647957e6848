//! Two kernel stacks joined back to back: what one writes, the other reads, without WireGuard or
//! a network between them. A machine that cannot have a kernel stack skips with its reason.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod pair;
mod places;
mod streams;

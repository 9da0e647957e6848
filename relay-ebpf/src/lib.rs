//! What the eBPF programs and their loader agree on: names and types of maps; and, for the loader,
//! the compiled programs.
//!
//! The programs are in `program/`, a workspace of its own. `cargo xtask ebpf` builds them and puts
//! the object beside this library, so that building relay needs no toolchain for eBPF.

#![no_std]

pub mod gate;
#[cfg(not(target_arch = "bpf"))]
mod object;
pub mod steer;

#[cfg(not(target_arch = "bpf"))]
pub use object::OBJECT;

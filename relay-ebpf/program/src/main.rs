//! relay's eBPF programs. Their maps are described in the library `relay-ebpf`, for both sides.

#![no_std]
#![no_main]
// Atomic operations that give back a value have no stable name on this target.
#![feature(core_intrinsics)]
#![allow(internal_features)]

mod gate;
mod steer;

/// What the kernel asks of programs that call helpers of its own.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Never called: the verifier takes no program that could panic.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

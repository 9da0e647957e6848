//! See [`relay_tunnel_fuzz::inner_packet`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| relay_tunnel_fuzz::inner_packet(bytes));

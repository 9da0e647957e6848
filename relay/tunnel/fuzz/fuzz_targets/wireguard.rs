//! See [`relay_tunnel_fuzz::wireguard`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| relay_tunnel_fuzz::wireguard(bytes));

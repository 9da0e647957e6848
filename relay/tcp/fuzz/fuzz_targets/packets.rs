//! See [`relay_tcp_fuzz::packets`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| relay_tcp_fuzz::packets(bytes));

//! See [`relay_tcp_fuzz::segments`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| relay_tcp_fuzz::segments(bytes));

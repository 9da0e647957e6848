//! See [`relay_wire_fuzz::same_host`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| relay_wire_fuzz::same_host(bytes));

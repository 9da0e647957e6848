//! See [`relay_wire_fuzz::wg`].
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| relay_wire_fuzz::wg(text));

//! See [`relay_wire_fuzz::specs`].
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| relay_wire_fuzz::specs(text));

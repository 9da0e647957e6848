//! See [`relay_agent::ssh::fuzzing::packets`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| relay_agent::ssh::fuzzing::packets(bytes));

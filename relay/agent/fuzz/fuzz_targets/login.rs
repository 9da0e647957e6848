//! See [`relay_agent::ssh::fuzzing::login`].
#![no_main]

libfuzzer_sys::fuzz_target!(|payload: &[u8]| relay_agent::ssh::fuzzing::login(payload));

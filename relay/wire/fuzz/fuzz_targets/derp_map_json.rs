//! See [`relay_wire_fuzz::derp_map_json`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| relay_wire_fuzz::derp_map_json(bytes));

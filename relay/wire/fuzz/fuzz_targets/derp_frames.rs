//! See [`relay_wire_fuzz::derp_frames`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let (cuts, bytes) = relay_wire_fuzz::with_cuts(input);
    relay_wire_fuzz::derp_frames(cuts, bytes);
});

//! See [`relay_wire_fuzz::yamux`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let (cuts, bytes) = relay_wire_fuzz::with_cuts(input);
    relay_wire_fuzz::yamux(cuts, bytes);
});

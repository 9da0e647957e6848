//! See [`relay_tunnel_fuzz::fragments`].
#![no_main]

libfuzzer_sys::fuzz_target!(|packets: Vec<&[u8]>| relay_tunnel_fuzz::fragments(&packets));

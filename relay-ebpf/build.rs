//! Says which object is built in: the one that is checked in, or the one that `RELAY_EBPF_OBJECT`
//! names (so CI tests a fresh build).

fn main() {
    println!("cargo:rerun-if-env-changed=RELAY_EBPF_OBJECT");
    let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let object =
        std::env::var("RELAY_EBPF_OBJECT").unwrap_or_else(|_| format!("{folder}/object/relay.o"));
    println!("cargo:rerun-if-changed={object}");
    println!("cargo:rustc-env=RELAY_EBPF_OBJECT={object}");
}

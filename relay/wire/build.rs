//! Generates the protobuf types from `proto/`, in Rust alone (no `protoc` is needed).

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["tailnet.proto", "agent.proto"], ["proto"])?;
    prost_build::Config::new()
        .btree_map(["."])
        .bytes(["."])
        .compile_fds(files)?;
    Ok(())
}

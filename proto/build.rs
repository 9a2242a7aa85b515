//! Compiles the CRI without protoc.

use std::env;
use std::path::PathBuf;

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=api.proto");
    let descriptors = protox::compile(["api.proto"], ["."])?;
    // The test compares what was compiled with the table of Kubernetes.
    let file = PathBuf::from(env::var("OUT_DIR")?).join("descriptors.bin");
    fs_err::write(file, descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_client(true)
        .client_mod_attribute(".", "#[cfg(feature = \"client\")]")
        .generate_default_stubs(true)
        .btree_map(".")
        // It has secrets; lib.rs prints it without them.
        .skip_debug(["AuthConfig"])
        .compile_fds(descriptors)?;
    Ok(())
}

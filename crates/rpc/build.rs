//! From `proto/` to Rust, without a protoc on the machine.

use std::error::Error;
use std::path::{Path, PathBuf};

use prost::Message;

const FILES: [&str; 6] = [
    "file.proto",
    "node.proto",
    "log.proto",
    "librorum/v1/files.proto",
    "librorum/v1/admin.proto",
    "librorum/v1/frames.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let descriptors = protox::compile(FILES, [&root])?;
    let out_dir = PathBuf::from(std::env::var("OUT_DIR")?);
    // For reflection: a client can ask the daemon for all of this.
    std::fs::write(out_dir.join("descriptors.bin"), descriptors.encode_to_vec())?;
    let with_grpc = std::env::var_os("CARGO_FEATURE_GRPC").is_some();
    tonic_prost_build::configure()
        .build_client(with_grpc)
        .build_server(with_grpc)
        .build_transport(false)
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}

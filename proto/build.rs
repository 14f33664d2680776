//! Compiles the .proto files with a pure-Rust compiler, so that a build needs no protoc.

const FILES: [&str; 14] = [
    "auth.proto",
    "etcdserver.proto",
    "health.proto",
    "kv.proto",
    "lease.proto",
    "membership.proto",
    "raft.proto",
    "raft_internal.proto",
    "record.proto",
    "rpc.proto",
    "snap.proto",
    "v3election.proto",
    "v3lock.proto",
    "version.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true);
    compiler.open_files(FILES)?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    prost_build::Config::new().bytes(["."]).compile_fds(compiler.file_descriptor_set())?;
    println!("cargo:rerun-if-changed=proto");
    Ok(())
}

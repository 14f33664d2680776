//! Generates the gRPC client stubs; the messages themselves come from trilith-proto.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let protos = "../proto/proto";
    let descriptors = protox::compile(["rpc.proto", "health.proto"], [protos])?;
    let mut config = tonic_prost_build::Config::new();
    config.bytes(["."]);
    let mut builder = tonic_prost_build::configure().build_server(false).build_transport(true);
    for (package, module) in [
        (".etcdserverpb", "etcdserverpb"),
        (".mvccpb", "mvccpb"),
        (".authpb", "authpb"),
        (".grpc.health.v1", "healthpb"),
    ] {
        builder = builder.extern_path(package, format!("::trilith_proto::{module}"));
    }
    builder.compile_fds_with_config(descriptors, config)?;
    println!("cargo:rerun-if-changed={protos}");
    Ok(())
}

//! Compiles the published interface definitions, without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in ["csi.proto", "pluginregistration.proto"] {
        println!("cargo:rerun-if-changed=proto/{file}");
        let definitions = protox::compile([file], ["proto"])?;
        tonic_prost_build::configure().build_client(false).build_server(true).compile_fds(definitions)?;
    }
    Ok(())
}

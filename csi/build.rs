//! Compiles the published interface definitions, without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in ["csi.proto", "pluginregistration.proto"] {
        println!("cargo:rerun-if-changed=proto/{file}");
        let definitions = protox::compile([file], ["proto"])?;
        let client = std::env::var_os("CARGO_FEATURE_CLIENT").is_some();
        tonic_prost_build::configure().build_client(client).build_server(true).compile_fds(definitions)?;
    }
    Ok(())
}

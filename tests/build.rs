//! The CSI client that plays kubelet's part, from the same published definition as the agent's server.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = "../csi/proto";
    println!("cargo::rerun-if-changed={folder}/csi.proto");
    let descriptors = protox::compile([format!("{folder}/csi.proto")], [folder])?;
    tonic_prost_build::configure().build_server(false).compile_fds(descriptors)?;
    Ok(())
}

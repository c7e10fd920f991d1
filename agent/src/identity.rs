//! Who this node is to NFS servers.

use std::fs;
use std::io;
use std::path::Path;

use moorline_shared::client::ClientIdentity;
use tracing::warn;

use crate::paths::{Paths, from_agent};

/// Reads it from the node, and completes it there the first time. What can't be kept is left out: a name that changed with
/// each boot would cost the locks that a server keeps for the node.
pub(crate) fn of_node(node: &str, paths: &Paths) -> ClientIdentity {
    let text = |path: &str| fs::read_to_string(from_agent(Path::new(path))).unwrap_or_default().trim().to_owned();
    let file = from_agent(&paths.client_id());
    let kept = kept(&file).unwrap_or_else(|error| {
        warn!(
            "keep this node's client id in {}: {error}; nodes of one name and one machine id would steal each other's locks",
            paths.client_id().display()
        );
        String::new()
    });
    ClientIdentity {
        node: node.to_owned(),
        machine: text("/etc/machine-id"),
        hardware: text("/sys/class/dmi/id/product_uuid"),
        kept,
    }
}

fn kept(file: &Path) -> io::Result<String> {
    match fs::read_to_string(file) {
        Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let fresh = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory)?;
    }
    // In one step: a crash in between must not leave half of one.
    let unfinished = file.with_extension("new");
    fs::write(&unfinished, &fresh)?;
    fs::File::open(&unfinished)?.sync_all()?;
    fs::rename(&unfinished, file)?;
    Ok(fresh.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_once_is_kept_and_half_of_one_is_not_taken() {
        let folder = std::env::temp_dir().join(format!("moorline-identity-{}", std::process::id()));
        let file = folder.join("below/client-id");
        let first = kept(&file).unwrap();
        assert_eq!(first.len(), 36, "{first}");
        assert_eq!(kept(&file).unwrap(), first);
        fs::write(&file, "\n").unwrap();
        assert_ne!(kept(&file).unwrap(), first);
        assert!(kept(Path::new("/dev/null/client-id")).is_err());
        fs::remove_file(&file).unwrap();
        fs::remove_dir(folder.join("below")).unwrap();
        fs::remove_dir(&folder).unwrap();
    }
}

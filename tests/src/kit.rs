//! The files a run takes with it into the guest and into every scenario: three static executables and the manifests.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where every scenario finds the kit, whatever the machine looks like outside.
pub const INSIDE: &str = "/opt/moorline-lab";

/// An executable of the kit, as scenarios name it.
pub fn executable(name: &str) -> PathBuf {
    Path::new(INSIDE).join("kit").join(name)
}

/// The scenario's own results folder, kept when it fails.
pub fn results() -> PathBuf {
    Path::new(INSIDE).join("results")
}

/// What goes into a kit. `moorline` may be missing: then the scenarios that need it fail, and the others run.
#[derive(Debug, Clone)]
pub struct Sources {
    pub lab: PathBuf,
    pub app: PathBuf,
    pub moorline: Option<PathBuf>,
    pub manifests: PathBuf,
}

/// Copies the kit into `folder`. Copies and not links: a build that goes on must not change a run that has begun.
pub fn assemble(folder: &Path, sources: &Sources) -> io::Result<()> {
    fs::create_dir_all(folder.join("manifests"))?;
    copy(&sources.lab, &folder.join("lab"))?;
    copy(&sources.app, &folder.join("app"))?;
    if let Some(moorline) = &sources.moorline {
        copy(moorline, &folder.join("moorline"))?;
    }
    let Ok(manifests) = fs::read_dir(&sources.manifests) else { return Ok(()) };
    for manifest in manifests {
        let manifest = manifest?.path();
        if let Some(name) = manifest.file_name().filter(|_| manifest.is_file()) {
            copy(&manifest, &folder.join("manifests").join(name))?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to)
        .map(drop)
        .map_err(|error| io::Error::new(error.kind(), format!("copy {} to {}: {error}", from.display(), to.display())))
}

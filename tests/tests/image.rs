//! The image that the lab imports is the image that the Dockerfile makes: the archive from tests/kube/image is compared
//! with what the Dockerfile's last stage says, read here a second time and in another way.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What one path of the image is.
#[derive(Debug, PartialEq, Eq)]
enum Entry {
    Directory,
    Executable(Vec<u8>),
    Link(String),
}

#[test]
fn the_labs_image_is_the_dockerfiles_last_stage() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let dockerfile = fs::read_to_string(repository.join("Dockerfile")).unwrap();
    let scratch = Scratch::new();
    // Any executable does for the binary: the assembler only copies it.
    let binary = scratch.path("binary");
    fs::copy("/bin/true", &binary).unwrap();

    let archive = scratch.path("image.tar");
    run(Command::new(repository.join("tests/kube/image")).arg("moorline").args([&binary, &archive]));

    let parts = scratch.directory("parts");
    run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&parts));
    let root = scratch.directory("root");
    run(Command::new("tar").arg("-xf").arg(parts.join("layer.tar")).arg("-C").arg(&root));

    assert_eq!(entries(&root), expected(&dockerfile, &fs::read(&binary).unwrap()));

    let config = fs::read_to_string(parts.join("config.json")).unwrap();
    let digest = run(Command::new("sha256sum").arg(parts.join("layer.tar")));
    assert!(config.contains(&format!("sha256:{}", digest.split(' ').next().unwrap())), "the layer's digest: {config}");
    for (instruction, value) in last_stage(&dockerfile) {
        match instruction {
            "FROM" => assert_eq!(value, "scratch", "nothing but what is listed is in the image"),
            "ENTRYPOINT" => assert!(config.contains(&format!("\"Entrypoint\":{value}")), "{value} in {config}"),
            "ENV" => assert!(config.contains(&format!("\"Env\":[\"{value}\"]")), "{value} in {config}"),
            "COPY" => {}
            other => panic!("the Dockerfile's last stage has a line that this test cannot compare: {other} {value}"),
        }
    }
    let manifest = fs::read_to_string(parts.join("manifest.json")).unwrap();
    assert!(manifest.contains("\"localhost/moorline:dev\""), "{manifest}");
}

/// What the last stage's COPY lines bring, links made in the build stage included.
fn expected(dockerfile: &str, binary: &[u8]) -> BTreeMap<String, Entry> {
    let mut entries = BTreeMap::new();
    for (_, value) in last_stage(dockerfile).into_iter().filter(|(instruction, _)| *instruction == "COPY") {
        let words: Vec<_> = value.split_whitespace().collect();
        let [_, from, to] = words[..] else { panic!("one source for each COPY: {value}") };
        if let Some(directory) = from.strip_suffix('/') {
            for (target, name) in links(dockerfile, directory) {
                entries.insert(format!("{to}{name}"), Entry::Link(target));
            }
        } else {
            entries.insert(to.to_owned(), Entry::Executable(binary.to_vec()));
        }
    }
    assert!(entries.contains_key("/moorline"), "the image holds /moorline: {entries:?}");
    assert!(entries.contains_key("/moorline-agent"), "and the agent's name for it: {entries:?}");
    entries
}

/// The links that the build stage makes in a directory: (target, name).
fn links(dockerfile: &str, directory: &str) -> Vec<(String, String)> {
    let words: Vec<_> = dockerfile.split_whitespace().collect();
    let made = words.windows(4).filter(|four| four[0] == "ln" && four[1] == "-s");
    made.filter_map(|four| {
        let name = four[3].strip_prefix(directory)?.strip_prefix('/')?;
        Some((four[2].to_owned(), name.to_owned()))
    })
    .collect()
}

fn last_stage(dockerfile: &str) -> Vec<(&str, &str)> {
    let lines = dockerfile.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut stage = Vec::new();
    for (instruction, value) in lines.filter_map(|line| line.split_once(' ')) {
        if instruction == "FROM" {
            stage.clear();
        }
        stage.push((instruction, value));
    }
    stage
}

fn entries(root: &Path) -> BTreeMap<String, Entry> {
    let mut entries = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let kind = fs::symlink_metadata(&path).unwrap().file_type();
            let what = if kind.is_dir() {
                pending.push(path.clone());
                Entry::Directory
            } else if kind.is_symlink() {
                Entry::Link(fs::read_link(&path).unwrap().display().to_string())
            } else {
                Entry::Executable(fs::read(&path).unwrap())
            };
            entries.insert(format!("/{}", path.strip_prefix(root).unwrap().display()), what);
        }
    }
    entries
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

/// A directory for this test alone, below the build's own.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let scratch = Self(Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("image-{}", std::process::id())));
        fs::create_dir_all(&scratch.0).unwrap();
        scratch
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn directory(&self, name: &str) -> PathBuf {
        fs::create_dir(self.path(name)).unwrap();
        self.path(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing is ever mounted below the build directory; what stays behind goes with it.
        let _ = Command::new("rm").args(["-rf", "--one-file-system"]).arg(&self.0).status();
    }
}

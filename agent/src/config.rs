//! The directory of objects: read whole, watched, and kept file by file when a file turns bad.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use futures_util::StreamExt;
use inotify::{Inotify, WatchMask};
use moorline_shared::yaml::{Located, Problem, parse};

/// What all files say.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    pub(crate) objects: Vec<Located>,
    pub(crate) problems: Vec<Problem>,
    /// A file is bad, and what it said before is not known to this process.
    pub(crate) incomplete: bool,
}

impl Reading {
    /// What two sources say together.
    pub(crate) fn and(&self, other: &Self) -> Self {
        Self {
            objects: self.objects.iter().chain(&other.objects).cloned().collect(),
            problems: self.problems.iter().chain(&other.problems).cloned().collect(),
            incomplete: self.incomplete || other.incomplete,
        }
    }
}

/// What each file, or whatever else holds objects, last said without an error.
#[derive(Debug, Default)]
pub(crate) struct Good(BTreeMap<String, Vec<Located>>);

impl Good {
    /// Of a bad one, what it said before stays in force; one that is gone says nothing.
    pub(crate) fn take_in(
        &mut self,
        said: impl IntoIterator<Item = (String, Result<Vec<Located>, Problem>)>,
    ) -> Reading {
        let mut reading = Reading::default();
        let mut next = BTreeMap::new();
        for (name, objects) in said {
            match objects {
                Ok(objects) => drop(next.insert(name, objects)),
                Err(problem) => {
                    reading.problems.push(problem);
                    match self.0.remove(&name) {
                        Some(before) => drop(next.insert(name, before)),
                        None => reading.incomplete = true,
                    }
                }
            }
        }
        self.0 = next;
        reading.objects = self.0.values().flatten().cloned().collect();
        reading
    }
}

#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    good: Good,
}

impl Directory {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, good: Good::default() }
    }

    /// Reads all files anew.
    pub(crate) fn read(&mut self) -> io::Result<Reading> {
        let parsed = self.texts()?.into_iter().map(|(name, text)| {
            let unreadable = |error| Problem {
                file: name.clone(),
                line: None,
                field: String::new(),
                message: format!("can't be read: {error}"),
            };
            let objects = text.map_err(unreadable).and_then(|text| parse(&name, &text));
            (name, objects)
        });
        Ok(self.good.take_in(parsed))
    }

    /// All files of one version: a ConfigMap's are kept in a directory that a link is swapped to, and what leads there by
    /// name is made and removed before and after.
    fn texts(&self) -> io::Result<Vec<(String, io::Result<String>)>> {
        let link = self.path.join("..data");
        loop {
            let version = fs::read_link(&link).ok();
            let place = version.as_ref().map_or_else(|| self.path.clone(), |version| self.path.join(version));
            let texts = match files(&place) {
                // Of what the directory says nothing is known, as of a file that can't be read.
                Err(error) if version.is_some() => Ok(vec![("..data".to_owned(), Err(error))]),
                files => files.map(|files| files.iter().map(|path| named(path)).collect()),
            };
            // What was read may have been on its way out.
            if fs::read_link(&link).ok() == version {
                return texts;
            }
        }
    }

    /// Wakes up for each change. A ConfigMap changes by the swap of a symlink in its directory, which is a move.
    pub(crate) fn changes(&self) -> io::Result<impl futures_util::Stream<Item = ()> + use<>> {
        let inotify = Inotify::init()?;
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::ONLYDIR;
        inotify.watches().add(&self.path, mask)?;
        Ok(inotify.into_event_stream(vec![0; 4096])?.map(drop))
    }
}

fn named(path: &Path) -> (String, io::Result<String>) {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    (name, fs::read_to_string(path))
}

/// The YAML files of a directory, in the order of their names; hidden ones are Kubernetes' own.
fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<_>>()?;
    files.retain(|path| {
        let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        !hidden && path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
    });
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const TEXT: &str = "apiVersion: moorline.io/v1alpha1\nkind: Gateway\nmetadata: {name: NAME}\nspec: {path: direct, targets: [{name: a, server: 192.0.2.1}]}\n";

    /// A ConfigMap's directory as kubelet writes it: the keys are links to a link that is swapped.
    fn write_config_map(directory: &Path, version: &str, keys: &[(&str, &str)]) {
        swap(directory, version, keys);
        for (key, _) in keys.iter().filter(|(key, _)| !directory.join(key).is_symlink()) {
            symlink(Path::new("..data").join(key), directory.join(key)).unwrap();
        }
    }

    fn swap(directory: &Path, version: &str, keys: &[(&str, &str)]) {
        let data = directory.join(format!("..{version}"));
        fs::create_dir(&data).unwrap();
        for (key, text) in keys {
            fs::write(data.join(key), text).unwrap();
        }
        let fresh = directory.join("..data_tmp");
        symlink(format!("..{version}"), &fresh).unwrap();
        fs::rename(&fresh, directory.join("..data")).unwrap();
    }

    #[tokio::test]
    async fn a_config_map_that_is_swapped_is_read_anew_with_the_keys_that_it_has_by_then() {
        let place = std::env::temp_dir().join(format!("moorline-config-map-{}", std::process::id()));
        fs::create_dir(&place).unwrap();
        let (a, b) = (TEXT.replace("NAME", "a"), TEXT.replace("NAME", "b"));
        write_config_map(&place, "1", &[("a.yaml", &a)]);
        let mut directory = Directory::new(place.clone());
        let names = |reading: &Reading| -> Vec<String> {
            assert!(reading.problems.is_empty(), "{:?}", reading.problems);
            reading.objects.iter().map(|located| format!("{:?}", located.object)).collect()
        };
        assert_eq!(names(&directory.read().unwrap()).len(), 1);
        let mut changes = directory.changes().unwrap();
        write_config_map(&place, "2", &[("a.yaml", &a), ("b.yaml", &b)]);
        let told = timeout(Duration::from_secs(10), changes.next()).await;
        assert!(told.is_ok_and(|change| change.is_some()), "nobody is told of the swap");
        assert_eq!(names(&directory.read().unwrap()).len(), 2);
        // Between the swap and the links to its new keys.
        let c = TEXT.replace("NAME", "c");
        swap(&place, "3", &[("a.yaml", &a), ("b.yaml", &b), ("c.yaml", &c)]);
        assert_eq!(names(&directory.read().unwrap()).len(), 3, "a reading is of one version");
        fs::remove_file(place.join("..data")).unwrap();
        symlink("..4", place.join("..data")).unwrap();
        let reading = directory.read().unwrap();
        assert_eq!((reading.incomplete, reading.problems[0].file.as_str()), (true, "..data"));
        for key in ["a.yaml", "b.yaml", "..data"] {
            fs::remove_file(place.join(key)).unwrap();
        }
        for (version, keys) in
            [("..1", &["a.yaml"][..]), ("..2", &["a.yaml", "b.yaml"]), ("..3", &["a.yaml", "b.yaml", "c.yaml"])]
        {
            keys.iter().for_each(|key| fs::remove_file(place.join(version).join(key)).unwrap());
            fs::remove_dir(place.join(version)).unwrap();
        }
        fs::remove_dir(&place).unwrap();
    }
}

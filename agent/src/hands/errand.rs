//! Directories of claims, in a share that is mounted: made, put aside, deleted. By descriptor, below the share's root, through
//! no symlink and into no other file system. Each may be cut short anywhere and is then done again.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use moorline_shared::errand::{Errand, Task};
use moorline_shared::id::SuperblockId;
use moorline_shared::name::Name;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{
    AtFlags, Dir, Gid, Mode, OFlags, ResolveFlags, StatxFlags, Uid, fchmod, fchown, mkdirat, openat2, renameat, statx,
    unlinkat,
};
use rustix::io::Errno;

use super::{Failure, doing, enter_host_mounts, open_path};
use crate::paths::Paths;

/// What was done, in words.
pub(super) fn errand(paths: &Paths, superblock: &SuperblockId, errand: &Errand) -> Result<String, Failure> {
    enter_host_mounts()?;
    let base = paths.base(superblock);
    let root = open_path(&base).map_err(doing(format!("open {}", base.display())))?;
    run(&root, errand)
}

fn run(root: &OwnedFd, errand: &Errand) -> Result<String, Failure> {
    let path = errand.sub_dir.as_path();
    let name = path.file_name().unwrap_or_default();
    let parent = path.parent().unwrap_or(Path::new(""));
    match &errand.task {
        Task::Make { uid, gid, mode } => {
            let parent = make_way(root, parent)?;
            make(&parent, name, errand, (*uid, *gid, *mode))
        }
        Task::Archive => {
            let aside = beside(&errand.id, "archived-", name);
            match open_way(root, parent)? {
                Some(parent) => put_aside(&parent, name, &aside, errand),
                None => Ok(not_there(errand)),
            }
        }
        Task::Delete { dry_run } => match open_way(root, parent)? {
            Some(parent) => delete(&parent, name, errand, *dry_run),
            None => Ok(not_there(errand)),
        },
    }
}

fn not_there(errand: &Errand) -> String {
    format!("{} is not there", errand.sub_dir)
}

/// A name that nobody else gives.
fn beside(id: &Name, prefix: &str, name: &OsStr) -> OsString {
    let mut aside = OsString::from(prefix);
    aside.push(name);
    aside.push(format!("-{id}"));
    aside
}

fn enter(at: impl AsFd, way: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    openat2(at, way, flags | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn explain(way: &Path, error: Errno) -> Failure {
    let what = format!("open {} of the share", way.display());
    match error {
        Errno::LOOP => Failure::definite(format!("{what}: a part of it is a symlink, and none is followed ({error})")),
        Errno::NOTDIR => Failure::definite(format!("{what}: a part of it is no directory ({error})")),
        Errno::XDEV => Failure::definite(format!("{what}: it lies on another file system of the server ({error})")),
        _ => doing(what)(error.into()),
    }
}

/// None if it does not lead anywhere.
fn open_way(root: &OwnedFd, way: &Path) -> Result<Option<OwnedFd>, Failure> {
    let way = if way.as_os_str().is_empty() { Path::new(".") } else { way };
    match enter(root, way, OFlags::RDONLY) {
        Ok(directory) => Ok(Some(directory)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(explain(way, error)),
    }
}

fn make_way(root: &OwnedFd, way: &Path) -> Result<OwnedFd, Failure> {
    let mut at = enter(root, Path::new("."), OFlags::RDONLY).map_err(|error| explain(Path::new("."), error))?;
    for part in way {
        match mkdirat(&at, part, Mode::from(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(doing(format!("make {} in the share", way.display()))(error.into())),
        }
        at = enter(&at, Path::new(part), OFlags::RDONLY).map_err(|error| explain(way, error))?;
    }
    Ok(at)
}

/// Under another name until it belongs to whom it is for: who finds it may use it.
fn make(parent: &OwnedFd, name: &OsStr, errand: &Errand, (uid, gid, mode): (u32, u32, u32)) -> Result<String, Failure> {
    let failed = |what: &str| {
        let what = format!("{what} {}", errand.sub_dir);
        move |error: Errno| doing(what)(error.into())
    };
    let fresh = beside(&errand.id, ".moorline-new-", name);
    let exists = || match enter(parent, Path::new(name), OFlags::PATH) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(explain(errand.sub_dir.as_path(), error)),
    };
    let there = exists()?;
    if !there {
        match mkdirat(parent, &fresh, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(failed("make")(error)),
        }
        let directory = enter(parent, Path::new(&fresh), OFlags::RDONLY).map_err(failed("open"))?;
        fchown(&directory, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(failed("give away"))?;
        fchmod(&directory, Mode::from(mode)).map_err(failed("set the permissions of"))?;
        match renameat(parent, &fresh, parent, name) {
            Ok(()) => return Ok(format!("made {}", errand.sub_dir)),
            // Somebody else was faster, and has used it.
            Err(Errno::EXIST | Errno::NOTEMPTY) => {}
            Err(error) => return Err(failed("put in its place")(error)),
        }
    }
    match unlinkat(parent, &fresh, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(format!("{} was there", errand.sub_dir)),
        Err(error) => Err(failed("take away what is not needed of")(error)),
    }
}

/// Whether it was there under its own name, or is under the other by now.
fn put_aside(parent: &OwnedFd, name: &OsStr, aside: &OsStr, errand: &Errand) -> Result<String, Failure> {
    if enter(parent, Path::new(aside), OFlags::PATH).is_ok() {
        return Ok(format!("{} is {} now", errand.sub_dir, aside.display()));
    }
    // A symlink, or a file, is none of ours.
    match enter(parent, Path::new(name), OFlags::PATH) {
        Ok(_) => {}
        Err(Errno::NOENT) => return Ok(not_there(errand)),
        Err(error) => return Err(explain(errand.sub_dir.as_path(), error)),
    }
    renameat(parent, name, parent, aside)
        .map_err(|error| doing(format!("rename {} to {}", errand.sub_dir, aside.display()))(error.into()))?;
    Ok(format!("{} is {} now", errand.sub_dir, aside.display()))
}

fn delete(parent: &OwnedFd, name: &OsStr, errand: &Errand, dry_run: bool) -> Result<String, Failure> {
    let trash = beside(&errand.id, ".moorline-trash-", name);
    let shown = |tally: &Tally, verb: &str| {
        format!("{} {verb}, with {} files and {} directories in it", errand.sub_dir, tally.files, tally.directories)
    };
    let mut tally = Tally::default();
    if dry_run {
        return match enter(parent, Path::new(name), OFlags::RDONLY) {
            Ok(directory) => {
                let mount = mount_of(&directory)?;
                walk(&directory, mount, &mut tally, false)?;
                Ok(shown(&tally, "would be deleted"))
            }
            Err(Errno::NOENT) => Ok(not_there(errand)),
            Err(error) => Err(explain(errand.sub_dir.as_path(), error)),
        };
    }
    // First out of everybody's sight: what is deleted in part is nobody's data any more.
    put_aside(parent, name, &trash, errand)?;
    match enter(parent, Path::new(&trash), OFlags::RDONLY) {
        Ok(directory) => {
            let mount = mount_of(&directory)?;
            walk(&directory, mount, &mut tally, true)?;
            remove(parent, &trash, AtFlags::REMOVEDIR)?;
            Ok(shown(&tally, "is deleted"))
        }
        Err(Errno::NOENT) => Ok(not_there(errand)),
        Err(error) => Err(explain(Path::new(&trash), error)),
    }
}

#[derive(Default)]
struct Tally {
    files: u64,
    directories: u64,
}

fn mount_of(directory: &OwnedFd) -> Result<u64, Failure> {
    let seen = statx(directory, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)
        .map_err(|error| doing("ask which mount a directory is of")(error.into()))?;
    Ok(seen.stx_mnt_id)
}

/// All that is in a directory, the deepest first.
fn walk(directory: &OwnedFd, mount: u64, tally: &mut Tally, removes: bool) -> Result<(), Failure> {
    if mount_of(directory)? != mount {
        return Err(Failure::definite("something is mounted in it: nothing more is deleted until that is gone"));
    }
    let failed = |error: Errno| doing("list a directory that is to be deleted")(error.into());
    let entries = Dir::read_from(directory).map_err(failed)?;
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        // Whatever the server says that it is: a directory is what can be entered as one.
        match enter(directory, Path::new(name), OFlags::RDONLY) {
            Ok(child) => {
                walk(&child, mount, tally, removes)?;
                drop(child);
                tally.directories += 1;
                if removes {
                    remove(directory, name, AtFlags::REMOVEDIR)?;
                }
            }
            Err(Errno::NOTDIR | Errno::LOOP) => {
                tally.files += 1;
                if removes {
                    remove(directory, name, AtFlags::empty())?;
                }
            }
            Err(Errno::NOENT) => {}
            Err(Errno::XDEV) => {
                let message = format!("{} is another file system: nothing more is deleted", name.display());
                return Err(Failure::definite(message));
            }
            Err(error) => return Err(doing(format!("open {}", name.display()))(error.into())),
        }
    }
    Ok(())
}

fn remove(directory: &OwnedFd, name: &OsStr, flags: AtFlags) -> Result<(), Failure> {
    match unlinkat(directory, name, flags) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(doing(format!("delete {}", name.display()))(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::path::PathBuf;

    use super::*;

    /// A share's root, gone with the value.
    struct Root(PathBuf);

    impl Root {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("moorline-errand-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn run(&self, sub_dir: &str, task: Task) -> Result<String, Failure> {
            let root = rustix::fs::open(&self.0, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
            let errand = Errand {
                id: "u1".parse().unwrap(),
                share: "data".parse().unwrap(),
                sub_dir: sub_dir.parse().unwrap(),
                task,
            };
            run(&root.unwrap(), &errand)
        }

        fn names(&self, at: &str) -> Vec<String> {
            let mut names: Vec<String> = fs::read_dir(self.0.join(at))
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        }
    }

    impl Drop for Root {
        #[expect(clippy::disallowed_methods, reason = "it made the directory, and mounts nothing there")]
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn mine() -> Task {
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        Task::Make { uid, gid, mode: 0o2770 }
    }

    #[test]
    fn a_directory_is_made_once_and_belongs_to_whom_it_is_for() {
        let root = Root::new("make");
        assert_eq!(root.run("team/claim", mine()).unwrap(), "made team/claim");
        assert_eq!(fs::metadata(root.0.join("team/claim")).unwrap().mode() & 0o7777, 0o2770);
        fs::write(root.0.join("team/claim/kept"), b"x").unwrap();
        assert_eq!(root.run("team/claim", mine()).unwrap(), "team/claim was there");
        // One that was cut short before it was put in its place.
        fs::create_dir(root.0.join(".moorline-new-other-u1")).unwrap();
        assert_eq!(root.run("other", mine()).unwrap(), "made other");
        assert_eq!(root.names(""), ["other", "team"]);
        assert_eq!(root.names("team/claim"), ["kept"]);
    }

    #[test]
    fn nothing_is_followed_out_of_the_share() {
        let root = Root::new("escape");
        let outside = Root::new("outside");
        fs::create_dir(outside.0.join("victim")).unwrap();
        symlink(&outside.0, root.0.join("way")).unwrap();
        for task in [mine(), Task::Archive, Task::Delete { dry_run: false }] {
            let failure = root.run("way/victim", task.clone()).unwrap_err();
            assert!(failure.definite && failure.message.contains("symlink"), "{failure}");
            let failure = root.run("way", task).unwrap_err();
            assert!(failure.definite && failure.message.contains("symlink"), "{failure}");
        }
        assert_eq!((outside.names(""), root.names("")), (vec!["victim".to_owned()], vec!["way".to_owned()]));
    }

    #[test]
    fn what_is_put_aside_is_kept_and_found_so_again() {
        let root = Root::new("archive");
        fs::create_dir_all(root.0.join("a/claim/deep")).unwrap();
        assert_eq!(root.run("a/claim", Task::Archive).unwrap(), "a/claim is archived-claim-u1 now");
        assert_eq!(root.run("a/claim", Task::Archive).unwrap(), "a/claim is archived-claim-u1 now");
        assert_eq!(root.names("a/archived-claim-u1"), ["deep"]);
        assert_eq!(root.run("gone/claim", Task::Archive).unwrap(), "gone/claim is not there");
    }

    #[test]
    fn what_is_deleted_is_gone_and_nothing_beside_it_or_behind_its_symlinks() {
        let root = Root::new("delete");
        fs::create_dir_all(root.0.join("claim/deep/deeper")).unwrap();
        fs::create_dir(root.0.join("beside")).unwrap();
        fs::write(root.0.join("beside/kept"), b"x").unwrap();
        fs::write(root.0.join("claim/deep/file"), b"x").unwrap();
        symlink("../beside", root.0.join("claim/link")).unwrap();
        let told = root.run("claim", Task::Delete { dry_run: true }).unwrap();
        assert_eq!(told, "claim would be deleted, with 2 files and 2 directories in it");
        assert_eq!(root.names("claim"), ["deep", "link"]);
        let told = root.run("claim", Task::Delete { dry_run: false }).unwrap();
        assert_eq!(told, "claim is deleted, with 2 files and 2 directories in it");
        assert_eq!((root.names(""), root.names("beside")), (vec!["beside".to_owned()], vec!["kept".to_owned()]));
        assert_eq!(root.run("claim", Task::Delete { dry_run: false }).unwrap(), "claim is not there");
        // Cut short after it was put aside.
        fs::create_dir_all(root.0.join(".moorline-trash-claim-u1/rest")).unwrap();
        let told = root.run("claim", Task::Delete { dry_run: false }).unwrap();
        assert_eq!(told, "claim is deleted, with 0 files and 1 directories in it");
    }
}

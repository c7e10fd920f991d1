//! Directories of claims, in a share that is mounted: made, put aside, deleted. By descriptor, below the share's root, through
//! no symlink and into no other file system. Each may be cut short anywhere and is then done again.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use moorline_shared::errand::{Errand, Task};
use moorline_shared::id::SuperblockId;
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
    let place = |parent| Place { parent, name: path.file_name().unwrap_or_default(), errand };
    let parent = path.parent().unwrap_or(Path::new(""));
    let parent = match &errand.task {
        Task::Make { .. } => Some(make_way(root, parent)?),
        _ => open_way(root, parent)?,
    };
    let Some(place) = parent.map(place) else { return Ok(not_there(errand)) };
    match &errand.task {
        Task::Make { uid, gid, mode } => place.make((*uid, *gid, *mode)),
        Task::Unmake {} => place.unmake(),
        Task::Archive {} => place.archive(),
        Task::Delete { dry_run: true } => place.would_delete(),
        Task::Delete { dry_run: false } => place.delete(),
        Task::Keep {} => Ok(format!("{} stays as it is", errand.sub_dir)),
    }
}

fn not_there(errand: &Errand) -> String {
    format!("{} is not there", errand.sub_dir)
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

/// Where a claim's directory is, or is to be.
struct Place<'a> {
    parent: OwnedFd,
    name: &'a OsStr,
    errand: &'a Errand,
}

impl Place<'_> {
    /// Says, as long as the directory is there, that it was made for this very claim: of no other is anything taken away,
    /// whoever asks for it, and however late. Beside the directory: what is in it is its user's.
    fn mark(&self) -> OsString {
        format!(".moorline-made-{}", self.errand.id).into()
    }

    fn fresh(&self) -> OsString {
        format!(".moorline-new-{}", self.errand.id).into()
    }

    fn trash(&self) -> OsString {
        format!(".moorline-trash-{}", self.errand.id).into()
    }

    fn aside(&self) -> OsString {
        format!("archived-{}-{}", self.name.display(), self.errand.id).into()
    }

    fn failed(&self, what: &str) -> impl Fn(Errno) -> Failure + use<> {
        let what = format!("{what} {}", self.errand.sub_dir);
        move |error| doing(what.clone())(error.into())
    }

    /// A symlink, or a file, is none of ours.
    fn open(&self, name: &OsStr, flags: OFlags) -> Result<Option<OwnedFd>, Failure> {
        match enter(&self.parent, Path::new(name), flags) {
            Ok(directory) => Ok(Some(directory)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(explain(self.errand.sub_dir.as_path(), error)),
        }
    }

    fn has(&self, name: &OsStr) -> Result<bool, Failure> {
        Ok(self.open(name, OFlags::PATH)?.is_some())
    }

    fn make_one(&self, name: &OsStr) -> Result<(), Failure> {
        match mkdirat(&self.parent, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(self.failed("make")(error)),
        }
    }

    fn rename(&self, from: &OsStr, to: &OsStr) -> Result<(), Failure> {
        renameat(&self.parent, from, &self.parent, to).map_err(self.failed(&format!("rename to {}", to.display())))
    }

    /// Under another name until it belongs to whom it is for: who finds it may use it. The mark comes after the one and before
    /// the other, so that wherever this is cut short the next one sees whose the directory is.
    fn make(&self, (uid, gid, mode): (u32, u32, u32)) -> Result<String, Failure> {
        let (mark, fresh) = (self.mark(), self.fresh());
        let made = Ok(format!("made {}", self.errand.sub_dir));
        if self.has(self.name)? {
            if !self.has(&fresh)? {
                return if self.has(&mark)? { made } else { Ok(self.found()) };
            }
        } else {
            self.make_one(&fresh)?;
            let directory = enter(&self.parent, Path::new(&fresh), OFlags::RDONLY).map_err(self.failed("open"))?;
            fchown(&directory, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(self.failed("give away"))?;
            fchmod(&directory, Mode::from(mode)).map_err(self.failed("set the permissions of"))?;
            self.make_one(&mark)?;
            match renameat(&self.parent, &fresh, &self.parent, self.name) {
                Ok(()) => return made,
                // Somebody else was faster, and has used it.
                Err(Errno::EXIST | Errno::NOTEMPTY) => {}
                Err(error) => return Err(self.failed("put in its place")(error)),
            }
        }
        remove(&self.parent, &mark, AtFlags::REMOVEDIR)?;
        remove(&self.parent, &fresh, AtFlags::REMOVEDIR)?;
        Ok(self.found())
    }

    fn found(&self) -> String {
        format!("{} was there", self.errand.sub_dir)
    }

    /// What nobody has had: its claim was gone before its volume came.
    fn unmake(&self) -> Result<String, Failure> {
        if self.has(self.name)? && self.has(&self.mark())? && !self.has(&self.fresh())? {
            match unlinkat(&self.parent, self.name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::EXIST | Errno::NOTEMPTY) => {
                    return Ok(format!("{} stays: there is something in it", self.errand.sub_dir));
                }
                Err(error) => return Err(self.failed("take away")(error)),
            }
        }
        remove(&self.parent, &self.mark(), AtFlags::REMOVEDIR)?;
        remove(&self.parent, &self.fresh(), AtFlags::REMOVEDIR)?;
        if self.has(self.name)? {
            Ok(format!("{} stays: it was there", self.errand.sub_dir))
        } else {
            Ok(not_there(self.errand))
        }
    }

    /// Whether it was there under its own name, or is under the other by now.
    fn put_aside(&self, aside: &OsStr) -> Result<bool, Failure> {
        if self.has(aside)? {
            return Ok(true);
        }
        let Some(directory) = self.open_own(OFlags::PATH)? else { return Ok(false) };
        self.rename(self.name, aside)?;
        // A call that a server was away for may be done long after it was made.
        let moved = self.open(aside, OFlags::PATH)?;
        if moved.map(|moved| inode(&moved)).transpose()? != Some(inode(&directory)?) {
            self.rename(aside, self.name)?;
            let message = format!("{} is another directory by now: it stays", self.errand.sub_dir);
            return Err(Failure::definite(message));
        }
        Ok(true)
    }

    /// The directory, if it is there; refused if it was made for somebody else.
    fn open_own(&self, flags: OFlags) -> Result<Option<OwnedFd>, Failure> {
        let Some(directory) = self.open(self.name, flags)? else { return Ok(None) };
        if self.has(&self.mark())? {
            return Ok(Some(directory));
        }
        Err(Failure::definite(format!(
            "{} was not made for this claim, and so it stays: it was there before. To give up the volume without it, set persistentVolumeReclaimPolicy: Retain and delete the PersistentVolume",
            self.errand.sub_dir
        )))
    }

    fn archive(&self) -> Result<String, Failure> {
        let aside = self.aside();
        let there = self.put_aside(&aside)?;
        remove(&self.parent, &self.mark(), AtFlags::REMOVEDIR)?;
        Ok(if there { format!("{} is {} now", self.errand.sub_dir, aside.display()) } else { not_there(self.errand) })
    }

    fn would_delete(&self) -> Result<String, Failure> {
        let Some(directory) = self.open_own(OFlags::RDONLY)? else { return Ok(not_there(self.errand)) };
        let mut tally = Tally::default();
        walk(&directory, mount_of(&directory)?, &mut tally, false)?;
        Ok(format!("{} would be deleted, with {tally}", self.errand.sub_dir))
    }

    fn delete(&self) -> Result<String, Failure> {
        let trash = self.trash();
        // First out of everybody's sight: what is deleted in part is nobody's data any more.
        let there = self.put_aside(&trash)?;
        let mut tally = Tally::default();
        if let Some(directory) = self.open(&trash, OFlags::RDONLY)? {
            walk(&directory, mount_of(&directory)?, &mut tally, true)?;
            remove(&self.parent, &trash, AtFlags::REMOVEDIR)?;
        }
        remove(&self.parent, &self.mark(), AtFlags::REMOVEDIR)?;
        Ok(if there { format!("{} is deleted, with {tally}", self.errand.sub_dir) } else { not_there(self.errand) })
    }
}

#[derive(Default)]
struct Tally {
    files: u64,
    directories: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} files and {} directories in it", self.files, self.directories)
    }
}

fn inode(directory: &OwnedFd) -> Result<u64, Failure> {
    let seen = statx(directory, "", AtFlags::EMPTY_PATH, StatxFlags::INO)
        .map_err(|error| doing("ask which directory this is")(error.into()))?;
    Ok(seen.stx_ino)
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

    const MARK: &str = ".moorline-made-u1";
    const FRESH: &str = ".moorline-new-u1";

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
        assert_eq!(root.run("team/claim", mine()).unwrap(), "made team/claim");
        assert_eq!(
            (root.names("team"), root.names("team/claim")),
            (vec![MARK.to_owned(), "claim".to_owned()], vec!["kept".to_owned()])
        );
    }

    #[test]
    fn whose_a_directory_is_is_known_wherever_its_making_was_cut_short() {
        let cuts: [(&[&str], &str); 5] = [
            (&[FRESH], "made claim"),
            (&[FRESH, MARK], "made claim"),
            (&["claim"], "claim was there"),
            (&["claim", FRESH], "claim was there"),
            (&["claim", FRESH, MARK], "claim was there"),
        ];
        for (there, said) in cuts {
            let root = Root::new("cut");
            there.iter().for_each(|name| fs::create_dir(root.0.join(name)).unwrap());
            assert_eq!(root.run("claim", mine()).unwrap(), said, "{there:?}");
            assert_eq!(root.run("claim", mine()).unwrap(), said, "{there:?}");
            let left: &[&str] = if said == "made claim" { &[MARK, "claim"] } else { &["claim"] };
            assert_eq!(root.names(""), left, "{there:?}");
        }
    }

    #[test]
    fn nothing_is_taken_away_of_what_was_not_made_for_the_claim() {
        let root = Root::new("theirs");
        fs::create_dir_all(root.0.join("claim/deep")).unwrap();
        fs::create_dir(root.0.join(".moorline-made-other")).unwrap();
        assert_eq!(root.run("claim", mine()).unwrap(), "claim was there");
        for task in [Task::Archive {}, Task::Delete { dry_run: true }, Task::Delete { dry_run: false }] {
            let failure = root.run("claim", task).unwrap_err();
            assert!(failure.definite && failure.message.contains("was not made for this claim"), "{failure}");
        }
        assert_eq!(root.run("claim", Task::Unmake {}).unwrap(), "claim stays: it was there");
        assert_eq!(root.names(""), [".moorline-made-other", "claim"]);
    }

    #[test]
    fn what_nobody_has_used_is_unmade() {
        let root = Root::new("unmake");
        root.run("claim", mine()).unwrap();
        assert_eq!(root.run("claim", Task::Unmake {}).unwrap(), "claim is not there");
        for name in [FRESH, MARK] {
            fs::create_dir(root.0.join(name)).unwrap();
        }
        assert_eq!(root.run("claim", Task::Unmake {}).unwrap(), "claim is not there");
        assert_eq!(root.names(""), [""; 0]);
        root.run("claim", mine()).unwrap();
        fs::write(root.0.join("claim/kept"), b"x").unwrap();
        assert_eq!(root.run("claim", Task::Unmake {}).unwrap(), "claim stays: there is something in it");
    }

    #[test]
    fn nothing_is_followed_out_of_the_share() {
        let root = Root::new("escape");
        let outside = Root::new("outside");
        fs::create_dir(outside.0.join("victim")).unwrap();
        symlink(&outside.0, root.0.join("way")).unwrap();
        for task in [mine(), Task::Unmake {}, Task::Archive {}, Task::Delete { dry_run: false }] {
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
        root.run("a/claim", mine()).unwrap();
        fs::create_dir(root.0.join("a/claim/deep")).unwrap();
        assert_eq!(root.run("a/claim", Task::Archive {}).unwrap(), "a/claim is archived-claim-u1 now");
        assert_eq!(root.run("a/claim", Task::Archive {}).unwrap(), "a/claim is archived-claim-u1 now");
        assert_eq!(
            (root.names("a"), root.names("a/archived-claim-u1")),
            (vec!["archived-claim-u1".to_owned()], vec!["deep".to_owned()])
        );
        assert_eq!(root.run("gone/claim", Task::Archive {}).unwrap(), "gone/claim is not there");
    }

    #[test]
    fn what_is_deleted_is_gone_and_nothing_beside_it_or_behind_its_symlinks() {
        let root = Root::new("delete");
        root.run("claim", mine()).unwrap();
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
        // Cut short after it was put aside, and somebody has made another since.
        fs::create_dir_all(root.0.join(".moorline-trash-u1/rest")).unwrap();
        fs::create_dir(root.0.join("claim")).unwrap();
        let told = root.run("claim", Task::Delete { dry_run: false }).unwrap();
        assert_eq!(told, "claim is deleted, with 0 files and 1 directories in it");
        assert_eq!(root.names(""), ["beside", "claim"]);
    }
}

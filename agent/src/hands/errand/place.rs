//! Where one claim's directory is, or is to be, and what stands beside it: whose it is, and what is half done.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use moorline_shared::errand::Errand;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid, fchmod, fchown, mkdirat, openat2, renameat, unlinkat};
use rustix::io::Errno;

use super::super::Failure;
use super::walk::{self, Tally};
use super::{enter, explain, inode, not_there, refused, remove, seen};

/// What a name may be long.
const LONGEST: usize = 255;

pub(super) struct Place<'a> {
    pub(super) parent: OwnedFd,
    pub(super) name: &'a OsStr,
    pub(super) errand: &'a Errand,
}

impl Place<'_> {
    fn beside(&self, what: &str) -> OsString {
        format!(".moorline-{what}-{}", self.errand.id).into()
    }

    /// Says, as long as the directory is there, that it was made for this very claim: of no other is anything taken away,
    /// whoever asks for it, and however late. Beside the directory: what is in it is its user's.
    fn mark(&self) -> OsString {
        self.beside("made")
    }

    fn fresh(&self) -> OsString {
        self.beside("new")
    }

    fn trash(&self) -> OsString {
        self.beside("trash")
    }

    /// Of a long name as much as there is room for.
    fn aside(&self) -> OsString {
        let (name, id) = (self.name.to_string_lossy(), &self.errand.id);
        let room = LONGEST - format!("archived--{id}").len();
        let end = name.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= room).last();
        format!("archived-{}-{id}", &name[..end.unwrap_or_default()]).into()
    }

    fn failed(&self, what: &str) -> impl Fn(Errno) -> Failure + use<> {
        let what = format!("{what} {}", self.errand.sub_dir);
        move |error| refused(what.clone(), error)
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

    /// Whether the mark is there, and is an agent's: where others may write they may make its like.
    fn is_marked(&self) -> Result<bool, Failure> {
        let Some(mark) = self.open(&self.mark(), OFlags::PATH)? else { return Ok(false) };
        let mark = seen(&mark)?;
        // Who may make what is root's may do everything there anyway.
        Ok(mark.stx_mode & 0o777 == 0o700 && (mark.stx_uid == 0 || mark.stx_uid == self.ourselves()?))
    }

    /// Whom the server takes this node's root for: whose a file is that was not there before.
    fn ourselves(&self) -> Result<u32, Failure> {
        let probe = self.beside("probe");
        remove(&self.parent, &probe, AtFlags::empty())?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat2(&self.parent, &probe, flags, Mode::RUSR, ResolveFlags::BENEATH)
            .map_err(self.failed("find out whose the mark must be beside"))?;
        let owner = seen(&file)?.stx_uid;
        remove(&self.parent, &probe, AtFlags::empty())?;
        Ok(owner)
    }

    /// What is somebody else's stays.
    fn unmark(&self) -> Result<(), Failure> {
        if self.is_marked()? { remove(&self.parent, &self.mark(), AtFlags::REMOVEDIR) } else { Ok(()) }
    }

    /// Under another name until it belongs to whom it is for: who finds it may use it. The mark comes after the one and before
    /// the other, so that wherever this is cut short the next one sees whose the directory is.
    pub(super) fn make(&self, (uid, gid, mode): (u32, u32, u32)) -> Result<String, Failure> {
        let (mark, fresh) = (self.mark(), self.fresh());
        let made = Ok(format!("made {}", self.errand.sub_dir));
        if self.has(self.name)? {
            if !self.has(&fresh)? {
                return if self.is_marked()? { made } else { Ok(self.errand.was_there()) };
            }
        } else {
            self.make_one(&fresh)?;
            let directory = enter(&self.parent, Path::new(&fresh), OFlags::RDONLY).map_err(self.failed("open"))?;
            let new = seen(&directory)?;
            // Not every server lets us, and not every one need.
            if (new.stx_uid, new.stx_gid) != (uid, gid) {
                fchown(&directory, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                    .map_err(self.failed(&format!("give to uid {uid} and gid {gid}")))?;
            }
            fchmod(&directory, Mode::from(mode)).map_err(self.failed("set the permissions of"))?;
            self.make_one(&mark)?;
            if !self.is_marked()? {
                let message =
                    format!("{} beside {} is somebody else's: remove it", mark.display(), self.errand.sub_dir);
                return Err(Failure::definite(message));
            }
            match renameat(&self.parent, &fresh, &self.parent, self.name) {
                Ok(()) => return made,
                // Somebody else was faster, and has used it.
                Err(Errno::EXIST | Errno::NOTEMPTY) => {}
                Err(error) => return Err(self.failed("put in its place")(error)),
            }
        }
        self.unmark()?;
        remove(&self.parent, &fresh, AtFlags::REMOVEDIR)?;
        Ok(self.errand.was_there())
    }

    /// What nobody has had: its claim was gone before its volume came.
    pub(super) fn unmake(&self) -> Result<String, Failure> {
        if self.has(self.name)? && self.is_marked()? && !self.has(&self.fresh())? {
            match unlinkat(&self.parent, self.name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::EXIST | Errno::NOTEMPTY) => {
                    return Ok(format!("{} stays: there is something in it", self.errand.sub_dir));
                }
                Err(error) => return Err(self.failed("take away")(error)),
            }
        }
        self.unmark()?;
        remove(&self.parent, &self.fresh(), AtFlags::REMOVEDIR)?;
        if self.has(self.name)? {
            Ok(format!("{} stays: it was there", self.errand.sub_dir))
        } else {
            Ok(not_there(self.errand))
        }
    }

    /// The directory, if it is there; refused if it was made for somebody else.
    fn open_own(&self, flags: OFlags) -> Result<Option<OwnedFd>, Failure> {
        let Some(directory) = self.open(self.name, flags)? else { return Ok(None) };
        if self.is_marked()? { Ok(Some(directory)) } else { Err(Failure::definite(self.errand.is_not_ours())) }
    }

    /// Whether it was there.
    fn put_aside(&self, aside: &OsStr) -> Result<bool, Failure> {
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

    pub(super) fn archive(&self) -> Result<String, Failure> {
        let aside = self.aside();
        let there = self.has(&aside)? || self.put_aside(&aside)?;
        self.unmark()?;
        Ok(if there { format!("{} is {} now", self.errand.sub_dir, aside.display()) } else { not_there(self.errand) })
    }

    pub(super) fn would_delete(&self) -> Result<String, Failure> {
        let Some(directory) = self.open_own(OFlags::RDONLY)? else { return Ok(not_there(self.errand)) };
        Ok(format!("{} would be deleted, with {}", self.errand.sub_dir, walk::count(&directory)?))
    }

    pub(super) fn delete(&self) -> Result<String, Failure> {
        let trash = self.trash();
        // First out of everybody's sight: what is deleted in part is nobody's data any more. The mark goes last: what is there
        // without it was put there by somebody else.
        let there = self.has(&trash)? && self.is_marked()? || self.put_aside(&trash)?;
        if !there {
            self.unmark()?;
            return Ok(not_there(self.errand));
        }
        let mut tally = Tally::default();
        if let Some(directory) = self.open(&trash, OFlags::RDONLY)? {
            tally = walk::empty(&directory)?;
            remove(&self.parent, &trash, AtFlags::REMOVEDIR)?;
        }
        self.unmark()?;
        Ok(format!("{} is deleted, with {tally}", self.errand.sub_dir))
    }
}

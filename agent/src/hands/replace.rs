//! A new server under running containers: in one mount namespace, a clone of the new superblock in the place of each
//! copy of the old one, with the copy's own root and flags.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use moorline_sys::mount::{self, Propagation};
use moorline_sys::mountinfo::{self, Mount};
use moorline_sys::namespace;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::{Done, Failure, Replace, doing, enter_host_mounts, host_table, open_path};
use crate::killpoint::{self, Point};
use crate::paths::Paths;

pub(super) fn replace(paths: &Paths, wanted: &Replace) -> Result<Done, Failure> {
    let place = Place::open(paths, wanted)?;
    let host = host_table()?;
    let base = |superblock| {
        let base = paths.base(superblock);
        let found = host.iter().find(|mount| mount.mount_point == base);
        found.ok_or_else(|| Failure::definite(format!("{} is not mounted", base.display())))
    };
    let (old, new) = (base(&wanted.old)?, base(&wanted.new)?);
    let own = |mount: &Mount| mount.mount_point.starts_with(paths.node());
    let copies: Vec<&Mount> = place
        .table
        .iter()
        .filter(|mount| mount.device == old.device && mount.on_top(&place.table) && !(place.is_host && own(mount)))
        .collect();

    enter_host_mounts()?;
    let root = open_path(&new.mount_point).map_err(doing(format!("open {}", new.mount_point.display())))?;
    // One copy that can't be replaced must not keep the others on the dead server.
    let clones: Vec<_> = copies.iter().map(|copy| place.clone_for(copy, old, &root)).collect();
    killpoint::hit(Point::ClonesMade);
    if !place.is_host {
        namespace::enter_mounts(&place.namespace)
            .map_err(doing(format!("enter the mount namespace of process {}", wanted.pid)))?;
    }
    killpoint::hit(Point::PlaceEntered);
    let put = copies.iter().zip(clones).map(|(copy, clone)| place.put(copy, &clone?, new));
    let left: Vec<String> = put.filter_map(Result::err).map(|failure| failure.message).collect();
    Ok(Done { replaced: (copies.len() - left.len()) as u64, left, ..Done::default() })
}

/// Where in its share a copy begins: a container may hold a subdirectory, or a file, as kubelet's subPath makes them.
/// It must be the same place on the new server, and never more: one user's directory is not everybody's.
fn place_in_share(copy: &Mount, base: &Mount) -> Result<PathBuf, Failure> {
    let below = copy.source.strip_prefix(&base.source).ok();
    let below = below.filter(|_| copy.root == base.root).map(Path::to_owned);
    below.ok_or_else(|| Failure {
        definite: false,
        message: format!(
            "{} holds {}, which is not below {}: it is left as it is",
            copy.mount_point.display(),
            copy.source.display(),
            base.source.display()
        ),
    })
}

/// The mount namespace that is worked in, with its table as it was before it was entered.
struct Place {
    namespace: OwnedFd,
    table: Vec<Mount>,
    is_host: bool,
    /// This process, in a /proc that the namespace need not have.
    own: OwnedFd,
    /// The kernel can mount beneath what is there.
    beneath: bool,
    /// Our own file system on the host.
    node: PathBuf,
}

impl Place {
    fn open(paths: &Paths, wanted: &Replace) -> Result<Self, Failure> {
        let process = PathBuf::from(format!("/proc/{}", wanted.pid));
        let namespace = File::open(process.join("ns/mnt"))
            .map_err(doing(format!("open the mount namespace of process {}", wanted.pid)))?;
        let inode =
            |file: &File| file.metadata().map(|metadata| metadata.ino()).map_err(doing("look at a mount namespace"));
        if inode(&namespace)? != wanted.namespace_inode {
            return Err(Failure {
                definite: false,
                message: format!("process {} is in another mount namespace by now", wanted.pid),
            });
        }
        let host = fs::metadata("/proc/1/ns/mnt").map_err(doing("look at the host's mount namespace"))?;
        let table = fs::read(process.join("mountinfo"))
            .map_err(doing(format!("read the mount table of process {}", wanted.pid)))?;
        Ok(Self {
            namespace: namespace.into(),
            table: mountinfo::parse(&table),
            is_host: host.ino() == wanted.namespace_inode,
            own: File::open("/proc/self").map_err(doing("open /proc/self"))?.into(),
            beneath: mount::knows_beneath(),
            node: paths.node(),
        })
    }

    /// A clone of the new superblock's mount that has the copy's directory as root, and its flags before anybody sees it.
    fn clone_for(&self, copy: &Mount, old: &Mount, new: &OwnedFd) -> Result<OwnedFd, Failure> {
        let shown = copy.mount_point.display();
        // What is mounted below would be covered: the application would see, and write to, the share in its place. It
        // can't be carried over either, since the way to it leads over the dead server.
        if let Some(below) = copy.mounts_below(&self.table).next() {
            let below = below.mount_point.display();
            return Err(Failure {
                definite: false,
                message: format!(
                    "{below} is mounted below {shown}, which is left on the old server: restart the container"
                ),
            });
        }
        let below = place_in_share(copy, old)?;
        let clone = if below.as_os_str().is_empty() {
            mount::clone_at(new, Path::new(""))
        } else {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            let opened = openat2(new, &below, flags, Mode::empty(), beneath).map_err(|error| {
                doing(format!("open {} on the new server, for {shown}", below.display()))(error.into())
            })?;
            mount::clone_at(opened, Path::new(""))
        }
        .map_err(doing(format!("clone the new mount for {shown}")))?;
        let restrict = if self.is_host { mount::restrict_and_share } else { mount::restrict };
        restrict(&clone, copy.attributes).map_err(doing(format!("give the new mount the flags of {shown}")))?;
        Ok(clone)
    }

    /// Puts the clone where the copy is. Beneath it, and takes the copy away, if that can be: it takes no lock of the dead
    /// directory, and leaves one layer. Over it otherwise.
    fn put(&self, copy: &Mount, clone: &OwnedFd, new: &Mount) -> Result<(), Failure> {
        let shown = copy.mount_point.display();
        let Some(top) = self.open_if_there(copy)? else { return Ok(()) };
        // A hand that was cut short may have left its clone beneath.
        let beneath = |mount: &Mount| {
            mount.id == copy.parent && mount.mount_point == copy.mount_point && mount.device == new.device
        };
        if self.table.iter().any(beneath) || self.put_beneath(copy, clone, &top)? {
            return self.uncover(copy, new);
        }
        // Nothing may follow the new mount to where this one is propagated: a container's read-only bind would
        // get a layer with the flags of this one. Each place is given its own.
        mount::set_propagation(&top, Propagation::Private).map_err(doing(format!("make {shown} private")))?;
        killpoint::hit(Point::MadePrivate);
        mount::attach_over(clone, &top).map_err(doing(format!("mount over {shown}")))?;
        killpoint::hit(Point::MountedOver);
        Ok(())
    }

    /// False where it can't be.
    fn put_beneath(&self, copy: &Mount, clone: &OwnedFd, top: &OwnedFd) -> Result<bool, Failure> {
        let shown = copy.mount_point.display();
        let done = if self.beneath {
            match mount::attach_beneath(clone, top) {
                Ok(()) => true,
                // Not here: below the root of a mount namespace, say.
                Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => false,
                Err(error) => return Err(doing(format!("mount beneath {shown}"))(error)),
            }
        } else {
            self.is_host && self.tuck(copy, clone).map_err(doing(format!("let a mount come beneath {shown}")))?
        };
        if done {
            killpoint::hit(Point::MountedBeneath);
        }
        Ok(done)
    }

    /// Puts the clone beneath a copy that lies on a directory of the host's, on kernels that don't know the call for it. They
    /// know the effect: what comes by propagation to a place that is taken goes beneath what is there. So the clone is mounted
    /// where the same directory is bare, in a view of it that this process alone has. What kubelet unmounts itself, and only
    /// once, as it does with a subPath, must not be there twice. False where nothing comes by propagation.
    fn tuck(&self, copy: &Mount, clone: &OwnedFd) -> io::Result<bool> {
        let place = copy.mount_point.parent().zip(copy.mount_point.file_name());
        let Some((directory, name)) = place else { return Ok(false) };
        let directory = open_path(directory)?;
        let is_shared = |mount: &Mount| mount.id == copy.parent && mount.shared;
        if mount::mount_id(&directory)? != copy.parent || !self.table.iter().any(is_shared) {
            return Ok(false);
        }
        let view = mount::clone_at(&directory, Path::new(""))?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let home = rustix::fs::openat(&self.own, "ns/mnt", flags, Mode::empty())?;
        namespace::copy_mounts()?;
        let attached = self.attach_in(&view, Path::new(name), clone);
        namespace::enter_mounts(home)?;
        attached.map(|()| true)
    }

    /// In a mount namespace of this process's own. Nothing that is mounted at our own directory is seen in any other.
    fn attach_in(&self, view: &OwnedFd, name: &Path, clone: &OwnedFd) -> io::Result<()> {
        mount::attach(view, &self.node)?;
        let bare = rustix::fs::openat(view, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        mount::attach_over(clone, &bare)
    }

    /// Takes away the copy, which must be on top, and checks that a mount of the new superblock is what is seen.
    fn uncover(&self, copy: &Mount, new: &Mount) -> Result<(), Failure> {
        let shown = copy.mount_point.display();
        if self.open_if_there(copy)?.is_some() {
            mount::detach(&copy.mount_point).map_err(doing(format!("detach the old mount at {shown}")))?;
            killpoint::hit(Point::Uncovered);
        }
        let (_top, id) = self.open_top(copy)?;
        if self.table_now()?.iter().any(|mount| mount.id == id && mount.device == new.device) {
            Ok(())
        } else {
            Err(Failure { definite: false, message: format!("{shown} is not the new mount after the old one went") })
        }
    }

    /// Opens the copy, which must be on top. None if it is gone: what is done in one mount namespace may reach another by
    /// propagation, and one place of a namespace another.
    fn open_if_there(&self, copy: &Mount) -> Result<Option<OwnedFd>, Failure> {
        let (top, id) = self.open_top(copy)?;
        if id == copy.id {
            return Ok(Some(top));
        }
        if self.table_now()?.iter().any(|mount| mount.id == copy.id) {
            let message = format!("{} is covered by another mount by now", copy.mount_point.display());
            return Err(Failure { definite: false, message });
        }
        Ok(None)
    }

    /// What is on top at the copy's place, and its id.
    fn open_top(&self, copy: &Mount) -> Result<(OwnedFd, u64), Failure> {
        let shown = copy.mount_point.display();
        // A directory or a file.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let top = rustix::fs::open(&copy.mount_point, flags, Mode::empty())
            .map_err(|error| doing(format!("open {shown}"))(error.into()))?;
        let id = mount::mount_id(&top).map_err(doing(format!("identify the mount at {shown}")))?;
        Ok((top, id))
    }

    /// The table of the namespace that this process is in by now, which need not have a /proc.
    fn table_now(&self) -> Result<Vec<Mount>, Failure> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let mut text = Vec::new();
        rustix::fs::openat(&self.own, "mountinfo", flags, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|table| File::from(table).read_to_end(&mut text))
            .map_err(doing("read the mount table anew"))?;
        Ok(mountinfo::parse(&text))
    }
}

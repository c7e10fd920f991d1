//! /proc/PID/mountinfo, parsed. Reading it touches no mounted file system, so it can't hang on a dead server.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A device number as mountinfo prints it; one superblock has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Device {
    pub major: u32,
    pub minor: u32,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub id: u64,
    pub parent: u64,
    pub device: Device,
    /// The directory of the file system that is this mount's root.
    pub root: PathBuf,
    pub mount_point: PathBuf,
    pub attributes: Attributes,
    /// What is mounted on it, or taken away there, is so wherever else it is seen.
    pub shared: bool,
    /// What is mounted on it elsewhere, or taken away there, is so here as well: it is shared, or follows one that is.
    pub follows: bool,
    pub file_system: String,
    /// What is mounted, as the file system names it; NFS says here, and not in `root`, which directory it is.
    pub source: PathBuf,
}

/// The flags of a mount (not of its superblock) that a replacement has to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attributes {
    pub read_only: bool,
    pub no_suid: bool,
    pub no_dev: bool,
    pub no_exec: bool,
}

/// The mounts of a table, in its order, which is mostly that of their making. Which of those at one mount point lies over
/// which, [`layers`] says.
/// A line that can't be read is left out: it is nothing that we made.
pub fn parse(table: &[u8]) -> Vec<Mount> {
    table.split(|byte| *byte == b'\n').filter_map(line).collect()
}

impl Mount {
    /// The mounts on directories and files below this one's root.
    pub fn mounts_below<'a>(&'a self, table: &'a [Self]) -> impl Iterator<Item = &'a Self> {
        table.iter().filter(|other| other.parent == self.id && other.mount_point != self.mount_point)
    }

    /// Nothing is mounted over this one's root.
    pub fn on_top(&self, table: &[Self]) -> bool {
        !table
            .iter()
            .any(|other| other.parent == self.id && other.mount_point == self.mount_point && other.id != self.id)
    }
}

/// The mounts at one mount point, which come in the table's order, lowest first: a later one lies over an earlier one,
/// unless it was put beneath it.
pub fn layers<'a>(mounts: impl IntoIterator<Item = &'a Mount>) -> Vec<&'a Mount> {
    let mut left: Vec<&Mount> = mounts.into_iter().collect();
    let mut layers = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let lies_on_none = |mount: &&Mount| !left.iter().any(|other| other.id == mount.parent && other.id != mount.id);
        layers.push(left.remove(left.iter().position(lies_on_none).unwrap_or_default()));
    }
    layers
}

/// Every mount point of this namespace at which the directory at `path` is seen. There are several where a directory
/// above it is mounted twice, as when kubelet's is a bind mount: what is mounted at one appears at the others.
pub fn sightings(table: &[Mount], path: &Path) -> BTreeSet<PathBuf> {
    let below = |mount: &&Mount| mount.mount_point != path && path.starts_with(&mount.mount_point);
    let Some(parent) = table.iter().filter(below).max_by_key(|mount| mount.mount_point.as_os_str().len()) else {
        return BTreeSet::from([path.to_owned()]);
    };
    let directory = |parent: &Mount, path: &Path| {
        Some((parent.device, parent.root.join(path.strip_prefix(&parent.mount_point).ok()?)))
    };
    let wanted = directory(parent, path);
    let parents: BTreeMap<u64, &Mount> = table.iter().map(|mount| (mount.id, mount)).collect();
    let same = |mount: &&Mount| {
        parents.get(&mount.parent).is_some_and(|parent| directory(parent, &mount.mount_point) == wanted)
    };
    table.iter().filter(same).map(|mount| mount.mount_point.clone()).chain([path.to_owned()]).collect()
}

fn line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut next = || fields.next();
    let (id, parent) = (number(next()?)?, number(next()?)?);
    let mut device = next()?.split(|byte| *byte == b':');
    let device =
        Device { major: number(device.next()?)?.try_into().ok()?, minor: number(device.next()?)?.try_into().ok()? };
    let (root, mount_point) = (path(next()?), path(next()?));
    let attributes = attributes(next()?);
    // A varying number of optional fields ends with a lone dash.
    let (mut shared, mut follows) = (false, false);
    loop {
        match next()? {
            b"-" => break,
            field => {
                shared |= field.starts_with(b"shared:");
                follows |= shared || field.starts_with(b"master:");
            }
        }
    }
    let file_system = String::from_utf8_lossy(next()?).into_owned();
    let source = path(next()?);
    Some(Mount { id, parent, device, root, mount_point, attributes, shared, follows, file_system, source })
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn attributes(field: &[u8]) -> Attributes {
    let has = |name: &[u8]| field.split(|byte| *byte == b',').any(|option| option == name);
    Attributes { read_only: has(b"ro"), no_suid: has(b"nosuid"), no_dev: has(b"nodev"), no_exec: has(b"noexec") }
}

/// Undoes the kernel's octal escapes of space, tab, newline and backslash.
fn path(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let escape = (first == b'\\').then(|| tail.get(..3)).flatten();
        let code = escape.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code {
            Some(code) => {
                bytes.push(code);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
90 22 0:50 / /run/a\\040b ro,nosuid,nodev,relatime shared:7 master:3 - nfs4 10.0.0.1:/x rw,vers=4.1
91 90 0:51 /sub /run/a\\040b rw,noexec - nfs4 10.0.0.2:/x rw
not a mount
";

    #[test]
    fn a_table_is_read_with_its_escapes_and_layers() {
        let table = parse(TABLE);
        assert_eq!(table.len(), 3);
        assert_eq!(table[1].mount_point, PathBuf::from("/run/a b"));
        assert_eq!(table[1].device, Device { major: 0, minor: 50 });
        assert_eq!(table[1].attributes, Attributes { read_only: true, no_suid: true, no_dev: true, no_exec: false });
        assert_eq!((table[0].shared, table[1].shared, table[2].shared), (true, true, false));
        assert_eq!((table[0].follows, table[1].follows, table[2].follows), (true, true, false));
        assert_eq!((table[2].root.to_str(), table[2].file_system.as_str()), (Some("/sub"), "nfs4"));
        assert_eq!(table[2].source, PathBuf::from("10.0.0.2:/x"));
        assert!(!table[1].on_top(&table) && table[2].on_top(&table));
    }

    #[test]
    fn layers_are_in_the_order_in_which_they_lie() {
        let table = parse(
            b"\
1 0 254:0 / / rw - ext4 a rw
2 4 0:50 / /a rw - nfs4 s rw
3 2 0:51 / /a rw - nfs4 t rw
4 1 0:52 / /a rw - nfs4 u rw
5 8 0:53 / /b rw - nfs4 v rw
7 1 0:54 / /b rw - nfs4 w rw
8 7 0:55 / /b rw - nfs4 x rw
",
        );
        let layers_at = |place: &str| -> Vec<u64> {
            let here = table.iter().filter(|mount| mount.mount_point == Path::new(place));
            layers(here).iter().map(|layer| layer.id).collect()
        };
        assert_eq!(layers_at("/a"), [4, 2, 3], "the one that was made last lies beneath");
        assert_eq!(layers_at("/b"), [7, 8, 5], "two were put beneath, one after the other");
    }

    #[test]
    fn a_directory_is_seen_wherever_the_one_above_it_is_mounted() {
        let table = parse(
            b"\
1 0 254:0 / / rw - ext4 a rw
2 1 254:1 / /disk rw - ext4 b rw
3 1 254:1 /kubelet /var/lib/kubelet rw - ext4 b rw
4 3 0:50 / /var/lib/kubelet/pods/u/mount rw - nfs4 s rw
5 2 0:50 / /disk/kubelet/pods/u/mount rw - nfs4 s rw
6 5 0:51 / /disk/kubelet/pods/u/mount rw - nfs4 t rw
7 2 0:50 / /disk/kubelet/pods/v/mount rw - nfs4 s rw
",
        );
        let seen = sightings(&table, Path::new("/var/lib/kubelet/pods/u/mount"));
        let expected = ["/disk/kubelet/pods/u/mount", "/var/lib/kubelet/pods/u/mount"].map(PathBuf::from);
        assert_eq!(seen, BTreeSet::from(expected));
        assert_eq!(sightings(&table, Path::new("/srv/x")), BTreeSet::from([PathBuf::from("/srv/x")]));
    }
}

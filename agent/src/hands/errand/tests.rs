use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
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

/// As an agent makes them.
fn make(path: PathBuf) {
    DirBuilder::new().mode(0o700).create(path).unwrap();
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
        there.iter().for_each(|name| make(root.0.join(name)));
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

/// Where others may write they may make whatever they like.
#[test]
fn a_mark_that_is_no_agents_is_none() {
    let root = Root::new("forged");
    fs::create_dir_all(root.0.join("claim/deep")).unwrap();
    fs::create_dir(root.0.join(MARK)).unwrap();
    fs::create_dir_all(root.0.join(".moorline-trash-u1/theirs")).unwrap();
    assert_eq!(root.run("claim", mine()).unwrap(), "claim was there");
    for task in [Task::Archive {}, Task::Delete { dry_run: true }, Task::Delete { dry_run: false }] {
        let failure = root.run("claim", task).unwrap_err();
        assert!(failure.definite && failure.message.contains("was not made for this claim"), "{failure}");
    }
    assert_eq!(root.run("claim", Task::Unmake {}).unwrap(), "claim stays: it was there");
    assert_eq!(root.names(""), [MARK, ".moorline-trash-u1", "claim"]);
    let failure = root.run("other", mine()).unwrap_err();
    assert!(failure.definite && failure.message.contains("is somebody else's: remove it"), "{failure}");
    fs::set_permissions(root.0.join(MARK), Permissions::from_mode(0o700)).unwrap();
    assert_eq!(root.run("other", mine()).unwrap(), "made other");
}

#[test]
fn what_a_server_does_not_let_us_do_is_told_with_the_cure() {
    for (error, cure) in [(Errno::PERM, "no_root_squash"), (Errno::ACCESS, "no_root_squash"), (Errno::ROFS, "with rw")]
    {
        let failure = refused("make claim".to_owned(), error);
        assert!(failure.definite && failure.message.contains(cure), "{failure}");
    }
    assert!(!refused("make claim".to_owned(), Errno::TIMEDOUT).definite, "time may help");
}

#[test]
fn a_long_name_is_put_aside_as_well() {
    let root = Root::new("long");
    let long = format!("{}é", "a".repeat(253));
    root.run(&long, mine()).unwrap();
    let told = root.run(&long, Task::Archive {}).unwrap();
    let [aside] = &root.names("")[..] else { panic!("{:?}", root.names("")) };
    assert!(told.ends_with(&format!("is {aside} now")) && aside.ends_with("a-u1") && aside.len() > 250, "{told}");
}

#[test]
fn a_tree_of_any_depth_goes_and_a_dry_run_of_a_large_one_ends() {
    const DEPTH: u64 = 1500;
    let root = Root::new("deep");
    root.run("claim", mine()).unwrap();
    let mut at = rustix::fs::open(root.0.join("claim"), OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..DEPTH {
        mkdirat(&at, "d", Mode::RWXU).unwrap();
        at = enter(&at, Path::new("d"), OFlags::RDONLY).unwrap();
    }
    drop(at);
    let told = root.run("claim", Task::Delete { dry_run: true }).unwrap();
    assert_eq!(told, "claim would be deleted, with at least 0 files and 65 directories in it");
    let told = root.run("claim", Task::Delete { dry_run: false }).unwrap();
    assert_eq!(told, format!("claim is deleted, with 0 files and {DEPTH} directories in it"));
    root.run("claim", mine()).unwrap();
    (0..10_050).for_each(|file| fs::write(root.0.join(format!("claim/{file}")), b"").unwrap());
    let told = root.run("claim", Task::Delete { dry_run: true }).unwrap();
    assert_eq!(told, "claim would be deleted, with at least 10000 files and 0 directories in it");
}

#[test]
fn what_nobody_has_used_is_unmade() {
    let root = Root::new("unmake");
    root.run("claim", mine()).unwrap();
    assert_eq!(root.run("claim", Task::Unmake {}).unwrap(), "claim is not there");
    [FRESH, MARK].iter().for_each(|name| make(root.0.join(name)));
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
    make(root.0.join(MARK));
    fs::create_dir(root.0.join("claim")).unwrap();
    let told = root.run("claim", Task::Delete { dry_run: false }).unwrap();
    assert_eq!(told, "claim is deleted, with 0 files and 1 directories in it");
    assert_eq!(root.names(""), ["beside", "claim"]);
}

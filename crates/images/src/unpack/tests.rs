//! The unpacker against GNU tar, against attacks, and against what overlayfs expects.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, symlink};
use std::process::Command;

use proptest::prelude::*;
use rustix::fs::lgetxattr;

use super::*;

/// An archive in the making; names are taken as they are, wherever they lead.
struct Archiver(tar::Builder<Vec<u8>>);

impl Archiver {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn entry(mut self, kind: EntryType, name: &str, link: &str, content: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(if kind == EntryType::Directory { 0o750 } else { 0o640 });
        header.set_uid(1000);
        header.set_gid(1001);
        header.set_mtime(1_600_000_000);
        header.set_device_major(0).unwrap();
        header.set_device_minor(0).unwrap();
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn file(self, name: &str, content: &str) -> Self {
        self.entry(EntryType::Regular, name, "", content.as_bytes())
    }

    fn directory(self, name: &str) -> Self {
        self.entry(EntryType::Directory, name, "", b"")
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, name, target, b"")
    }

    /// Its target is longer than a header can hold.
    fn long_symlink(mut self, name: &str, target: &str) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(EntryType::Symlink);
        header.set_size(0);
        self.0.append_link(&mut header, name, target).unwrap();
        self
    }

    fn link(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Link, name, target, b"")
    }

    fn pax(mut self, pairs: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(pairs.iter().copied()).unwrap();
        self
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }

    fn unpack(self) -> (tempfile::TempDir, Result<Unpacked, UnpackError>) {
        unpack_bytes(&self.bytes())
    }
}

fn unpack_bytes(archive: &[u8]) -> (tempfile::TempDir, Result<Unpacked, UnpackError>) {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    fs_err::create_dir(&root).unwrap();
    let unpacked = unpack(archive, &root, Limits::default());
    (directory, unpacked)
}

/// What is at a place, in words that can be compared.
fn describe(path: &Path) -> String {
    let stat = fs_err::symlink_metadata(path).unwrap();
    let kind = stat.mode() & 0o170_000;
    let content = match kind {
        0o100_000 => crate::digest::Digest::of(&fs_err::read(path).unwrap()).to_string(),
        0o120_000 => format!("{:?}", fs_err::read_link(path).unwrap()),
        0o020_000 | 0o060_000 => format!("device {:x}", stat.rdev()),
        _ => String::new(),
    };
    let links = if kind == 0o040_000 { 0 } else { stat.nlink() };
    format!(
        "{:o} {}:{} {}.{} links {links} {content}",
        stat.mode(),
        stat.uid(),
        stat.gid(),
        stat.mtime(),
        stat.mtime_nsec(),
    )
}

fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    fn walk(root: &Path, directory: &Path, into: &mut BTreeMap<PathBuf, String>) {
        for entry in fs_err::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            into.insert(path.strip_prefix(root).unwrap().to_owned(), describe(&path));
            if path.is_dir() && !path.is_symlink() {
                walk(root, &path, into);
            }
        }
    }
    let mut into = BTreeMap::new();
    walk(root, root, &mut into);
    into
}

fn is_opaque(path: &Path) -> bool {
    let mut value = [0; 8];
    lgetxattr(path, "trusted.overlay.opaque", &mut value)
        .is_ok_and(|length| &value[..length] == b"y")
}

fn is_whited_out(path: &Path) -> bool {
    fs_err::symlink_metadata(path)
        .is_ok_and(|stat| stat.mode() & 0o170_000 == 0o020_000 && stat.rdev() == 0)
}

#[test]
fn no_entry_gets_out_of_the_root() {
    for (what, archive, is_refused) in [
        ("dots", Archiver::new().file("../evil", "x"), true),
        ("dots within", Archiver::new().file("a/../../evil", "x"), true),
        ("a link to dots", Archiver::new().link("l", "../evil"), true),
        ("a whiteout of dots", Archiver::new().file("../.wh.outside", ""), true),
        ("an absolute name", Archiver::new().file("/evil", "x"), false),
        ("through an absolute link", Archiver::new().symlink("d", "/").file("d/evil", "x"), false),
        ("through dots", Archiver::new().symlink("d", "../..").file("d/evil", "x"), false),
        (
            "through links to links",
            Archiver::new().symlink("a", "b").symlink("b", "/../../").file("a/evil", "x"),
            false,
        ),
        (
            "a directory that becomes a link",
            Archiver::new()
                .directory("d")
                .file("d/one", "x")
                .symlink("d", "../outside")
                .file("d/evil", "x"),
            false,
        ),
        ("over a link", Archiver::new().symlink("f", "../outside/kept").file("f", "evil"), false),
        (
            "a hard link through a link",
            Archiver::new().symlink("d", "../outside").link("l", "d/kept").file("l", "evil"),
            false,
        ),
        (
            "a whiteout through a link",
            Archiver::new().symlink("d", "../outside").file("d/.wh.kept", ""),
            false,
        ),
        (
            "attributes through a link",
            Archiver::new().symlink("d", "../outside").directory("d"),
            false,
        ),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let (root, outside) = (directory.path().join("root"), directory.path().join("outside"));
        fs_err::create_dir(&root).unwrap();
        fs_err::create_dir(&outside).unwrap();
        fs_err::write(outside.join("kept"), "kept").unwrap();
        let before = (describe(&outside), tree(&outside));
        let unpacked = unpack(&archive.bytes()[..], &root, Limits::default());
        if is_refused {
            assert!(matches!(unpacked, Err(UnpackError::Escapes(_))), "{what}: {unpacked:?}");
        }
        assert_eq!((describe(&outside), tree(&outside)), before, "{what}");
        assert_eq!(fs_err::read_dir(directory.path()).unwrap().count(), 2, "{what}");
        assert!(!Path::new("/evil").exists(), "{what}");
    }
}

/// While `e/d/n` is a directory, `s` is `e/d`. The FIFO takes that place: then `s` leads nowhere,
/// and read as text it would be `d`.
#[test]
fn attributes_go_to_what_was_made_wherever_the_path_leads_afterwards() {
    let (home, outside) = (tempfile::tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
    let before = describe(outside.path());
    let archive =
        ["e", "e/f", "e/d", "e/d/n", "d"].into_iter().fold(Archiver::new(), |a, d| a.directory(d));
    let archive = archive
        .symlink("k", "e/f")
        .symlink("s", "k/../d/n/..")
        .symlink("d/n", outside.path().to_str().unwrap())
        .entry(EntryType::Fifo, "s/n", "", b"");
    unpack(&archive.bytes()[..], home.path(), Limits::default()).unwrap();
    assert_eq!(describe(outside.path()), before);
    let made = fs_err::symlink_metadata(home.path().join("e/d/n")).unwrap();
    assert_eq!((made.mode(), made.uid(), made.mtime()), (0o010_640, 1000, 1_600_000_000));
}

#[test]
fn whiteouts_and_opaque_directories_are_what_overlayfs_wants() {
    // Entries; then opaque directories, whiteouts, and what else there is.
    type Case = (&'static [&'static str], &'static [&'static str], &'static [&'static str]);
    let cases: [Case; 10] = [
        (&["d/", "d/.wh.gone"], &[], &["d/gone"]),
        (&[".wh.gone"], &[], &["gone"]),
        (&["d/", "d/.wh..wh..opq", "d/f"], &["d"], &[]),
        (&["d/f", "d/.wh..wh..opq"], &["d"], &[]),
        (&[".wh.d", "d/"], &["d"], &[]),
        (&["d/", ".wh.d"], &["d"], &[]),
        (&[".wh.d", "d/f"], &["d"], &[]),
        (&["d/f", ".wh.d"], &["d"], &[]),
        (&["f", ".wh.f", ".wh.g", "g"], &[], &[]),
        (&["d/.wh.gone", "d/.wh..wh..opq", "d/.wh..wh.plnk"], &["d"], &[]),
    ];
    for (entries, opaque, whiteouts) in cases {
        let archive =
            entries.iter().fold(Archiver::new(), |archive, name| match name.strip_suffix('/') {
                Some(name) => archive.directory(name),
                None => archive.file(name, "content"),
            });
        let (directory, unpacked) = archive.unpack();
        unpacked.unwrap();
        let root = directory.path().join("root");
        for path in tree(&root).keys() {
            let name = path.to_str().unwrap();
            assert_eq!(is_opaque(&root.join(path)), opaque.contains(&name), "{entries:?} {name}");
            let is_whiteout = is_whited_out(&root.join(path));
            assert_eq!(is_whiteout, whiteouts.contains(&name), "{entries:?} {name}");
        }
        for path in opaque.iter().chain(whiteouts) {
            assert!(root.join(path).symlink_metadata().is_ok(), "{entries:?} {path}");
        }
    }
}

/// As tar packs an upper directory of overlayfs: see "whiteouts and opaque directories" in the kernel's
/// documentation.
#[test]
fn whiteouts_in_the_way_of_overlayfs_count_like_others() {
    let device = |archive: Archiver, name| archive.entry(EntryType::Char, name, "", b"");
    let opaque = |name: &str| Archiver::new().pax(&[(name, b"y")]);
    for (what, archive, opaque, whiteouts, whiteouts_in) in [
        ("alone", device(Archiver::new(), "gone"), &[][..], &["gone"][..], &[""][..]),
        (
            "a link to another",
            device(Archiver::new().directory("d"), "d/gone").link("d/too", "d/gone"),
            &[],
            &["d/gone", "d/too"],
            &["d"],
        ),
        ("over a directory", device(Archiver::new().file("d/f", "x"), "d"), &["d"], &[], &[]),
        ("under a file", device(Archiver::new(), "f").file("f", "x"), &[], &[], &[]),
        (
            "in an opaque directory",
            device(opaque("SCHILY.xattr.trusted.overlay.opaque").directory("d"), "d/gone"),
            &["d"],
            &[],
            &[],
        ),
        (
            "an opaque directory for users",
            opaque("SCHILY.xattr.user.overlay.opaque").directory("d"),
            &["d"],
            &[],
            &[],
        ),
        ("not opaque", opaque("SCHILY.xattr.user.opaque").directory("d"), &[], &[], &[]),
    ] {
        let (directory, unpacked) = archive.unpack();
        let noted = unpacked.unwrap().noted.whiteouts_in;
        assert_eq!(noted, whiteouts_in.iter().map(PathBuf::from).collect::<Vec<_>>(), "{what}");
        let root = directory.path().join("root");
        let all: Vec<_> = tree(&root).into_keys().map(|path| root.join(path)).collect();
        let those = |are: fn(&Path) -> bool| -> Vec<_> {
            let found = all.iter().filter(|path| are(path));
            found.map(|path| path.strip_prefix(&root).unwrap().to_str().unwrap()).collect()
        };
        assert_eq!(those(is_opaque), opaque, "{what}");
        assert_eq!(those(is_whited_out), whiteouts, "{what}");
    }
}

/// Not the node's, which the kernel's own word for it would be taken for.
#[test]
fn a_link_to_a_directory_is_the_archives_mistake() {
    let (_directory, unpacked) = Archiver::new().directory("d").link("l", "d").unpack();
    let Err(UnpackError::Entry { source, .. }) = &unpacked else { panic!("{unpacked:?}") };
    assert_eq!(source.kind(), io::ErrorKind::InvalidData);
}

#[test]
fn directories_that_the_archive_does_not_list_are_told() {
    for (archive, invented) in [
        (Archiver::new().file("a/b/c", "x"), &["", "a", "a/b"][..]),
        (Archiver::new().file("a/b/c", "x").directory("a/b"), &["", "a"]),
        (Archiver::new().directory("./").directory("a").file("a/f", "x"), &[]),
        (Archiver::new().file("a/.wh.x", ""), &["", "a"]),
        (Archiver::new().file("a/f", "x").file("a", "no directory"), &[""]),
        (Archiver::new().symlink("l", "t").file("l/f", "x"), &["", "t"]),
    ] {
        let (_directory, unpacked) = archive.unpack();
        let paths: Vec<_> = invented.iter().map(PathBuf::from).collect();
        assert_eq!(unpacked.unwrap().noted.invented, paths);
    }
}

#[test]
fn what_links_lead_to_is_made_where_the_kernel_would_look_for_it() {
    for (links, made) in [
        (&[("s", "t")][..], "t"),
        (&[("s", "/../t")], "t"),
        (&[("s", "e/f/../t")], "e/t"),
        (&[("k", "e/f"), ("s", "k/../t")], "e/t"),
        (&[("k", "/e/f"), ("s", "k/../../../t/./u/")], "t/u"),
        (&[("e/k", "f/g"), ("s", "e/k/../t")], "e/f/t"),
    ] {
        let archive = Archiver::new().directory("e/f/g");
        let archive = links.iter().fold(archive, |archive, (name, to)| archive.symlink(name, to));
        let (directory, unpacked) = archive.file("s/x", "").file("s/y/z", "").unpack();
        let invented = unpacked.unwrap().noted.invented;
        assert!(invented.contains(&made.into()), "{links:?}: {invented:?}");
        assert!(invented.contains(&Path::new(made).join("y")), "{links:?}: {invented:?}");
        let file = directory.path().join("root").join(made).join("x");
        assert!(file.symlink_metadata().is_ok(), "{links:?}");
    }
    let (_directory, unpacked) = Archiver::new().symlink("l", "l").file("l/x", "").unpack();
    assert!(matches!(unpacked, Err(UnpackError::Entry { .. })), "{unpacked:?}");
}

#[test]
fn links_that_lead_too_far_are_refused() {
    let far = (0..40).fold(Archiver::new(), |archive, n| {
        archive.long_symlink(&format!("L{n}"), &format!("/L{}{}", n + 1, "/a".repeat(2000)))
    });
    let long = Archiver::new().long_symlink("L0", &"a/../".repeat(500));
    let deep = Archiver::new().directory("d").symlink("d/L", &"d/".repeat(40));
    let deep = deep.symlink("L0", &format!("d/L{}", "/e".repeat(10)));
    let deep = deep.symlink("L1", &format!("L0{}", "/e".repeat(45)));
    let deep = deep.symlink("L2", &format!("L1{}", "/e".repeat(45)));
    for (archive, link) in [(far, "L0"), (long, "L0"), (deep, "L2")] {
        let (_directory, unpacked) = archive.file(&format!("{link}/x"), "").unpack();
        assert!(matches!(unpacked, Err(UnpackError::TooLarge { .. })), "{unpacked:?}");
    }
}

#[test]
fn later_entries_replace_earlier_ones_of_any_kind() {
    type Kind = (&'static str, fn(Archiver) -> Archiver);
    let kinds: [Kind; 4] = [
        ("file", |archive| archive.file("x", "new")),
        ("directory", |archive| archive.directory("x")),
        ("symlink", |archive| archive.symlink("x", "elsewhere")),
        ("fifo", |archive| archive.entry(EntryType::Fifo, "x", "", b"")),
    ];
    for (before, first) in kinds {
        for (after, second) in kinds {
            let (directory, unpacked) = second(first(Archiver::new())).unpack();
            unpacked.unwrap();
            let (alone, _) = second(Archiver::new()).unpack();
            assert_eq!(
                tree(&directory.path().join("root")),
                tree(&alone.path().join("root")),
                "{before}, then {after}"
            );
        }
    }
}

/// `cap_net_bind_service=ep`, as the kernel writes it (VFS_CAP_REVISION_2).
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Of a file that is not root's: a change of the owner takes capabilities and set-uid bits away.
#[test]
fn extended_attributes_capabilities_set_uid_bits_and_fine_times_survive() {
    let mut archive = Archiver::new().pax(&[
        ("SCHILY.xattr.user.note", b"\x00\xff\n=bytes"),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ("SCHILY.xattr.security.capability", &CAPABILITY),
        ("mtime", b"1600000000.123456789"),
    ]);
    let mut header = tar::Header::new_ustar();
    header.set_path("tool").unwrap();
    header.set_size(1);
    header.set_mode(0o6755);
    header.set_uid(1000);
    header.set_gid(1000);
    header.set_mtime(5);
    header.set_cksum();
    archive.0.append(&header, &b"x"[..]).unwrap();
    let (directory, unpacked) = archive.unpack();
    unpacked.unwrap();
    let path = directory.path().join("root/tool");
    let stat = fs_err::metadata(&path).unwrap();
    assert_eq!(stat.mode() & 0o7777, 0o6755);
    assert_eq!((stat.mtime(), stat.mtime_nsec()), (1_600_000_000, 123_456_789));
    let mut value = [0; 16];
    let length = lgetxattr(&path, "user.note", &mut value).unwrap();
    assert_eq!(&value[..length], b"\x00\xff\n=bytes");
    let mut value = [0; 32];
    let length = lgetxattr(&path, "security.capability", &mut value).unwrap();
    assert_eq!(value[..length], CAPABILITY);
    assert!(lgetxattr(&path, "trusted.overlay.redirect", &mut value).is_err());
}

#[test]
fn a_truncated_archive_is_an_error() {
    let whole = Archiver::new().file("f", &"x".repeat(5000)).bytes();
    for length in [100, 512, 1000, 5000] {
        let (_directory, unpacked) = unpack_bytes(&whole[..length]);
        assert!(unpacked.is_err(), "{length}");
    }
}

/// A tree that GNU tar packs: files with all sorts of names, links, devices, holes.
fn make_tree(root: &Path, seed: u32, longest: u32) {
    let mut state = seed;
    let mut random = move |below: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % below
    };
    let mut directories = vec![root.to_owned()];
    for number in 0..40 {
        let parent =
            directories[random(u32::try_from(directories.len()).unwrap()) as usize].clone();
        let long = "long".repeat(random(longest) as usize);
        let odd = ["", " ", "ä", "\n", "\\"][random(5) as usize];
        let path = parent.join(format!("{number}{odd}{long}"));
        match random(8) {
            0 | 1 => {
                fs_err::create_dir(&path).unwrap();
                directories.push(path.clone());
            }
            2 => symlink(["/absolute", "../up", &"far/".repeat(60)][random(3) as usize], &path)
                .unwrap(),
            3 => {
                let kind = [FileType::Fifo, FileType::CharacterDevice, FileType::BlockDevice]
                    [random(3) as usize];
                mknodat(CWD, &path, kind, Mode::RUSR, makedev(random(300), 1 + random(70_000)))
                    .unwrap();
            }
            4 => {
                let file = File::create(&path).unwrap();
                file.set_len(1 << 20).unwrap();
                let at = u64::from(random(200)) * 4096;
                std::os::unix::fs::FileExt::write_all_at(&file, b"data", at).unwrap();
            }
            _ => fs_err::write(&path, vec![b'x'; random(70_000) as usize]).unwrap(),
        }
        let is_symlink = path.is_symlink();
        std::os::unix::fs::lchown(&path, Some(random(3_000_000)), Some(random(70_000))).unwrap();
        if !is_symlink {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o400 | random(0o10_000));
            fs_err::set_permissions(&path, mode).unwrap();
            if path.is_file() && random(4) == 0 {
                fs_err::hard_link(&path, parent.join(format!("{number}-linked"))).unwrap();
            }
        }
    }
}

#[test]
fn what_gnu_tar_packs_is_unpacked_as_gnu_tar_does() {
    for seed in 0..12 {
        for format in ["gnu", "posix", "ustar", "sparse-gnu", "sparse-posix"] {
            let directory = tempfile::tempdir().unwrap();
            let [source, theirs, ours] =
                ["source", "theirs", "ours"].map(|name| directory.path().join(name));
            for path in [&source, &theirs, &ours] {
                fs_err::create_dir(path).unwrap();
            }
            // ustar cannot hold longer names.
            make_tree(&source, seed, if format == "ustar" { 1 } else { 40 });
            let archive = directory.path().join("archive");
            let tar = |arguments: &[&str], at: &Path| {
                let mut command = Command::new("tar");
                command.args(arguments).arg("-C").arg(at).arg("-f").arg(&archive);
                command
            };
            let sparse = if format.starts_with("sparse") { "--sparse" } else { "--no-ignore-case" };
            let base = format.trim_start_matches("sparse-");
            let mut pack =
                tar(&["-c", "--numeric-owner", sparse, &format!("--format={base}")], &source);
            // ustar cannot hold every name: what it leaves out neither unpacks.
            let packed = pack.arg(".").output().unwrap();
            assert!(packed.status.success() || format == "ustar", "{packed:?}");
            let mut unpack_theirs = tar(&["-x", "-p", "--numeric-owner", "--same-owner"], &theirs);
            assert!(unpack_theirs.status().unwrap().success());

            let unpacked = unpack(File::open(&archive).unwrap(), &ours, Limits::default()).unwrap();
            assert_eq!(tree(&ours), tree(&theirs), "seed {seed}, {format}");
            assert_eq!(describe(&ours), describe(&theirs), "seed {seed}, {format}");
            assert_eq!(unpacked.noted.invented, Vec::<PathBuf>::new());
            if sparse == "--sparse" {
                assert!(
                    unpacked.measured.usage.bytes < 8 << 20,
                    "holes stay holes: {:?}",
                    unpacked.measured.usage
                );
            }
        }
    }
}

#[test]
fn what_is_remembered_is_bounded_and_repeats_take_no_room() {
    type Case = (&'static str, fn(Archiver, u32) -> Archiver, bool);
    let cases: [Case; 7] = [
        ("listed", |archive, n| archive.directory(&format!("{n}")), true),
        ("invented", |archive, n| archive.file(&format!("{n}/f"), ""), true),
        ("whiteouts", |archive, n| archive.file(&format!(".wh.{n}"), ""), true),
        ("opaque", |archive, n| archive.file(&format!("{n}/.wh..wh..opq"), ""), true),
        ("listed again", |archive, _| archive.directory("d"), false),
        ("made again", |archive, _| archive.directory("d").file("d", ""), false),
        ("files", |archive, n| archive.file(&format!("{n}"), ""), false),
    ];
    for (what, add, is_refused) in cases {
        let limits = Limits { noted: 5000, ..Limits::default() };
        let directory = tempfile::tempdir().unwrap();
        let archive = (0..100).fold(Archiver::new(), add);
        match unpack(&archive.bytes()[..], directory.path(), limits) {
            Err(UnpackError::TooLarge { source, .. }) => {
                assert!(
                    is_refused && source.to_string().contains("5000 bytes"),
                    "{what}: {source}"
                );
            }
            unpacked => assert!(!is_refused && unpacked.is_ok(), "{what}: {unpacked:?}"),
        }
    }
}

#[test]
fn a_listed_directory_has_its_time_whatever_happens_in_it() {
    let archive = Archiver::new()
        .directory("d")
        .symlink("l", "d")
        .directory("l/e")
        .file("d/.wh.gone", "")
        .file("l/e/.wh.gone", "")
        .file("d/.wh..wh..opq", "");
    let (directory, unpacked) = archive.unpack();
    assert_eq!(unpacked.unwrap().noted.invented, [PathBuf::new()]);
    for path in ["d", "d/e"] {
        let listed = fs_err::metadata(directory.path().join("root").join(path)).unwrap();
        assert_eq!(listed.mtime(), 1_600_000_000, "{path}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn random_entries_neither_panic_nor_escape(
        entries in proptest::collection::vec(
            (
                prop_oneof![
                    Just(EntryType::Regular), Just(EntryType::Directory), Just(EntryType::Symlink),
                    Just(EntryType::Link), Just(EntryType::Fifo),
                ],
                "(\\.\\./|/|a/|b/|\\./){0,4}(a|b|c|\\.wh\\.a|\\.wh\\.\\.wh\\.\\.opq|\\.\\.|)",
                "(\\.\\./|/|a/|b/){0,4}(a|b|c|)",
            ),
            0..12,
        )
    ) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        fs_err::create_dir(&root).unwrap();
        let archive = entries.iter().fold(Archiver::new(), |archive, (kind, name, link)| {
            archive.entry(*kind, name, link, b"")
        });
        let _ = unpack(&archive.bytes()[..], &root, Limits::default());
        let left: Vec<_> = fs_err::read_dir(directory.path()).unwrap().collect();
        prop_assert_eq!(left.len(), 1);
    }
}

#[test]
fn what_is_beyond_a_limit_is_refused_by_name() {
    let limits = Limits { bytes: 1 << 20, entries: 3, depth: 4, ..Limits::default() };
    let refusal = |archive: Archiver| {
        let directory = tempfile::tempdir().unwrap();
        let refused = unpack(&archive.bytes()[..], directory.path(), limits).unwrap_err();
        match refused {
            UnpackError::TooLarge { source, .. } => source,
            UnpackError::Root(error) => TooLarge::within(&error).unwrap().clone(),
            other => panic!("{other:?}"),
        }
    };
    let many = (0..4).fold(Archiver::new(), |many, n| many.file(&n.to_string(), ""));
    assert!(refusal(many).to_string().contains("3 entries"));
    let deep = Archiver::new().file("1/2/3/4/5", "");
    assert!(refusal(deep).to_string().contains("4 directories"));
    // Each path is short, what they make is deep.
    let deep =
        Archiver::new().directory("1/2/3/4").symlink("link", "1/2/3/4").directory("link/5/6");
    assert!(refusal(deep).to_string().contains("4 directories"));
    let within = Archiver::new().directory("1/2/3/4").symlink("link", "1/2/3");
    let directory = tempfile::tempdir().unwrap();
    unpack(&within.bytes()[..], directory.path(), limits).unwrap();
}

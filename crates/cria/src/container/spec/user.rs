//! Who a container's process is: the request's user, else the image's, looked up in the image's
//! `/etc/passwd` and `/etc/group`. ContainerStatus reports what is found here.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, fstat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::SpecError;
use crate::beneath;
use crate::container::config::{SecurityContext, SupplementalGroupsPolicy};

const PASSWD: &str = "etc/passwd";
const GROUP: &str = "etc/group";
/// Of either file. It comes from an image, so it may be anything.
const MAX_BYTES: u64 = 4 << 20;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The primary group too, and first: without it a process could shed it with `setgid` and so
    /// escape permissions meant to exclude the group.
    pub(crate) additional_gids: Vec<u32>,
    /// `/`, if the image does not say.
    pub(crate) home: String,
    /// What the image calls the uid, if it does.
    pub(crate) username: Option<String>,
}

/// Reads the two files beneath `root`, an image's mounted root file system.
pub(crate) fn look_up(
    root: &Path,
    security: &SecurityContext,
    image_user: &str,
) -> Result<User, SpecError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, Mode::empty())
        .map_err(|error| SpecError::io("open the root file system")(error.into()))?;
    let passwd = read(&root, PASSWD, "read the image's /etc/passwd")?;
    let group = read(&root, GROUP, "read the image's /etc/group")?;
    Accounts { passwd, group }.find(security, image_user)
}

/// The text of the image's two files; empty for one that is not there.
struct Accounts {
    passwd: String,
    group: String,
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

#[derive(Clone, Copy)]
enum Account<'a> {
    Number(u32),
    Name(&'a str),
}

impl Accounts {
    fn find(&self, security: &SecurityContext, image_user: &str) -> Result<User, SpecError> {
        let (user, group) = asked(security, image_user)?;
        let entry = self.user(user);
        let uid = match (user, &entry) {
            (Account::Number(uid), _) => uid,
            (Account::Name(_), Some(entry)) => entry.uid,
            (Account::Name(name), None) => return Err(unknown("user", name, PASSWD)),
        };
        let gid = match group {
            Some(group) => self.group(group)?,
            // As everywhere in Kubernetes: a uid the image does not know is in root's group.
            None => entry.as_ref().map_or(0, |entry| entry.gid),
        };
        Ok(User {
            uid,
            gid,
            additional_gids: self.groups(gid, entry.as_ref(), security)?,
            home: entry
                .as_ref()
                .map(|e| e.home)
                .filter(|home| !home.is_empty())
                .unwrap_or("/")
                .to_owned(),
            username: entry.map(|entry| entry.name.to_owned()),
        })
    }

    fn user(&self, user: Account<'_>) -> Option<PasswdEntry<'_>> {
        let mut entries = self.passwd.lines().filter_map(passwd_entry);
        entries.find(|entry| match user {
            Account::Number(uid) => entry.uid == uid,
            Account::Name(name) => entry.name == name,
        })
    }

    fn group(&self, group: Account<'_>) -> Result<u32, SpecError> {
        match group {
            Account::Number(gid) => Ok(gid),
            Account::Name(name) => {
                let mut entries = self.group.lines().filter_map(group_entry);
                let entry = entries.find(|entry| entry.name == name);
                entry.map(|entry| entry.gid).ok_or_else(|| unknown("group", name, GROUP))
            }
        }
    }

    /// In order, each once: the primary group, the image's for this user, the request's.
    fn groups(
        &self,
        primary: u32,
        user: Option<&PasswdEntry<'_>>,
        security: &SecurityContext,
    ) -> Result<Vec<u32>, SpecError> {
        let mut gids = vec![primary];
        let mut add = |gid| {
            if !gids.contains(&gid) {
                gids.push(gid);
            }
        };
        match (security.supplemental_groups_policy, user) {
            (SupplementalGroupsPolicy::Merge, Some(user)) => {
                let entries = self.group.lines().filter_map(group_entry);
                entries.filter(|entry| entry.has(user.name)).for_each(|entry| add(entry.gid));
            }
            (SupplementalGroupsPolicy::Merge, None) | (SupplementalGroupsPolicy::Strict, _) => {}
        }
        for &gid in &security.supplemental_groups {
            add(id("supplemental_groups", gid)?);
        }
        Ok(gids)
    }
}

impl GroupEntry<'_> {
    fn has(&self, user: &str) -> bool {
        self.members.split(',').any(|member| member.trim() == user)
    }
}

/// The user, and the group if one is given. The image's group goes with the image's user only.
fn asked<'a>(
    security: &'a SecurityContext,
    image_user: &'a str,
) -> Result<(Account<'a>, Option<Account<'a>>), SpecError> {
    let group = security.run_as_group.map(|gid| id("run_as_group", gid)).transpose()?;
    let group = group.map(Account::Number);
    if !security.run_as_username.is_empty() {
        return Ok((account("run_as_username", &security.run_as_username)?, group));
    }
    if let Some(uid) = security.run_as_user {
        return Ok((Account::Number(id("run_as_user", uid)?), group));
    }
    if group.is_some() {
        return Err(SpecError::invalid("run_as_group", "given without a user"));
    }
    let (user, group) = image_user.split_once(':').unwrap_or((image_user, ""));
    let group = if group.is_empty() { None } else { Some(image_account(group)?) };
    let user = if user.is_empty() { Account::Number(0) } else { image_account(user)? };
    Ok((user, group))
}

fn account<'a>(field: &'static str, text: &'a str) -> Result<Account<'a>, SpecError> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(Account::Name(text));
    }
    let number = text.parse().unwrap_or(i64::MAX);
    id(field, number).map(Account::Number)
}

fn image_account(text: &str) -> Result<Account<'_>, SpecError> {
    account("user", text)
        .map_err(|_| SpecError::image(format!("{text:?} in its user is not an id")))
}

/// `u32::MAX` is the kernel's "no id".
fn id(field: &'static str, number: i64) -> Result<u32, SpecError> {
    let id = u32::try_from(number).ok().filter(|&id| id != u32::MAX);
    id.ok_or_else(|| SpecError::invalid(field, format!("{number} is not an id")))
}

fn unknown(kind: &str, name: &str, file: &str) -> SpecError {
    SpecError::image(format!("{kind} {name:?} is not in its /{file}"))
}

/// `name:password:uid:gid:comment:home:shell`; a line that is not is skipped.
fn passwd_entry(line: &str) -> Option<PasswdEntry<'_>> {
    let mut fields = line.trim().split(':');
    let name = fields.next()?;
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let home = fields.nth(1).unwrap_or_default();
    Some(PasswdEntry { name, uid, gid, home })
}

/// `name:password:gid:member,member`.
fn group_entry(line: &str) -> Option<GroupEntry<'_>> {
    let mut fields = line.trim().split(':');
    let name = fields.next()?;
    let gid = fields.nth(1)?.parse().ok()?;
    Some(GroupEntry { name, gid, members: fields.next().unwrap_or_default() })
}

/// Symbolic links lead back into the image; not waiting on whatever is no file.
fn read(root: &OwnedFd, path: &str, action: &'static str) -> Result<String, SpecError> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match beneath::open(root, path, flags) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        Err(error) => return Err(SpecError::io(action)(error.into())),
    };
    let stat = fstat(&file).map_err(|error| SpecError::io(action)(error.into()))?;
    if !FileType::from_raw_mode(stat.st_mode).is_file() {
        return Err(SpecError::image(format!("/{path} is not a file")));
    }
    let mut bytes = Vec::new();
    let mut limited = std::fs::File::from(file).take(MAX_BYTES + 1);
    limited.read_to_end(&mut bytes).map_err(SpecError::io(action))?;
    if limited.limit() == 0 {
        return Err(SpecError::image(format!("/{path} is larger than {MAX_BYTES} bytes")));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use fs_err as fs;

    use super::*;

    const PASSWD_TEXT: &str = "\
root:x:0:0:root:/root:/bin/sh
broken line
app:x:1000:2000:An app:/srv/app:/bin/false
dup:x:1000:9:second of a uid:/other:
homeless:x:7:7:::
";
    const GROUP_TEXT: &str = "\
root:x:0:
wheel:x:10:root,app
app:x:2000:app
staff:x:50000:app, homeless
bad:x:many:app
";

    fn accounts() -> Accounts {
        Accounts { passwd: PASSWD_TEXT.into(), group: GROUP_TEXT.into() }
    }

    proptest::proptest! {
        #[test]
        fn no_file_of_an_image_is_too_odd(
            passwd in "([a-z0-9:\n]|.){0,80}",
            group in "([a-z0-9:,\n]|.){0,80}",
            image_user in "[a-z0-9:]{0,6}|.{0,9}",
        ) {
            let accounts = Accounts { passwd, group };
            if let Ok(user) = accounts.find(&SecurityContext::default(), &image_user) {
                assert_eq!(user.additional_gids.first(), Some(&user.gid));
                assert_ne!(user.home, "");
            }
        }
    }

    struct Ask {
        user: Option<i64>,
        group: Option<i64>,
        name: &'static str,
        image: &'static str,
    }

    const NOTHING: Ask = Ask { user: None, group: None, name: "", image: "" };

    fn find(accounts: &Accounts, ask: &Ask) -> Result<User, SpecError> {
        let security = SecurityContext {
            run_as_user: ask.user,
            run_as_group: ask.group,
            run_as_username: ask.name.into(),
            ..Default::default()
        };
        accounts.find(&security, ask.image)
    }

    #[test]
    fn the_request_decides_who_runs_then_the_image_then_root() {
        let root = (0, 0, &[0, 10][..], "/root");
        let app = (1000, 2000, &[2000, 10, 50000][..], "/srv/app");
        for (ask, (uid, gid, gids, home)) in [
            (NOTHING, root),
            (Ask { image: "app", ..NOTHING }, app),
            (Ask { image: "1000", ..NOTHING }, app),
            (Ask { image: "app:", ..NOTHING }, app),
            (Ask { image: "app:wheel", ..NOTHING }, (1000, 10, &[10, 2000, 50000], "/srv/app")),
            (Ask { image: "app:77", ..NOTHING }, (1000, 77, &[77, 10, 2000, 50000], "/srv/app")),
            (Ask { image: "4000:staff", ..NOTHING }, (4000, 50000, &[50000], "/")),
            (Ask { image: "4000:5000", ..NOTHING }, (4000, 5000, &[5000], "/")),
            (Ask { image: ":5000", ..NOTHING }, (0, 5000, &[5000, 10], "/root")),
            (Ask { image: "homeless", ..NOTHING }, (7, 7, &[7, 50000], "/")),
            (Ask { user: Some(1000), image: "nobody:x", ..NOTHING }, app),
            (Ask { user: Some(4000), image: "app:app", ..NOTHING }, (4000, 0, &[0], "/")),
            (Ask { user: Some(0), group: Some(5), ..NOTHING }, (0, 5, &[5, 10], "/root")),
            (Ask { name: "app", image: "root:wheel", ..NOTHING }, app),
            (Ask { name: "1000", ..NOTHING }, app),
            (Ask { name: "app", user: Some(7), ..NOTHING }, app),
        ] {
            let what = format!("{:?} {:?} {:?} {:?}", ask.user, ask.group, ask.name, ask.image);
            let user = find(&accounts(), &ask).expect(&what);
            assert_eq!(
                (user.uid, user.gid, &*user.additional_gids, &*user.home),
                (uid, gid, gids, home),
                "{what}"
            );
        }
    }

    #[test]
    fn a_wrong_user_is_an_error_that_says_what_is_wrong_and_where() {
        for (ask, parts) in [
            (Ask { image: "nobody", ..NOTHING }, ["\"nobody\"", "/etc/passwd"]),
            (Ask { image: "app:nogroup", ..NOTHING }, ["\"nogroup\"", "/etc/group"]),
            (Ask { image: "app:bad", ..NOTHING }, ["\"bad\"", "/etc/group"]),
            (Ask { image: "99999999999", ..NOTHING }, ["99999999999", "image"]),
            (Ask { name: "nobody", ..NOTHING }, ["\"nobody\"", "/etc/passwd"]),
            (Ask { user: Some(-1), ..NOTHING }, ["run_as_user", "-1"]),
            (Ask { user: Some(4_294_967_295), ..NOTHING }, ["run_as_user", "4294967295"]),
            (Ask { user: Some(1), group: Some(-2), ..NOTHING }, ["run_as_group", "-2"]),
            (Ask { group: Some(5), image: "app", ..NOTHING }, ["run_as_group", "without a user"]),
        ] {
            let error = find(&accounts(), &ask).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }

    #[test]
    fn groups_of_the_image_are_left_out_if_the_policy_is_strict() {
        use SupplementalGroupsPolicy::{Merge, Strict};
        for (policy, user, expected) in [
            (Merge, 1000, &[2000, 10, 50000, 60000][..]),
            (Strict, 1000, &[2000, 60000, 10]),
            (Merge, 4000, &[0, 60000, 10]),
            (Strict, 4000, &[0, 60000, 10]),
        ] {
            let security = SecurityContext {
                run_as_user: Some(user),
                supplemental_groups: vec![60000, 10, 60000],
                supplemental_groups_policy: policy,
                ..Default::default()
            };
            let found = accounts().find(&security, "").unwrap();
            assert_eq!(found.additional_gids, expected, "{policy:?} {user}");
        }
    }

    fn image(passwd: impl FnOnce(&Path)) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        passwd(&root.path().join(PASSWD));
        root
    }

    fn of_app(root: &Path) -> Result<User, SpecError> {
        look_up(root, &SecurityContext::default(), "app")
    }

    #[test]
    fn links_of_the_image_lead_back_into_it() {
        for target in ["/real", "../../../../real", "../real"] {
            let root = image(|passwd| std::os::unix::fs::symlink(target, passwd).unwrap());
            fs::write(root.path().join("real"), PASSWD_TEXT).unwrap();
            assert_eq!(of_app(root.path()).unwrap().uid, 1000, "{target}");
        }
        // The host has that file, the image does not.
        let root = image(|passwd| std::os::unix::fs::symlink("/etc/hostname", passwd).unwrap());
        assert!(of_app(root.path()).unwrap_err().to_string().contains("\"app\""));
    }

    #[test]
    fn an_image_without_the_files_knows_ids_only() {
        let root = tempfile::tempdir().unwrap();
        let user = look_up(root.path(), &SecurityContext::default(), "5:6").unwrap();
        assert_eq!((user.uid, user.gid, &*user.home), (5, 6, "/"));
        assert!(of_app(root.path()).is_err());
    }

    #[test]
    fn what_is_no_file_or_too_large_is_refused_without_waiting_for_it() {
        let fifo =
            image(|passwd| nix::unistd::mkfifo(passwd, nix::sys::stat::Mode::S_IRWXU).unwrap());
        assert!(of_app(fifo.path()).unwrap_err().to_string().contains("not a file"));
        let directory = image(|passwd| fs::create_dir(passwd).unwrap());
        assert!(of_app(directory.path()).unwrap_err().to_string().contains("not a file"));
        let large =
            image(|passwd| fs::File::create(passwd).unwrap().set_len(MAX_BYTES + 1).unwrap());
        assert!(of_app(large.path()).unwrap_err().to_string().contains("larger"));
    }
}

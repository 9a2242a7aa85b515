//! Programs that cria runs, replaced by shell scripts that do as a test says.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use fs_err as fs;

/// What a CNI plugin answers to ADD when all is well, as a shell command.
pub const CNI_RESULT: &str = r#"cat <<EOF
{"cniVersion": "1.0.0",
 "interfaces": [{"name": "eth0", "sandbox": "$CNI_NETNS"}],
 "ips": [{"address": "10.99.0.7/24", "interface": 0}]}
EOF"#;

/// A CNI plugin. `body` runs at ADD and DEL, knows `$CNI_COMMAND` and `$NODE`, the node's folder,
/// and may end with [`CNI_RESULT`]; each call is noted in `$NODE/calls`.
#[must_use]
pub fn cni_plugin(node: &Path, body: &str) -> String {
    let node = node.display();
    format!(
        r#"#!/bin/sh
NODE={node}
cat > /dev/null
case $CNI_COMMAND in
VERSION) echo '{{"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0"]}}'; exit ;;
ADD | DEL) echo "$CNI_COMMAND $CNI_CONTAINERID" >> "$NODE/calls" ;;
*) exit ;;
esac
{body}
"#
    )
}

/// An OCI runtime: `body` runs first and knows `$VERB` (create, start, exec, kill ...) and
/// `$NODE`; unless it exits, runc then does what was asked.
#[must_use]
pub fn oci_runtime(node: &Path, body: &str) -> String {
    let node = node.display();
    format!(
        r#"#!/bin/sh
NODE={node}
VERB=
for word; do
    case $word in
    create | start | exec | kill | delete | state | features | update | pause | resume) VERB=$word; break ;;
    esac
done
{body}
exec runc "$@"
"#
    )
}

/// Writes a script and makes it a program.
pub fn write(path: &Path, script: &str) {
    fs::write(path, script).expect("own folder");
    fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("own file");
}

//! The image most tests use: Debian's static busybox with what a small distribution has around it.

use std::path::Path;
use std::process::Command;

use crate::image::Image;
use crate::layer::Layer;

const BUSYBOX: &str = "/bin/busybox";

/// No applets of busybox, but asked for by critest. Scripts: nothing of the host's libraries.
const IPCS: &str = "#!/bin/sh\nexec cat /proc/sysvipc/shm\n";
const PGREP: &str = r#"#!/bin/sh
found=1
for folder in /proc/[0-9]*; do
    read -r name < "$folder/comm" || continue
    case $name in *"$1"*) echo "${folder#/proc/}"; found=0 ;; esac
done 2>/dev/null
exit $found
"#;

const PASSWD: &str = "\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
default-user:x:1000:1000::/home/default-user:/bin/sh
nobody:x:65534:65534:nobody:/home:/bin/false
";
const GROUP: &str = "\
root:x:0:
daemon:x:1:
www-data:x:33:
default-user:x:1000:
group-defined-in-image:x:50000:default-user
nobody:x:65534:
";

/// `sh` and all applets, users root, www-data (33), default-user (1000, also in group 50000) and
/// nobody.
pub fn busybox() -> Image {
    Image::new().layer(busybox_layer()).env(&[PATH]).cmd(&["sh"])
}

/// The variable every image sets.
pub const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The layer of [`busybox`], for images that put more on top.
pub fn busybox_layer() -> Layer {
    let program = fs_err::read(BUSYBOX).expect("busybox-static is installed (make setup)");
    let layer = Layer::new()
        .dir("bin/", 0o755)
        .dir("dev/", 0o755)
        .dir("etc/", 0o755)
        .dir("home/", 0o755)
        .owner(1000, 1000)
        .dir("home/default-user/", 0o755)
        .owner(0, 0)
        .dir("proc/", 0o755)
        .dir("root/", 0o700)
        .dir("run/", 0o755)
        .dir("sys/", 0o755)
        .dir("tmp/", 0o1777)
        .dir("usr/", 0o755)
        .dir("usr/bin/", 0o755)
        .dir("usr/sbin/", 0o755)
        .dir("var/", 0o755)
        .dir("var/www/", 0o755)
        .symlink("var/run", "../run")
        .file("etc/passwd", 0o644, PASSWD)
        .file("etc/group", 0o644, GROUP)
        .file("bin/busybox", 0o755, program)
        .file("usr/bin/ipcs", 0o755, IPCS)
        .file("usr/bin/pgrep", 0o755, PGREP);
    // Hard links: busybox finds its applet by its own name, also when /proc/self/exe is asked.
    applets()
        .iter()
        .filter(|name| *name != "busybox")
        .fold(layer, |layer, name| layer.hard_link(&format!("bin/{name}"), "bin/busybox"))
}

fn applets() -> Vec<String> {
    let output = Command::new(Path::new(BUSYBOX)).arg("--list").output();
    let output = output.expect("busybox-static is installed (make setup)");
    let names = String::from_utf8(output.stdout).expect("applets have plain names");
    names.lines().map(str::to_owned).collect()
}

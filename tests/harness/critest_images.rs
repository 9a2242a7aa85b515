//! Stand-ins for every image that critest (cri-tools 1.36) uses: what its specs look at, on
//! Debian's busybox. Not among them: the image pinned by the digest of the real one.

use std::process::Command;

use crate::busybox::{PATH, busybox, busybox_layer};
use crate::containerd::PAUSE;
use crate::image::{Image, architecture};
use crate::layer::Layer;
use crate::registry::Registry;

/// The registries whose images critest pulls. All of them are to be mapped to the stand-ins'.
pub const HOSTS: [&str; 3] = ["registry.k8s.io", "k8s.gcr.io", "gcr.io"];

/// A web server that is told by its name and title in a process list, as nginx is. It runs as a
/// child: its parent keeps the pid file's pid, and ends at once when asked to.
const WEB_SERVER: &str = r#"#!/bin/sh
# Usage: SERVER PORT TITLE
mkdir -p /var/run
echo $$ > "/var/run/${0##*/}.pid"
trap 'kill $!; exit 0' INT QUIT TERM
httpd -f -p "$1" -h /usr/share/www &
echo "${0##*/}: serving port $1"
wait
"#;

/// Says with whose rights it runs; it is installed set-user-ID root. Busybox would not do: it gives
/// such rights up.
const NO_NEW_PRIVS: &str = r#"
#include <stdio.h>
#include <unistd.h>
int main(void) { return printf("Effective uid: %d\n", (int)geteuid()) < 0; }
"#;

/// What containerd runs first in a pod. No `sleep`: a spec looks for one.
const PAUSE_FOREVER: &str = "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n";

/// Pushes all stand-ins to `registry`.
pub fn push(registry: &Registry) {
    push_pause(registry);

    let e2e = |name: &str| format!("e2e-test-images/{name}");
    registry.push(&e2e("busybox:1.29-2"), &busybox());
    let program = Layer::new().file("nnp", 0o4755, compile(NO_NEW_PRIVS));
    registry.push(&e2e("nonewprivs:1.3"), &Image::new().layer(program).entrypoint(&["/nnp"]));
    registry.push(&e2e("nginx:1.14-2"), &web_server("nginx", "80", "master process"));
    registry.push(&e2e("httpd:2.4.39-4"), &web_server("httpd-server", "80", "httpd"));

    let cri_tools = |name: &str| format!("k8s-staging-cri-tools/{name}");
    let host_network = format!("hostnet-nginx-{}:latest", architecture());
    registry.push(&cri_tools(&host_network), &web_server("nginx", "12003", "master process"));
    for (name, user) in [
        ("test-image-user-uid", "1002"),
        ("test-image-user-username", "www-data"),
        ("test-image-user-uid-group", "1003:users"),
        ("test-image-user-username-group", "www-data:100"),
        ("test-image-predefined-group", "1000"),
    ] {
        registry.push(&cri_tools(name), &marked(name).user(user));
    }
    for (name, mark) in [
        ("test-image-latest", "latest"),
        ("test-image-tag:test", "test"),
        ("test-image-tag:all", "all"),
        ("test-image-1:latest", "1"),
        ("test-image-2:latest", "2"),
        ("test-image-3:latest", "3"),
        ("test-image-tags:1", "tags"),
        ("test-image-tags:2", "tags"),
        ("test-image-tags:3", "tags"),
    ] {
        registry.push(&cri_tools(name), &marked(mark));
    }
}

/// Pushes the images that do nothing: containerd's for each pod, and the one that specs pull from
/// two registries.
pub fn push_pause(registry: &Registry) {
    let layer = Layer::new().file("pause", 0o755, compile(PAUSE_FOREVER));
    let pause = Image::new().layer(layer).entrypoint(&["/pause"]);
    registry.push(without_host(PAUSE), &pause);
    registry.push("pause:3.9", &pause.label("version", "3.9"));
}

/// A busybox that is told from others by a file named `mark`.
fn marked(mark: &str) -> Image {
    busybox().layer(Layer::new().file(mark, 0o644, mark))
}

fn web_server(name: &str, port: &str, title: &str) -> Image {
    let program = format!("usr/sbin/{name}");
    let files = Layer::new()
        .dir("usr/share/", 0o755)
        .dir("usr/share/www/", 0o755)
        .file("usr/share/www/index.html", 0o644, format!("{name} stands in\n"))
        .file(&program, 0o755, WEB_SERVER);
    Image::new()
        .layer(busybox_layer())
        .layer(files)
        .env(&[PATH])
        .entrypoint(&[&format!("/{program}")])
        .cmd(&[port, title])
        .stop_signal("SIGQUIT")
}

/// A static program from C.
fn compile(source: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("the temporary folder is writable");
    let (from, to) = (folder.path().join("program.c"), folder.path().join("program"));
    fs_err::write(&from, source).expect("own folder");
    let result = Command::new("cc").args(["-static", "-O2", "-o"]).args([&to, &from]).status();
    assert!(result.is_ok_and(|status| status.success()), "cc and libc6-dev are installed");
    fs_err::read(to).expect("cc has just written it")
}

/// The repository and tag in `name`, which begins with a registry.
fn without_host(name: &str) -> &str {
    name.split_once('/').map_or(name, |(_, rest)| rest)
}

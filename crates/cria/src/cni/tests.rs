//! The client with Debian's real plugins in network namespaces of the test's own, and with
//! scripts that fail in every way a plugin can. A namespace and all in it vanish with the threads
//! that are in it.

use std::fs::Permissions;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc;
use std::time::Instant;

use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use super::*;
use crate::orphans::end_orphans;
use crate::sandbox::config::{PortMapping, SandboxConfig};

const REAL_PLUGINS: &str = "/usr/lib/cni";

/// A directory for configurations, scripts and leases.
struct Node {
    dir: TempDir,
    mark: String,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mark = format!("test-{}/", SandboxId::random().unwrap());
        Self { dir, mark }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A plugin: `$INPUT` is its standard input, `$DIR` is the test's directory.
    fn script(&self, name: &str, body: &str) {
        let dir = self.dir.path().display();
        let text = format!("#!/bin/sh\nDIR={dir}\nINPUT=$(cat)\n{body}\n");
        let draft = self.path(&format!("{name}.draft"));
        fs_err::write(&draft, text).unwrap();
        fs_err::set_permissions(&draft, Permissions::from_mode(0o755)).unwrap();
        // Copied by another process: a child that another test forks just now would hold our
        // descriptor, and a file that is open for writing cannot be run.
        let copied = std::process::Command::new("cp").arg(&draft).arg(self.path(name)).status();
        assert!(copied.unwrap().success());
    }

    fn configure(&self, text: &Value) {
        fs_err::write(self.path("10-test.conflist"), text.to_string()).unwrap();
    }

    fn scripted_chain(&self, version: &str, plugins: &[&str]) {
        let plugins: Vec<Value> = plugins.iter().map(|name| json!({"type": name})).collect();
        self.configure(&json!({"name": "pods", "cniVersion": version, "plugins": plugins}));
    }

    fn cni(&self, deadline: Duration) -> Arc<Cni> {
        Cni::new(self.settings(deadline), self.mark.clone())
    }

    fn settings(&self, deadline: Duration) -> CniSettings {
        CniSettings {
            conf_dir: self.dir.path().into(),
            bin_dirs: vec![self.dir.path().into(), REAL_PLUGINS.into()],
            deadline,
        }
    }

    fn log(&self) -> Vec<String> {
        let text = fs_err::read_to_string(self.path("log")).unwrap_or_default();
        text.lines().map(ToOwned::to_owned).collect()
    }
}

const LONG: Duration = Duration::from_secs(60);

fn pod(ports: Vec<PortMapping>) -> SandboxConfig {
    let annotations = [("kubernetes.io/ingress-bandwidth".to_owned(), "10M".to_owned())];
    SandboxConfig {
        name: "web".into(),
        namespace: "shop".into(),
        port_mappings: ports,
        annotations: annotations.into(),
        ..Default::default()
    }
}

async fn attachment(cni: &Cni, netns: &Path, config: &SandboxConfig) -> Attachment {
    let network = cni.network().await.unwrap();
    Attachment::new(network, SandboxId::random().unwrap(), netns.into(), config).unwrap()
}

/// The chain of messages of the error.
fn message(error: &CniError) -> String {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |e| e.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Runs `test` on a thread in a network namespace of its own: the "host" of what it starts.
fn in_own_network<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A network namespace that lives as long as this value.
struct Netns {
    path: PathBuf,
    thread: Option<(mpsc::Sender<()>, std::thread::JoinHandle<()>)>,
}

impl Netns {
    fn new() -> Self {
        let (send_path, path) = mpsc::channel();
        let (stay, end) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let (process, thread) = (std::process::id(), nix::unistd::gettid());
            send_path.send(format!("/proc/{process}/task/{thread}/ns/net")).unwrap();
            // Ends with the sender.
            let _ = end.recv();
        });
        Self { path: path.recv().unwrap().into(), thread: Some((stay, thread)) }
    }

    /// What `ip` says inside.
    fn ip(&self, arguments: &[&str]) -> String {
        let netns = format!("--net={}", self.path.display());
        let output = std::process::Command::new("nsenter")
            .arg(netns)
            .arg("ip")
            .args(arguments)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Some((stay, thread)) = self.thread.take() {
            drop(stay);
            thread.join().unwrap();
        }
    }
}

/// Waits for the end of a process that nobody may have reaped.
fn assert_ends(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let Ok(process) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else {
        return;
    };
    let mut fds = [nix::poll::PollFd::new(process.as_fd(), nix::poll::PollFlags::POLLIN)];
    assert_eq!(nix::poll::poll(&mut fds, 10_000_u16).unwrap(), 1, "{pid:?} lives on");
}

/// What a program says in the test's own network namespace.
fn run(command: &[&str]) -> String {
    let output = std::process::Command::new(command[0]).args(&command[1..]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn host_links() -> String {
    run(&["ip", "-br", "link"])
}

fn nat_rules() -> String {
    run(&["iptables-save", "-t", "nat"])
}

fn leases(node: &Node) -> usize {
    let dir = fs_err::read_dir(node.path("leases/pods")).unwrap();
    dir.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("10."))
        .count()
}

fn real_chain(node: &Node) -> Value {
    json!({"name": "pods", "cniVersion": "1.0.0", "plugins": [
        {"type": "bridge", "bridge": "pods0", "isGateway": true, "ipMasq": true, "ipam": {
            "type": "host-local", "dataDir": node.path("leases"),
            "ranges": [[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd99::/64"}]]}},
        {"type": "portmap", "capabilities": {"portMappings": true}},
        {"type": "bandwidth", "capabilities": {"bandwidth": true}}
    ]})
}

#[test]
fn the_real_plugins_attach_a_pod_and_leave_nothing_after_it() {
    in_own_network(|| async {
        let node = Node::new();
        node.configure(&real_chain(&node));
        let cni = node.cni(LONG);
        cni.readiness().await.unwrap();
        let netns = Netns::new();
        let ports = vec![PortMapping { container_port: 80, host_port: 8080, ..Default::default() }];
        let attachment = attachment(&cni, &netns.path, &pod(ports)).await;

        let added = cni.add(&attachment).await.unwrap();
        let ips: Vec<String> = added.ips.iter().map(ToString::to_string).collect();
        assert_eq!(ips, ["10.99.0.2", "fd99::2"]);
        assert!(netns.ip(&["-4", "addr", "show", "eth0"]).contains("10.99.0.2/24"));
        assert!(nat_rules().contains("--to-destination 10.99.0.2:80"), "{}", nat_rules());
        assert!(run(&["tc", "qdisc", "show"]).contains("rate 10Mbit"));
        assert_eq!(leases(&node), 1);

        // The file may be gone by then, and DEL comes more than once.
        fs_err::remove_file(node.path("10-test.conflist")).unwrap();
        let record = serde_json::to_string(&(&attachment, &added.result)).unwrap();
        let (attachment, result): (Attachment, AddResult) = serde_json::from_str(&record).unwrap();
        for _ in 0..2 {
            cni.del(&attachment, Some(&result)).await.unwrap();
            assert_eq!(leases(&node), 0);
            assert_eq!(netns.ip(&["addr", "show", "eth0"]), "");
            assert!(!nat_rules().contains("10.99.0.2:80"), "{}", nat_rules());
            assert!(!host_links().contains("veth"), "{}", host_links());
            assert!(!run(&["tc", "qdisc", "show"]).contains("rate 10Mbit"));
        }
    });
}

#[test]
fn a_pod_whose_namespace_is_gone_is_detached_all_the_same() {
    in_own_network(|| async {
        let node = Node::new();
        node.configure(&real_chain(&node));
        let cni = node.cni(LONG);
        let netns = Netns::new();
        let attachment = attachment(&cni, &netns.path, &pod(vec![])).await;
        let added = cni.add(&attachment).await.unwrap();
        assert_eq!(leases(&node), 1);
        drop(netns);

        cni.del(&attachment, Some(&added.result)).await.unwrap();
        assert_eq!(leases(&node), 0);
    });
}

#[test]
fn an_add_that_failed_half_way_is_undone_by_del_without_a_result() {
    in_own_network(|| async {
        let node = Node::new();
        let mut chain = real_chain(&node);
        chain["plugins"][1] = json!({"type": "refusing"});
        node.configure(&chain);
        node.script("refusing", r#"test $CNI_COMMAND = DEL || { echo '{"code": 7}'; exit 1; }"#);
        let cni = node.cni(LONG);
        let netns = Netns::new();
        let attachment = attachment(&cni, &netns.path, &pod(vec![])).await;

        let error = cni.add(&attachment).await.unwrap_err();
        assert!(message(&error).contains("code 7"), "{}", message(&error));
        assert_eq!(leases(&node), 1);
        cni.del(&attachment, None).await.unwrap();
        assert_eq!(leases(&node), 0);
        assert_eq!(netns.ip(&["addr", "show", "eth0"]), "");
    });
}

/// What a script answers that says which IP the pod has, and writes down how it was called.
const WORKING: &str = r#"
    echo "$CNI_COMMAND ${0##*/} [$CNI_NETNS] $(echo "$INPUT" | jq -c .prevResult.seen)" >>$DIR/log
    env | cut -d= -f1 | sort >$DIR/env
    ls -l /proc/self/fd >$DIR/fds
    test $CNI_COMMAND = ADD || exit 0
    echo "$INPUT" | jq -c "{ips: [{address: \"10.0.0.7/24\"}], seen: (.prevResult.seen + [\"${0##*/}\"])}""#;

#[tokio::test]
async fn the_chain_runs_forwards_for_add_and_backwards_for_del() {
    let node = Node::new();
    node.script("one", WORKING);
    node.script("two", WORKING);
    for (version, del_sees) in [("1.0.0", r#"["one","two"]"#), ("0.3.1", "null")] {
        node.scripted_chain(version, &["one", "two"]);
        let cni = node.cni(LONG);
        let attachment = attachment(&cni, Path::new("/absent"), &pod(vec![])).await;
        let added = cni.add(&attachment).await.unwrap();
        assert_eq!(added.ips, ["10.0.0.7".parse::<IpAddr>().unwrap()]);
        cni.del(&attachment, Some(&added.result)).await.unwrap();
        let expected = [
            "ADD one [/absent] null".to_owned(),
            r#"ADD two [/absent] ["one"]"#.to_owned(),
            format!("DEL two [] {del_sees}"),
            format!("DEL one [] {del_sees}"),
        ];
        assert_eq!(node.log(), expected, "{version}");
        fs_err::remove_file(node.path("log")).unwrap();
    }
}

#[tokio::test]
async fn a_plugin_inherits_neither_environment_nor_descriptors() {
    let node = Node::new();
    node.script("one", WORKING);
    node.scripted_chain("1.0.0", &["one"]);
    let cni = node.cni(LONG);
    let attachment = attachment(&cni, Path::new("/absent"), &pod(vec![])).await;
    let leaked = fs_err::File::open("/etc/hostname").unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();

    cni.add(&attachment).await.unwrap();
    let environment = fs_err::read_to_string(node.path("env")).unwrap();
    for name in environment.lines() {
        // PWD is the shell's own.
        let told = name.starts_with("CNI_") || ["CRIA_OPERATION", "PATH", "PWD"].contains(&name);
        assert!(told, "{name}");
    }
    let descriptors = fs_err::read_to_string(node.path("fds")).unwrap();
    assert!(!descriptors.contains("/etc/hostname"), "{descriptors}");
}

#[tokio::test]
async fn every_failure_says_which_plugin_of_which_network_and_why() {
    let node = Node::new();
    for (name, body) in [
        ("coded", r#"echo '{"code": 11, "msg": "try later", "details": "no room"}'; exit 1"#),
        ("silent", "exit 3"),
        ("talking", "echo out; echo went wrong >&2; exit 1"),
        ("killed", "kill -9 $$"),
        ("garbled", "echo not json"),
        ("mute", "exit 0"),
        ("listing", "echo '[]'"),
        ("homeless", "echo '{\"ips\": []}'"),
        ("loud", "head -c 2000000 /dev/zero"),
        ("loud-and-failing", "head -c 2000000 /dev/zero >&2; exit 1"),
    ] {
        node.script(name, body);
    }
    fs_err::write(node.path("unrunnable"), "").unwrap();
    fs_err::write(node.path("unstartable"), "#!/absent\n").unwrap();
    fs_err::set_permissions(node.path("unstartable"), Permissions::from_mode(0o755)).unwrap();
    let missing = format!("it is in none of {}, {REAL_PLUGINS}", node.dir.path().display());
    for (plugin, reason) in [
        ("coded", "try later (code 11): no room"),
        ("silent", "exit status: 3"),
        ("talking", "went wrong"),
        ("killed", "signal: 9"),
        ("garbled", "not json"),
        ("mute", "its answer cannot be read"),
        ("listing", "its answer cannot be read"),
        ("homeless", "no address"),
        ("loud", "longer than"),
        ("loud-and-failing", "exit status: 1"),
        ("unrunnable", &missing),
        ("absent", &missing),
        ("unstartable", "it cannot be run"),
    ] {
        node.scripted_chain("1.0.0", &[plugin]);
        let cni = node.cni(LONG);
        let attachment = attachment(&cni, Path::new("/absent"), &pod(vec![])).await;
        let message = message(&cni.add(&attachment).await.unwrap_err());
        let start = format!("CNI ADD in network pods: plugin {plugin}: ");
        assert!(message.starts_with(&start) && message.contains(reason), "{message}");
        assert!(message.len() < 1200, "{plugin}: {}", message.len());
    }
}

#[tokio::test]
async fn a_plugin_that_hangs_is_killed_with_its_children() {
    let node = Node::new();
    node.script("hanging", "sleep 600 & echo $! >$DIR/child; wait");
    node.scripted_chain("1.0.0", &["hanging"]);
    let cni = node.cni(Duration::from_secs(3));
    let attachment = attachment(&cni, Path::new("/absent"), &pod(vec![])).await;
    let message = message(&cni.add(&attachment).await.unwrap_err());
    assert!(message.contains("plugin hanging: it did not finish within 3s"), "{message}");
    let child = fs_err::read_to_string(node.path("child")).unwrap();
    assert_ends(child.trim().parse().unwrap());
}

#[tokio::test]
async fn what_a_plugin_leaves_running_does_not_hold_up_its_answer() {
    let node = Node::new();
    node.script("leaving", "sleep 600 & echo '{\"ips\": [{\"address\": \"10.0.0.8/24\"}]}'");
    node.scripted_chain("1.0.0", &["leaving"]);
    let cni = node.cni(LONG);
    let attachment = attachment(&cni, Path::new("/absent"), &pod(vec![])).await;
    let start = Instant::now();
    let added = cni.add(&attachment).await.unwrap();
    assert_eq!(added.ips, ["10.0.0.8".parse::<IpAddr>().unwrap()]);
    assert!(start.elapsed() < LONG / 2);
    // It carries the mark, and a daemon that starts would find it.
    let mark = mark(&node.mark, Command::Add) + attachment.sandbox.as_str();
    let left = tokio::task::spawn_blocking(move || end_orphans(&mark, LONG)).await.unwrap();
    assert_eq!(left.unwrap(), 1);
}

#[tokio::test]
async fn a_delete_under_way_outlives_its_daemon_and_the_next_one_waits_for_it() {
    let node = Node::new();
    node.script(
        "slow",
        "echo begins >> $DIR/log; until [ -e $DIR/go ]; do sleep 0.01; done; echo ends >> $DIR/log",
    );
    node.scripted_chain("1.0.0", &["slow"]);
    let (former, next) = (node.cni(LONG), node.cni(LONG));
    let attachment = attachment(&former, Path::new("/absent"), &pod(vec![])).await;
    let first = {
        let attachment = attachment.clone();
        tokio::spawn(async move { former.del(&attachment, None).await })
    };
    while node.log() != ["begins"] {
        tokio::task::yield_now().await;
    }
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());

    let taking_over = Arc::clone(&next);
    let found = tokio::task::spawn_blocking(move || taking_over.take_over(LONG)).await.unwrap();
    assert!(found.unwrap() >= 1);
    fs_err::write(node.path("go"), "").unwrap();
    next.del(&attachment, None).await.unwrap();
    assert_eq!(node.log(), ["begins", "ends", "begins", "ends"]);
}

#[tokio::test]
async fn a_directory_without_a_network_says_what_is_wrong_with_its_files() {
    let node = Node::new();
    let cni = node.cni(LONG);
    let error = message(&cni.readiness().await.unwrap_err());
    assert!(error.ends_with(&node.dir.path().display().to_string()), "{error}");
    fs_err::write(node.path("5-bad.conf"), "{").unwrap();
    let error = message(&cni.readiness().await.unwrap_err());
    assert!(error.contains("5-bad.conf: EOF"), "{error}");
    node.scripted_chain("1.0.0", &["late"]);
    let error = message(&cni.readiness().await.unwrap_err());
    assert!(error.contains("plugin late: it is in none of"), "{error}");
    node.script("late", WORKING);
    cni.readiness().await.unwrap();
    assert_eq!(node.log(), Vec::<String>::new(), "no STATUS before 1.1");
}

#[tokio::test]
async fn status_of_a_network_is_asked_once_for_many_questions() {
    let node = Node::new();
    node.script("one", r#"echo $CNI_COMMAND >>$DIR/log; test ! -e $DIR/bad || { echo '{"code": 50, "msg": "no plane"}'; exit 1; }"#);
    node.scripted_chain("1.1.0", &["one"]);
    let cni = node.cni(LONG);
    for _ in 0..3 {
        cni.readiness().await.unwrap();
    }
    assert_eq!(node.log(), ["STATUS"]);

    fs_err::write(node.path("bad"), "").unwrap();
    let error = message(&node.cni(LONG).readiness().await.unwrap_err());
    assert_eq!(error, "CNI STATUS in network pods: plugin one: no plane (code 50)");
}

#[tokio::test]
async fn gc_tells_every_plugin_what_is_valid_if_they_speak_1_1() {
    let node = Node::new();
    let gc = r#"echo "$CNI_COMMAND ${0##*/} $(echo "$INPUT" | jq -c '."cni.dev/valid-attachments"')" >>$DIR/log; exit 1"#;
    node.script("one", gc);
    node.script("two", gc);
    node.scripted_chain("1.0.0", &["one", "two"]);
    let cni = node.cni(LONG);
    cni.gc(&cni.network().await.unwrap(), []).await.unwrap();
    assert_eq!(node.log(), Vec::<String>::new());

    node.scripted_chain("1.1.0", &["one", "two"]);
    let valid = attachment(&cni, Path::new("/absent"), &pod(vec![])).await;
    let error = cni.gc(&valid.network, [&valid.sandbox]).await.unwrap_err();
    assert!(message(&error).contains("CNI GC in network pods: plugin one"), "{}", message(&error));
    let told = format!(r#"[{{"containerID":"{}","ifname":"eth0"}}]"#, valid.sandbox);
    assert_eq!(node.log(), [format!("GC one {told}"), format!("GC two {told}")]);
}

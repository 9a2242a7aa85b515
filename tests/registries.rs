//! What the node knows of its registries, and what a pull shows them: credentials, certificates, names;
//! and a pull whose caller goes away.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use cria_proto::*;
use harness::blocking::runtime;
use harness::certificate::Certificate;
use harness::cri::image_spec;
use harness::daemon::Daemon;
use harness::registry::{ALICE, Pushed};
use harness::scene::{SOON, push_busybox, refused};
use harness::wait::until;
use harness::{Compression, Image, Layer, Node, Registry};
use tempfile::TempDir;
use tonic::Code;

fn pull(node: &Node, image: &str, auth: Option<AuthConfig>) -> Result<String, tonic::Status> {
    let request = PullImageRequest { image: Some(image_spec(image)), auth, ..Default::default() };
    node.cri().pull_image(request).map(|answer| answer.image_ref)
}

fn folder() -> TempDir {
    TempDir::new().expect("the temporary folder is writable")
}

/// A registry that lets nobody in, tells everybody where tokens are, and hears it all.
struct Doorman {
    address: String,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Doorman {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (book, realm) = (Arc::clone(&heard), format!("http://{address}/token"));
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                // What is no HTTP, such as TLS, is hung up on.
                if let Ok(request) = request(&connection) {
                    book.lock().expect("no test panics in here").push(request);
                    drop(refuse(&connection, &realm));
                }
            }
        });
        Self { address, heard }
    }
}

fn request(mut connection: &TcpStream) -> io::Result<String> {
    let mut text = Vec::new();
    let mut read = |count: usize| {
        let from = text.len();
        text.resize(from + count, 0);
        connection.read_exact(&mut text[from..])?;
        if text.starts_with(&[0x16]) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    let head = loop {
        let head: String = read(1)?;
        if head.ends_with("\r\n\r\n") {
            break head;
        }
    };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    read(length.and_then(|length| length.parse().ok()).unwrap_or(0))
}

fn refuse(mut connection: &TcpStream, realm: &str) -> io::Result<()> {
    write!(
        connection,
        "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"{realm}\",service=\"s\"\r\n\
         Content-Length: 0\r\nConnection: close\r\n\r\n"
    )
}

#[test]
fn every_field_of_a_callers_credentials_reaches_the_registry() {
    let doorman = Doorman::start();
    let rule = format!("[[registry]]\nlocation = \"{}\"\ninsecure = true\n", doorman.address);
    let node = Node::setup().registries(&rule).start();
    let none = AuthConfig::default;
    for (auth, expected) in [
        (AuthConfig { username: "u".to_owned(), password: "p".to_owned(), ..none() }, "Basic dTpw"),
        (AuthConfig { auth: "YWxpY2U6dw==".to_owned(), ..none() }, "Basic YWxpY2U6dw=="),
        (AuthConfig { identity_token: "identity-1".to_owned(), ..none() }, "=identity-1"),
        (AuthConfig { registry_token: "registry-1".to_owned(), ..none() }, "Bearer registry-1"),
    ] {
        let image = format!("{}/private:1", doorman.address);
        refused(pull(&node, &image, Some(auth)), Code::PermissionDenied);
        let heard = std::mem::take(&mut *doorman.heard.lock().expect("no test panics in here"));
        assert!(heard.iter().any(|request| request.contains(expected)), "{expected}: {heard:#?}");
    }
    let log = node.log();
    for secret in ["dTpw", "YWxpY2U6dw", "identity-1", "registry-1"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

#[test]
fn the_auth_file_of_the_configuration_opens_what_it_has_an_entry_for_once_it_is_there() {
    let registry = Registry::start_private();
    let image = push_busybox(&registry, "private:1");
    let folder = folder();
    let file = folder.path().join("kubelet/auth.json");
    let (username, password) = ALICE;
    let entry = serde_json::json!({"username": username, "password": password});
    let auths = serde_json::json!({"auths": {registry.address(): entry}});
    let config = format!("[images]\nauth-file = \"{}\"\n", file.display());
    let node = Node::setup().registry(&registry).config(&config).start();
    refused(pull(&node, &image.reference, None), Code::PermissionDenied);
    fs_err::create_dir(folder.path().join("kubelet")).expect("own folder");
    fs_err::write(&file, auths.to_string()).expect("own folder");
    until("the file counts when it has come", SOON, || pull(&node, &image.reference, None).ok());
    assert_eq!(pull(&node, &image.reference, None).expect("by the file"), image.id);
    let wrong = AuthConfig { username: "alice".to_owned(), ..Default::default() };
    refused(pull(&node, &image.reference, Some(wrong)), Code::PermissionDenied);
}

#[test]
fn names_without_a_registry_are_refused_where_the_configuration_says_so() {
    let registry = Registry::start();
    push_busybox(&registry, "library/short:1");
    let config = "[images]\nrefuse-unqualified = true\n";
    let node = Node::setup().mapped("docker.io", &registry).config(config).start();
    let message = refused(pull(&node, "short:1", None), Code::InvalidArgument);
    assert!(message.contains("names no registry"), "{message}");
    pull(&node, "docker.io/library/short:1", None).expect("it names one");
}

/// An image in a registry that is reached by TLS alone. It ends with this.
struct OverTls {
    address: String,
    image: Pushed,
    certificate: Certificate,
    folder: TempDir,
    _daemons: (Daemon, Registry),
}

impl OverTls {
    fn start() -> Self {
        let registry = Registry::start();
        let image = push_busybox(&registry, "app:1");
        let folder = folder();
        let certificate = Certificate::make(folder.path(), "registry");
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.expect("there is a free port").to_string();
        let file = folder.path().join("config.yml");
        let config = serde_json::json!({
            "version": "0.1",
            "storage": {"filesystem": {"rootdirectory": registry.storage()}},
            "http": {"addr": address, "tls": {
                "certificate": certificate.certificate, "key": certificate.key,
            }},
        });
        // JSON is YAML.
        fs_err::write(&file, config.to_string()).expect("own folder");
        let mut daemon = Daemon::new("docker-registry", folder.path().join("log"));
        daemon.start(Command::new("docker-registry").arg("serve").arg(&file));
        daemon.await_ready(SOON, || TcpStream::connect(&address).ok());
        Self { address, image, certificate, folder, _daemons: (daemon, registry) }
    }

    fn name(&self) -> String {
        format!("{}/app:1", self.address)
    }
}

#[test]
fn certificates_count_when_they_come_and_a_mistake_leaves_those_that_stand() {
    let registry = OverTls::start();
    let name = registry.name();
    // Neither is there yet, nor what it is in.
    let certs = registry.folder.path().join("containers/certs.d");
    let config = format!("[images]\ncerts-dirs = [\"{}\"]\n", certs.display());
    let node = Node::setup().config(&config).start();
    refused(pull(&node, &name, None), Code::Unknown);

    fs_err::create_dir_all(certs.join(&registry.address)).expect("own folder");
    fs_err::copy(&registry.certificate.certificate, certs.join(&registry.address).join("ca.crt"))
        .expect("own");
    let pulled = until("the certificate counts", SOON, || pull(&node, &name, None).ok());
    assert_eq!(pulled, registry.image.id);

    fs_err::create_dir(certs.join("broken.example")).expect("own folder");
    fs_err::write(certs.join("broken.example/ca.crt"), "no certificate").expect("own folder");
    until("the mistake is logged", SOON, || {
        node.log().contains("broken.example/ca.crt:1").then_some(())
    });
    pull(&node, &name, None).expect("by the certificate that stands");
}

#[test]
fn authorities_that_the_system_trusts_are_trusted() {
    let registry = OverTls::start();
    let name = registry.name();
    refused(pull(&Node::setup().start(), &name, None), Code::Unknown);
    // Where the system keeps them is a variable to all who read them by OpenSSL's rules.
    let node = Node::setup().variable("SSL_CERT_FILE", &registry.certificate.certificate).start();
    assert_eq!(pull(&node, &name, None).expect("the system trusts it"), registry.image.id);
}

/// A proxy: what it was asked to connect to.
fn proxy() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    let address = listener.local_addr().expect("it is bound").to_string();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let book = Arc::clone(&asked);
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let book = Arc::clone(&book);
            thread::spawn(move || drop(tunnel(&client, &book)));
        }
    });
    (address, asked)
}

fn tunnel(mut client: &TcpStream, book: &Mutex<Vec<String>>) -> io::Result<()> {
    let head = request(client)?;
    let place = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next());
    let place = place.ok_or(io::ErrorKind::InvalidData)?.to_owned();
    let server = TcpStream::connect(&place)?;
    book.lock().expect("no test panics in here").push(place);
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
    let (mut asks, mut asked) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || drop(io::copy(&mut asks, &mut asked)));
    io::copy(&mut &server, &mut client).map(drop)
}

#[test]
fn registries_behind_a_proxy_are_reached_through_it_but_those_that_need_none() {
    let registry = OverTls::start();
    let (proxy, asked) = proxy();
    let setup = || {
        Node::setup()
            .variable("SSL_CERT_FILE", &registry.certificate.certificate)
            .variable("HTTPS_PROXY", format!("http://{proxy}"))
    };
    for (node, through) in
        [(setup().start(), true), (setup().variable("NO_PROXY", "127.0.0.1").start(), false)]
    {
        let pulled = pull(&node, &registry.name(), None).expect("it is reached");
        assert_eq!(pulled, registry.image.id);
        let asked = std::mem::take(&mut *asked.lock().expect("no test panics in here"));
        assert_eq!(!asked.is_empty(), through, "{asked:?}");
        assert!(asked.iter().all(|place| *place == registry.address), "{asked:?}");
    }
}

/// Passes on what is said to a registry, and of its answers on one connection no more than some bytes.
struct Gate {
    address: String,
    counts: Arc<Counts>,
}

struct Counts {
    /// How many bytes of an answer pass.
    most: AtomicU64,
    /// Connections whose answer is held back.
    held: AtomicUsize,
    /// Of them, those that the client has given up.
    given_up: AtomicUsize,
}

impl Gate {
    fn before(registry: &Registry, most: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let counts = Counts { most: most.into(), held: 0.into(), given_up: 0.into() };
        let counts = Arc::new(counts);
        let (registry, kept) = (registry.address().to_owned(), Arc::clone(&counts));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = TcpStream::connect(&registry).expect("the registry runs");
                let counts = Arc::clone(&kept);
                thread::spawn(move || drop(pass(&client, &server, &counts)));
            }
        });
        Self { address, counts }
    }
}

fn pass(mut client: &TcpStream, mut server: &TcpStream, counts: &Counts) -> io::Result<()> {
    let (mut asks, mut asked) = (client.try_clone()?, server.try_clone()?);
    let asking = thread::spawn(move || io::copy(&mut asks, &mut asked));
    let most = counts.most.load(Ordering::SeqCst);
    if io::copy(&mut (&mut server).take(most), &mut client)? == most {
        counts.held.fetch_add(1, Ordering::SeqCst);
        // The client says nothing more until it hangs up.
        drop(asking.join());
        counts.given_up.fetch_add(1, Ordering::SeqCst);
    }
    Ok(())
}

#[test]
fn a_pull_whose_only_caller_goes_away_stops_and_no_image_appears() {
    let registry = Registry::start();
    let noise: Vec<u8> = (0..1_u32 << 20).flat_map(|n| n.wrapping_mul(n).to_le_bytes()).collect();
    let layer = Layer::new().file("noise", 0o644, noise);
    let image =
        registry.push("large:1", &Image::new().compression(Compression::Plain).layer(layer));
    let gate = Gate::before(&registry, 1 << 20);
    let rule = format!("[[registry]]\nlocation = \"{}\"\ninsecure = true\n", gate.address);
    let node = Node::setup().registries(&rule).start();
    let name = format!("{}/large:1", gate.address);
    let request = PullImageRequest { image: Some(image_spec(&name)), ..Default::default() };
    let mut images = node.cri().image_service();
    let call = runtime().spawn(async move { images.pull_image(request).await });
    let count = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
    until("the layer is under way", SOON, || (count(&gate.counts.held) == 1).then_some(()));
    // As a client does that is killed, or whose deadline is over: the call is reset.
    call.abort();
    until("the download is given up", SOON, || (count(&gate.counts.given_up) == 1).then_some(()));
    let incoming = node.root().join("incoming");
    until("nothing is left of it", SOON, || {
        fs_err::read_dir(&incoming).expect("it is there").next().is_none().then_some(())
    });
    assert_eq!(fs_err::read_dir(node.root().join("layers")).expect("it is there").count(), 0);
    let listed = node.cri().list_images(ListImagesRequest::default()).expect("it is answered");
    assert_eq!(listed.images, []);

    gate.counts.most.store(u64::MAX, Ordering::SeqCst);
    assert_eq!(pull(&node, &name, None).expect("the gate is open"), image.id);
}

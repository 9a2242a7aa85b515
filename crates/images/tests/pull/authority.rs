//! Certificates, and a token server that signs with one: what a registry with real trust needs.
//! Made by the `openssl` command, as an administrator would.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// An authority of one test, and whom it vouches for.
pub(crate) struct Authority {
    directory: tempfile::TempDir,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let authority = Self { directory: tempfile::tempdir().unwrap() };
        authority.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=test-ca",
            "-keyout",
            "ca.key",
            "-out",
            "ca.crt",
        ]);
        authority
    }

    /// Makes `NAME.key` and `NAME.crt`, for a server on loopback or a client.
    pub(crate) fn issue(&self, name: &str) {
        let (key, request) = (format!("{name}.key"), format!("{name}.csr"));
        let subject = format!("/CN={name}");
        self.openssl(&[
            "req", "-newkey", "rsa:2048", "-nodes", "-subj", &subject, "-keyout", &key, "-out",
            &request,
        ]);
        fs_err::write(self.path("names"), "subjectAltName=IP:127.0.0.1").unwrap();
        let certificate = format!("{name}.crt");
        self.openssl(&[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            "names",
            "-out",
            &certificate,
        ]);
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// TLS for a server with the certificate `name`, which would like its clients to show theirs.
    pub(crate) fn tls(&self, name: &str) -> TlsAcceptor {
        crate::support::install_crypto();
        let certificate =
            |name: &str| CertificateDer::from_pem_file(self.path(&format!("{name}.crt"))).unwrap();
        let key = PrivateKeyDer::from_pem_file(self.path(&format!("{name}.key"))).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate("ca")).unwrap();
        let clients = WebPkiClientVerifier::builder(Arc::new(roots)).allow_unauthenticated();
        let config = ServerConfig::builder()
            .with_client_cert_verifier(clients.build().unwrap())
            .with_single_cert(vec![certificate(name)], key)
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }

    fn openssl(&self, arguments: &[&str]) -> Vec<u8> {
        let mut command = Command::new("openssl");
        command.args(arguments).current_dir(self.directory.path()).stdin(Stdio::null());
        let output = command.output().expect("openssl is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// A token that a registry with this authority's root takes.
    pub(crate) fn token(&self, scope: &str, service: &str) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let certificate = self.openssl(&["x509", "-in", "ca.crt", "-outform", "DER"]);
        let header = json!({"typ": "JWT", "alg": "RS256", "x5c": [STANDARD.encode(certificate)]});
        let [kind, name, actions] = scope.split(':').collect::<Vec<_>>()[..] else {
            panic!("scope {scope}")
        };
        let actions: Vec<_> = actions.split(',').collect();
        let claims = json!({
            "iss": "test", "sub": "", "aud": service, "exp": now + 300, "nbf": now - 10,
            "iat": now, "jti": "1",
            "access": [{"type": kind, "name": name, "actions": actions}],
        });
        let part = |json: &serde_json::Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let signed = format!("{}.{}", part(&header), part(&claims));
        fs_err::write(self.path("signed"), &signed).unwrap();
        let signature = self.openssl(&["dgst", "-sha256", "-sign", "ca.key", "signed"]);
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// Sells tokens for a registry: to `user` with `secret`, and for the identity token `identity`.
pub(crate) struct TokenServer {
    pub(crate) host: String,
    sold: Arc<Mutex<Vec<String>>>,
    server: JoinHandle<()>,
}

impl Drop for TokenServer {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl TokenServer {
    pub(crate) async fn start(authority: Arc<Authority>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let sold = Arc::new(Mutex::new(Vec::new()));
        let book = Arc::clone(&sold);
        let server = tokio::spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                let (authority, book) = (Arc::clone(&authority), Arc::clone(&book));
                tokio::spawn(async move { drop(sell(connection, &authority, &book).await) });
            }
        });
        Self { host, sold, server }
    }

    /// The methods of the requests that were answered with a token.
    pub(crate) fn sold(&self) -> Vec<String> {
        self.sold.lock().unwrap().clone()
    }
}

async fn sell(
    mut connection: TcpStream,
    authority: &Authority,
    book: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(connection.read_u8().await?);
    }
    let head = String::from_utf8(bytes).unwrap();
    let length = head.lines().find_map(|line| {
        let (key, value) = line.split_once(": ")?;
        key.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>().unwrap())
    });
    let mut body = vec![0; length.unwrap_or(0)];
    connection.read_exact(&mut body).await?;
    let (method, rest) = head.split_once(' ').unwrap();
    let query = match method {
        "POST" => String::from_utf8(body).unwrap(),
        _ => rest.split([' ', '?']).nth(1).unwrap().to_owned(),
    };
    let value = |name: &str| {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let found = pairs.filter(|(key, _)| *key == name).map(|(_, value)| value).next();
        found.unwrap_or_default().replace("%3A", ":").replace("%2F", "/").replace("%2C", ",")
    };
    let basic = format!("Basic {}", STANDARD.encode("user:secret"));
    let may = match method {
        "POST" => value("grant_type") == "refresh_token" && value("refresh_token") == "identity",
        _ => head.contains(&basic),
    };
    let answer = if may {
        book.lock().unwrap().push(method.to_owned());
        let token = authority.token(&value("scope"), &value("service"));
        let body = json!({"access_token": token, "expires_in": 300}).to_string();
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    } else {
        "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n".to_owned()
    };
    connection.write_all(answer.as_bytes()).await?;
    connection.shutdown().await
}

/// A folder of certificates as administrators keep them.
pub(crate) fn certs_d(root: &Path, host: &str, files: &[(&Path, &str)]) -> PathBuf {
    let folder = root.join("certs.d").join(host);
    fs_err::create_dir_all(&folder).unwrap();
    for (from, name) in files {
        fs_err::copy(from, folder.join(name)).unwrap();
    }
    root.join("certs.d")
}

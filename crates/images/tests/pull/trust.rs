//! Whom a pull trusts, what it shows of itself, and to whom.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cria_images::{AuthFields, Certificates, Credentials, Error, NodeCredentials, Trust};
use serde_json::json;

use crate::authority::{Authority, TokenServer, certs_d};
use crate::scripted::{Fault, Scripted};
use crate::support::{Registry, TestImage, TestStore, registries, tar_of};

fn image() -> TestImage {
    TestImage::of(&[tar_of(&[("a", b"a")])])
}

fn user(password: &str) -> Credentials {
    Credentials::Basic { username: "user".to_owned(), password: password.to_owned() }
}

fn identity(token: &str) -> Credentials {
    Credentials::from_fields(AuthFields { identity_token: token, ..Default::default() }).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_tls_is_trusted_by_certs_d_alone() {
    let authority = Authority::new();
    authority.issue("server");
    authority.issue("client");
    let plain = Registry::start().await;
    plain.push("app:1", &image()).await;
    let tls = json!({"http": {"tls": {
        "certificate": authority.path("server.crt"), "key": authority.path("server.key"),
        "clientcas": [authority.path("ca.crt")],
    }}});
    let registry = Registry::with(&tls, &plain.data()).await;
    let name = format!("{}/app:1", registry.host);
    let folder = tempfile::tempdir().unwrap();
    let (ca, client) = (authority.path("ca.crt"), authority.path("client.crt"));
    let key = authority.path("client.key");
    for (files, is_enough) in [
        (&[][..], false),
        (&[(&*ca, "ca.crt")], false),
        (&[(&*client, "client.cert"), (&*key, "client.key")], false),
        (&[(&*ca, "ca.crt"), (&*client, "client.cert"), (&*key, "client.key")], true),
    ] {
        let folder = tempfile::tempdir_in(folder.path()).unwrap();
        let certificates = certs_d(folder.path(), &registry.host, files);
        let test = TestStore::with(&[], "", |options| {
            let directories = ["/nowhere".into(), certificates];
            options.certificates = Certificates::load(&directories).unwrap();
        });
        let pulled = test.pull(&name).await;
        match is_enough {
            true => drop(pulled.unwrap()),
            false => {
                let error = pulled.unwrap_err();
                assert!(matches!(error, Error::RegistryUnavailable { .. }), "{error:?}");
            }
        }
    }
    let broken = certs_d(folder.path(), &registry.host, &[(&*key, "ca.crt")]);
    let error = Certificates::load(&[broken]).unwrap_err();
    assert!(matches!(&error, Error::Config { file, .. } if file.ends_with("ca.crt")), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_followed_with_what_certs_d_says_of_the_other_host() {
    let authority = Authority::new();
    authority.issue("server");
    authority.issue("client");
    let registry = Scripted::start_tls(authority.tls("server")).await;
    let elsewhere = Scripted::start_tls(authority.tls("server")).await;
    let image = image();
    let layer = image.layers[0].digest();
    registry.put("app:1", &image);
    elsewhere.put_at("/elsewhere".to_owned(), &image.layers[0]);
    registry.fail(layer, 99, Fault::Redirect(format!("https://{}/elsewhere", elsewhere.host)));
    let name = format!("{}/app:1", registry.host);

    let (ca, client) = (authority.path("ca.crt"), authority.path("client.crt"));
    let key = authority.path("client.key");
    let root = [(&*ca, "ca.crt")];
    let whole = [(&*ca, "ca.crt"), (&*client, "client.cert"), (&*key, "client.key")];
    for (there, expected) in [(&[][..], None), (&root, Some(false)), (&whole, Some(true))] {
        let folder = tempfile::tempdir().unwrap();
        let certificates = certs_d(folder.path(), &registry.host, &whole);
        certs_d(folder.path(), &elsewhere.host, there);
        let test = TestStore::with(&[], "", |options| {
            options.certificates = Certificates::load(&[certificates]).unwrap();
        });
        let pulled = test.pull(&name).await;
        assert_eq!(pulled.is_ok(), expected.is_some(), "{pulled:?}");
        assert!(registry.requests(layer).iter().all(|request| request.is_certified));
        let shown = elsewhere.requests("/elsewhere").last().map(|request| request.is_certified);
        assert_eq!(shown, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_redirect_leads_from_tls_to_plain_http_and_none_for_ever() {
    let authority = Authority::new();
    authority.issue("server");
    let registry = Scripted::start_tls(authority.tls("server")).await;
    let plain = Scripted::start().await;
    let image = image();
    let layer = image.layers[0].digest();
    registry.put("app:1", &image);
    plain.put_at("/elsewhere".to_owned(), &image.layers[0]);
    let folder = tempfile::tempdir().unwrap();
    let ca = authority.path("ca.crt");
    let certificates = certs_d(folder.path(), &registry.host, &[(&*ca, "ca.crt")]);
    let test = TestStore::with(&[], "", |options| {
        options.certificates = Certificates::load(&[certificates]).unwrap();
    });
    let name = format!("{}/app:1", registry.host);
    for (location, reason) in [
        (format!("http://{}/elsewhere", plain.host), "redirect from TLS to plain HTTP"),
        (format!("blobs/{layer}"), "too many redirects"),
    ] {
        registry.fail(layer, 99, Fault::Redirect(location));
        let error = test.pull(&name).await.unwrap_err();
        let Error::RegistryUnavailable { source, .. } = &error else { panic!("{error:?}") };
        assert_eq!(source.to_string(), reason);
        registry.heal();
    }
    assert!(plain.requests("/elsewhere").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insecure_registry_may_show_any_certificate_and_is_still_spoken_to_by_tls() {
    let authority = Authority::new();
    authority.issue("server");
    let registry = Scripted::start_tls(authority.tls("server")).await;
    registry.put("app:1", &image());
    let name = format!("{}/app:1", registry.host);
    let error = TestStore::new(&[]).pull(&name).await.unwrap_err();
    assert!(matches!(error, Error::RegistryUnavailable { .. }), "{error:?}");
    assert!(registry.requests("").is_empty());
    TestStore::new(&[&registry.host]).pull(&name).await.unwrap();
}

/// Passes connections on to `registry`, but for the first, which it ends at once. Where it listens.
async fn before_with_a_bad_start(registry: String) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        drop(listener.accept().await.unwrap());
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut server = tokio::net::TcpStream::connect(&registry).await.unwrap();
            tokio::spawn(async move {
                drop(tokio::io::copy_bidirectional(&mut client, &mut server).await);
            });
        }
    });
    host
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insecure_registry_with_tls_is_not_taken_for_plain_http_because_of_a_bad_start() {
    let authority = Authority::new();
    authority.issue("server");
    let plain = Registry::start().await;
    plain.push("app:1", &image()).await;
    let tls = json!({"http": {"tls": {
        "certificate": authority.path("server.crt"), "key": authority.path("server.key"),
    }}});
    // A real one: it tells whoever speaks plain HTTP that it does not.
    let registry = Registry::with(&tls, &plain.data()).await;
    let host = before_with_a_bad_start(registry.host.clone()).await;
    let test = TestStore::new(&[&host]);
    for _ in 0..2 {
        test.pull(&format!("{host}/app:1")).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insecure_registry_that_begins_to_speak_tls_is_heard() {
    let authority = Authority::new();
    authority.issue("server");
    let plain = Registry::start().await;
    plain.push("app:1", &image()).await;
    let test = TestStore::new(&[&plain.host]);
    let (host, name) = (plain.host.clone(), format!("{}/app:1", plain.host));
    test.pull(&name).await.unwrap();
    drop(plain);
    let registry = Scripted::start_tls_at(&host, authority.tls("server")).await;
    registry.put("app:1", &image());
    // It is asked in the old way once more.
    test.pull(&name).await.unwrap_err();
    test.pull(&name).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_bought_with_a_password_or_an_identity() {
    let authority = Arc::new(Authority::new());
    let server = TokenServer::start(Arc::clone(&authority)).await;
    let plain = Registry::start().await;
    plain.push("app:1", &image()).await;
    let auth = json!({"auth": {"token": {
        "realm": format!("http://{}/token", server.host), "service": "registry",
        "issuer": "test", "rootcertbundle": authority.path("ca.crt"),
    }}});
    let registry = Registry::with(&auth, &plain.data()).await;
    let name = format!("{}/app:1", registry.host);
    let test = TestStore::new(&[&registry.host]);
    for refused in [Credentials::Anonymous, user("wrong"), identity("wrong")] {
        let error = test.pull_as(&name, refused).await.unwrap_err();
        assert!(matches!(error, Error::Unauthorized { .. }), "{error:?}");
    }
    assert!(server.sold().is_empty());
    test.pull_as(&name, user("secret")).await.unwrap();
    test.pull_as(&name, identity("identity")).await.unwrap();
    // One token for manifest, config and layer; and none without credentials, image held or not.
    assert_eq!(server.sold(), ["GET", "POST"]);
    let error = test.pull(&name).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error:?}");

    // A token for the registry itself buys nothing: it is shown, and taken or not.
    let token = |scope: &str| Credentials::Bearer { token: authority.token(scope, "registry") };
    test.pull_as(&name, token("repository:app:pull")).await.unwrap();
    let error = test.pull_as(&name, token("repository:other:pull")).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error:?}");
    assert_eq!(server.sold(), ["GET", "POST"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_do_not_follow_a_redirect_to_another_host() {
    let (registry, elsewhere) = (Scripted::start().await, Scripted::start().await);
    let image = image();
    registry.put("app:1", &image);
    registry.guard("user", "secret");
    let layer = image.layers[0].digest();
    elsewhere.put_at(format!("/bucket/{layer}"), &image.layers[0]);
    let signed = format!("http://{}/bucket/{layer}?signature=hidden", elsewhere.host);
    registry.fail(layer, 1, Fault::Redirect(signed.clone()));
    let test = TestStore::new(&[&registry.host]);
    let name = format!("{}/app:1", registry.host);
    elsewhere.fail("/bucket/", 9, Fault::Status(503));
    registry.fail(layer, 8, Fault::Redirect(signed));
    let error = test.pull_as(&name, user("secret")).await.unwrap_err();
    let said = format!("{error} {error:?}");
    assert!(!said.contains("hidden") && !said.contains("secret"), "{said}");
    let test = TestStore::new(&[&registry.host]);
    elsewhere.heal();
    test.pull_as(&name, user("secret")).await.unwrap();
    let requests = elsewhere.requests("/bucket/");
    assert!(!requests.is_empty());
    assert!(requests.iter().all(|request| request.authorization.is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_a_redirect_leads_to_cannot_ask_for_credentials() {
    let (registry, elsewhere) = (Scripted::start().await, Scripted::start().await);
    let image = image();
    registry.put("app:1", &image);
    registry.guard("user", "secret");
    // It would sell a token itself, and thereby learn the password.
    elsewhere.guard("user", "secret");
    let test = TestStore::new(&[&registry.host]);
    let name = format!("{}/app:1", registry.host);
    for blob in image.blobs() {
        let bucket = format!("http://{}/bucket", elsewhere.host);
        registry.fail(blob.digest(), 1, Fault::Redirect(bucket));
        for credentials in [user("secret"), identity("mine")] {
            let error = test.pull_as(&name, credentials).await.unwrap_err();
            assert!(matches!(error, Error::Unauthorized { .. }), "{error:?}");
        }
        assert!(elsewhere.requests("/token").is_empty());
        registry.heal();
    }
    let requests = elsewhere.requests("/bucket");
    assert_eq!(requests.len(), 2);
    assert!(requests.iter().all(|request| request.authorization.is_none()));
    test.pull_as(&name, user("secret")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_registry_is_asked_again_when_it_says() {
    let registry = Scripted::start().await;
    registry.put("app:1", &image());
    registry.fail("/manifests/", 1, Fault::Busy(1));
    let test = TestStore::new(&[&registry.host]);
    let began = Instant::now();
    test.pull(&format!("{}/app:1", registry.host)).await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1));

    registry.fail("/manifests/", 1, Fault::Busy(3600));
    let began = Instant::now();
    let error = test.pull(&format!("{}/app:1", registry.host)).await.unwrap_err();
    assert!(matches!(error, Error::RegistryUnavailable { .. }), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(5), "an hour is for the caller to wait");
}

/// Runs an ignored test of this program in an environment of its own.
fn in_environment(test: &str, variables: &[(&str, &str)]) {
    let mut program = Command::new(std::env::current_exe().unwrap());
    program.args(["--exact", "--ignored", "--nocapture", test]);
    program.envs(variables.iter().copied());
    let output = program.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_helper_is_asked_for_its_registry() {
    let registry = Registry::start_private().await;
    registry.push("private:1", &image()).await;
    let folder = tempfile::tempdir().unwrap();
    let script = format!(
        "#!/bin/sh\n[ \"$1 $(cat)\" = 'get {}' ] || exit 1\n\
         echo '{{\"ServerURL\": \"x\", \"Username\": \"user\", \"Secret\": \"secret\"}}'\n",
        registry.host
    );
    for (name, script) in [
        ("good", script.as_str()),
        ("empty", "#!/bin/sh\necho 'credentials not found in native keychain'\nexit 1\n"),
        ("bad", "#!/bin/sh\necho 'my secret is hunter2'\nexit 3\n"),
    ] {
        let path = folder.path().join(format!("docker-credential-{name}"));
        fs_err::write(&path, script).unwrap();
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let variables = [("PATH", path.as_str()), ("CRIA_TEST_REGISTRY", &registry.host)];
    tokio::task::spawn_blocking({
        let variables = variables.map(|(key, value)| (key, value.to_owned()));
        move || {
            let variables = variables.each_ref().map(|(key, value)| (*key, value.as_str()));
            in_environment("trust::with_credential_helpers", &variables);
        }
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the test above, with its PATH"]
async fn with_credential_helpers() {
    let host = std::env::var("CRIA_TEST_REGISTRY").unwrap();
    let test = TestStore::new(&[&host]);
    let path = test.directory.path().join("auth.json");
    let pull_by = async |auths: serde_json::Value, helpers: &str| {
        fs_err::write(&path, auths.to_string()).unwrap();
        let registries = registries(test.directory.path(), &[&host], helpers);
        let credentials = NodeCredentials::load(&path).unwrap();
        let credentials = credentials.with_helpers(registries.credential_helpers());
        test.store.use_sources(registries, credentials, Trust::default(), Certificates::default());
        test.pull(&format!("{host}/private:1")).await
    };
    let pull = async |auths| pull_by(auths, "").await;
    pull(json!({"credHelpers": {(host.clone()): "good"}})).await.unwrap();
    pull(json!({"credsStore": "good"})).await.unwrap();
    pull(json!({"credHelpers": {"another.example": "good"}})).await.unwrap_err();
    let error = pull(json!({"credsStore": "empty"})).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error:?}");
    for helper in ["bad", "missing"] {
        let error = pull(json!({"credsStore": helper})).await.unwrap_err();
        assert!(matches!(error, Error::CredentialHelper { .. }), "{error:?}");
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
    // A mirror's helper that fails says nothing of the place behind it.
    let mirror = Scripted::start().await;
    let auths = json!({"credHelpers": {(mirror.host.clone()): "bad", (host.clone()): "good"}});
    let mirrored = format!(
        "[[registry]]\nprefix = \"{host}/private\"\nlocation = \"{host}/private\"\ninsecure = true\n\
         [[registry.mirror]]\nlocation = \"{}/private\"\ninsecure = true\n",
        mirror.host
    );
    pull_by(auths, &mirrored).await.unwrap();
    assert!(mirror.requests("").is_empty());
    let store = |helper: &str| json!({"credsStore": helper});
    for (auths, helpers, is_open) in [
        (store("empty"), r#"["good"]"#, true),
        (store("empty"), r#"["bad", "empty", "good"]"#, true),
        (store("good"), r#"["empty", "containers-auth.json"]"#, true),
        (store("good"), r#"["empty"]"#, false),
        (store("good"), r#"["bad"]"#, false),
    ] {
        let pulled = pull_by(auths, &format!("credential-helpers = {helpers}")).await;
        assert_eq!(pulled.is_ok(), is_open, "{helpers}: {pulled:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environments_proxy_is_used_but_for_those_it_excepts() {
    let proxy = Scripted::start().await;
    proxy.put("app:1", &image());
    let nowhere = format!("http://127.0.0.1:{}", crate::support::free_port());
    for (url, registry, excepted) in [
        (format!("http://{}", proxy.host), "registry.invalid:5000", "127.0.0.1"),
        (nowhere, proxy.host.as_str(), "10.0.0.0/8,127.0.0.1"),
    ] {
        let variables = [
            ("HTTP_PROXY", url),
            ("NO_PROXY", excepted.to_owned()),
            ("CRIA_TEST_REGISTRY", registry.to_owned()),
        ];
        tokio::task::spawn_blocking(move || {
            let variables = variables.each_ref().map(|(key, value)| (*key, value.as_str()));
            in_environment("trust::with_a_proxy", &variables);
        })
        .await
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the test above, with its proxy"]
async fn with_a_proxy() {
    let host = std::env::var("CRIA_TEST_REGISTRY").unwrap();
    TestStore::new(&[&host]).pull(&format!("{host}/app:1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_may_have_an_address_of_ipv6() {
    let registry = Scripted::start_at("[::1]:0").await;
    registry.put("team/app:1", &image());
    assert!(registry.host.starts_with("[::1]:"));
    let test = TestStore::new(&[&registry.host]);
    let name = format!("{}/team/app:1", registry.host);
    let pulled = test.pull(&name).await.unwrap();
    assert_eq!(pulled.tags, [name.as_str()]);
    assert!(test.store.find(&pulled.digests[0]).unwrap().is_some());
    let mirrored = format!(
        "[[registry]]\nlocation = \"a.example\"\n[[registry.mirror]]\nlocation = \"{}/team\"\n\
         insecure = true\n",
        registry.host
    );
    TestStore::with(&[], &mirrored, |_| {}).pull("a.example/app:1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_credential_gets_into_the_log_whatever_its_level() {
    let said = tokio::task::spawn_blocking(|| {
        let mut program = Command::new(std::env::current_exe().unwrap());
        program.args(["--exact", "--ignored", "--nocapture", "trust::pulls_with_every_credential"]);
        let output = program.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
        String::from_utf8(said).unwrap()
    })
    .await
    .unwrap();
    for expected in ["1 passed", "TRACE", "DEBUG", "image stored"] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    // The last two are the password in a header, and what it bought.
    for secret in ["hunter2", "identity-of-mine", "bearer-of-mine", "dXNlcjpodW50ZXIy", "token-0"] {
        let line = said.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret} was logged");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the test above, which reads what it says"]
async fn pulls_with_every_credential() {
    let everything =
        tracing_subscriber::fmt().with_max_level(tracing_subscriber::filter::LevelFilter::TRACE);
    everything.with_writer(std::io::stdout).init();
    let registry = Scripted::start().await;
    registry.put("app:1", &image());
    registry.guard("user", "hunter2");
    let test = TestStore::new(&[&registry.host]);
    let name = format!("{}/app:1", registry.host);
    let layer = image().layers[0].digest();
    registry.fail(layer, 1, Fault::Cut(10));
    registry.fail(layer, 1, Fault::Status(503));
    test.pull_as(&name, user("hunter2")).await.unwrap();
    let bearer = Credentials::Bearer { token: "bearer-of-mine".to_owned() };
    for refused in [identity("identity-of-mine"), bearer] {
        tracing::info!(?refused, "a pull that will be refused");
        let error = test.pull_as(&name, refused).await.unwrap_err();
        tracing::info!(%error, ?error, "refused");
    }
    tracing::info!(credentials = ?user("hunter2"), "held");
}

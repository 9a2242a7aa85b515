//! What survives which kind of crash.

use std::os::fd::AsFd;
use std::sync::Weak;

use super::*;
use crate::unpack::Unpacked;

struct Home {
    directory: tempfile::TempDir,
    wanted: Arc<()>,
}

impl Home {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), wanted: Arc::new(()) }
    }

    fn open(&self, boot: &str) -> Store {
        Store::open(self.directory.path(), StoreOptions::new(boot)).unwrap()
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    /// Puts an image of one layer into the store.
    fn add(&self, store: &Store, name: &str) -> Arc<Image> {
        let layer = Digest::of(name.as_bytes());
        let _pins = store.pin(vec![layer]);
        add_layer(store, layer);
        self.name(store, name, layer)
    }

    fn name(&self, store: &Store, name: &str, layer: Digest) -> Arc<Image> {
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{layer}"]}}}}"#
        );
        let new = NewImage {
            id: Digest::of(config.as_bytes()).into(),
            reference: &Reference::parse(name, None).unwrap(),
            pulled: Digest::of(b"manifest"),
            manifest: "{}",
            config: Some(&config),
            layers: vec![layer],
            evidence: None,
            wanted: Arc::downgrade(&self.wanted),
        };
        store.shared.commit_image(&new).unwrap()
    }
}

/// Puts a layer into the store as a pull does at its end.
fn add_layer(store: &Store, layer: Digest) {
    let made = store.shared.incoming_layer().unwrap();
    fs_err::write(made.join("fs/file"), layer.hex()).unwrap();
    let root = crate::unpack::open_own_directory(&made.join("fs")).unwrap();
    let measured = crate::unpack::measure(root.as_fd(), &Limits::default()).unwrap();
    let unpacked = Unpacked { noted: crate::unpack::Noted::default(), measured };
    store.shared.commit_layer(layer, &made, &unpacked).unwrap();
}

/// What is in layers may be set-uid.
#[test]
fn nobody_but_root_enters_a_store_of_any_age_and_anothers_store_is_left_alone() {
    use std::os::unix::fs::PermissionsExt;

    let (home, additional) = (Home::new(), Home::new());
    let names = ["layers", "images", "incoming", "damaged"];
    for (home, name) in [&home, &additional].into_iter().flat_map(|home| names.map(|n| (home, n))) {
        fs_err::create_dir(home.path(name)).unwrap();
        fs_err::set_permissions(home.path(name), PermissionsExt::from_mode(0o755)).unwrap();
    }
    let mut options = StoreOptions::new("one");
    options.additional_stores = vec![additional.directory.path().to_owned()];
    let fresh = Home::new();
    let mode = |path: PathBuf| fs_err::metadata(path).unwrap().permissions().mode() & 0o7777;
    drop(Store::open(home.directory.path(), options).unwrap());
    drop(fresh.open("one"));
    for name in names {
        assert_eq!(mode(home.path(name)), 0o700, "{name}");
        assert_eq!(mode(fresh.path(name)), 0o700, "{name}");
        assert_eq!(mode(additional.path(name)), 0o755, "{name}");
    }
}

fn tags(store: &Store) -> Vec<String> {
    let mut tags: Vec<_> = store.list().iter().flat_map(|image| image.tags.clone()).collect();
    tags.sort();
    tags
}

const A: &str = "docker.io/library/a:latest";
const B: &str = "docker.io/library/b:latest";

#[test]
fn a_restart_finds_everything_again_and_a_power_cut_what_was_synced() {
    let home = Home::new();
    let store = home.open("boot 1");
    home.add(&store, "a");
    store.sync().unwrap();
    home.add(&store, "b");
    let usage = store.usage();
    drop(store);

    let store = home.open("boot 1");
    assert_eq!(tags(&store), [A, B]);
    assert_eq!(store.usage(), usage);
    drop(store);

    let store = home.open("boot 2");
    assert_eq!(tags(&store), [A]);
    assert_eq!(fs_err::read_dir(home.path("layers")).unwrap().count(), 1);
    assert_eq!(store.find("a").unwrap().unwrap().tags, [A]);
}

#[test]
fn a_new_name_takes_the_mark_away_until_it_is_synced_too() {
    let home = Home::new();
    let store = home.open("boot 1");
    let image = home.add(&store, "a");
    store.sync().unwrap();
    home.name(&store, "other", image.layers[0]);
    assert_eq!(store.find("a").unwrap().unwrap().tags.len(), 2);
    drop(store);
    assert!(home.open("boot 2").list().is_empty());
}

#[test]
fn what_was_removed_and_came_again_during_the_flush_is_not_marked() {
    let home = Home::new();
    let store = home.open("boot 1");
    store.collect();
    let image = home.add(&store, "a");
    let layer = image.layers[0];
    let stamps = || {
        let state = store.shared.state();
        (state.layers[&layer].stamp, state.images[&image.id].own.as_ref().unwrap().stamp)
    };
    let flushed = stamps();
    store.remove("a").unwrap();
    home.add(&store, "a");
    let mark = |(of_layer, of_image)| {
        store.shared.mark_layer(layer, of_layer).unwrap();
        store.shared.mark_image(image.id, of_image).unwrap();
    };
    let marks =
        || [store.shared.places.layer_mark(layer), store.shared.places.image_mark(image.id)];
    mark(flushed);
    assert!(marks().iter().all(|path| !path.exists()));
    mark(stamps());
    assert!(marks().iter().all(|path| path.exists()));
}

#[test]
fn damage_costs_the_damaged_item_alone() {
    type Damage = fn(&Home, &Image);
    let cases: [(&str, Damage); 6] = [
        ("empty image record", |home, image| {
            fs_err::write(home.path(&format!("images/{}.json", image.id.digest().hex())), "")
                .unwrap();
        }),
        ("changed config", |home, image| {
            let path = home.path(&format!("images/{}.json", image.id.digest().hex()));
            let text = fs_err::read_to_string(&path).unwrap();
            fs_err::write(&path, text.replace("amd64", "arm64")).unwrap();
        }),
        ("empty layer record", |home, image| {
            let hex = image.layers[0].hex();
            fs_err::write(home.path(&format!("layers/{hex}/layer.json")), "").unwrap();
        }),
        ("no layer record", |home, image| {
            let hex = image.layers[0].hex();
            fs_err::remove_file(home.path(&format!("layers/{hex}/layer.json"))).unwrap();
        }),
        ("no content", |home, image| {
            let hex = image.layers[0].hex();
            fs_err::remove_dir_all(home.path(&format!("layers/{hex}/fs"))).unwrap();
        }),
        ("no layer", |home, image| {
            let hex = image.layers[0].hex();
            fs_err::remove_dir_all(home.path(&format!("layers/{hex}"))).unwrap();
        }),
    ];
    for (what, damage) in cases {
        let home = Home::new();
        let store = home.open("boot");
        let image = home.add(&store, "a");
        home.add(&store, "b");
        drop(store);
        damage(&home, &image);
        fs_err::create_dir_all(home.path("incoming/half/fs")).unwrap();
        fs_err::write(home.path("layers/odd"), "").unwrap();
        fs_err::write(home.path("images/odd.synced"), "").unwrap();

        let store = home.open("boot");
        assert_eq!(tags(&store), [B], "{what}");
        // It can come again.
        home.add(&store, "a");
        assert_eq!(tags(&store), [A, B], "{what}");
        store.collect();
        assert!(!home.path("images/odd.synced").exists());
        assert!(!home.path("layers/odd").exists());
    }
}

#[test]
fn leases_of_an_earlier_process_are_renewed_before_anything_is_collected() {
    let home = Home::new();
    let store = home.open("boot");
    store.collect();
    let image = home.add(&store, "a");
    let lease = store.lease(&image.id).unwrap();
    let layers = lease.layers().to_vec();
    store.remove("a").unwrap();
    // As a killed process does: nothing is dropped.
    std::mem::forget(lease);
    drop(store);

    let store = home.open("boot");
    home.add(&store, "b");
    store.remove("b").unwrap();
    let lease = store.lease_layers(layers.clone(), image.id).unwrap();
    // What never had an image in this process waits for a retry; age does not matter here.
    for layer in store.shared.state().layers.values_mut() {
        layer.waits_since = None;
    }
    store.collect();
    assert!(lease.lower_directories().iter().all(|path| path.join("file").exists()));
    assert_eq!(fs_err::read_dir(home.path("layers")).unwrap().count(), 1);
    drop(lease);
    assert_eq!(fs_err::read_dir(home.path("layers")).unwrap().count(), 0);
    assert!(matches!(store.lease_layers(layers, image.id), Err(Error::NoSuchLayer { .. })));
}

#[test]
fn a_pull_that_was_given_up_adds_no_image() {
    let home = Home::new();
    let store = home.open("boot");
    let layer = home.add(&store, "a").layers[0];
    store.remove("a").unwrap();
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{layer}"]}}}}"#
    );
    let given_up = NewImage {
        id: Digest::of(config.as_bytes()).into(),
        reference: &Reference::parse("a", None).unwrap(),
        pulled: Digest::of(b"manifest"),
        manifest: "{}",
        config: Some(&config),
        layers: vec![layer],
        evidence: None,
        wanted: Weak::new(),
    };
    let error = store.shared.commit_image(&given_up).unwrap_err();
    assert!(matches!(error, Error::Cancelled { .. }));
    assert!(store.list().is_empty());
}

#[test]
fn a_layer_that_comes_after_its_pull_has_ended_waits_unless_the_disk_was_full() {
    let home = Home::new();
    let store = home.open("boot");
    store.collect();
    let [early, late, last] = ["early", "late", "last"].map(|name| Digest::of(name.as_bytes()));
    let pins = store.pin(vec![early, late]);
    add_layer(&store, early);
    drop(pins);
    add_layer(&store, late);
    assert!(store.has_layer(early) && store.has_layer(late), "they wait for the next try");
    store.shared.fail_pull(&Error::NoSpace {
        image: String::new(),
        source: Arc::new(std::io::Error::other("full")),
    });
    add_layer(&store, last);
    assert!(!store.has_layer(last));
    assert_eq!(fs_err::read_dir(home.path("layers")).unwrap().count(), 0);
}

#[test]
fn ids_are_found_by_their_unambiguous_beginnings() {
    let home = Home::new();
    let store = home.open("boot");
    for number in 0..300 {
        home.add(&store, &format!("image{number}"));
    }
    let ids: Vec<_> = store.list().iter().map(|image| image.id.digest().hex()).collect();
    for id in &ids {
        let is_shared = ids.iter().filter(|other| other.starts_with(&id[..3])).count() > 1;
        match store.find(&id[..3]) {
            Err(Error::Ambiguous { .. }) => assert!(is_shared, "{id}"),
            found => assert_eq!(found.unwrap().unwrap().id.digest().hex(), *id),
        }
        assert_eq!(store.find(&id[..40]).unwrap().unwrap().id.digest().hex(), *id);
    }
}

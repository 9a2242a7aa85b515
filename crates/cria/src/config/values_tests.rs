//! Tests of what each value takes and refuses.

use super::*;

/// Parses each text and writes it back; `None` is a refusal.
fn round_trips<T: FromStr<Err = Unfit> + fmt::Display>(table: &[(&str, Option<&str>)]) {
    for (text, written) in table {
        let parsed = text.parse::<T>();
        assert_eq!(parsed.map(|value| value.to_string()).ok().as_deref(), *written, "{text:?}");
    }
}

#[test]
fn paths_are_absolute() {
    round_trips::<AbsolutePath>(&[
        ("/", Some("/")),
        ("/var/lib/cria", Some("/var/lib/cria")),
        ("", None),
        ("var/lib", None),
        ("./x", None),
        ("/a\0b", None),
    ]);
}

#[test]
fn a_socket_path_fits_the_kernel() {
    let longest = format!("/{}", "a".repeat(106));
    let too_long = format!("/{}", "a".repeat(107));
    round_trips::<SocketPath>(&[
        ("/run/cria/cria.sock", Some("/run/cria/cria.sock")),
        (&longest, Some(&longest)),
        (&too_long, None),
        ("cria.sock", None),
    ]);
}

#[test]
fn a_program_is_a_path_or_a_bare_name() {
    round_trips::<Program>(&[
        ("crun", Some("crun")),
        ("/usr/bin/crun", Some("/usr/bin/crun")),
        ("bin/crun", None),
        ("", None),
    ]);
}

#[test]
fn a_pattern_of_images_has_stars_at_its_ends_alone() {
    let names = ["registry.k8s.io/pause:3.10", "example.com/*", "*pause*", "*"];
    round_trips::<ImagePattern>(&names.map(|name| (name, Some(name))));
    round_trips::<ImagePattern>(&[("", None), ("*pause", None), ("a*b", None), ("*a*b*", None)]);
}

#[test]
fn a_timeout_has_a_unit_and_is_not_zero() {
    round_trips::<Timeout>(&[
        ("500ms", Some("500ms")),
        ("1500ms", Some("1500ms")),
        ("1000ms", Some("1s")),
        ("90s", Some("90s")),
        ("60s", Some("1m")),
        ("4m", Some("4m")),
        ("4294967295m", Some("4294967295m")),
        ("0s", None),
        ("10", None),
        ("s", None),
        ("-1s", None),
        ("1h", None),
        ("1 s", None),
        ("99999999999s", None),
    ]);
}

#[test]
fn a_resource_limit_has_its_soft_end_below_its_hard_one() {
    round_trips::<Rlimit>(&[
        ("1024:524288", Some("1024:524288")),
        ("1024", Some("1024:1024")),
        ("0:0", Some("0:0")),
        ("1024:unlimited", Some("1024:unlimited")),
        ("unlimited", Some("unlimited:unlimited")),
        ("2:1", None),
        ("unlimited:1", None),
        ("1:2:3", None),
        ("-1", None),
        ("", None),
    ]);
}

#[test]
fn a_capability_is_one_the_kernel_knows() {
    round_trips::<Capability>(&[
        ("CHOWN", Some("CAP_CHOWN")),
        ("CAP_CHOWN", Some("CAP_CHOWN")),
        ("cap_chown", Some("CAP_CHOWN")),
        ("checkpoint_restore", Some("CAP_CHECKPOINT_RESTORE")),
        ("CHWON", None),
        ("ALL", None),
        ("", None),
    ]);
}

#[test]
fn a_limit_of_processes_is_a_number_above_zero_or_unlimited() {
    #[derive(Debug, Deserialize, PartialEq, Serialize)]
    struct Table {
        limit: PidsLimit,
    }
    let most = |number| PidsLimit::Most(NonZeroU32::new(number).unwrap());
    for (text, limit) in [
        ("limit = 1\n", Some(most(1))),
        ("limit = 4096\n", Some(most(4096))),
        ("limit = \"unlimited\"\n", Some(PidsLimit::Unlimited)),
        ("limit = 0\n", None),
        ("limit = -1\n", None),
        ("limit = 4294967296\n", None),
        ("limit = \"4096\"\n", None),
        ("limit = 1.5\n", None),
    ] {
        let parsed = toml::from_str::<Table>(text);
        assert_eq!(parsed.as_ref().map(|table| table.limit).ok(), limit, "{text}");
        if let Ok(table) = parsed {
            assert_eq!(toml::to_string(&table).unwrap(), text);
        }
    }
}

//! Tests of the loader, over real files in a directory of their own.

use clap::Parser as _;
use tempfile::TempDir;

use super::super::{CgroupDriver, LogLevel};
use super::*;

/// A configuration file with drop-ins, gone with the test.
struct Files(TempDir);

impl Files {
    fn new(main: &str, drop_ins: &[(&str, &str)]) -> Self {
        let directory = TempDir::new().unwrap();
        fs_err::write(directory.path().join("cria.toml"), main).unwrap();
        fs_err::create_dir(directory.path().join("cria.toml.d")).unwrap();
        for (name, text) in drop_ins {
            fs_err::write(directory.path().join("cria.toml.d").join(name), text).unwrap();
        }
        Self(directory)
    }

    fn args(&self, flags: &[&str]) -> Args {
        let path = |name: &str| self.0.path().join(name).display().to_string();
        let files = [path("cria.toml"), path("cria.toml.d")];
        let line = ["cria", "--config", &files[0], "--config-dir", &files[1]];
        Args::try_parse_from(line.iter().chain(flags)).unwrap()
    }

    fn load(&self, flags: &[&str]) -> Result<(Config, Vec<Warning>), ConfigError> {
        Config::load(&self.args(flags))
    }

    /// The error without the directory.
    fn error(&self) -> String {
        let error = self.load(&[]).unwrap_err().to_string();
        error.replace(&format!("{}/", self.0.path().display()), "")
    }
}

#[test]
fn an_empty_file_gives_the_defaults() {
    let (config, warnings) = Files::new("", &[]).load(&[]).unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(warnings, []);
}

#[test]
fn later_files_win_key_by_key_and_flags_win_over_all() {
    let files = Files::new(
        "root = '/main'\nrun-dir = '/main'\nlisten = '/main'\nlog-level = 'error'\n\
         [runtime]\nmonitor = '/main'\ncgroup-driver = 'systemd'\n\
         [network]\ncni-bin-dirs = ['/main', '/also']\n",
        &[
            ("20-second.toml", "listen = '/second'\n[runtime]\nmonitor = ''\n"),
            ("10-first.toml", "run-dir = '/first'\nlisten = '/first'\n"),
            ("30-third.toml", "runtime.rlimits.nofile = '5:6'\nnetwork.cni-bin-dirs = ['/third']"),
            ("40-not-a-drop-in.conf", "root = '/conf'\n"),
        ],
    );
    let (config, warnings) = files.load(&["--log-level", "debug", "--monitor", "/flag"]).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(&*config.root, Path::new("/main"));
    assert_eq!(&*config.run_dir, Path::new("/first"));
    assert_eq!(&*config.listen, Path::new("/second"));
    assert_eq!(config.log_level, LogLevel::Debug);
    assert_eq!(config.runtime.cgroup_driver, CgroupDriver::Systemd);
    assert_eq!(config.runtime.monitor.as_deref(), Some(Path::new("/flag")));
    assert_eq!(config.runtime.rlimits.nofile, "5:6".parse().unwrap());
    assert_eq!(config.network.cni_bin_dirs, ["/third".parse().unwrap()]);

    let (config, _) = files.load(&[]).unwrap();
    assert_eq!(config.runtime.monitor, None, "a drop-in takes back what the file set");
}

#[test]
fn a_wrong_value_names_its_file_line_key_and_what_was_expected() {
    for (text, expected) in [
        ("root = 'x'", "1: root: expected an absolute path, found `x`"),
        ("\n\nlog-level = 'loud'", "3: log-level: unknown variant `loud`, expected one of"),
        ("[runtime]\ncgroup-driver = 'sytemd'", "2: runtime.cgroup-driver: unknown variant"),
        (
            "[runtime]\npids-limit = 0",
            "2: runtime.pids-limit: invalid value: integer `0`, expected",
        ),
        ("runtime.pids-limit = 0", "1: runtime.pids-limit: invalid value: integer `0`"),
        (
            "[runtime]\n# why\n[runtime.rlimits]\nnofile = '2:1'",
            "4: runtime.rlimits.nofile: expected",
        ),
        (
            "[runtime]\nrlimits = 3",
            "2: runtime.rlimits: invalid type: integer `3`, expected a table",
        ),
        ("runtime = 'crun'", "1: runtime: invalid type: string \"crun\", expected a table"),
        ("root = { a = 1 }", "1: root: invalid type: map, expected a string"),
        (
            "[runtime]\ndefault-capabilities = [\n 'KILL',\n 'KIL' ]",
            "2: runtime.default-capabilities: expected the name of",
        ),
        (
            "[network]\ncni-bin-dirs = []",
            "2: network.cni-bin-dirs: expected at least one directory",
        ),
        ("[network]\ncni-timeout = '0s'", "2: network.cni-timeout: expected a time above zero"),
        ("[images]\nparallel-layers = 0", "2: images.parallel-layers: invalid value: integer `0`"),
        ("root = /var", "1: "),
        ("root = '/a'\nroot = '/b'", "2: duplicate key"),
    ] {
        let error = Files::new(text, &[]).error();
        let expected = format!("cria.toml:{expected}");
        assert!(error.starts_with(&expected), "{text}\n  {error}\n  {expected}");
    }
}

#[test]
fn an_error_in_a_drop_in_names_the_drop_in() {
    let files = Files::new(
        "root = '/fine'\n",
        &[("10-fine.toml", "log-level = 'info'\n"), ("20-wrong.toml", "\nroot = 'x'\n")],
    );
    let expected = "cria.toml.d/20-wrong.toml:2: root: expected an absolute path, found `x`";
    assert_eq!(files.error(), expected);
}

#[test]
fn an_unknown_key_is_a_warning_that_names_the_nearest() {
    let files = Files::new(
        "rot = '/a'\n\n[runtime]\ncgroup_driver = 'systemd'\n\n[netwrok]\nx = 1\n",
        &[("10.toml", "cni-timeout = '1s'\n")],
    );
    let (config, warnings) = files.load(&[]).unwrap();
    assert_eq!(config, Config::default());
    let directory = files.0.path().display();
    let expected = [
        "cria.toml:1: unknown key `rot`; nearest is `root`",
        "cria.toml:4: unknown key `runtime.cgroup_driver`; nearest is `runtime.cgroup-driver`",
        "cria.toml:6: unknown key `netwrok`; nearest is `network`",
        "cria.toml.d/10.toml:1: unknown key `cni-timeout`; nearest is `network.cni-timeout`",
    ];
    let warnings: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings, expected.map(|line| format!("{directory}/{line}")));
}

#[test]
fn a_file_or_directory_that_was_named_must_be_there() {
    let files = Files::new("", &[]);
    for (flag, name) in [("--config", "no.toml"), ("--config-dir", "no.d")] {
        let path = files.0.path().join(name);
        let args = Args::try_parse_from(["cria", flag, path.to_str().unwrap()]).unwrap();
        let error = Config::load(&args).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains(name), "{source}");
    }
}

#[test]
fn the_rendered_configuration_is_the_one_in_effect_and_says_who_set_what() {
    let files = Files::new(
        "[runtime]\npids-limit = 9\n",
        &[("10.toml", "[runtime.rlimits]\nnofile = '5:6'\n")],
    );
    let args = files.args(&["--root", "/flag"]);
    let sources = Sources::read(&args).unwrap();
    let text = sources.render();
    assert_eq!(toml::from_str::<Config>(&text).unwrap(), sources.config());
    let directory = files.0.path().display();
    for line in [
        "root = \"/flag\"  # the command line".to_owned(),
        format!("pids-limit = 9  # {directory}/cria.toml:2"),
        format!("nofile = \"5:6\"  # {directory}/cria.toml.d/10.toml:2"),
        "run-dir = \"/run/cria\"".to_owned(),
    ] {
        assert!(text.lines().any(|rendered| rendered == line), "{line}\nin\n{text}");
    }
}

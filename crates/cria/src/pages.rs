//! The manual pages and completions in `packaging/`, made from the command line's definition and from the
//! packaged configuration file. They are kept as files, so that packaging needs no build for them and a
//! change of them is read in review; built for tests only, which hold the files to what is made here.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::builder::StyledStr;
use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};

use crate::args::Args;

const MANUAL: &str = "cria";
/// No date: a page would change without a change. Empty, it would not count as an argument.
const NO_DATE: &str = " ";

/// Every file, by its path below `packaging/`.
fn all() -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = vec![
        ("man/cria.8".into(), program_page()),
        ("man/cria.toml.5".into(), configuration_page(&packaged("cria.toml"))),
    ];
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        let mut script = Vec::new();
        let path = match shell {
            Shell::Zsh => "completions/_cria".into(),
            other => format!("completions/cria.{other}").into(),
        };
        clap_complete::generate(shell, &mut Args::command(), "cria", &mut script);
        files.push((path, script));
    }
    files
}

/// A part of a page, as clap_mangen renders it.
type Part = fn(&Man, &mut dyn Write) -> io::Result<()>;

/// cria(8). The version is left out: it would make a release a change of this page.
fn program_page() -> Vec<u8> {
    let of = |command| Man::new(command).section("8").date(NO_DATE).source("cria").manual(MANUAL);
    let man = of(Args::command());
    // What programs like whatis(1) show has room for a phrase.
    let named = of(Args::command().about("container runtime for Kubernetes nodes"));
    let mut page = Vec::new();
    let parts: [(&Man, Part); 5] = [
        (&man, Man::render_title),
        (&named, Man::render_name_section),
        (&man, Man::render_synopsis_section),
        (&man, Man::render_description_section),
        (&man, Man::render_options_section),
    ];
    for (man, render) in parts {
        render(man, &mut page).expect("memory takes it");
    }
    let mut rest = Roff::new();
    section(&mut rest, "SUBCOMMANDS");
    for command in Args::command().get_subcommands() {
        subcommand(&mut rest, command);
    }
    section(&mut rest, "SIGNALS");
    item(&mut rest, [bold("SIGTERM"), roman(", "), bold("SIGINT")]);
    rest.text([roman("End the daemon. Containers, and the monitors beside them, go on.")]);
    item(&mut rest, [bold("SIGHUP")]);
    rest.text([roman(
        "Read again what can change while the daemon runs; the log says what was read.",
    )]);
    section(&mut rest, "FILES");
    for (file, what) in FILES {
        item(&mut rest, [italic(*file)]);
        rest.text([roman(*what)]);
    }
    section(&mut rest, "SEE ALSO");
    rest.text([
        bold("cria.toml"),
        roman("(5), "),
        bold("crictl"),
        roman("(1), "),
        bold("kubelet"),
        roman("(1)"),
    ]);
    rest.to_writer(&mut page).expect("memory takes it");
    page
}

/// A subcommand with the options that only it has. (clap_mangen would name pages that do not exist.)
fn subcommand(page: &mut Roff, command: &Command) {
    let words =
        |text: Option<&StyledStr>| [roman(text.map(ToString::to_string).unwrap_or_default())];
    item(page, [bold(format!("cria {}", command.get_name()))]);
    page.text(words(command.get_about()));
    page.control("RS", []);
    for option in command.get_opts() {
        let name = option.get_long().expect("every option has a long name");
        item(page, [bold(format!("--{name}"))]);
        page.text(words(option.get_help()));
    }
    page.control("RE", []);
}

const FILES: &[(&str, &str)] = &[
    ("/etc/cria/cria.toml", "The configuration; see cria.toml(5). May be missing."),
    ("/etc/cria/cria.toml.d/*.toml", "Drop-ins, read after it in the order of their names."),
    ("/etc/containers/registries.conf", "Registries and their mirrors; and registries.conf.d."),
    ("/etc/containers/certs.d", "Certificates, by registry."),
    ("/etc/containers/policy.json", "Which images are taken, by which signatures."),
    ("/etc/containers/registries.d", "Where signatures are."),
    ("/etc/cria/policies", "Policies of single namespaces, NAMESPACE.json."),
    ("/etc/cni/net.d", "The pods' networks: the first valid one in the order of names counts."),
    (
        "/usr/share/cria/cni/10-cria-bridge.conflist",
        "A network to copy there, if nobody else brings one.",
    ),
    (
        "/run/cria/cria.sock",
        "The CRI: the kubelet's containerRuntimeEndpoint, and crictl's. Root's alone, and its group's.",
    ),
    ("/var/lib/cria", "Images, root filesystems and records."),
];

/// cria.toml(5), from the comments of the packaged file: each stands before its key or its table.
fn configuration_page(file: &str) -> Vec<u8> {
    let mut page = Roff::new();
    page.control("TH", ["cria.toml", "5", NO_DATE, "cria", MANUAL]);
    section(&mut page, "NAME");
    page.text([roman("cria.toml - configuration of the container runtime cria")]);
    section(&mut page, "SYNOPSIS");
    page.text([italic("/etc/cria/cria.toml"), roman(", "), italic("/etc/cria/cria.toml.d/*.toml")]);
    section(&mut page, "DESCRIPTION");
    page.text([roman("The files are TOML.")]);
    let mut blocks = file.split("\n\n").map(Block::parse);
    if let Some(Block::Words(words)) = blocks.next() {
        page.text([roman(words)]);
    }
    section(&mut page, "KEYS");
    for block in blocks {
        match block {
            Block::Words(words) => {
                page.control("PP", []).text([roman(words)]);
            }
            Block::Table { name, words } => {
                section(&mut page, &format!("TABLE {name}"));
                page.text([roman(words)]);
            }
            Block::Key { name, default, words } => {
                item(&mut page, [bold(name), roman(format!(" = {default}"))]);
                page.text([roman(words)]);
            }
        }
    }
    section(&mut page, "SEE ALSO");
    page.text([bold("cria"), roman("(8)")]);
    page.to_roff().into_bytes()
}

/// What stands between empty lines of the configuration file.
#[derive(Debug, PartialEq)]
enum Block {
    Words(String),
    Table { name: String, words: String },
    Key { name: String, default: String, words: String },
}

impl Block {
    /// A line of words is `# words`; a key at its default is `#key = value`.
    fn parse(block: &str) -> Self {
        let (words, rest): (Vec<_>, Vec<_>) =
            block.lines().filter(|line| !line.is_empty()).partition(|line| line.starts_with("# "));
        let words = words.iter().map(|line| &line[2..]).collect::<Vec<_>>().join(" ");
        match rest[..] {
            [] => Self::Words(words),
            [line] if line.starts_with('[') => Self::Table { name: line.to_owned(), words },
            [line] => {
                let (name, default) =
                    line.trim_start_matches('#').split_once(" = ").expect("a key has a value");
                Self::Key { name: name.to_owned(), default: default.to_owned(), words }
            }
            [..] => panic!("an empty line between keys: {block}"),
        }
    }
}

fn section(page: &mut Roff, title: &str) {
    page.control("SH", [title]);
}

fn item<const N: usize>(page: &mut Roff, heading: [Inline; N]) {
    page.control("TP", []).text(heading);
}

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging")
}

fn packaged(file: &str) -> String {
    fs_err::read_to_string(packaging().join(file)).expect("it is in the repository")
}

#[test]
fn the_pages_and_completions_in_packaging_are_current() {
    for (path, content) in all() {
        let path = packaging().join(path);
        if std::env::var_os("CRIA_WRITE_PAGES").is_some() {
            fs_err::create_dir_all(path.parent().expect("it is below packaging")).unwrap();
            fs_err::write(&path, &content).unwrap();
        }
        let kept = fs_err::read(&path).unwrap_or_default();
        assert!(kept == content, "{} is not current: run `make pages`", path.display());
    }
}

#[test]
fn a_block_of_the_configuration_is_words_a_table_or_a_key() {
    let text = String::from;
    for (block, meant) in [
        ("# One,\n# two.", Block::Words(text("One, two."))),
        (
            "# Of pods.\n[network]\n",
            Block::Table { name: text("[network]"), words: text("Of pods.") },
        ),
        (
            "# Where.\n#root = \"/a\"",
            Block::Key { name: text("root"), default: text("\"/a\""), words: text("Where.") },
        ),
    ] {
        assert_eq!(Block::parse(block), meant);
    }
}

//! Holds the compiled API to the table of Kubernetes' own, both ways: every service, call, message,
//! field and enum value of either is in the other, with the same number and type.
//!
//! Both sides become sets of lines in the table's own words, so that a difference reads as one.

use std::collections::BTreeSet;

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
    FileDescriptorSet, ServiceDescriptorProto,
};

const TABLE: &str = include_str!("../cri-v1-fields.tsv");

/// The package of the CRI; types outside of it would keep their full name and so be seen.
const PACKAGE: &str = ".runtime.v1.";

#[test]
fn the_compiled_api_is_the_one_of_kubernetes() {
    let (wanted, compiled) = (table(), compiled());
    let missing: Vec<_> = wanted.difference(&compiled).collect();
    let surplus: Vec<_> = compiled.difference(&wanted).collect();
    assert!(missing.is_empty() && surplus.is_empty(), "missing {missing:#?}, surplus {surplus:#?}");
}

/// The comparison would be worth nothing if the table had shrunk.
#[test]
fn the_table_has_the_whole_api() {
    let of = |kind: &str| table().iter().filter(|line| line.starts_with(kind)).count();
    let count = ["rpc\t", "message\t", "field\t", "enum\t"].map(of);
    assert_eq!(count, [43, 18, 478, 95]);
}

#[test]
fn the_package_is_the_one_clients_ask_for() {
    assert_eq!(file().package(), "runtime.v1");
    assert_eq!(file().syntax(), "proto3");
}

/// The option is newer than the descriptor types at hand, so the source is looked at.
#[test]
fn secrets_are_marked_for_redaction() {
    let source = include_str!("../api.proto");
    let marked = source.lines().filter(|line| line.contains("debug_redact = true"));
    let marked: BTreeSet<_> = marked.filter_map(|line| line.split_whitespace().nth(1)).collect();
    let secret = TABLE.lines().filter(|line| line.ends_with(SECRET));
    let secret: BTreeSet<_> = secret.filter_map(|line| line.split('\t').nth(2)).collect();
    assert!(!secret.is_empty());
    assert_eq!(marked, secret);
}

/// The table's note on fields that must not be printed.
const SECRET: &str = "secret: redact in logs";

#[test]
fn every_call_message_and_enum_says_what_it_is() {
    let mut above = "";
    for line in include_str!("../api.proto").lines() {
        let kind = line.split_whitespace().next();
        if matches!(kind, Some("service" | "rpc" | "message" | "enum")) {
            assert!(above.trim_start().starts_with("// "), "{line}");
        }
        above = line;
    }
}

fn table() -> BTreeSet<String> {
    let lines = TABLE.lines().skip(1).map(|line| line.trim_end_matches(SECRET));
    lines.map(|line| line.trim_end_matches('\t').to_owned()).collect()
}

fn file() -> FileDescriptorProto {
    let set = FileDescriptorSet::decode(cria_proto::DESCRIPTORS).expect("the build wrote a set");
    let [file] = <[_; 1]>::try_from(set.file).expect("the API is one file");
    file
}

fn compiled() -> BTreeSet<String> {
    let file = file();
    let services = file.service.iter().flat_map(calls);
    let messages = file.message_type.iter().flat_map(|message| message_lines(message, ""));
    let enums = file.enum_type.iter().flat_map(|one| enum_lines(one, ""));
    services
        .chain(messages)
        .chain(enums)
        .map(|line| line.trim_end_matches('\t').to_owned())
        .collect()
}

fn calls(service: &ServiceDescriptorProto) -> Vec<String> {
    let line = |method: &prost_types::MethodDescriptorProto| {
        let stream = |streams| if streams { "stream " } else { "" };
        let input = format!("{}{}", stream(method.client_streaming()), local(method.input_type()));
        let output =
            format!("{}{}", stream(method.server_streaming()), local(method.output_type()));
        format!("rpc\t{}\t{}\t\t{input} -> {output}", service.name(), method.name())
    };
    service.method.iter().map(line).collect()
}

fn message_lines(message: &DescriptorProto, outer: &str) -> Vec<String> {
    let name = format!("{outer}{}", message.name());
    let inner = format!("{name}.");
    let mut lines: Vec<_> =
        message.field.iter().map(|field| field_line(message, &name, field)).collect();
    if lines.is_empty() {
        lines.push(format!("message\t{name}\t\t\t\tempty"));
    }
    let nested = message.nested_type.iter().filter(|nested| !is_map_entry(nested));
    lines.extend(nested.flat_map(|nested| message_lines(nested, &inner)));
    lines.extend(message.enum_type.iter().flat_map(|one| enum_lines(one, &inner)));
    assert!(message.oneof_decl.is_empty(), "{name}: the CRI has no oneof");
    lines
}

fn enum_lines(one: &EnumDescriptorProto, outer: &str) -> Vec<String> {
    let name = format!("{outer}{}", one.name());
    one.value.iter().map(|v| format!("enum\t{name}\t{}\t{}", v.name(), v.number())).collect()
}

fn field_line(message: &DescriptorProto, name: &str, field: &FieldDescriptorProto) -> String {
    let entry = message
        .nested_type
        .iter()
        .find(|nested| is_map_entry(nested) && field.type_name().ends_with(nested.name()));
    let (kind, note) = match entry {
        Some(entry) => {
            let (key, value) = (type_name(&entry.field[0]), type_name(&entry.field[1]));
            (format!("map<{key}, {value}>"), "")
        }
        None => (type_name(field), note(field)),
    };
    format!("field\t{name}\t{}\t{}\t{kind}\t{note}", field.name(), field.number())
}

fn note(field: &FieldDescriptorProto) -> &'static str {
    let options = field.options.clone().unwrap_or_default();
    match (field.label(), options.deprecated()) {
        (Label::Repeated, false) => "repeated",
        (Label::Optional, true) => "deprecated",
        (Label::Optional, false) => "",
        other => panic!("{}: {other:?} is not in the CRI", field.name()),
    }
}

fn is_map_entry(message: &DescriptorProto) -> bool {
    message.options.as_ref().is_some_and(|options| options.map_entry())
}

fn type_name(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message | Type::Enum => local(field.type_name()).to_owned(),
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    }
}

fn local(name: &str) -> &str {
    name.strip_prefix(PACKAGE).unwrap_or(name)
}

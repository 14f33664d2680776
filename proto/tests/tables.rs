//! Walks the tables of etcd's messages and methods against the compiled descriptors: every row is there with the
//! same number, type and label, and the descriptors hold nothing that the tables do not name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
};

/// One row of messages.tsv, without its notes: the same form is made from the descriptors.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone)]
struct Item {
    message: String,
    number: String,
    name: String,
    type_name: String,
    kind: String,
    markers: String,
    file: String,
}

fn table(name: &str) -> Vec<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../reference").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines().skip(1).map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

/// Our own files: google/protobuf/descriptor.proto comes along because version.proto extends it.
fn files() -> Vec<FileDescriptorProto> {
    let set = FileDescriptorSet::decode(trilith_proto::DESCRIPTORS).expect("the descriptors decode");
    set.file.into_iter().filter(|file| file.package() != "google.protobuf").collect()
}

fn type_name(field: &FieldDescriptorProto, maps: &BTreeMap<String, String>) -> String {
    let named = field.type_name().trim_start_matches('.').to_owned();
    match field.r#type() {
        Type::Message => maps.get(&named).cloned().unwrap_or(named),
        Type::Enum => format!("enum {named}"),
        Type::Bool => "bool".into(),
        Type::Bytes => "bytes".into(),
        Type::Double => "double".into(),
        Type::Float => "float".into(),
        Type::Int32 => "int32".into(),
        Type::Int64 => "int64".into(),
        Type::String => "string".into(),
        Type::Uint32 => "uint32".into(),
        Type::Uint64 => "uint64".into(),
        other => format!("{other:?}"),
    }
}

struct Walk {
    items: Vec<Item>,
    file: String,
    proto2: bool,
}

impl Walk {
    fn push(
        &mut self,
        message: &str,
        number: String,
        name: &str,
        type_name: String,
        kind: &str,
        markers: &str,
    ) {
        self.items.push(Item {
            message: message.to_owned(),
            number,
            name: name.to_owned(),
            type_name,
            kind: kind.to_owned(),
            markers: markers.to_owned(),
            file: self.file.clone(),
        });
    }

    fn enumeration(&mut self, scope: &str, item: &EnumDescriptorProto) {
        let full = format!("{scope}.{}", item.name());
        for value in &item.value {
            let number = value.number().to_string();
            self.push(&full, number, value.name(), "enum-value".into(), "enum-value", "");
        }
    }

    fn label(&self, message: &DescriptorProto, field: &FieldDescriptorProto, is_map: bool) -> String {
        if is_map {
            return String::new();
        }
        if let (Some(oneof), false) = (field.oneof_index, field.proto3_optional()) {
            return format!("oneof:{}", message.oneof_decl[oneof as usize].name());
        }
        match field.label() {
            Label::Repeated => "repeated".into(),
            Label::Required => "required".into(),
            Label::Optional if self.proto2 || field.proto3_optional() => "optional".into(),
            Label::Optional => String::new(),
        }
    }

    fn message(&mut self, scope: &str, message: &DescriptorProto) {
        let full = format!("{scope}.{}", message.name());
        let is_entry = |nested: &DescriptorProto| nested.options.as_ref().is_some_and(|o| o.map_entry());
        let mut maps = BTreeMap::new();
        for nested in message.nested_type.iter().filter(|n| is_entry(n)) {
            let [key, value] = &nested.field[..] else { panic!("{full}: a map entry has two fields") };
            let (key, value) = (type_name(key, &maps), type_name(value, &maps));
            maps.insert(format!("{full}.{}", nested.name()), format!("map<{key},{value}>"));
        }
        if message.field.is_empty() && message.enum_type.is_empty() {
            self.push(&full, "-".into(), "-", "(empty message)".into(), "message", "");
        }
        for range in &message.reserved_range {
            for number in range.start()..range.end() {
                self.push(&full, number.to_string(), "", "(reserved)".into(), "reserved", "");
            }
        }
        for field in &message.field {
            let type_name = type_name(field, &maps);
            let label = self.label(message, field, type_name.starts_with("map<"));
            self.push(&full, field.number().to_string(), field.name(), type_name, "field", &label);
        }
        for item in &message.enum_type {
            self.enumeration(&full, item);
        }
        for nested in message.nested_type.iter().filter(|n| !is_entry(n)) {
            self.message(&full, nested);
        }
    }

    fn file(&mut self, file: &FileDescriptorProto) {
        self.file = file.name().to_owned();
        self.proto2 = file.syntax() != "proto3";
        for item in &file.enum_type {
            self.enumeration(file.package(), item);
        }
        for message in &file.message_type {
            self.message(file.package(), message);
        }
        for field in &file.extension {
            let target = field.extendee().trim_start_matches('.');
            let message = format!("{}.(extend {target})", file.package());
            let type_name = type_name(field, &BTreeMap::new());
            self.push(&message, field.number().to_string(), field.name(), type_name, "extension", "optional");
        }
    }
}

fn differences<T: Ord + std::fmt::Debug>(table: &BTreeSet<T>, ours: &BTreeSet<T>) -> String {
    let missing = table.difference(ours).map(|item| format!("in the table only: {item:?}\n"));
    let extra = ours.difference(table).map(|item| format!("in the descriptors only: {item:?}\n"));
    missing.chain(extra).collect()
}

#[test]
fn every_message_field_and_value_is_as_in_the_table() {
    let mut walk = Walk { items: Vec::new(), file: String::new(), proto2: false };
    for file in files() {
        walk.file(&file);
    }
    let rows: Vec<Item> = table("messages.tsv")
        .into_iter()
        .map(|row| {
            let [message, number, name, type_name, kind, markers, _since, file] = &row[..] else {
                panic!("messages.tsv: a row without eight columns: {row:?}")
            };
            // A reserved number has a name in the table, as a note; a descriptor has none.
            let name = if kind == "reserved" { "" } else { name };
            Item {
                message: message.clone(),
                number: number.clone(),
                name: name.to_owned(),
                type_name: type_name.clone(),
                kind: kind.clone(),
                markers: markers.clone(),
                file: file.clone(),
            }
        })
        .collect();
    assert!(rows.len() > 400, "messages.tsv is whole: {} rows", rows.len());
    let (count, ours_count) = (rows.len(), walk.items.len());
    let table: BTreeSet<Item> = rows.into_iter().collect();
    let ours: BTreeSet<Item> = walk.items.into_iter().collect();
    assert_eq!((table.len(), ours.len()), (count, ours_count), "no row stands twice");
    let differences = differences(&table, &ours);
    assert!(differences.is_empty(), "{differences}");
}

#[test]
fn every_method_is_as_in_the_table() {
    let yes_no = |b: bool| if b { "y" } else { "n" }.to_owned();
    let mut ours = BTreeSet::new();
    for file in files() {
        for service in &file.service {
            for method in &service.method {
                ours.insert(vec![
                    format!("{}.{}", file.package(), service.name()),
                    method.name().to_owned(),
                    method.input_type().trim_start_matches('.').to_owned(),
                    method.output_type().trim_start_matches('.').to_owned(),
                    yes_no(method.client_streaming()),
                    yes_no(method.server_streaming()),
                ]);
            }
        }
    }
    let table: BTreeSet<Vec<String>> = table("rpcs.tsv").into_iter().map(|row| row[..6].to_vec()).collect();
    assert!(table.len() > 50, "rpcs.tsv is whole: {} rows", table.len());
    let differences = differences(&table, &ours);
    assert!(differences.is_empty(), "{differences}");
}

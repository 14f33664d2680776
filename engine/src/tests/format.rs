//! The tables of `docs/format.md` and the offsets in the code are the same.

use crate::{extent, meta, page, space};

#[test]
fn the_tables_have_the_offsets_of_the_code() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/format.md")).unwrap();
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.starts_with("| "))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    for (field, offset) in [page::LAYOUT, extent::LAYOUT, meta::LAYOUT, space::LAYOUT].concat() {
        let found = rows
            .iter()
            .any(|row| row.len() == 3 && row[0] == offset.to_string() && row[2].starts_with(field));
        assert!(found, "docs/format.md has no row for {field:?} at {offset}");
    }
}

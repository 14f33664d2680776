//! Every error that this server can answer has etcd's code and text: walks `reference/errors.tsv`.

use std::collections::HashMap;

use trilith_server::status;

#[test]
fn codes_and_texts_are_etcds() {
    let table = include_str!("../../reference/errors.tsv");
    let rows: HashMap<&str, Vec<&str>> = table
        .lines()
        .skip(1)
        .map(|line| line.split('\t').collect::<Vec<_>>())
        .map(|columns| (columns[0], columns))
        .collect();
    for (name, status) in status::ALL {
        let row = rows.get(name).unwrap_or_else(|| panic!("{name} is not in the table"));
        assert_eq!(status.message, row[3], "{name}");
        assert_eq!((status.code as u8).to_string(), row[5], "{name}: number of {}", row[4]);
        assert_eq!(format!("{:?}", status.code), row[4], "{name}");
    }
    assert!(status::ALL.len() >= 33);
}

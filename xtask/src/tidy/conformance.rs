// SPDX-License-Identifier: Apache-2.0
//! The conformance tables: every rule names a test, and every test that is named exists.

use std::collections::BTreeMap;

use super::Complaint;

/// The document, and the heading of its section.
const DOCUMENT: &str = "docs/compatibility.md";
const SECTION: &str = "## Conformance";

/// Crates by the word that a test's name begins with; any other word is a file of scenarios.
const CRATES: &[(&str, &str)] =
    &[("core", "ztunnel/core/src/"), ("shell", "ztunnel/src/"), ("common", "ztunnel-common/src/")];
const SCENARIOS: &str = "tests/tests/";

/// Checks the tables, if this is their document. `sources` are the Rust files by path.
pub(super) fn tables(name: &str, text: &str, sources: &BTreeMap<String, String>) -> Vec<Complaint> {
    let mut found = Vec::new();
    if name != DOCUMENT {
        return found;
    }
    let mut inside = false;
    for (at, line) in text.lines().enumerate() {
        if line.starts_with("## ") {
            inside = line == SECTION;
        }
        let Some(tests) = last_cell(line).filter(|_| inside) else { continue };
        let complain = |text: String| Complaint { file: name.to_owned(), line: at + 1, text };
        let named: Vec<&str> =
            tests.split('`').skip(1).step_by(2).filter(|name| name.contains("::")).collect();
        if named.is_empty() && !tests.starts_with("none: ") {
            found.push(complain("name a test, or say `none: ` and why".to_owned()));
        }
        for test in named.iter().filter(|test| !exists(test, sources)) {
            found.push(complain(format!("there is no test `{test}`")));
        }
    }
    found
}

/// The last cell of a row, unless it is a header or the line below one.
fn last_cell(line: &str) -> Option<&str> {
    let row = line.strip_prefix('|')?.strip_suffix('|')?;
    let cell = row.rsplit_once('|').map_or(row, |(_, last)| last).trim();
    (cell != "tests" && !cell.starts_with("--")).then_some(cell)
}

/// `file::name`, or `crate::module::name` where the module may be a folder above.
fn exists(test: &str, sources: &BTreeMap<String, String>) -> bool {
    let Some((path, name)) = test.rsplit_once("::") else { return false };
    let (home, path) = CRATES
        .iter()
        .find_map(|(word, home)| Some((*home, path.strip_prefix(word)?.strip_prefix("::")?)))
        .unwrap_or((SCENARIOS, path));
    let place = format!("{home}{}", path.replace("::", "/"));
    let (file, folder) = (format!("{place}.rs"), format!("{place}/"));
    let declared = format!("fn {name}(");
    sources
        .range(place..)
        .take_while(|(path, _)| path.starts_with(home))
        .any(|(path, text)| (*path == file || path.starts_with(&folder)) && is_test(text, &declared))
}

/// True if the function is declared and marked as a test.
fn is_test(text: &str, declared: &str) -> bool {
    let mut marked = false;
    for line in text.lines().map(str::trim) {
        if line == "#[test]" || line == "#[tokio::test]" {
            marked = true;
        } else if line.contains("fn ") {
            if marked && line.contains(declared) {
                return true;
            }
            marked = false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(cell: &str) -> Vec<String> {
        let sources = [
            (
                "tests/tests/inbound.rs",
                "#[test]\n#[ignore = \"needs root\"]\nfn a_policy() {}\nfn mesh() {}\n",
            ),
            ("ztunnel/core/src/authz/tests.rs", "proptest! {\n    #[test]\n    fn deny_beats_allow(\n"),
        ];
        let sources = sources.map(|(path, text)| (path.to_owned(), text.to_owned())).into();
        let text = format!("{SECTION}\n\n| rule | tests |\n|--|--|\n| a | {cell} |\n");
        tables(DOCUMENT, &text, &sources).into_iter().map(|complaint| complaint.text).collect()
    }

    #[test]
    fn a_test_that_is_named_exists() {
        assert_eq!(complaints("`inbound::a_policy`, `core::authz::deny_beats_allow`"), [""; 0]);
        assert_eq!(complaints("none: there is nothing to test"), [""; 0]);
        for gone in
            ["inbound::another", "inbound::mesh", "outbound::a_policy", "core::route::deny_beats_allow"]
        {
            assert_eq!(complaints(&format!("`{gone}`")), [format!("there is no test `{gone}`")]);
        }
        assert_eq!(complaints("").len(), 1);
        assert_eq!(complaints("`inbound`").len(), 1);
    }

    #[test]
    fn other_tables_are_left_alone() {
        let text = "## Settings\n| a | b |\n## Conformance\nwords\n## More\n| a | b |\n";
        assert_eq!(tables(DOCUMENT, text, &BTreeMap::new()), []);
        assert_eq!(tables("README.md", "## Conformance\n| a | b |\n", &BTreeMap::new()), []);
    }
}

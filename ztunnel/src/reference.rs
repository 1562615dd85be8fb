// SPDX-License-Identifier: Apache-2.0
//! `docs/reference.md`: settings, metrics and fields of the log, made of the tables that the code itself uses.
//!
//! `cargo xtask reference` writes it; a test fails when it is not what the code says.

use std::fmt::Write as _;

use ztunnel_core::report::families::{self, Family};
use ztunnel_core::report::labels::NAMES;
use ztunnel_core::report::{Flag, access};

use crate::config::settings::GROUPS;

const HEAD: &str = "\
# Reference

Settings, metrics and fields of the access log. Made by `cargo xtask reference` from the code: change it there.
";

/// The whole document.
pub fn text() -> String {
    let mut text = String::from(HEAD);
    settings(&mut text);
    metrics(&mut text);
    log(&mut text);
    text
}

fn settings(text: &mut String) {
    text.push_str("\n## Settings\n\nVariables of the environment, read once at start. ");
    text.push_str("Durations are written as `10s`, `5m`, `1h30m` or `100ms`.\n");
    for group in GROUPS {
        write!(text, "\n### {}\n\n| variable | default | meaning |\n|--|--|--|\n", group.title).ok();
        for setting in group.settings {
            writeln!(text, "| `{}` | {} | {} |", setting.name, setting.default, setting.meaning).ok();
        }
    }
}

fn metrics(text: &mut String) {
    text.push_str(
        "\n## Metrics\n\nOn port 15020, `/metrics` or `/stats/prometheus`, in this order. `…`: the labels of connections, below.\n\n\
         | name | type | labels | help |\n|--|--|--|--|\n",
    );
    for family in families::ALL {
        let (name, _) = family.samples().next().unwrap_or_default();
        // A histogram has several samples, and goes by the name of the family.
        let name = if family.samples().count() > 1 { family.name } else { &name };
        let help = family.help.trim_end_matches('.');
        writeln!(text, "| `{name}` | {} | {} | {help} |", family.kind.as_str(), labels(family)).ok();
    }
    text.push_str(
        "\n### Labels of connections\n\nIn this order; the last four are there if a workload is known.\n\n",
    );
    writeln!(text, "{}", NAMES.map(|name| format!("`{name}`")).join(", ")).ok();
    text.push_str("\n### `response_flags`\n\n| flag | when |\n|--|--|\n");
    for flag in Flag::ALL {
        writeln!(text, "| `{flag}` | {} |", flag.meaning()).ok();
    }
}

fn labels(family: &Family) -> String {
    if family.labels == NAMES {
        return "…".to_owned();
    }
    family.labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ")
}

fn log(text: &mut String) {
    text.push_str(
        "\n## Access log\n\nLines of the target `access`: time, level, target, message and fields, separated by tabs; or with \
         `LOG_FORMAT=json` one\nobject.\n\n| message | level | when |\n|--|--|--|\n\
         | `connection opened` | debug; info with `ACCESS_LOG_OPENED` | it counts as opened; without bytes, duration, error and path |\n\
         | `connection complete` | info, or error | it ended |\n\
         | `connection failed` | warn | it was turned away before it counted; addresses, direction and error alone |\n\
         \nFields in their order; what is not known is left out.\n\n| field | meaning |\n|--|--|\n",
    );
    for (name, meaning) in access::FIELDS {
        writeln!(text, "| `{name}` | {meaning} |").ok();
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_document_says_what_the_code_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference.md");
        let found = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(found, super::text(), "docs/reference.md is stale: run `cargo xtask reference`");
    }
}

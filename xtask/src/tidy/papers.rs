// SPDX-License-Identifier: Apache-2.0
//! Rules for documents and manifests: a file that is named exists, a crate depends on what it may.

use std::collections::BTreeSet;

use super::Complaint;

/// What a crate may not depend on, and why.
const FORBIDDEN: &[(&str, &[&str], &str)] = &[
    (
        "ztunnel/core/Cargo.toml",
        &["tokio", "ztunnel", "ztunnel-common", "rand", "nix", "libc"],
        "the core decides, it does nothing",
    ),
    (
        "ztunnel-common/Cargo.toml",
        &["tokio", "ztunnel", "ztunnel-core"],
        "the kernel contract depends on nothing of ours",
    ),
    (
        "xtask/Cargo.toml",
        &["ztunnel", "ztunnel-core", "ztunnel-common", "ztunnel-tests"],
        "`cargo xtask` builds in seconds",
    ),
];

/// Top-level names: a quoted path that begins with one of them means a file of ours.
const OURS: &[&str] = &[
    "ztunnel/",
    "ztunnel-ebpf/",
    "ztunnel-common/",
    "xtask/",
    "tests/",
    "docs/",
    "deploy/",
    "fuzz/",
    ".ci/",
];

/// Links and quoted paths in a document lead somewhere.
pub(super) fn markdown(name: &str, text: &str, known: &BTreeSet<&str>) -> Vec<Complaint> {
    let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut found = Vec::new();
    let mut in_code = false;
    for (at, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
            continue;
        }
        if in_code {
            continue;
        }
        let mut missing: Vec<String> =
            links(line).map(|link| join(folder, &link)).filter(|path| !exists(path, known)).collect();
        missing.extend(quoted_paths(line).filter(|path| !exists(path, known)));
        missing.sort();
        missing.dedup();
        let complaints = missing.into_iter().map(|path| Complaint {
            file: name.to_owned(),
            line: at + 1,
            text: format!("`{path}` does not exist"),
        });
        found.extend(complaints);
    }
    found
}

/// A crate's dependencies stay within its layer.
pub(super) fn manifest(name: &str, text: &str) -> Vec<Complaint> {
    let Some((_, forbidden, why)) = FORBIDDEN.iter().find(|(file, _, _)| *file == name) else {
        return Vec::new();
    };
    let mut section = "";
    let mut found = Vec::new();
    for (at, line) in text.lines().enumerate() {
        if let Some(header) = line.trim().strip_prefix('[') {
            section = header.trim_end_matches(']');
            continue;
        }
        let key = line.split(['.', '=', ' ']).next().unwrap_or("");
        if section == "dependencies" && forbidden.contains(&key) {
            let text = format!("may not depend on `{key}`: {why}");
            found.push(Complaint { file: name.to_owned(), line: at + 1, text });
        }
    }
    found
}

/// The targets of `[text](target)` that are files of ours.
fn links(line: &str) -> impl Iterator<Item = String> {
    line.split("](").skip(1).filter_map(|rest| {
        let target = rest.split([')', '#', ' ']).next()?;
        let foreign = target.is_empty() || target.contains("://") || target.starts_with("mailto:");
        (!foreign).then(|| target.to_owned())
    })
}

/// Paths in backticks that begin with a folder of ours and are meant literally.
fn quoted_paths(line: &str) -> impl Iterator<Item = String> {
    line.split('`').skip(1).step_by(2).filter_map(|quoted| {
        let path = quoted.split(':').next()?.trim_start_matches("./");
        let ours =
            OURS.iter().any(|top| path.starts_with(top)) || (path.ends_with(".md") && path.contains('/'));
        let literal =
            path.chars().all(|c| c.is_alphanumeric() || "/._-".contains(c)) && !path.contains("...");
        (ours && literal).then(|| path.to_owned())
    })
}

fn exists(path: &str, known: &BTreeSet<&str>) -> bool {
    let path = path.trim_end_matches('/');
    let folder = format!("{path}/");
    let in_folder = || known.range(folder.as_str()..).next().is_some_and(|next| next.starts_with(&folder));
    path.is_empty() || known.contains(path) || in_folder()
}

/// A link's target from the root of the project.
fn join(folder: &str, link: &str) -> String {
    let mut parts: Vec<&str> = if link.starts_with('/') { Vec::new() } else { folder.split('/').collect() };
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    parts.retain(|part| !part.is_empty());
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> BTreeSet<&'static str> {
        BTreeSet::from(["README.md", "docs/fast-path.md", "ztunnel/src/main.rs"])
    }

    #[test]
    fn links_and_quoted_paths_must_exist() {
        let text =
            "[a](docs/fast-path.md#gate) `ztunnel/src/main.rs:12` `ztunnel/src/` [b](https://x.y/z.md)\n";
        assert_eq!(markdown("README.md", text, &known()), []);
        let found =
            markdown("docs/fast-path.md", "[a](gone.md) [b](../README.md) `ztunnel/src/gone.rs`", &known());
        let texts: Vec<_> = found.iter().map(|complaint| complaint.text.as_str()).collect();
        assert_eq!(texts, ["`docs/gone.md` does not exist", "`ztunnel/src/gone.rs` does not exist"]);
    }

    #[test]
    fn examples_in_code_blocks_and_patterns_are_left_alone() {
        let text = "```\n[a](gone.md)\n```\n`docs/*.md` `ztunnel/src/<name>.rs`\n";
        assert_eq!(markdown("README.md", text, &known()), []);
    }

    #[test]
    fn a_layer_is_not_skipped() {
        let text =
            "[dependencies]\nhttp.workspace = true\ntokio = \"1\"\n[dev-dependencies]\ntokio = \"1\"\n";
        let found = manifest("ztunnel/core/Cargo.toml", text);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].line, 3);
    }
}

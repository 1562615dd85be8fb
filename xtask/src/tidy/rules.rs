// SPDX-License-Identifier: Apache-2.0
//! Rules for one file: license line, header, length, unsafe code, leftovers.

use super::Complaint;

/// Lines of a file before its tests. A longer one holds two ideas.
const MAX_LINES: usize = 500;

/// The only places where code may be unsafe.
const UNSAFE_HOMES: &[&str] = &["ztunnel/src/sys/", "ztunnel-common/", "ztunnel-ebpf/"];

/// Names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] = &["utils.rs", "util.rs", "helpers.rs", "common.rs", "misc.rs"];

/// Words that mark unfinished work; each is written in two parts so that this file does not hold it.
const LEFTOVERS: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];

/// Folders that exist on one person's machine only.
const MACHINE_PATHS: &[&str] = &[concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/wo", "rk/")];

/// Rules for any text file.
pub(super) fn anywhere(name: &str, text: &str) -> Vec<Complaint> {
    let mut found = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let complain = |text: String| Complaint { file: name.to_owned(), line: at + 1, text };
        if let Some(word) = LEFTOVERS.iter().find(|word| has_word(line, word)) {
            found.push(complain(format!("`{word}`: finish it, or open an issue")));
        }
        if let Some(path) = MACHINE_PATHS.iter().find(|path| has_path(line, path)) {
            found.push(complain(format!("`{path}` is a folder of one machine")));
        }
    }
    found
}

/// Rules for a Rust file.
pub(super) fn rust(name: &str, text: &str) -> Vec<Complaint> {
    let complain = |line: usize, text: &str| Complaint { file: name.to_owned(), line, text: text.to_owned() };
    let mut found = Vec::new();
    let kernel_half = name.starts_with("ztunnel-ebpf/") || name.starts_with("ztunnel-common/");
    let license = if kernel_half { "GPL-2.0-only OR BSD-2-Clause" } else { "Apache-2.0" };
    let mut lines = text.lines();
    if lines.next() != Some(&format!("// SPDX-License-Identifier: {license}")) {
        found.push(complain(1, &format!("first line must be `// SPDX-License-Identifier: {license}`")));
    }
    if !lines.next().is_some_and(|line| line.starts_with("//! ")) {
        found.push(complain(2, "second line must begin the `//!` header: what is this module for?"));
    }
    let file = name.rsplit('/').next().unwrap_or(name);
    if EMPTY_NAMES.contains(&file) {
        found.push(complain(0, "name the module after what it holds"));
    }
    let length = text.lines().take_while(|line| *line != "#[cfg(test)]").count();
    if !is_test_file(name) && length > MAX_LINES {
        found.push(complain(0, &format!("{length} lines without tests; at most {MAX_LINES}")));
    }
    if !UNSAFE_HOMES.iter().any(|home| name.starts_with(home)) {
        let unsafe_lines = text.lines().enumerate().filter(|(_, line)| is_unsafe(line));
        found.extend(unsafe_lines.map(|(at, _)| complain(at + 1, "unsafe code belongs in ztunnel/src/sys")));
    }
    let silent = text.lines().enumerate().filter(|(_, line)| is_silent(line));
    found.extend(silent.map(|(at, _)| complain(at + 1, "say why it is ignored: `#[ignore = \"…\"]`")));
    found
}

/// Files that hold nothing but tests may be as long as their tables.
fn is_test_file(name: &str) -> bool {
    name.starts_with("tests/tests/") || name.contains("/tests/") || name.ends_with("/tests.rs")
}

/// True if the line opens unsafe code (not if it only talks about it).
fn is_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or("");
    code.match_indices("unsafe").any(|(at, word)| {
        let before = code.get(..at).unwrap_or("");
        let after = code.get(at + word.len()..).unwrap_or("");
        let quoted = before.matches('"').count() % 2 == 1;
        let starts_word = !before.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let opens =
            [" {", " fn ", " impl", " extern", " trait", "("].iter().any(|next| after.starts_with(next));
        !quoted && starts_word && opens
    })
}

/// True if an attribute takes a test out without a word: alone, beside another, on a condition, or with nothing to say.
fn is_silent(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or("").trim_start();
    code.starts_with("#[")
        && code.match_indices("ignore").any(|(at, word)| {
            let before = code.get(..at).unwrap_or("");
            let after = code.get(at + word.len()..).unwrap_or("").trim_start();
            let quoted = before.matches('"').count() % 2 == 1;
            let reason = after.strip_prefix('=').map(str::trim_start);
            let says = reason.is_some_and(|reason| reason.starts_with('"') && !reason.starts_with("\"\""));
            let whole = before.ends_with(['[', ' ', ',']) && after.starts_with([']', ',', ')', '=']);
            !quoted && whole && !says
        })
}

fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, word)| {
        let before = line.get(..at).unwrap_or("");
        let after = line.get(at + word.len()..).unwrap_or("");
        !before.ends_with(part) && !after.starts_with(part)
    })
}

/// True if the line names something in `folder`, which is at the top of a file system.
fn has_path(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(at, folder)| {
        let before = line.get(..at).unwrap_or("");
        let after = line.get(at + folder.len()..).unwrap_or("");
        let top = !before.ends_with(|c: char| c.is_alphanumeric() || "_-.}/".contains(c));
        top && after.starts_with(|c: char| c.is_alphanumeric())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "// SPDX-License-Identifier: Apache-2.0\n//! Something.\n";

    fn texts(found: &[Complaint]) -> Vec<(usize, &str)> {
        found.iter().map(|complaint| (complaint.line, complaint.text.as_str())).collect()
    }

    #[test]
    fn a_tidy_file_has_no_complaint() {
        assert_eq!(rust("xtask/src/good.rs", GOOD), []);
        assert_eq!(anywhere("xtask/src/good.rs", GOOD), []);
    }

    #[test]
    fn license_and_header_are_the_first_two_lines() {
        let found = rust("ztunnel-common/src/lib.rs", GOOD);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].text.contains("GPL-2.0-only OR BSD-2-Clause"));
        assert_eq!(rust("a/b.rs", "fn main() {}\n").len(), 2);
    }

    #[test]
    fn length_counts_up_to_the_tests() {
        let long = format!("{GOOD}{}", "\n".repeat(499));
        assert_eq!(rust("a/b.rs", &long).len(), 1);
        assert_eq!(rust("tests/tests/b.rs", &long).len(), 0);
        let mostly_tests = format!("{GOOD}#[cfg(test)]\n{}", "\n".repeat(900));
        assert_eq!(rust("a/b.rs", &mostly_tests), []);
    }

    #[test]
    fn unsafe_code_is_seen_and_talk_about_it_is_not() {
        for line in [
            "unsafe { go() }",
            "let x = unsafe { go() };",
            "unsafe impl Pod for X {}",
            "#[unsafe(no_mangle)]",
        ] {
            assert!(is_unsafe(line), "{line}");
        }
        for line in ["// unsafe { go() }", "unsafe_code = \"deny\"", "\"unsafe { go() }\"", "not_unsafe()"] {
            assert!(!is_unsafe(line), "{line}");
        }
        let text = format!("{GOOD}{}", concat!("uns", "afe { go() }\n"));
        assert_eq!(rust("ztunnel/src/sys/bpf.rs", &text), []);
        assert_eq!(
            texts(&rust("ztunnel/src/proxy/x.rs", &text)),
            [(3, "unsafe code belongs in ztunnel/src/sys")]
        );
    }

    #[test]
    fn leftovers_and_machine_paths_are_words_of_their_own() {
        let word = concat!("TO", "DO");
        assert_eq!(anywhere("a.md", &format!("{word}: later")).len(), 1);
        assert_eq!(anywhere("a.md", &format!("MY{word}S")), []);
        let folder = concat!("/ro", "ot/");
        assert_eq!(anywhere("a.md", &format!("see {folder}x")).len(), 1);
        assert_eq!(anywhere("a.md", &format!("/proc/1{folder}x and the crate{folder}x")), []);
    }

    #[test]
    fn an_ignored_test_says_why() {
        let of = |line: &str| rust("a/b.rs", &format!("{GOOD}#[test]\n{line}\nfn a() {{}}\n"));
        for silent in [
            "#[ignore]",
            "    #[ignore] // slow",
            "#[ignore = \"\"]",
            "#[test] #[ignore]",
            "#[cfg_attr(miri, ignore)]",
            "#[cfg_attr(miri, ignore, should_panic)]",
            "#[cfg_attr(miri, ignore = \"\")]",
        ] {
            assert_eq!(texts(&of(silent)), [(4, "say why it is ignored: `#[ignore = \"…\"]`")], "{silent}");
        }
        for good in [
            "#[ignore = \"needs root\"]",
            "#[cfg_attr(miri, ignore = \"opens sockets\")]",
            "#[should_panic] // ignore",
            "#[expect(dead_code, reason = \"[ignore]\")]",
            "#[cfg(ignored)]",
        ] {
            assert_eq!(of(good), [], "{good}");
        }
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Takes secrets out of what goes into a report.
//!
//! The node's own answers hold none, or should not; this is the second lock. It goes by names and by forms, and takes
//! out rather too much.

use serde_json::Value;

const TAKEN_OUT: &str = "[taken out]";

/// Parts of names whose values nobody may see.
const SECRET_NAMES: [&str; 9] = [
    "token",
    "secret",
    "password",
    "passwd",
    "credential",
    "privatekey",
    "private_key",
    "authorization",
    "headers",
];
/// Names that have such a part and are harmless.
const HARMLESS_NAMES: [&str; 3] = ["authorizationpolicies", "secretttl", "secret_ttl"];

/// Takes secrets out of a JSON value, by the names of its members and by the form of its texts.
pub(super) fn redact_json(value: &mut Value) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let name = name.to_ascii_lowercase();
                let secret = SECRET_NAMES.iter().any(|part| name.contains(part));
                if secret && !HARMLESS_NAMES.contains(&name.as_str()) && !member.is_null() {
                    *member = TAKEN_OUT.into();
                } else {
                    redact_json(member);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(redact_json),
        Value::String(text) if is_suspicious(text) => *text = redact_text(text),
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn is_suspicious(text: &str) -> bool {
    text.contains("PRIVATE KEY") || text.contains("eyJ") || text.to_ascii_lowercase().contains("bearer ")
}

/// Takes out private keys in PEM, JSON web tokens and what follows `Bearer`.
pub(super) fn redact_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_key = false;
    for line in text.split_inclusive('\n') {
        if line.contains("PRIVATE KEY-----") {
            let begins = line.contains("BEGIN");
            if begins {
                out.push_str(TAKEN_OUT);
                out.push('\n');
            }
            in_key = begins && !line.contains("END");
        } else if !in_key {
            redact_line(line, &mut out);
        }
    }
    out
}

fn redact_line(line: &str, out: &mut String) {
    let mut after_bearer = false;
    for part in line.split_inclusive(|c: char| c.is_whitespace() || "\"',;=<>()[]{}".contains(c)) {
        let word = part.trim_end_matches(|c: char| c.is_whitespace() || "\"',;=<>()[]{}".contains(c));
        if !word.is_empty() && (after_bearer || is_token(word)) {
            out.push_str(TAKEN_OUT);
            out.push_str(&part[word.len()..]);
        } else {
            out.push_str(part);
        }
        if !word.is_empty() {
            after_bearer = word.eq_ignore_ascii_case("bearer");
        }
    }
}

/// A JSON web token: its first part is the base64 of `{"`.
fn is_token(word: &str) -> bool {
    let word = word.rsplit(':').next().unwrap_or(word);
    word.starts_with("eyJ") && word.len() > 20 && word.matches('.').count() >= 1
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl";

    #[test]
    fn secrets_are_taken_out_of_json_wherever_they_are() {
        let mut value = json!({
            "config": { "xdsHeaders": [["authorization", "Basic abc"]], "authToken": "abc", "secretTtl": 86400,
                "privateKey": "abc", "password": "abc" },
            "note": format!("called with {TOKEN}"),
            "policies": [{ "name": "keep", "authorizationPolicies": ["a/b"] }],
            "pem": "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\nafter",
        });
        redact_json(&mut value);
        let text = value.to_string();
        for secret in ["Basic abc", "\"abc\"", TOKEN, "AAAA"] {
            assert!(!text.contains(secret), "{secret} is in {text}");
        }
        for kept in ["keep", "a/b", "86400", "called with", "after"] {
            assert!(text.contains(kept), "{kept} is not in {text}");
        }
    }

    #[test]
    fn secrets_are_taken_out_of_text() {
        let text = format!(
            "plain line\nauthorization: Bearer abc.def-ghi\n{{\"token\":\"{TOKEN}\"}} kept\n\
             -----BEGIN PRIVATE KEY-----\nAAAA\nBBBB\n-----END PRIVATE KEY-----\nlast\n"
        );
        let redacted = redact_text(&text);
        for secret in ["abc.def", TOKEN, "AAAA", "BBBB"] {
            assert!(!redacted.contains(secret), "{redacted}");
        }
        for kept in ["plain line\n", "authorization: Bearer [taken out]\n", "kept\n", "last\n"] {
            assert!(redacted.contains(kept), "{kept:?} is not in {redacted}");
        }
    }

    #[test]
    fn a_key_that_never_ends_takes_the_rest_with_it() {
        assert_eq!(redact_text("a\n-----BEGIN PRIVATE KEY-----\nAAAA\nBBBB"), "a\n[taken out]\n");
    }
}

// SPDX-License-Identifier: Apache-2.0
//! The page at `/`: one document without anything from elsewhere, that asks `/status` and `/connections` again and again.
//!
//! What it shows has names in it that others chose. They are text to the page, never markup; and should that ever fail,
//! the content security policy lets nothing run but the one script whose nonce the answer was made with.

use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderName, HeaderValue, Response};

use super::http::{Body, typed};
use crate::entropy::entropy;

const DOCUMENT: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The answer.
pub fn answer() -> Response<Body> {
    let nonce = format!("{:016x}{:016x}", entropy(), entropy());
    let mut response = typed("text/html; charset=utf-8", document(&nonce));
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers: [(HeaderName, &str); 4] = [
        (CONTENT_SECURITY_POLICY, &policy),
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

fn document(nonce: &str) -> String {
    DOCUMENT.replace("{{nonce}}", nonce).replace("{{style}}", STYLE).replace("{{script}}", SCRIPT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_whole_and_needs_nothing_from_elsewhere() {
        let text = document("abc");
        assert!(!text.contains("{{"), "a place was not filled");
        assert_eq!(text.matches("nonce=\"abc\"").count(), 2);
        for outside in ["http://", "https://", "src=", "@import", "url("] {
            assert!(!text.contains(outside), "{outside}");
        }
        assert!(text.len() < 24 << 10, "{} bytes", text.len());
    }

    #[test]
    fn the_script_makes_text_and_no_markup() {
        for markup in
            ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "setAttribute"]
        {
            assert!(!SCRIPT.contains(markup), "{markup}");
        }
        assert!(!SCRIPT.contains("</script"), "it would end the script");
    }

    #[test]
    fn every_answer_has_a_nonce_of_its_own_and_lets_nothing_else_run() {
        let policy = |response: &Response<Body>| {
            response.headers()[CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned()
        };
        let (first, second) = (policy(&answer()), policy(&answer()));
        assert_ne!(first, second);
        assert!(first.starts_with("default-src 'none'; script-src 'nonce-"), "{first}");
        assert!(!first.contains("unsafe"), "{first}");
    }
}

// SPDX-License-Identifier: Apache-2.0
//! The query of a request: `name=value` pairs, percent-encoded.

/// A query that has been decoded. What is not UTF-8 becomes U+FFFD, and matches nothing.
#[derive(Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads the part of a URI after `?`.
    pub fn parse(text: &str) -> Self {
        Self(form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }

    /// The first value of this name; an empty one counts as none.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// Whether there is a value of this name, be it empty.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| known == name)
    }

    /// Names that are none of these.
    pub fn unknown<'q>(&'q self, known: &'q [&str]) -> impl Iterator<Item = &'q str> {
        self.0.iter().map(|(name, _)| name.as_str()).filter(|name| !known.contains(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_decoded_and_looked_up() {
        let query = Query::parse("pod=shop%2Fweb&peer=a+b&empty=&flag&pod=second&bad=%ff");
        assert_eq!((query.get("pod"), query.get("peer")), (Some("shop/web"), Some("a b")));
        assert_eq!((query.get("empty"), query.get("flag"), query.get("none")), (None, None, None));
        assert_eq!(query.get("bad"), Some("\u{fffd}"));
        assert_eq!((query.has("flag"), query.has("none")), (true, false));
        assert_eq!(query.unknown(&["pod", "peer", "empty", "bad"]).collect::<Vec<_>>(), ["flag"]);
    }
}

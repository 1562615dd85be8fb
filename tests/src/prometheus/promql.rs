// SPDX-License-Identifier: Apache-2.0
//! The metric and label names that a PromQL expression uses. Whether it is valid is for Prometheus to say.
//!
//! Source: the lexical rules of PromQL. Grafana's variables may stand in label values and in ranges.

use std::collections::BTreeSet;

use anyhow::{Result, bail};

/// One `name{label="…"}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    /// The metric, or a recording rule.
    pub metric: String,
    /// The labels that it is filtered by.
    pub labels: BTreeSet<String>,
}

/// What an expression names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// Its selectors, in order.
    pub selectors: Vec<Selector>,
    /// Labels in `by`, `without`, `on`, `ignoring`, `group_left` and `group_right`.
    pub grouping: BTreeSet<String>,
}

/// Words before a list of labels.
const LISTS: &[&str] = &["by", "without", "on", "ignoring", "group_left", "group_right"];
/// Words that are neither functions nor metrics.
const WORDS: &[&str] = &["and", "or", "unless", "bool", "offset", "inf", "nan", "start", "end"];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token<'a> {
    Name(&'a str),
    Text,
    Mark(char),
}

/// Reads an expression.
///
/// # Errors
/// A selector without a metric name, or quotes or braces that are not closed.
pub fn names(expression: &str) -> Result<Names> {
    let tokens = tokens(expression)?;
    let mut found = Names::default();
    let mut rest = tokens.as_slice();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        let Token::Name(word) = first else {
            if *first == Token::Mark('{') {
                bail!("a selector without a metric name in `{expression}`");
            }
            continue;
        };
        let next = rest.first();
        if LISTS.contains(word) {
            if next == Some(&Token::Mark('(')) {
                rest = list(&rest[1..], ')', &mut found.grouping, expression)?;
            }
        } else if let Some(&Token::Mark('{')) = next {
            let mut labels = BTreeSet::new();
            rest = list(&rest[1..], '}', &mut labels, expression)?;
            found.selectors.push(Selector { metric: (*word).to_owned(), labels });
        } else if !is_call(next) && !WORDS.contains(&word.to_ascii_lowercase().as_str()) {
            found.selectors.push(Selector { metric: (*word).to_owned(), labels: BTreeSet::new() });
        }
    }
    Ok(found)
}

/// True if what comes before `next` is a function or an aggregation.
fn is_call(next: Option<&Token<'_>>) -> bool {
    match next {
        Some(Token::Mark('(')) => true,
        Some(Token::Name(word)) => ["by", "without"].contains(word),
        _ => false,
    }
}

/// The names up to `end`, and what follows it.
fn list<'a, 'b>(
    tokens: &'b [Token<'a>],
    end: char,
    into: &mut BTreeSet<String>,
    expression: &str,
) -> Result<&'b [Token<'a>]> {
    let Some(length) = tokens.iter().position(|token| *token == Token::Mark(end)) else {
        bail!("no `{end}` in `{expression}`");
    };
    let names = tokens[..length].iter().filter_map(|token| match token {
        Token::Name(name) => Some((*name).to_owned()),
        Token::Text | Token::Mark(_) => None,
    });
    into.extend(names);
    Ok(&tokens[length + 1..])
}

/// Names, strings and punctuation; numbers, ranges and blanks are left out.
fn tokens(expression: &str) -> Result<Vec<Token<'_>>> {
    let part_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut tokens = Vec::new();
    let mut rest = expression;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '"' | '\'' | '`' => {
                tokens.push(Token::Text);
                quoted(rest, first)
            }
            '[' => rest.find(']').map(|at| at + 1),
            c if c.is_ascii_digit() => {
                Some(rest.find(|c: char| !part_of_name(c) && c != '.').unwrap_or(rest.len()))
            }
            c if part_of_name(c) => {
                let length = rest.find(|c| !part_of_name(c)).unwrap_or(rest.len());
                tokens.push(Token::Name(&rest[..length]));
                Some(length)
            }
            c => {
                if !c.is_whitespace() {
                    tokens.push(Token::Mark(c));
                }
                Some(c.len_utf8())
            }
        };
        let Some(length) = length else { bail!("`{first}` is not closed in `{expression}`") };
        rest = &rest[length..];
    }
    Ok(tokens)
}

/// Length of the string at the start of `text`, quotes included.
fn quoted(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return Some(at + c.len_utf8()),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(expression: &str) -> (Vec<(String, Vec<String>)>, Vec<String>) {
        let names = names(expression).unwrap();
        let selectors =
            names.selectors.into_iter().map(|one| (one.metric, one.labels.into_iter().collect())).collect();
        (selectors, names.grouping.into_iter().collect())
    }

    #[test]
    fn metrics_and_labels_are_told_from_functions_words_and_values() {
        let (selectors, grouping) = read(
            "topk(10, sum by (a, b) (rate(x_total{c=\"y{\\\"z\", d!~\"$node\"}[$__rate_interval])) > bool 1e3) \
             / on (e) group_left (f) level:x:rate5m offset 5m",
        );
        let expected = [("x_total", vec!["c", "d"]), ("level:x:rate5m", vec![])].map(|(metric, labels)| {
            (metric.to_owned(), labels.into_iter().map(str::to_owned).collect::<Vec<_>>())
        });
        assert_eq!(selectors, expected);
        assert_eq!(grouping, ["a", "b", "e", "f"]);
        assert_eq!(read("sum(up) by (job)").0, [("up".to_owned(), vec![])]);
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        for wrong in ["{a=\"b\"}", "x{a=\"b\"", "x{a=\"b}", "rate(x[5m)"] {
            assert!(names(wrong).is_err(), "{wrong}");
        }
    }
}

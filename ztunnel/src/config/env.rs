// SPDX-License-Identifier: Apache-2.0
//! The only reader of the environment: typed values, and errors that name the variable, the value and what is accepted.

use std::time::Duration;

/// A source of settings. The process environment in production, a table in tests.
pub trait Env {
    /// The raw value of a variable, if it is set.
    fn get(&self, name: &str) -> Option<String>;

    /// Every variable whose name starts with `prefix`, by the rest of its name, sorted.
    fn with_prefix(&self, prefix: &str) -> Vec<(String, String)>;
}

/// The environment of this process.
#[derive(Debug, Clone, Copy)]
pub struct ProcessEnv;

impl Env for ProcessEnv {
    fn get(&self, name: &str) -> Option<String> {
        #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
        std::env::var(name).ok()
    }

    fn with_prefix(&self, prefix: &str) -> Vec<(String, String)> {
        let all = std::env::vars_os().filter_map(|(name, value)| {
            let name = name.to_str()?.strip_prefix(prefix)?.to_owned();
            Some((name, value.into_string().ok()?))
        });
        sorted(all)
    }
}

impl Env for &[(&str, &str)] {
    fn get(&self, name: &str) -> Option<String> {
        self.iter().rev().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    }

    fn with_prefix(&self, prefix: &str) -> Vec<(String, String)> {
        sorted(
            self.iter().filter_map(|(name, value)| {
                Some((name.strip_prefix(prefix)?.to_owned(), (*value).to_owned()))
            }),
        )
    }
}

fn sorted(variables: impl Iterator<Item = (String, String)>) -> Vec<(String, String)> {
    let mut all: Vec<_> = variables.collect();
    all.sort();
    all
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}={value:?}: {accepted}")]
pub struct ConfigError {
    /// The variable.
    pub name: &'static str,
    /// Its value, as found.
    pub value: String,
    /// What would be accepted.
    pub accepted: String,
}

impl ConfigError {
    /// `value` cannot be used as `name`; `accepted` says what could.
    pub fn new(name: &'static str, value: impl Into<String>, accepted: impl Into<String>) -> Self {
        Self { name, value: value.into(), accepted: accepted.into() }
    }
}

/// Reads one variable with `parse`; unset gives `default`.
///
/// # Errors
/// `parse` said what is accepted instead.
pub fn parsed<T>(
    env: &impl Env,
    name: &'static str,
    default: T,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, ConfigError> {
    match env.get(name) {
        None => Ok(default),
        Some(value) => {
            parse(value.trim()).map_err(|accepted| ConfigError { name, value: value.clone(), accepted })
        }
    }
}

/// `true` or `false`, nothing else.
///
/// # Errors
/// Anything else.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("expected true or false".into()),
    }
}

/// A whole number.
///
/// # Errors
/// Not a number, or too large for the setting.
pub fn number<T: std::str::FromStr>(text: &str) -> Result<T, String>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error| format!("expected a whole number: {error}"))
}

/// `10s`, `5m`, `24h`, `1d`, `100ms`, sums of them, or a bare number of seconds.
///
/// # Errors
/// Anything else.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "expected a duration such as 10s, 5m, 1h30m or 100ms".to_owned();
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let count: u64 = rest[..digits].parse().ok().ok_or_else(wrong)?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let millis = match &rest[..unit] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        total += Duration::from_millis(count.checked_mul(millis).ok_or_else(wrong)?);
        rest = &rest[unit..];
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_sums_of_units_or_bare_seconds() {
        assert_eq!(duration("10"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("100ms"), Ok(Duration::from_millis(100)));
        assert_eq!(duration("1d"), Ok(Duration::from_secs(86_400)));
        for wrong in ["", "s", "10x", "-1s", "1.5s", "99999999999999999999s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_error_names_the_variable_the_value_and_what_is_accepted() {
        let env: &[(&str, &str)] = &[("FAKE_CA", "yes")];
        let error = parsed(&env, "FAKE_CA", false, boolean).unwrap_err();
        assert_eq!(error.to_string(), r#"FAKE_CA="yes": expected true or false"#);
    }
}

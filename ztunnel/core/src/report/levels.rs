// SPDX-License-Identifier: Apache-2.0
//! Which lines of the log are wanted: a level for everything, and levels for targets.
//!
//! Source: data-plane contract, sections 6.6 and 7.2: `RUST_LOG`, and `/logging` at run time.

use std::cmp::Reverse;
use std::fmt;

/// A level, or none at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbosity {
    /// Nothing.
    Off,
    /// Errors.
    Error,
    /// Warnings and above.
    Warn,
    /// Information and above.
    Info,
    /// Debugging and above.
    Debug,
    /// Everything.
    Trace,
}

impl Verbosity {
    const ALL: [Self; 6] = [Self::Off, Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.as_str().eq_ignore_ascii_case(name.trim()))
    }
}

/// A text of which a part is neither a level nor a target with a level.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither a level (off, error, warn, info, debug, trace) nor `target=level`")]
pub struct LevelsError(pub String);

/// How verbose which target is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Levels {
    /// For targets that are not named.
    default: Verbosity,
    /// By target, the longest first: the first that fits counts.
    targets: Vec<(String, Verbosity)>,
}

/// Targets that may be named. A spec is an argument of a request: it must not grow for ever.
const MAX_TARGETS: usize = 1000;

impl Default for Levels {
    /// As without `RUST_LOG`.
    fn default() -> Self {
        // The second is upstream's, whose library for DNS logs every client's mistake. People compare the text.
        Self { default: Verbosity::Info, targets: vec![("hickory_server::server".into(), Verbosity::Off)] }
    }
}

impl Levels {
    /// The same, changed by `spec`: levels for everything, or `target=level` or `target:level`, separated by commas.
    ///
    /// # Errors
    /// A part that is none of these; nothing is changed then.
    pub fn with(&self, spec: &str) -> Result<Self, LevelsError> {
        let mut changed = self.clone();
        for clause in spec.split(',').map(str::trim).filter(|clause| !clause.is_empty()) {
            match clause_of(clause) {
                Some((None, level)) => changed.default = level,
                Some((Some(target), level)) => changed.set(target, level),
                None => return Err(LevelsError(clause.to_owned())),
            }
            if changed.targets.len() > MAX_TARGETS {
                return Err(LevelsError(clause.to_owned()));
            }
        }
        Ok(changed)
    }

    /// What `RUST_LOG` says, beside the parts of it that say nothing to us. A target alone is wanted at every level.
    #[must_use]
    pub fn from_variable(text: &str) -> (Self, Vec<LevelsError>) {
        let (mut levels, mut ignored) = (Self::default(), Vec::new());
        for clause in text.split(',') {
            let is_target = |byte: u8| byte.is_ascii_alphanumeric() || b"_-:".contains(&byte);
            match levels.with(clause) {
                Ok(changed) => levels = changed,
                Err(_) if clause.trim().bytes().all(is_target) => levels.set(clause.trim(), Verbosity::Trace),
                Err(error) => ignored.push(error),
            }
        }
        (levels, ignored)
    }

    fn set(&mut self, target: &str, level: Verbosity) {
        match self.targets.iter_mut().find(|(known, _)| known == target) {
            Some((_, known)) => *known = level,
            None => {
                self.targets.push((target.to_owned(), level));
                self.targets.sort_by_key(|(target, _)| Reverse(target.len()));
            }
        }
    }

    /// The level of everything that has none of its own.
    #[must_use]
    pub fn default_level(&self) -> Verbosity {
        self.default
    }

    /// Targets with a level of their own.
    pub fn targets(&self) -> impl Iterator<Item = (&str, Verbosity)> {
        self.targets.iter().map(|(target, level)| (&**target, *level))
    }
}

impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (target, level) in &self.targets {
            write!(f, "{target}={},", level.as_str())?;
        }
        f.write_str(self.default.as_str())
    }
}

/// `level`, `target=level` or `target:level`; a target may have `::` in it.
fn clause_of(clause: &str) -> Option<(Option<&str>, Verbosity)> {
    if let Some(level) = Verbosity::parse(clause) {
        return Some((None, level));
    }
    let (target, level) = clause.split_once('=').or_else(|| clause.rsplit_once(':'))?;
    let target = target.trim();
    let is_name = !target.is_empty() && !target.ends_with(':') && !target.contains(['[', '{', '=']);
    is_name.then_some((Some(target), Verbosity::parse(level)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(specs: &[&str]) -> String {
        let levels = specs.iter().try_fold(Levels::default(), |levels, spec| levels.with(spec));
        levels.map_or_else(|error| error.to_string(), |levels| levels.to_string())
    }

    #[test]
    fn both_forms_change_targets_and_a_bare_level_changes_the_rest() {
        assert_eq!(after(&[]), "hickory_server::server=off,info");
        assert_eq!(after(&[""]), "hickory_server::server=off,info");
        assert_eq!(after(&["debug"]), "hickory_server::server=off,debug");
        assert_eq!(after(&["access=debug"]), "hickory_server::server=off,access=debug,info");
        assert_eq!(
            after(&["ztunnel::proxy:trace,access:off,warn"]),
            "hickory_server::server=off,ztunnel::proxy=trace,access=off,warn"
        );
        assert_eq!(
            after(&["access=debug", "access=error", "DEBUG"]),
            "hickory_server::server=off,access=error,debug"
        );
    }

    #[test]
    fn what_is_neither_changes_nothing() {
        for spec in [
            "verbose",
            "ztunnel::proxy",
            "access=loud",
            "=debug",
            ":debug",
            "a::debug",
            "[span]=debug",
            "a=b=debug",
        ] {
            let error = Levels::default().with(&format!("debug,{spec}")).unwrap_err();
            assert_eq!(error, LevelsError(spec.into()), "{spec}");
        }
        let many: Vec<String> = (0..=MAX_TARGETS).map(|number| format!("target{number}=debug")).collect();
        assert!(Levels::default().with(&many.join(",")).is_err());
    }

    #[test]
    fn the_variable_takes_targets_alone_and_says_what_it_does_not_take() {
        let (levels, ignored) = Levels::from_variable("warn,ztunnel::xds,[request{id}]=debug,access=off");
        assert_eq!(levels.to_string(), "hickory_server::server=off,ztunnel::xds=trace,access=off,warn");
        assert_eq!(ignored, [LevelsError("[request{id}]=debug".into())]);
    }
}

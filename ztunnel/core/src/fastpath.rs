// SPDX-License-Identifier: Apache-2.0
//! Decides which pods' sockets the kernel may join, and says why not.
//!
//! Being in the kernel's socket map is never harmless to an application, so nobody gets in by default:
//! a workload qualifies by the operator's word, for a node whose kernel passed the self-test.

use std::fmt;
use std::str::FromStr;

/// What the operator asked for (`EBPF_FASTPATH`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Both directions for workloads that qualify; nobody else enters the map.
    #[default]
    Auto,
    /// Everything over TCP.
    Off,
    /// From every application to ztunnel.
    Half,
    /// Both directions for every workload.
    Full,
}

/// How far the kernel carries a pod's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// Not at all.
    #[default]
    Off,
    /// From the application to ztunnel.
    Half,
    /// From the application to ztunnel, and back.
    Full,
}

/// Whether this kernel passed the self-test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KernelFitness {
    /// Programs load, pair and redirect.
    Fit,
    /// Something is missing; the self-test says what.
    Unfit,
}

/// What a pod is entitled to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Eligibility {
    /// How far.
    pub level: Level,
    /// Why this far and no further.
    pub reason: Reason,
}

/// Why a pod has the level it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A pattern of the operator names the workload.
    Qualified,
    /// No pattern of the operator names the workload.
    NotQualified,
    /// The setting is `off`.
    ModeOff,
    /// The kernel failed the self-test.
    KernelUnfit,
    /// The setting is `half`.
    HalfBySetting,
    /// The setting is `full`.
    FullBySetting,
}

impl Reason {
    /// The reason in logs, status and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Qualified => "qualified",
            Self::NotQualified => "not_qualified",
            Self::ModeOff => "mode_off",
            Self::KernelUnfit => "kernel_unfit",
            Self::HalfBySetting => "half_by_setting",
            Self::FullBySetting => "full_by_setting",
        }
    }
}

/// How far the kernel may carry the bytes of a pod with this service account.
pub fn eligibility(
    mode: Mode,
    patterns: &[Pattern],
    namespace: &str,
    service_account: &str,
    kernel: KernelFitness,
) -> Eligibility {
    let (level, reason) = match (mode, kernel) {
        (Mode::Off, _) => (Level::Off, Reason::ModeOff),
        (_, KernelFitness::Unfit) => (Level::Off, Reason::KernelUnfit),
        (Mode::Half, KernelFitness::Fit) => (Level::Half, Reason::HalfBySetting),
        (Mode::Full, KernelFitness::Fit) => (Level::Full, Reason::FullBySetting),
        (Mode::Auto, KernelFitness::Fit) => {
            if patterns.iter().any(|pattern| pattern.matches(namespace, service_account)) {
                (Level::Full, Reason::Qualified)
            } else {
                (Level::Off, Reason::NotQualified)
            }
        }
    };
    Eligibility { level, reason }
}

/// `namespace/service-account`, where `*` stands for any characters, also none.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pattern {
    namespace: String,
    service_account: String,
}

impl Pattern {
    /// Whether the pattern names this service account.
    pub fn matches(&self, namespace: &str, service_account: &str) -> bool {
        glob(&self.namespace, namespace) && glob(&self.service_account, service_account)
    }
}

/// Why a text is no [`Pattern`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not of the form namespace/service-account, with `*` for any characters")]
pub struct PatternError(String);

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let legal = |part: &str| {
            let byte = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'*');
            !part.is_empty() && part.len() <= 253 && part.bytes().all(byte)
        };
        match text.trim().split_once('/') {
            Some((namespace, service_account)) if legal(namespace) && legal(service_account) => {
                Ok(Self { namespace: namespace.to_owned(), service_account: service_account.to_owned() })
            }
            Some(_) | None => Err(PatternError(text.to_owned())),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service_account)
    }
}

/// Reads a comma-separated list, as `EBPF_FULL_WORKLOADS` has it.
pub fn parse_patterns(list: &str) -> Result<Vec<Pattern>, PatternError> {
    list.split(',').filter(|part| !part.trim().is_empty()).map(str::parse).collect()
}

/// The pieces between the stars must follow each other; the outer ones are anchored.
fn glob(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    for piece in middle.split('*') {
        match text.find(piece) {
            Some(at) => text = &text[at + piece.len()..],
            None => return false,
        }
    }
    text.ends_with(last)
}

/// Not one of the values of a setting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is none of auto, off, half, full")]
pub struct ModeError(String);

impl FromStr for Mode {
    type Err = ModeError;

    fn from_str(text: &str) -> Result<Self, ModeError> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            "half" => Ok(Self::Half),
            "full" => Ok(Self::Full),
            _ => Err(ModeError(text.to_owned())),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Off => "off",
            Self::Half => "half",
            Self::Full => "full",
        })
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Half => "half",
            Self::Full => "full",
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_then_the_kernel_then_the_patterns_decide() {
        use KernelFitness::{Fit, Unfit};
        let patterns = parse_patterns("shop/*, bank/till-*").unwrap();
        let cases = [
            (Mode::Off, "shop", "web", Fit, Level::Off, "mode_off"),
            (Mode::Off, "shop", "web", Unfit, Level::Off, "mode_off"),
            (Mode::Auto, "shop", "web", Unfit, Level::Off, "kernel_unfit"),
            (Mode::Full, "shop", "web", Unfit, Level::Off, "kernel_unfit"),
            (Mode::Auto, "shop", "web", Fit, Level::Full, "qualified"),
            (Mode::Auto, "bank", "till-7", Fit, Level::Full, "qualified"),
            (Mode::Auto, "bank", "safe", Fit, Level::Off, "not_qualified"),
            (Mode::Half, "shop", "web", Fit, Level::Half, "half_by_setting"),
            (Mode::Full, "bank", "safe", Fit, Level::Full, "full_by_setting"),
        ];
        for (mode, namespace, account, kernel, level, reason) in cases {
            let found = eligibility(mode, &patterns, namespace, account, kernel);
            assert_eq!((found.level, found.reason.to_string().as_str()), (level, reason), "{mode} {account}");
        }
    }

    #[test]
    fn stars_match_anything_and_the_rest_matches_itself() {
        let cases = [
            ("*/*", "a", "b", true),
            ("a*c/b", "abc", "b", true),
            ("a*c/b", "ac", "b", true),
            ("a*c/b", "a", "b", false),
            ("aa*a/b", "aa", "b", false),
            ("*b*/x", "abc", "x", true),
            ("a*b*c/x", "axxbyyc", "x", true),
            ("a*b*c/x", "acb", "x", false),
            ("a/**", "a", "", true),
            ("a/b", "a", "bb", false),
        ];
        for (pattern, namespace, account, expected) in cases {
            let pattern: Pattern = pattern.parse().unwrap();
            assert_eq!(pattern.matches(namespace, account), expected, "{pattern} {namespace}/{account}");
        }
    }

    #[test]
    fn what_is_no_pattern_or_mode_is_refused() {
        for text in ["", "a", "/a", "a/", "a/b/c", "A/b", "a/b c", &format!("a/{}", "b".repeat(254))] {
            assert!(text.parse::<Pattern>().is_err(), "{text}");
        }
        assert!(parse_patterns("").unwrap().is_empty());
        assert!(parse_patterns("a/b,nonsense").is_err());
        for mode in [Mode::Auto, Mode::Off, Mode::Half, Mode::Full] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert!("on".parse::<Mode>().is_err());
    }
}

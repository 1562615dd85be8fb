// SPDX-License-Identifier: Apache-2.0
//! How many worker threads. Source: control-plane contract, section 7.2.

use super::env::{ConfigError, Env, parsed};
use super::proxy_config::ProxyConfig;

/// What the machine and the operator say about CPUs.
#[derive(Debug, Clone, Copy)]
struct Cpus {
    /// How many we count with.
    count: usize,
    /// `ZTUNNEL_RESOURCE_CPU_LIMIT`, rounded up.
    limit: Option<usize>,
    /// `ZTUNNEL_RESOURCE_CPU_REQUEST`, rounded up.
    request: Option<usize>,
}

/// `ZTUNNEL_WORKER_THREADS`, else ProxyConfig's concurrency, else what limits and requests suggest.
pub(super) fn read(env: &impl Env, proxy: &ProxyConfig) -> Result<usize, ConfigError> {
    let detected = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let limit = parsed(env, "ZTUNNEL_RESOURCE_CPU_LIMIT", None, |text| quantity(text).map(Some))?;
    let request = parsed(env, "ZTUNNEL_RESOURCE_CPU_REQUEST", None, |text| quantity(text).map(Some))?;
    let override_ = parsed(env, "ZTUNNEL_CPU_LIMIT", None, |text| whole(text).map(Some))?;
    let cpus = Cpus { count: limit.or(override_).unwrap_or(detected), limit, request };
    parsed(env, "ZTUNNEL_WORKER_THREADS", suggested(cpus, proxy.concurrency), |text| {
        threads(text, cpus.count)
    })
}

fn suggested(cpus: Cpus, concurrency: Option<u16>) -> usize {
    match (concurrency, cpus.limit) {
        (Some(0), _) => cpus.count,
        (Some(threads), _) => usize::from(threads),
        (None, Some(limit)) => limit.max(cpus.request.unwrap_or(1)),
        (None, None) => cpus.count.div_ceil(4).max(cpus.request.unwrap_or(1)).max(2),
    }
}

/// A number, a percentage of the CPUs, or 0 for all of them.
fn threads(text: &str, cpus: usize) -> Result<usize, String> {
    let wrong = || "expected a number of threads, 0 for all CPUs, or 1% to 100%".to_owned();
    if let Some(percent) = text.strip_suffix('%') {
        return match percent.parse::<usize>() {
            Ok(percent @ 1..=100) => Ok((cpus * percent).div_ceil(100).max(1)),
            _ => Err(wrong()),
        };
    }
    match text.parse::<u16>() {
        Ok(0) => Ok(cpus),
        Ok(threads) => Ok(usize::from(threads)),
        Err(_) => Err(wrong()),
    }
}

fn whole(text: &str) -> Result<usize, String> {
    text.parse::<u16>()
        .ok()
        .filter(|cpus| *cpus > 0)
        .map(usize::from)
        .ok_or_else(|| "expected a number of CPUs".to_owned())
}

/// CPUs as Kubernetes writes them: `2`, `1.5`, `500m`; rounded up.
fn quantity(text: &str) -> Result<usize, String> {
    let wrong = || "expected CPUs such as 2, 1.5 or 500m".to_owned();
    let number = |text: &str| text.parse::<u32>().ok().ok_or_else(wrong);
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let cpus = if let Some(millis) = text.strip_suffix('m') {
        number(millis)?.div_ceil(1000)
    } else if let Some((units, fraction)) = text.split_once('.') {
        if !digits(fraction) {
            return Err(wrong());
        }
        number(units)?.saturating_add(u32::from(fraction.bytes().any(|digit| digit != b'0')))
    } else {
        number(text)?
    };
    match u16::try_from(cpus) {
        Ok(0) | Err(_) => Err(wrong()),
        Ok(cpus) => Ok(usize::from(cpus)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn threads_of(variables: &[(&str, &str)], concurrency: Option<u16>) -> Result<usize, ConfigError> {
        read(&variables, &ProxyConfig { concurrency, ..ProxyConfig::default() })
    }

    #[test]
    fn cpus_are_written_as_kubernetes_does_and_rounded_up() {
        for (text, cpus) in [("2", 2), ("1.5", 2), ("1.0", 1), ("500m", 1), ("2000m", 2), ("2001m", 3)] {
            assert_eq!(quantity(text), Ok(cpus), "{text}");
        }
        for text in ["", "0", "0m", "-1", "1.", "1.x", "2Gi", "99999999"] {
            assert!(quantity(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_limit_sets_the_threads_and_a_request_raises_them() {
        assert_eq!(threads_of(&[("ZTUNNEL_RESOURCE_CPU_LIMIT", "3")], None), Ok(3));
        let both = [("ZTUNNEL_RESOURCE_CPU_LIMIT", "1"), ("ZTUNNEL_RESOURCE_CPU_REQUEST", "4")];
        assert_eq!(threads_of(&both, None), Ok(4));
        assert_eq!(threads_of(&[("ZTUNNEL_CPU_LIMIT", "40")], None), Ok(10));
        assert_eq!(threads_of(&[("ZTUNNEL_CPU_LIMIT", "4")], None), Ok(2));
        assert_eq!(
            threads_of(&[("ZTUNNEL_CPU_LIMIT", "4"), ("ZTUNNEL_RESOURCE_CPU_REQUEST", "3")], None),
            Ok(3)
        );
    }

    #[test]
    fn concurrency_overrides_the_suggestion_and_the_variable_overrides_it() {
        let eight = ("ZTUNNEL_CPU_LIMIT", "8");
        assert_eq!(threads_of(&[eight], Some(5)), Ok(5));
        assert_eq!(threads_of(&[eight], Some(0)), Ok(8));
        assert_eq!(threads_of(&[eight, ("ZTUNNEL_WORKER_THREADS", "50%")], Some(5)), Ok(4));
        assert_eq!(threads_of(&[eight, ("ZTUNNEL_WORKER_THREADS", "0")], None), Ok(8));
        assert!(threads_of(&[("ZTUNNEL_WORKER_THREADS", "101%")], None).is_err());
        assert!(threads_of(&[("ZTUNNEL_WORKER_THREADS", "-1")], None).is_err());
    }
}

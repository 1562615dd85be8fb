// SPDX-License-Identifier: Apache-2.0
//! What is reported about connections, beyond what the contract fixes.

use super::env::{ConfigError, Env, boolean, duration, number, parsed};
use crate::telemetry::metrics::series::Limits;

/// Metrics and access log.
#[derive(Debug, Clone, Copy, Default)]
pub struct TelemetryConfig {
    /// `METRICS_LABELS`, `METRICS_MAX_SERIES`, `METRICS_IDLE_TIMEOUT`.
    pub series: Limits,
    /// `ACCESS_LOG_OPENED`: a connection is logged when it opens as well, at level info instead of debug.
    pub log_opened: bool,
}

pub(super) fn read(env: &impl Env) -> Result<TelemetryConfig, ConfigError> {
    let labels = |text: &str| text.parse().map_err(|error| format!("{error}"));
    let max = |text: &str| match number::<usize>(text)? {
        max @ 1..=1_048_576 => Ok(max),
        _ => Err("expected 1 to 1048576 label sets".to_owned()),
    };
    let default = Limits::default();
    Ok(TelemetryConfig {
        series: Limits {
            labels: parsed(env, "METRICS_LABELS", default.labels, labels)?,
            max: parsed(env, "METRICS_MAX_SERIES", default.max, max)?,
            idle: parsed(env, "METRICS_IDLE_TIMEOUT", default.idle, duration)?,
        },
        log_opened: parsed(env, "ACCESS_LOG_OPENED", false, boolean)?,
    })
}

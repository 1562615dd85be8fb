// SPDX-License-Identifier: Apache-2.0
//! `/logging`: which lines of the log are wanted, at run time. Source: data-plane contract, section 7.2.

use http::{Method, Response, StatusCode};

use super::http::{Body, text};
use super::query::Query;
use crate::telemetry::log::{self, From};

const HELP: &str = "\
POST /logging                              the current levels
POST /logging?level=LEVEL                  a level for everything that has none of its own
POST /logging?level=TARGET=LEVEL[,...]     levels for targets; TARGET:LEVEL is the same
POST /logging?reset                        the levels of the start; level=... may be given as well

LEVEL:  off, error, warn, info, debug or trace
TARGET: access, dns, or a module such as ztunnel::proxy, ztunnel::xds
";

/// Shows or changes the levels.
pub(super) fn answer(method: &Method, query: &Query) -> Response<Body> {
    if method != Method::POST {
        return text(StatusCode::METHOD_NOT_ALLOWED, format!("Invalid HTTP method\n{HELP}"));
    }
    let level = query.get("level").unwrap_or_default();
    let from = if query.has("reset") { From::Start } else { From::Now };
    match log::change(from, level) {
        Ok(levels) => text(StatusCode::OK, format!("current log level is {levels}\n")),
        Err(error) => text(
            StatusCode::BAD_REQUEST,
            // What somebody sent comes back in one line.
            format!("Invalid level provided: {}\n{error}\n{HELP}", level.escape_debug()),
        ),
    }
}

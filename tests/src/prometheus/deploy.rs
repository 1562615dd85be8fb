// SPDX-License-Identifier: Apache-2.0
//! The files in `deploy/` as data: the queries of the dashboard, the rules.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::Value;

/// A query, and where it is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Title of the panel, name of the variable or of the rule.
    pub place: String,
    /// PromQL, with Grafana's variables in it.
    pub expression: String,
}

/// A rule file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleFile {
    /// Its groups.
    pub groups: Vec<Group>,
}

/// Rules that are evaluated together.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// What the group is called.
    pub name: String,
    /// Its rules, in the order of evaluation.
    pub rules: Vec<Rule>,
}

/// A recording rule or an alert.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Name of the series that it makes.
    pub record: Option<String>,
    /// Name of the alert.
    pub alert: Option<String>,
    /// PromQL.
    pub expr: String,
    /// How long it must hold.
    #[serde(rename = "for")]
    pub hold: Option<String>,
    /// Labels of the alert.
    #[serde(default)]
    pub labels: std::collections::BTreeMap<String, String>,
    /// What is said about the alert.
    #[serde(default)]
    pub annotations: std::collections::BTreeMap<String, String>,
}

impl RuleFile {
    /// All rules of all groups.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.groups.iter().flat_map(|group| &group.rules)
    }

    /// Names of the series that rules make.
    pub fn records(&self) -> impl Iterator<Item = &str> {
        self.rules().filter_map(|rule| rule.record.as_deref())
    }

    /// Names of the alerts.
    pub fn alerts(&self) -> impl Iterator<Item = &str> {
        self.rules().filter_map(|rule| rule.alert.as_deref())
    }
}

/// A file of `deploy/`.
#[must_use]
pub fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name)
}

/// The text of a file of `deploy/`.
///
/// # Errors
/// It is not there.
pub fn text(name: &str) -> Result<String> {
    let path = path(name);
    fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

/// A YAML file of `deploy/`.
///
/// # Errors
/// It is not there, or not of this form.
pub fn yaml<T: for<'de> Deserialize<'de>>(name: &str) -> Result<T> {
    serde_saphyr::from_str(&text(name)?).with_context(|| format!("deploy/{name}"))
}

/// The rules and alerts.
///
/// # Errors
/// The file is not there, or not a rule file.
pub fn rules() -> Result<RuleFile> {
    yaml("prometheus-rules.yaml")
}

/// The dashboard.
///
/// # Errors
/// The file is not there, or not JSON.
pub fn dashboard() -> Result<Value> {
    serde_json::from_str(&text("grafana-dashboard.json")?).context("deploy/grafana-dashboard.json")
}

/// All panels of a dashboard, those inside of rows too.
#[must_use]
pub fn panels(dashboard: &Value) -> Vec<&Value> {
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().into_iter().flatten() {
        found.push(panel);
        found.extend(panel["panels"].as_array().into_iter().flatten());
    }
    found
}

/// Every query that the dashboard asks, its variables' first.
///
/// # Errors
/// A query is not where Grafana looks for it.
pub fn dashboard_queries(dashboard: &Value) -> Result<Vec<Query>> {
    let mut found = Vec::new();
    let variables =
        dashboard.pointer("/templating/list").and_then(Value::as_array).context("no variables")?;
    for variable in variables.iter().filter(|variable| variable["type"] == "query") {
        let place = format!("variable {}", variable["name"]);
        let query = variable.pointer("/query/query").and_then(Value::as_str);
        let query = query.with_context(|| format!("{place}: no query"))?;
        // Grafana's own function around a selector.
        let inner = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
        let selector = inner.and_then(|inner| inner.rsplit_once(','));
        let (selector, label) = selector.with_context(|| format!("{place}: not label_values(…, …)"))?;
        found.push(Query { place, expression: format!("count by ({}) ({selector})", label.trim()) });
    }
    for panel in panels(dashboard) {
        let place = panel["title"].as_str().context("a panel without title")?.to_owned();
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().with_context(|| format!("{place}: no expr"))?;
            found.push(Query { place: place.clone(), expression: expression.to_owned() });
        }
    }
    Ok(found)
}

// SPDX-License-Identifier: Apache-2.0
//! Dashboard and rules as data: they ask for nothing that is not exposed, explain themselves, and can be loaded anywhere.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use ztunnel_tests::prometheus::deploy::{self, Query};
use ztunnel_tests::prometheus::promql;

use crate::families;

/// What no panel shows: the rest of a histogram whose buckets are shown, a setting, and wake-ups, which are for tuning.
const NOT_SHOWN: &[&str] = &[
    "istio_dns_upstream_request_duration_seconds_sum",
    "istio_dns_upstream_request_duration_seconds_count",
    "tokio_num_workers",
    "tokio_worker_park_count_total",
    "tokio_worker_park_unpark_count_total",
];

/// Every query of `deploy/`.
fn queries() -> Vec<Query> {
    let mut queries = deploy::dashboard_queries(&deploy::dashboard().unwrap()).unwrap();
    for rule in deploy::rules().unwrap().rules() {
        let name = rule.record.as_ref().or(rule.alert.as_ref()).unwrap();
        queries.push(Query { place: name.clone(), expression: rule.expr.clone() });
    }
    queries
}

#[test]
fn every_query_names_only_metrics_and_labels_that_exist() {
    let families = families::all();
    let rules = deploy::rules().unwrap();
    let records: BTreeMap<&str, BTreeSet<String>> = rules
        .rules()
        .filter_map(|rule| Some((rule.record.as_deref()?, promql::names(&rule.expr).unwrap().grouping)))
        .collect();
    let target: BTreeSet<&str> = families::TARGET.iter().copied().collect();
    for Query { place, expression } in queries() {
        let names = promql::names(&expression).unwrap();
        assert!(!names.selectors.is_empty(), "{place}: no metric in `{expression}`");
        let mut all: BTreeSet<&str> = target.clone();
        for selector in &names.selectors {
            let metric = selector.metric.as_str();
            let mut labels = target.clone();
            match (families.get(metric), records.get(metric)) {
                (Some(own), _) => labels.extend(own),
                // A recording rule keeps what it groups by.
                (None, Some(kept)) => labels.extend(kept.iter().map(String::as_str)),
                (None, None) if families::SCRAPE.contains(&metric) => {}
                (None, None) => panic!("{place}: there is no metric {metric}: `{expression}`"),
            }
            let unknown: Vec<_> =
                selector.labels.iter().filter(|name| !labels.contains(name.as_str())).collect();
            assert!(unknown.is_empty(), "{place}: {metric} has no label {unknown:?}");
            all.extend(labels);
        }
        let unknown: Vec<_> = names.grouping.iter().filter(|name| !all.contains(name.as_str())).collect();
        assert!(unknown.is_empty(), "{place}: nothing in `{expression}` has a label {unknown:?}");
    }
}

#[test]
fn every_family_is_shown_or_watched() {
    // The dashboard is where an operator looks: what is counted and not shown there is asked for by hand only.
    let used: BTreeSet<String> = queries()
        .iter()
        .flat_map(|query| promql::names(&query.expression).unwrap().selectors)
        .map(|selector| selector.metric)
        .collect();
    let unused: Vec<String> = families::all().into_keys().filter(|name| !used.contains(name)).collect();
    let mut left_out: Vec<&str> = NOT_SHOWN.to_vec();
    left_out.sort_unstable();
    assert_eq!(unused, left_out);
}

#[test]
fn the_dashboard_can_be_imported_anywhere() {
    let dashboard = deploy::dashboard().unwrap();
    // Grafana 10 brings this schema; later ones migrate it.
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 38);
    assert!(dashboard["id"].is_null(), "an id belongs to one Grafana");
    let variables = dashboard.pointer("/templating/list").and_then(Value::as_array).unwrap();
    let names: Vec<&str> = variables.iter().map(|variable| variable["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["datasource", "instance", "namespace"]);
    let panels = deploy::panels(&dashboard);
    let mut ids = BTreeSet::new();
    let mut taken: BTreeMap<(u64, u64), &str> = BTreeMap::new();
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its id is another panel's");
        let side = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        assert!(side("x") + side("w") <= 24, "{title} is wider than the page");
        for cell in (side("x")..side("x") + side("w"))
            .flat_map(|x| (side("y")..side("y") + side("h")).map(move |y| (x, y)))
        {
            assert_eq!(taken.insert(cell, title), None, "{title} lies on another panel");
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(!panel["description"].as_str().unwrap_or_default().is_empty(), "{title} is not explained");
        let sources = panel["targets"].as_array().unwrap().iter().chain([panel]);
        for source in sources {
            assert_eq!(source["datasource"]["uid"], "${datasource}", "{title}: the data source is fixed");
        }
    }
}

#[test]
fn every_alert_says_what_it_means_and_what_to_do() {
    for rule in deploy::rules().unwrap().rules() {
        let Some(alert) = &rule.alert else {
            assert!(rule.record.as_ref().unwrap().split(':').count() == 3, "level:metric:operations");
            continue;
        };
        assert!(rule.hold.is_some(), "{alert} has no `for`: one odd scrape would wake somebody");
        let severity = rule.labels.get("severity").map(String::as_str).unwrap_or_default();
        assert!(["critical", "warning", "info"].contains(&severity), "{alert}: severity {severity:?}");
        for annotation in ["summary", "description", "runbook"] {
            let text = rule.annotations.get(annotation).map(String::as_str).unwrap_or_default();
            assert!(text.len() > 20, "{alert}: no {annotation}");
        }
    }
}

#[test]
fn every_alert_is_tested_to_fire_and_to_stay_silent() {
    let tests = deploy::text("prometheus-rules-test.yaml").unwrap();
    for alert in deploy::rules().unwrap().alerts() {
        assert!(tests.contains(&format!("alertname=\"{alert}\"")), "{alert} is never expected to fire");
    }
}

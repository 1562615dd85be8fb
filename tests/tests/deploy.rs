// SPDX-License-Identifier: Apache-2.0
//! What `deploy/` asks for exists: metrics, labels, settings, ports; and what its manifest grants is enough. Whether
//! dashboard and alerts work is for `prometheus.rs`.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde::Deserialize;
use serde_json::Value;
use ztunnel_tests::node::{ADMIN, READINESS, STATS};
use ztunnel_tests::prometheus::deploy::{self, Query};
use ztunnel_tests::prometheus::{families, promql};
use ztunnel_tests::{Mesh, PodSpec, cgroup, ztunnel_binary};

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

/// What a pod gets that Istio's chart does not give it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Additions {
    image: String,
    #[serde(deserialize_with = "either_form")]
    env: BTreeMap<String, String>,
    #[serde(default)]
    volumes: Vec<Volume>,
    volume_mounts: Vec<VolumeMount>,
    /// The container that a patch is for.
    #[serde(default)]
    name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Volume {
    name: String,
    host_path: HostPath,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct HostPath {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct VolumeMount {
    name: String,
    mount_path: String,
    #[serde(default)]
    read_only: bool,
}

/// The chart takes a table of variables, Kubernetes a list.
fn either_form<'de, D: serde::Deserializer<'de>>(source: D) -> Result<BTreeMap<String, String>, D::Error> {
    #[derive(Deserialize)]
    struct Variable {
        name: String,
        value: String,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        Table(BTreeMap<String, String>),
        List(Vec<Variable>),
    }
    Ok(match Form::deserialize(source)? {
        Form::Table(table) => table,
        Form::List(list) => list.into_iter().map(|variable| (variable.name, variable.value)).collect(),
    })
}

fn values() -> Additions {
    deploy::yaml("helm-values.yaml").unwrap()
}

/// The patch, with its volumes where the values have them.
fn patch() -> Additions {
    let patch: Value = deploy::yaml("daemonset-patch.yaml").unwrap();
    let pod = patch.pointer("/spec/template/spec").unwrap();
    let containers = pod["containers"].as_array().unwrap();
    assert_eq!(containers.len(), 1);
    let mut additions: Additions = serde_json::from_value(containers[0].clone()).unwrap();
    additions.volumes = serde_json::from_value(pod["volumes"].clone()).unwrap();
    additions
}

#[test]
fn the_patch_and_the_values_say_the_same() {
    let patch = patch();
    // The container of Istio's chart; a strategic merge finds it by this name.
    assert_eq!(patch.name, "istio-proxy");
    assert_eq!(Additions { name: String::new(), ..patch }, values());
    for mount in values().volume_mounts {
        assert!(values().volumes.iter().any(|volume| volume.name == mount.name), "{mount:?}");
    }
}

#[test]
fn every_setting_and_port_that_is_named_exists() {
    // The only reader of the environment, tests apart.
    let settings: String = fs::read_dir(deploy::path("../ztunnel/src/config"))
        .unwrap()
        .map(|file| fs::read_to_string(file.unwrap().path()).unwrap())
        .map(|text| text.split("#[cfg(test)]").next().unwrap_or_default().to_owned())
        .collect();
    let readme = deploy::text("README.md").unwrap();
    let quoted = readme.split('`').skip(1).step_by(2).flat_map(|quoted| quoted.split(['=', ' ']));
    let variable = |word: &&str| {
        word.contains('_') && word.chars().all(|c| c.is_ascii_uppercase() || c == '_' || c.is_ascii_digit())
    };
    let capabilities = ["NET_ADMIN", "SYS_ADMIN", "NET_RAW"];
    let mut names: BTreeSet<String> = quoted.filter(variable).map(str::to_owned).collect();
    names.extend(values().env.into_keys());
    for name in names.iter().filter(|name| !capabilities.contains(&name.as_str())) {
        assert!(settings.contains(&format!("\"{name}\"")), "there is no setting {name}");
    }
    for port in [ADMIN, STATS, READINESS, 15001, 15006, 15008] {
        assert!(readme.contains(&format!("| {port} |")), "port {port} is not in deploy/README.md");
    }
}

/// Becomes the container of the manifest: its own mounts and part of the cgroup hierarchy, a root that cannot be written,
/// three capabilities. Arguments: folder for the root, the node's cgroup hierarchy and where the manifest wants it,
/// the program and its arguments.
const CONTAINER: &str = r#"
set -e
root=$1 cgroup=$2 at=$3; shift 3
mkdir -p "$root"
mount -t tmpfs none "$root"
cd "$root"
mkdir -p proc sys tmp "./$at"
for folder in bin dev lib lib64 usr; do
    [ ! -d "/$folder" ] || { mkdir -p "$folder"; mount --rbind "/$folder" "$folder"; }
done
touch ztunnel
mount --bind "$1" ztunnel; shift
mount --rbind /proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t bpf bpf sys/fs/bpf
mount --bind "$cgroup" "./$at"
mount -o remount,bind,ro "./$at"
mount -o remount,ro "$root"
exec chroot "$root" setpriv --bounding-set=-all,+net_admin,+sys_admin,+net_raw /ztunnel "$@"
"#;

#[test]
#[ignore = "needs root: cargo xtask test"]
fn what_the_manifest_grants_is_enough_for_the_fast_path() {
    let mesh = Mesh::builder().pod(PodSpec::mesh("a").on("n1")).build().unwrap();
    let additions = values();
    let mount = |volume: &str| additions.volume_mounts.iter().find(|mount| mount.name == volume).unwrap();
    assert!(mount("node-cgroup").read_only);
    // Its cgroup becomes the container's.
    let pod = mesh.pod("a");
    let doctor = |env: &BTreeMap<String, String>| {
        let mut launch =
            pod.command("unshare").clean_env().args(["--mount", "--cgroup", "sh", "-c", CONTAINER, "sh"]);
        launch = launch
            .arg(mesh.dir().join("container"))
            .arg(cgroup::mount_point().unwrap())
            .arg(&mount("node-cgroup").mount_path)
            .arg(ztunnel_binary().unwrap())
            .arg("doctor");
        for (name, value) in env {
            launch = launch.env(name, value);
        }
        let output = launch.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        (output.status.code(), said.into_owned())
    };
    let (code, report) = doctor(&additions.env);
    assert_eq!(code, Some(0), "{report}");
    let verdict = "ztunnel runs here; the fast path works, but EBPF_FULL_WORKLOADS names no workload for it";
    assert!(report.contains(verdict), "{report}");
    assert!(!report.contains("is not on a bpffs"), "{report}");
    // Without the hierarchy, the programs would see no pod, and the doctor says what to mount.
    let (code, report) =
        doctor(&BTreeMap::from([("EBPF_CGROUP_ROOT".to_owned(), "/sys/fs/cgroup".to_owned())]));
    assert_eq!(code, Some(0), "{report}");
    assert!(report.contains("pods outside of it stay on TCP"), "{report}");
    mesh.stop().unwrap();
}

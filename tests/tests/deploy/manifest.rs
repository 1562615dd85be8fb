// SPDX-License-Identifier: Apache-2.0
//! The manifest: both forms say the same, settings and ports exist, and what it grants is enough.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde::Deserialize;
use serde_json::Value;
use ztunnel_tests::node::{ADMIN, READINESS, STATS};
use ztunnel_tests::prometheus::deploy;
use ztunnel_tests::{Mesh, PodSpec, cgroup, ztunnel_binary};

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
mkdir -p etc proc sys tmp "./$at"
echo nameserver 127.0.0.1 > etc/resolv.conf
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

// SPDX-License-Identifier: Apache-2.0
//! A mesh file that cannot be used ends the process at once, with the place and the reason.

use std::time::Duration;

use ztunnel_tests::{Mesh, PodSpec};

const SOON: Duration = Duration::from_secs(10);

const WORKLOAD: &str =
    "workloads:\n- uid: u\n  name: n\n  namespace: demo\n  workloadIps: [\"10.0.0.1\"]\n  services: {}\n";

#[test]
#[ignore = "needs root: cargo xtask test"]
fn an_unusable_mesh_file_is_refused_with_line_and_reason() {
    let mesh = Mesh::builder().pod(PodSpec::mesh("a")).build().unwrap();
    let node = mesh.node("n1");
    let twice = format!("{WORKLOAD}{}", WORKLOAD.strip_prefix("workloads:\n").unwrap());
    for (what, text, line, word) in [
        ("no YAML", "workloads: [".to_owned(), None, ""),
        ("an unknown key", WORKLOAD.replace("name: n", "nmae: n"), Some(3), "nmae"),
        ("a bad address", WORKLOAD.replace("10.0.0.1", "10.0.0.256"), Some(5), ""),
        ("a missing key", WORKLOAD.replace("  namespace: demo\n", ""), None, "namespace"),
        ("an unknown protocol", format!("{WORKLOAD}  protocol: UDP\n"), Some(7), "UDP"),
        ("two workloads with one uid", twice, None, "u"),
    ] {
        std::fs::write(mesh.file(), &text).unwrap();
        node.launch().unwrap();
        let status = node.wait_exit(SOON).unwrap();
        assert!(!status.success(), "{what}: accepted");
        assert_ne!(status.code(), Some(101), "{what}: a panic\n{}", node.stderr());
        let stderr = node.stderr();
        assert!(stderr.contains("mesh.yaml"), "{what}: which file?\n{stderr}");
        assert!(stderr.contains(word), "{what}: does not name {word:?}\n{stderr}");
        assert!(stderr.contains("line "), "{what}: does not name the line\n{stderr}");
        if let Some(line) = line {
            let named = stderr.contains(&format!("line {line}")) || stderr.contains(&format!(":{line}:"));
            assert!(named, "{what}: not line {line}\n{stderr}");
        }
    }
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_missing_mesh_file_and_unusable_settings_are_refused_by_name() {
    let mesh = Mesh::builder().pod(PodSpec::mesh("a")).build().unwrap();
    let node = mesh.node("n1");
    let good = mesh.file().display().to_string();
    for (name, bad, good) in [
        ("LOCAL_XDS_PATH", "/nowhere/mesh.yaml", good.as_str()),
        ("PACKET_MARK", "many", "1337"),
        ("EBPF_FASTPATH", "sometimes", "off"),
        ("FAKE_CA", "1", "true"),
    ] {
        node.set_env(name, bad);
        node.launch().unwrap();
        assert!(!node.wait_exit(SOON).unwrap().success(), "{name}={bad}: accepted");
        assert!(node.stderr().contains(bad), "{name}: stderr does not name {bad}\n{}", node.stderr());
        node.set_env(name, good);
    }
    node.start().unwrap();
    mesh.stop().unwrap();
}

// SPDX-License-Identifier: Apache-2.0
//! The store and its keeper together, with the authority inside the process or one that nobody can reach.

use std::time::Duration;

use tokio::task::LocalSet;
use ztunnel_core::mesh::{Change, Mesh, local};

use super::*;
use crate::config::CaConfig;
use crate::config::{Config, TlsConfig};
use crate::mesh::{LocalPod, SharedMesh};
use store::State;

const MESH: &str = "
workloads:
- {uid: a, name: web-0, namespace: shop, serviceAccount: web, trustDomain: cluster.local, workloadIps: [10.0.0.1], services: {}}
";

fn pod() -> LocalPod {
    let name = |text: &str| Arc::from(text);
    LocalPod { name: name("web-0"), namespace: name("shop"), service_account: name("web"), node: None }
}

fn mesh() -> SharedMesh {
    SharedMesh::new(local::parse(MESH).unwrap())
}

fn local(test: &str) -> Source {
    let directory = std::env::temp_dir().join(format!("ztunnel-certs-{test}-{}", std::process::id()));
    let source = Source::Local(LocalCa::open(&directory).unwrap());
    std::fs::remove_dir_all(directory).unwrap();
    source
}

/// An authority at a port where nobody listens.
fn unreachable() -> Source {
    let variables: &[(&str, &str)] =
        &[("CA_ADDRESS", "127.0.0.1:1"), ("CA_ROOT_CA", "SYSTEM"), ("AUTH_TOKEN", "a-token")];
    let CaConfig::Remote(mut config) = Config::from_env(&variables).unwrap().ca else {
        panic!("a remote one")
    };
    let root = rcgen::CertificateParams::default().self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
    config.server.roots = crate::config::control_plane::RootSource::Inline(root.pem());
    Source::Remote(RemoteCa::new(*config, TlsConfig::default(), remote_ca::Caller::Node))
}

/// Runs `test` beside a keeper.
fn with_keeper<T>(mesh: SharedMesh, source: Source, test: impl AsyncFnOnce(CertStore) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let store = CertStore::default();
        let keeper = tokio::task::spawn_local(keeper::keep(store.clone(), mesh, source));
        let result = test(store).await;
        keeper.abort();
        result
    })
}

/// Waits for what the store says of its only identity.
async fn until(store: &CertStore, what: impl Fn(&State) -> bool) {
    let look = async {
        while !store.all().first().is_some_and(|(_, state)| what(state)) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), look).await.expect("in time");
}

#[test]
fn pods_of_one_identity_share_a_certificate_which_lives_as_long_as_they() {
    with_keeper(mesh(), local("life"), async |store| {
        let (first, second) = (store.pod(mesh(), pod()), store.pod(mesh(), pod()));
        let certificate = first.current().await.unwrap();
        assert!(Arc::ptr_eq(&certificate, &second.current().await.unwrap()));
        drop(first);
        assert_eq!(store.all().len(), 1);
        drop(second);
        assert!(store.all().is_empty());
    });
}

#[test]
fn a_pods_certificate_is_there_before_anybody_asks() {
    let mesh = SharedMesh::new(Mesh::default());
    with_keeper(mesh.clone(), local("warm"), async |store| {
        let certs = store.pod(mesh.clone(), pod());
        assert!(store.all().is_empty(), "the mesh does not know the pod");
        let known = local::parse(MESH).unwrap().everything().workloads;
        mesh.apply(known.into_iter().map(Change::Workload).collect());
        until(&store, |state| matches!(state, State::Available(_))).await;
        drop(certs);
    });
}

#[test]
fn a_pod_that_is_not_in_the_mesh_has_no_certificate() {
    with_keeper(mesh(), local("unknown"), async |store| {
        let certs = store.pod(SharedMesh::new(Mesh::default()), pod());
        let error = certs.current().await.unwrap_err();
        assert_eq!(error.to_string(), "workload is unknown: shop/web-0");
    });
}

#[test]
fn a_demand_that_comes_after_the_certificate_fetches_no_second_one() {
    with_keeper(mesh(), local("late"), async |store| {
        let certs = store.pod(mesh(), pod());
        let first = certs.current().await.unwrap();
        store.demand(&first.identity);
        let idle = store.with(|book| book.schedule.next_wake().unwrap());
        assert!(idle > std::time::Instant::now() + Duration::from_secs(3600), "nothing is due");
        assert!(Arc::ptr_eq(&first, &certs.current().await.unwrap()));
    });
}

#[test]
fn a_failure_is_told_at_once_and_names_the_authority() {
    with_keeper(mesh(), unreachable(), async |store| {
        let certs = store.pod(mesh(), pod());
        for _ in 0..2 {
            let error = certs.current().await.unwrap_err().to_string();
            assert!(error.starts_with("signing gRPC error") && error.contains("127.0.0.1:1"), "{error}");
        }
        until(&store, |state| matches!(state, State::Unavailable(_))).await;
    });
}

// SPDX-License-Identifier: Apache-2.0
//! `workloadState` of the dump: every pod that the node agent named, and its open connections.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};
use ztunnel_core::addr::Authority;
use ztunnel_core::report::{Reporter, Security};

use crate::inpod::pods::Pods;
use crate::telemetry::live::Entry;

/// One pod.
#[derive(Serialize)]
pub(super) struct PodState {
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    connections: Option<Connections>,
    info: Info,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Info {
    name: String,
    namespace: String,
    service_account: String,
}

/// Held as they are; their text is made when it is written.
struct Connections(Vec<Arc<Entry>>);

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Connection<'a> {
    src: SocketAddr,
    original_dst: Option<Original<'a>>,
    actual_dst: SocketAddr,
    protocol: &'static str,
}

/// Outbound an address and port, inbound the host that was forwarded.
#[derive(Serialize)]
#[serde(untagged)]
enum Original<'a> {
    Addr(SocketAddr),
    Host(&'a str),
}

/// All pods, by the node agent's id.
pub(super) fn all(pods: &Pods) -> BTreeMap<String, PodState> {
    let info = |name: &str, namespace: &str, service_account: &str| Info {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        service_account: service_account.to_owned(),
    };
    let pending = pods.all_pending().into_iter().map(|(uid, pod)| {
        let info = info(&pod.name, &pod.namespace, &pod.service_account);
        (uid.to_string(), PodState { state: "Pending", connections: None, info })
    });
    let served = pods.contexts().into_iter().map(|context| {
        let pod = &context.pod;
        let info = info(&pod.name, &pod.namespace, &pod.service_account);
        let connections = Some(Connections(context.live.open()));
        (context.uid.to_string(), PodState { state: "Up", connections, info })
    });
    // A pod that is served is not pending, whatever was said before.
    pending.chain(served).collect()
}

impl Serialize for Connections {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let of = |reporter| Directed(&self.0, reporter);
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("inbound", &of(Reporter::Destination))?;
        map.serialize_entry("outbound", &of(Reporter::Source))?;
        map.end()
    }
}

struct Directed<'a>(&'a [Arc<Entry>], Reporter);

impl Serialize for Directed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().filter(|entry| entry.ends.reporter == self.1).map(|entry| {
            let ends = &entry.ends;
            let original_dst = ends.original.as_ref().map(|original| match original {
                Authority::Addr(addr) => Original::Addr(*addr),
                Authority::Host { host, .. } => Original::Host(host),
            });
            Connection {
                src: ends.source_addr,
                original_dst,
                // Outbound the next hop, inbound the application.
                actual_dst: match self.1 {
                    Reporter::Source => ends.destination_addr,
                    Reporter::Destination => ends.target,
                },
                protocol: if ends.security == Security::MutualTls { "HBONE" } else { "TCP" },
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use ztunnel_core::report::Outcome;

    use super::*;
    use crate::telemetry::connection::{Connection as Counted, Ends};
    use crate::telemetry::live::Registry;
    use crate::telemetry::metrics::Metrics;
    use crate::telemetry::refusals::Refusals;

    #[test]
    fn connections_are_as_istioctl_reads_them() {
        let registry = Registry::new("shop/web".into(), Metrics::default(), Refusals::default());
        let shard = registry.shard();
        let addr = |text: &str| text.parse::<SocketAddr>().unwrap();
        let between = |reporter| Ends::between(reporter, addr("10.0.0.1:4000"), addr("10.0.0.2:15008"));
        let outbound = Ends {
            original: Some(Authority::Addr(addr("10.96.0.1:80"))),
            security: Security::MutualTls,
            ..between(Reporter::Source)
        };
        let inbound = Ends {
            original: Some(Authority::Host { host: "web.shop.svc".into(), port: 80 }),
            target: addr("[fd00::2]:8080"),
            ..between(Reporter::Destination)
        };
        let open = [outbound, inbound].map(|ends| Counted::open(&shard, ends, Instant::now()));
        let info = Info { name: "web-1".into(), namespace: "shop".into(), service_account: "web".into() };
        let state = PodState { state: "Up", connections: Some(Connections(registry.open())), info };
        let expected = serde_json::json!({
            "state": "Up",
            "connections": {
                "inbound": [{
                    "src": "10.0.0.1:4000", "originalDst": "web.shop.svc", "actualDst": "[fd00::2]:8080",
                    "protocol": "TCP",
                }],
                "outbound": [{
                    "src": "10.0.0.1:4000", "originalDst": "10.96.0.1:80", "actualDst": "10.0.0.2:15008",
                    "protocol": "HBONE",
                }],
            },
            "info": { "name": "web-1", "namespace": "shop", "serviceAccount": "web" },
        });
        assert_eq!(serde_json::json!(state), expected);
        for connection in open {
            connection.finish(&Outcome::Complete);
        }
        assert_eq!(
            serde_json::json!(Connections(registry.open())),
            serde_json::json!({"inbound": [], "outbound": []})
        );
    }
}

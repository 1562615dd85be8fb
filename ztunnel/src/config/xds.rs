// SPDX-License-Identifier: Apache-2.0
//! Where the control plane is and who we say we are. Source: control-plane contract, sections 1.1, 1.4 and 7.2.

use std::collections::BTreeMap;

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use tracing::warn;
use ztunnel_core::xds::Mode;
use ztunnel_core::xds::proto::discovery::Node;

use super::MeshSource;
use super::control_plane::{Credentials, ServerConfig, XDS};
use super::env::{ConfigError, Env, boolean, parsed};
use super::proxy_config::ProxyConfig;

/// The xDS client.
#[derive(Debug, Clone)]
pub struct XdsConfig {
    /// Where the control plane is.
    pub server: ServerConfig,
    /// Who asks.
    pub credentials: Credentials,
    /// Who we say we are.
    pub node: Node,
    /// `XDS_ON_DEMAND`.
    pub mode: Mode,
}

/// Reads the variables; none if there is no control plane: its address is empty, or not set and the mesh comes from
/// elsewhere.
pub(super) fn read(
    env: &impl Env,
    proxy: &ProxyConfig,
    mesh: &MeshSource,
) -> Result<Option<XdsConfig>, ConfigError> {
    let local = *mesh != MeshSource::Empty;
    let unset = if local { Some("") } else { proxy.discovery_address.as_deref() };
    let Some(server) = ServerConfig::read_or(env, &XDS, unset)? else { return Ok(None) };
    let credentials = Credentials::read(env)?;
    Ok(Some(XdsConfig { server, credentials, node: node(env, proxy), mode: mode(env, proxy)? }))
}

fn mode(env: &impl Env, proxy: &ProxyConfig) -> Result<Mode, ConfigError> {
    if !parsed(env, "XDS_ON_DEMAND", false, boolean)? {
        return Ok(Mode::Wildcard);
    }
    if super::dns::is_captured(env, proxy) {
        let accepted = "names cannot be answered from a mesh that is not known as a whole: \
                        set ISTIO_META_DNS_CAPTURE=false as well";
        return Err(ConfigError { name: "XDS_ON_DEMAND", value: "true".into(), accepted: accepted.into() });
    }
    Ok(Mode::OnDemand)
}

/// `ztunnel~<ip>~<pod>.<namespace>~<namespace>.svc.cluster.local`, and the metadata; of two entries with one key the
/// later one counts.
fn node(env: &impl Env, proxy: &ProxyConfig) -> Node {
    let get = |name: &str| env.get(name).unwrap_or_default();
    let (pod, namespace) = (get("POD_NAME"), get("POD_NAMESPACE"));
    let ip = env.get("INSTANCE_IP").unwrap_or_else(|| "1.1.1.1".to_owned());
    let id = format!("ztunnel~{ip}~{pod}.{namespace}~{namespace}.svc.cluster.local");
    let mut metadata: BTreeMap<String, Value> =
        [("NAME", pod), ("NAMESPACE", namespace), ("INSTANCE_IPS", ip), ("NODE_NAME", get("NODE_NAME"))]
            .map(|(key, value)| (key.to_owned(), text(value)))
            .into();
    for (key, value) in &proxy.proxy_metadata {
        let key = key.strip_prefix("ISTIO_META_").unwrap_or(key);
        metadata.insert(key.to_owned(), text(value.clone()));
    }
    for (key, value) in env.with_prefix("ISTIO_META_") {
        metadata.insert(key.trim_start_matches("ISTIO_META_").to_owned(), text(value));
    }
    for (key, value) in env.with_prefix("ISTIO_METAJSON_") {
        match serde_json::from_str(&value) {
            Ok(value) => {
                metadata.insert(key, json(value));
            }
            Err(error) => warn!(variable = %format!("ISTIO_METAJSON_{key}"), %error, "no JSON: left out"),
        }
    }
    Node { id, metadata: Some(Struct { fields: metadata }) }
}

fn text(value: String) -> Value {
    Value { kind: Some(Kind::StringValue(value)) }
}

fn json(value: serde_json::Value) -> Value {
    let kind = match value {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(flag) => Kind::BoolValue(flag),
        serde_json::Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        serde_json::Value::String(text) => Kind::StringValue(text),
        serde_json::Value::Array(all) => {
            Kind::ListValue(ListValue { values: all.into_iter().map(json).collect() })
        }
        serde_json::Value::Object(all) => {
            let fields = all.into_iter().map(|(key, value)| (key, json(value))).collect();
            Kind::StructValue(Struct { fields })
        }
    };
    Value { kind: Some(kind) }
}

impl XdsConfig {
    /// The node's metadata as JSON. istiod gets it, and `config_dump` shows it: it is no place for secrets.
    pub fn metadata(&self) -> serde_json::Map<String, serde_json::Value> {
        let fields = self.node.metadata.iter().flat_map(|metadata| &metadata.fields);
        fields.map(|(key, value)| (key.clone(), shown(value))).collect()
    }
}

fn shown(value: &Value) -> serde_json::Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(flag)) => (*flag).into(),
        Some(Kind::NumberValue(number)) => (*number).into(),
        Some(Kind::StringValue(text)) => text.clone().into(),
        Some(Kind::ListValue(list)) => list.values.iter().map(shown).collect(),
        Some(Kind::StructValue(object)) => {
            object.fields.iter().map(|(key, value)| (key.clone(), shown(value))).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<XdsConfig>, ConfigError> {
        super::read(&variables, &ProxyConfig::default(), &MeshSource::Empty)
    }

    #[test]
    fn the_address_has_the_contracts_default_and_may_be_nothing() {
        let proxy =
            ProxyConfig { discovery_address: Some("istiod-canary:15012".into()), ..Default::default() };
        let address = |variables: &[(&str, &str)], proxy: &ProxyConfig, mesh: &MeshSource| {
            let config = super::read(&variables, proxy, mesh).unwrap();
            config.map(|config| config.server.address.to_string())
        };
        let unset = ProxyConfig::default();
        let file = MeshSource::File("mesh.yaml".into());
        let set = [("XDS_ADDRESS", "istiod.other.svc:15012")];
        let istiod = Some("https://istiod.other.svc:15012/".to_owned());
        assert_eq!(address(&[], &unset, &MeshSource::Empty), Some("https://localhost:15012/".to_owned()));
        assert_eq!(address(&[], &proxy, &MeshSource::Empty), Some("https://istiod-canary:15012/".to_owned()));
        assert_eq!(address(&set, &proxy, &MeshSource::Empty), istiod);
        assert_eq!(address(&[], &proxy, &file), None, "the mesh comes from a file");
        assert_eq!(address(&set, &unset, &file), istiod, "unless somebody asks for both");
        assert_eq!(address(&[("XDS_ADDRESS", "")], &proxy, &MeshSource::Empty), None);
    }

    #[test]
    fn the_node_says_who_and_where_it_is() {
        let node = read(&[
            ("POD_NAME", "ztunnel-abc"),
            ("POD_NAMESPACE", "istio-system"),
            ("INSTANCE_IP", "10.1.2.3"),
            ("NODE_NAME", "n1"),
            ("ISTIO_META_CLUSTER_ID", "c1"),
            ("ISTIO_META_NAME", "another"),
            ("ISTIO_METAJSON_LABELS", r#"{"a": [1, true, null]}"#),
            ("ISTIO_METAJSON_BROKEN", "{"),
        ])
        .unwrap()
        .unwrap()
        .node;
        assert_eq!(node.id, "ztunnel~10.1.2.3~ztunnel-abc.istio-system~istio-system.svc.cluster.local");
        let fields = node.metadata.unwrap().fields;
        let keys: Vec<&str> = fields.keys().map(String::as_str).collect();
        assert_eq!(keys, ["CLUSTER_ID", "INSTANCE_IPS", "LABELS", "NAME", "NAMESPACE", "NODE_NAME"]);
        assert_eq!(fields["NAME"], text("another".to_owned()));
        let Some(Kind::StructValue(labels)) = &fields["LABELS"].kind else { panic!("no object") };
        let Some(Kind::ListValue(list)) = &labels.fields["a"].kind else { panic!("no list") };
        assert_eq!(list.values[0].kind, Some(Kind::NumberValue(1.0)));
    }

    #[test]
    fn on_demand_does_not_go_with_dns() {
        assert!(read(&[("XDS_ON_DEMAND", "true")]).is_err());
        let config = read(&[("XDS_ON_DEMAND", "true"), ("ISTIO_META_DNS_CAPTURE", "false")]);
        assert_eq!(config.unwrap().unwrap().mode, Mode::OnDemand);
    }
}

// SPDX-License-Identifier: Apache-2.0
//! How to reach a server of the control plane, and what to show it. Source: control-plane contract, sections 1.1 and 1.2.

use std::path::{Path, PathBuf};

use http::{HeaderName, HeaderValue, Uri};

use super::env::{ConfigError, Env};

/// Where the root that istiod's certificate chains to is mounted.
const DEFAULT_ROOT: &str = "./var/run/secrets/istio/root-cert.pem";
/// Where the service account's token is mounted.
const DEFAULT_TOKEN: &str = "./var/run/secrets/tokens/istio-token";

/// One server: where it is, and how we know that it is the right one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    /// `https://host:port`.
    pub address: Uri,
    /// What its certificate must chain to.
    pub roots: RootSource,
    /// A name that its certificate may have instead of the address' host.
    pub alternative_name: Option<String>,
    /// Sent with every call; their values are not shown.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// The variables that describe one server.
#[derive(Debug, Clone, Copy)]
pub struct ServerVariables {
    /// Its address.
    pub address: &'static str,
    /// Its root.
    pub root: &'static str,
    /// Its other name.
    pub alternative_name: &'static str,
    /// Prefix of the headers.
    pub headers: &'static str,
}

/// istiod's.
pub const XDS: ServerVariables = ServerVariables {
    address: "XDS_ADDRESS",
    root: "XDS_ROOT_CA",
    alternative_name: "ALT_XDS_HOSTNAME",
    headers: "XDS_HEADER_",
};

/// The certificate authority's.
pub const CA: ServerVariables = ServerVariables {
    address: "CA_ADDRESS",
    root: "CA_ROOT_CA",
    alternative_name: "ALT_CA_HOSTNAME",
    headers: "CA_HEADER_",
};

/// Roots of trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootSource {
    /// A PEM file, read again for every new connection.
    File(PathBuf),
    /// The roots of this operating system.
    System,
    /// PEM text.
    Inline(String),
}

impl ServerConfig {
    /// Reads the variables of one server; `None`: its address is set, and empty.
    ///
    /// # Errors
    /// One of them cannot be used.
    pub fn read(env: &impl Env, names: &ServerVariables) -> Result<Option<Self>, ConfigError> {
        Self::read_or(env, names, None)
    }

    /// The same; where the address is not set, it is `address`.
    ///
    /// # Errors
    /// One of them cannot be used.
    pub fn read_or(
        env: &impl Env,
        names: &ServerVariables,
        address: Option<&str>,
    ) -> Result<Option<Self>, ConfigError> {
        let address = match env.get(names.address).or_else(|| address.map(str::to_owned)) {
            None => default_address(env).to_owned(),
            Some(address) if address.trim().is_empty() => return Ok(None),
            Some(address) => address.trim().to_owned(),
        };
        let address =
            parse_address(&address).map_err(|accepted| ConfigError::new(names.address, address, accepted))?;
        let headers = env.with_prefix(names.headers).into_iter().map(|(name, value)| {
            header(&name, &value).map_err(|accepted| ConfigError::new(names.headers, name, accepted))
        });
        let alternative_name = env.get(names.alternative_name).filter(|name| !name.is_empty());
        if let Some(name) = &alternative_name
            && rustls::pki_types::ServerName::try_from(name.as_str()).is_err()
        {
            return Err(ConfigError::new(
                names.alternative_name,
                name,
                "expected a DNS name or an IP address",
            ));
        }
        Ok(Some(Self {
            address,
            roots: RootSource::read(env.get(names.root)),
            alternative_name,
            headers: headers.collect::<Result<_, _>>()?,
        }))
    }
}

/// istiod, as seen from inside a cluster or beside it.
fn default_address(env: &impl Env) -> &'static str {
    match env.get("KUBERNETES_SERVICE_HOST") {
        Some(_) => "https://istiod.istio-system.svc:15012",
        None => "https://localhost:15012",
    }
}

/// An address without a scheme is meant as `https`.
fn parse_address(text: &str) -> Result<Uri, String> {
    let wrong = |why: &str| format!("expected host:port or https://host:port: {why}");
    let text = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let uri: Uri = text.parse().map_err(|error: http::uri::InvalidUri| wrong(&error.to_string()))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("https"), Some(host)) if !host.is_empty() => Ok(uri),
        (Some("https"), _) => Err(wrong("there is no host")),
        _ => Err(wrong("the control plane is spoken to over TLS only")),
    }
}

fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), String> {
    let name: HeaderName = name
        .to_ascii_lowercase()
        .parse()
        .map_err(|error| format!("expected a header name after the prefix: {error}"))?;
    // The value may be a secret: it is not repeated.
    let mut value: HeaderValue =
        value.parse().map_err(|_error| "expected a header value of visible ASCII".to_owned())?;
    value.set_sensitive(true);
    Ok((name, value))
}

impl RootSource {
    fn read(value: Option<String>) -> Self {
        match value.filter(|value| !value.is_empty()) {
            None => Self::File(DEFAULT_ROOT.into()),
            Some(value) if value == "SYSTEM" => Self::System,
            Some(value) if value.contains("-----BEGIN") => Self::Inline(value),
            // Whether it exists is asked when it is needed: a file may be mounted a little later.
            Some(path) => Self::File(path.into()),
        }
    }
}

/// Who we are towards the control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// `AUTH_TOKEN`.
    pub token: TokenSource,
    /// `ISTIO_META_CLUSTER_ID`, else `CLUSTER_ID`: the cluster whose token it is.
    pub cluster_id: String,
}

/// Where the token comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// The usual mount, read for every call. While it is not there, calls go without a token.
    Mounted(PathBuf),
    /// A file that the operator named, read for every call.
    File(PathBuf),
    /// The token itself.
    Literal(HeaderValue),
}

impl std::fmt::Debug for TokenSource {
    /// Never shows a token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mounted(path) | Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Literal(_) => f.write_str("Literal(..)"),
        }
    }
}

impl Credentials {
    /// Reads the variables.
    ///
    /// # Errors
    /// One of them cannot be put into a header.
    pub fn read(env: &impl Env) -> Result<Self, ConfigError> {
        let (name, cluster_id) = match env.get("ISTIO_META_CLUSTER_ID").filter(|id| !id.is_empty()) {
            Some(id) => ("ISTIO_META_CLUSTER_ID", id),
            None => ("CLUSTER_ID", env.get("CLUSTER_ID").unwrap_or_default()),
        };
        let cluster_id = if cluster_id.is_empty() { "Kubernetes".to_owned() } else { cluster_id };
        if HeaderValue::from_str(&cluster_id).is_err() {
            return Err(ConfigError::new(name, cluster_id, "expected visible ASCII"));
        }
        Ok(Self { token: TokenSource::read(env.get("AUTH_TOKEN"))?, cluster_id })
    }
}

impl TokenSource {
    fn read(value: Option<String>) -> Result<Self, ConfigError> {
        let Some(value) = value.filter(|value| !value.is_empty()) else {
            return Ok(Self::Mounted(DEFAULT_TOKEN.into()));
        };
        // A path that does not exist yet must not be sent to anybody as if it were a token.
        let looks_like_a_path = ["/", "./", "../"].iter().any(|start| value.starts_with(start));
        if looks_like_a_path || Path::new(&value).exists() {
            return Ok(Self::File(value.into()));
        }
        let text = format!("Bearer {value}");
        match HeaderValue::from_str(&text) {
            Ok(mut header) => {
                header.set_sensitive(true);
                Ok(Self::Literal(header))
            }
            Err(_) => Err(ConfigError::new(
                "AUTH_TOKEN",
                "(not shown)",
                "expected a file, or a token of visible ASCII",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Variables<'a> = &'a [(&'a str, &'a str)];

    fn server(variables: Variables<'_>) -> Result<Option<ServerConfig>, ConfigError> {
        ServerConfig::read(&variables, &CA)
    }

    #[test]
    fn the_address_has_the_contracts_defaults_and_https() {
        let address = |variables: Variables<'_>| server(variables).unwrap().unwrap().address.to_string();
        assert_eq!(address(&[]), "https://localhost:15012/");
        assert_eq!(
            address(&[("KUBERNETES_SERVICE_HOST", "10.0.0.1")]),
            "https://istiod.istio-system.svc:15012/"
        );
        assert_eq!(address(&[("CA_ADDRESS", "istiod:15012")]), "https://istiod:15012/");
        assert_eq!(server(&[("CA_ADDRESS", "")]).unwrap(), None);
        for wrong in ["http://istiod:15012", "https://", "a b"] {
            assert_eq!(server(&[("CA_ADDRESS", wrong)]).unwrap_err().name, "CA_ADDRESS", "{wrong}");
        }
    }

    #[test]
    fn a_root_is_a_file_the_system_or_pem_text() {
        let roots = |value| server(&[("CA_ROOT_CA", value)]).unwrap().unwrap().roots;
        assert_eq!(roots("SYSTEM"), RootSource::System);
        assert_eq!(roots("not-there-yet.pem"), RootSource::File("not-there-yet.pem".into()));
        assert!(matches!(roots("-----BEGIN CERTIFICATE-----\nx"), RootSource::Inline(_)));
        assert_eq!(server(&[]).unwrap().unwrap().roots, RootSource::File(DEFAULT_ROOT.into()));
    }

    #[test]
    fn extra_headers_are_lower_case_and_their_values_are_secret() {
        let config = server(&[("CA_HEADER_X_Tenant", "hush"), ("CA_HEADER_a", "b")]).unwrap().unwrap();
        let names: Vec<_> = config.headers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["x_tenant", "a"]);
        assert!(!format!("{config:?}").contains("hush"));
        let error = server(&[("CA_HEADER_x", "hush\n")]).unwrap_err();
        assert!(!error.to_string().contains("hush"), "{error}");
        assert!(server(&[("CA_HEADER_", "x")]).is_err());
    }

    #[test]
    fn a_token_is_a_path_or_itself_and_never_shown() {
        let token = |variables: Variables<'_>| Credentials::read(&variables).unwrap().token;
        assert_eq!(token(&[]), TokenSource::Mounted(DEFAULT_TOKEN.into()));
        assert_eq!(token(&[("AUTH_TOKEN", "/nowhere/token")]), TokenSource::File("/nowhere/token".into()));
        let literal = token(&[("AUTH_TOKEN", "ey.secret")]);
        assert!(!format!("{literal:?}").contains("secret"));
        let wrong: Variables<'_> = &[("AUTH_TOKEN", "secret\u{7f}")];
        let error = Credentials::read(&wrong).unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
    }

    #[test]
    fn the_cluster_is_named_by_the_metadata_first() {
        let id = |variables: Variables<'_>| Credentials::read(&variables).unwrap().cluster_id;
        assert_eq!(id(&[]), "Kubernetes");
        assert_eq!(id(&[("CLUSTER_ID", "a")]), "a");
        assert_eq!(id(&[("CLUSTER_ID", "a"), ("ISTIO_META_CLUSTER_ID", "b")]), "b");
    }
}

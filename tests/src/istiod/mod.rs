// SPDX-License-Identifier: Apache-2.0
//! An istiod in this process: gRPC over TLS on a real socket, in the namespace between the nodes, where every
//! ztunnel of the mesh can reach it.
//!
//! Each of its services is one part: [`ads`] tells ztunnels what the mesh is, [`ca`] signs certificates. Faults are scripted on the parts; here
//! the whole of it can go away and come back. [`server`] has sockets and TLS, [`grpc`] one call, [`describe`] the
//! words of the workload API, [`resources`] what is said with them.

pub mod ads;
pub mod ca;
pub mod describe;
pub mod grpc;
pub mod resources;
mod server;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};

use crate::mesh::Mesh;
use crate::netns::Netns;
use ads::Ads;
use ca::Ca;
use grpc::Call;
use server::Credentials;
pub use server::Server;

/// Where it listens. The wire of a mesh has the nodes at 10.71.0.1 and up.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 71, 0, 250);
/// As in a real cluster.
pub const PORT: u16 = 15012;
/// A name that its certificate has besides [`ADDRESS`].
pub const HOSTNAME: &str = "istiod.istio-system.svc";

/// The parts that answer calls.
#[derive(Debug)]
struct Services {
    ads: Arc<Ads>,
    ca: Ca,
}

impl Services {
    /// Gives a call to the part that its path belongs to.
    async fn serve(&self, call: Call) {
        match call.path() {
            ztunnel_core::xds::proto::METHOD => self.ads.serve(call).await,
            ztunnel_core::certs::proto::METHOD => self.ca.serve(call).await,
            _ => call.refuse(grpc::UNIMPLEMENTED, "no such method"),
        }
    }
}

/// A running istiod. Dropping it closes everything.
#[derive(Debug)]
pub struct Istiod {
    services: Arc<Services>,
    server: Server,
    credentials: Credentials,
    root: PathBuf,
    token: PathBuf,
}

impl Istiod {
    /// Starts on the wire of `mesh`, knowing nothing yet. Its root certificate and a token are in the mesh's folder.
    ///
    /// # Errors
    /// The address is in use, or a file cannot be written.
    pub fn start(mesh: &Mesh) -> Result<Self> {
        let wire = mesh.wire();
        wire.ip(&format!("addr replace {ADDRESS}/24 dev wire\n"))?;
        let folder = mesh.dir().join("istiod");
        std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let credentials = Credentials::generate(ADDRESS.into(), HOSTNAME)?;
        let (root, token) = (folder.join("root-cert.pem"), folder.join("token"));
        std::fs::write(&root, credentials.root_pem()).context("write the root certificate")?;
        std::fs::write(&token, "a-token").context("write the token")?;
        let services = Arc::new(Services { ads: Arc::default(), ca: Ca::new(token.clone())? });
        let server = serve(&services, wire, (ADDRESS, PORT).into(), &credentials)?;
        Ok(Self { services, server, credentials, root, token })
    }

    /// Listens at another address as well, with the same certificate, which does not name it.
    ///
    /// # Errors
    /// The address is in use.
    pub fn also_at(&self, netns: &Netns, address: SocketAddr) -> Result<Server> {
        serve(&self.services, netns, address, &self.credentials)
    }

    /// The part that tells ztunnels what the mesh is.
    #[must_use]
    pub fn ads(&self) -> &Ads {
        &self.services.ads
    }

    /// The part that signs certificates.
    #[must_use]
    pub fn ca(&self) -> &Ca {
        &self.services.ca
    }

    /// `https://address:port`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{ADDRESS}:{PORT}")
    }

    /// The root that its certificate chains to, as PEM.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A file with the token that ztunnels may present.
    #[must_use]
    pub fn token(&self) -> &Path {
        &self.token
    }

    /// From the next start on, every ztunnel takes the mesh from here and from nowhere else.
    pub fn configure(&self, mesh: &Mesh) {
        for node in mesh.nodes() {
            node.unset_env("LOCAL_XDS_PATH");
            node.set_env("XDS_ADDRESS", &self.url());
            node.set_env("XDS_ROOT_CA", &self.root.to_string_lossy());
            node.set_env("AUTH_TOKEN", &self.token.to_string_lossy());
            node.set_env("POD_NAME", &format!("ztunnel-{}", node.name()));
            node.set_env("POD_NAMESPACE", "istio-system");
            node.set_env("INSTANCE_IP", &node.ip4().to_string());
        }
    }

    /// From the next start on, every ztunnel takes its certificates from here.
    pub fn certify(&self, mesh: &Mesh) {
        for node in mesh.nodes() {
            node.unset_env("FAKE_CA");
            node.set_env("CA_ADDRESS", &self.url());
            node.set_env("CA_ROOT_CA", &self.root.to_string_lossy());
            node.set_env("AUTH_TOKEN", &self.token.to_string_lossy());
        }
    }

    /// Stops listening and cuts every connection, as if the process had died. What it knows stays.
    pub fn pause(&self) {
        self.server.pause();
    }

    /// Listens again after [`Istiod::pause`].
    ///
    /// # Errors
    /// The address is in use.
    pub fn resume(&self) -> Result<()> {
        self.server.resume()
    }

    /// Connections accepted so far.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.server.connections()
    }
}

fn serve(
    services: &Arc<Services>,
    netns: &Netns,
    address: SocketAddr,
    credentials: &Credentials,
) -> Result<Server> {
    let services = Arc::clone(services);
    Server::start(netns.clone(), address, credentials, move |call| {
        let services = Arc::clone(&services);
        async move { services.serve(call).await }
    })
}

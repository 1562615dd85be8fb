// SPDX-License-Identifier: Apache-2.0
//! The control plane's responses, one after another, with streams that end in between.
//!
//! The input is packets: the kind says whether it is a response, a stream that ends, or somebody here who asks for a name.

use bytes::Bytes;
use prost::Message as _;
use ztunnel_core::mesh::Mesh;
use ztunnel_core::xds::proto::discovery::{DeltaDiscoveryResponse, Node, Resource};
use ztunnel_core::xds::proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use ztunnel_core::xds::{Decoder, Kind, Mode, Received, Session};

use super::mesh_file::dumped;
use super::resources::{authorization, resource, service_address, workload_address};
use crate::packets::{join, split};

/// Resources per batch.
const BATCH: usize = 2;

pub(super) fn run(data: &[u8]) {
    let Some((&mode, data)) = data.split_first() else { return };
    let mode = if mode & 1 == 0 { Mode::Wildcard } else { Mode::OnDemand };
    let mut session = Session::new(Node { id: "ztunnel~1.1.1.1~a.b~b".into(), metadata: None }, mode);
    let (mut decoder, mut mesh) = (Decoder::default(), Mesh::default());
    session.connected();
    for (kind, bytes) in split(data) {
        match kind % 8 {
            0..=4 => receive(&mut session, &mut decoder, &mut mesh, bytes),
            5 => {
                if let Ok(name) = str::from_utf8(bytes) {
                    session.ask(name);
                }
            }
            6 => {
                session.ended(u64::from(kind));
            }
            _ => {
                let first = session.connected();
                assert_eq!(first.len(), Kind::ALL.len(), "every type is subscribed to on a new stream");
            }
        }
        dumped(&mesh);
    }
}

fn receive(session: &mut Session, decoder: &mut Decoder, mesh: &mut Mesh, bytes: &[u8]) {
    let nonce = DeltaDiscoveryResponse::decode(bytes).ok().map(|response| response.nonce);
    match session.receive(Bytes::copy_from_slice(bytes)) {
        Err(ending) => {
            assert!(!ending.reason().is_empty());
            assert_eq!(nonce, None, "what can be read is answered");
            session.ended(0);
            session.connected();
        }
        Ok(Received::Unknown { answer, .. }) => assert_eq!(Some(answer.response_nonce), nonce),
        Ok(Received::Push(mut push)) => {
            let (resources, removed) = push.size();
            let mut changes = 0;
            while let Some(batch) = push.next_batch(decoder, BATCH) {
                assert!(batch.len() <= BATCH || push.kind() == Kind::Authorization);
                changes += batch.len();
                for change in batch {
                    mesh.apply(change);
                }
            }
            assert_eq!(push.size().0, 0);
            let settled = session.settle(push);
            assert_eq!(changes + settled.rejected.len(), resources + removed, "each is applied or refused");
            for change in settled.changes {
                mesh.apply(change);
            }
            assert_eq!(Some(settled.answer.response_nonce), nonce);
            assert_eq!(settled.answer.error_detail.is_some(), !settled.rejected.is_empty());
            decoder.tidy();
        }
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let response = |type_url: &str, resources: Vec<Resource>, removed: &[&str]| {
        let removed_resources = removed.iter().map(|&name| name.to_owned()).collect();
        let type_url = type_url.to_owned();
        let nonce = "n".to_owned();
        let resources = resources.iter().map(|resource| resource.encode_to_vec().into()).collect();
        DeltaDiscoveryResponse { type_url, nonce, resources, removed_resources, ..Default::default() }
            .encode_to_vec()
    };
    let (uid, service, policy) = ("c1//Pod/shop/web-0", "shop/web.shop.svc.cluster.local", "shop/only-front");
    let addresses = vec![resource(uid, &workload_address()), resource(service, &service_address())];
    let whole = [
        (0, response(ADDRESS_TYPE, addresses.clone(), &[])),
        (0, response(AUTHORIZATION_TYPE, vec![resource(policy, &authorization())], &[])),
        (5, b"n/10.0.0.1".to_vec()),
        (0, response(ADDRESS_TYPE, Vec::new(), &[uid, service])),
        (6, Vec::new()),
        (7, Vec::new()),
        (0, response(ADDRESS_TYPE, addresses, &["gone"])),
        (0, response(AUTHORIZATION_TYPE, Vec::new(), &[policy])),
        (0, response("type.googleapis.com/other", Vec::new(), &[])),
    ];
    vec![[vec![0], join(&whole)].concat(), [vec![1], join(&whole)].concat()]
}

// SPDX-License-Identifier: Apache-2.0
//! One ZDS packet: read and checked whole, or refused with a reason.
//!
//! A packet and the file descriptors that came with it belong together: an added pod has exactly one
//! network namespace, every other message none. A refused packet drops, and so closes, all of them.

use std::fmt;

use prost::Message as _;

use crate::Name;

/// The messages of `zds.proto`.
mod proto {
    #![expect(unreachable_pub, reason = "generated: everything is public")]
    include!(concat!(env!("OUT_DIR"), "/istio.workload.zds.rs"));
}

/// Both sides read into a buffer of this size; what does not fit is an error.
pub const MAX_PACKET: usize = 1024;

/// The pod's UID in Kubernetes.
pub type Uid = Name;

/// What the kernel says a network namespace is: device and inode of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetnsId(pub u64, pub u64);

/// A network namespace: its identity and what keeps it alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netns<Fd> {
    /// Tells two descriptors of one namespace from two namespaces.
    pub id: NetnsId,
    /// The descriptor, or whatever the shell stores it in.
    pub fd: Fd,
}

/// Who a pod is, as the node agent says.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodInfo {
    /// The pod's name.
    pub name: Name,
    /// The Kubernetes namespace.
    pub namespace: Name,
    /// The service account.
    pub service_account: Name,
}

/// One packet as it came from the socket.
#[derive(Debug)]
pub struct Packet<'a, Fd> {
    /// The bytes, at most [`MAX_PACKET`].
    pub bytes: &'a [u8],
    /// Every network namespace that came with it.
    pub netns: Vec<Netns<Fd>>,
    /// Whether the kernel had to cut it.
    pub cut: Cut,
}

/// What the kernel could not deliver of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Nothing: the packet is whole.
    Whole,
    /// `MSG_TRUNC`: bytes are missing.
    Data,
    /// `MSG_CTRUNC`: descriptors are missing.
    Control,
}

/// One request of the node agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message<Fd> {
    /// Serve a pod.
    Add {
        /// Which pod.
        uid: Uid,
        /// Who it is. The session treats its absence as a violation of the protocol.
        info: Option<PodInfo>,
        /// Where it lives.
        netns: Netns<Fd>,
    },
    /// The pod still exists.
    Keep {
        /// Which pod.
        uid: Uid,
    },
    /// Stop serving a pod.
    Del {
        /// Which pod.
        uid: Uid,
    },
    /// Every known pod has been named.
    SnapshotSent,
}

/// Why a packet cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// More than [`MAX_PACKET`] bytes.
    #[error("packet is longer than {MAX_PACKET} bytes")]
    TooLong,
    /// The kernel dropped descriptors.
    #[error("control data is truncated")]
    ControlTruncated,
    /// Not a `WorkloadRequest`.
    #[error("not a workload request: {0}")]
    Malformed(prost::DecodeError),
    /// A request without a payload that we know.
    #[error("no payload, or an unknown one")]
    NoPayload,
    /// A pod without a network namespace.
    #[error("add of {0} without a network namespace")]
    MissingNetns(Uid),
    /// Descriptors where none or fewer belong.
    #[error("{count} file descriptors came with {kind}")]
    UnexpectedFds {
        /// How many came.
        count: usize,
        /// With which message.
        kind: &'static str,
    },
}

/// Reads one packet.
pub fn decode<Fd>(packet: Packet<'_, Fd>) -> Result<Message<Fd>, DecodeError> {
    use proto::workload_request::Payload;
    match packet.cut {
        Cut::Whole if packet.bytes.len() <= MAX_PACKET => {}
        Cut::Whole | Cut::Data => return Err(DecodeError::TooLong),
        Cut::Control => return Err(DecodeError::ControlTruncated),
    }
    let request = proto::WorkloadRequest::decode(packet.bytes).map_err(DecodeError::Malformed)?;
    match request.payload.ok_or(DecodeError::NoPayload)? {
        Payload::Add(add) => {
            let uid = Name::from(add.uid);
            let info = add.workload_info.map(|info| PodInfo {
                name: info.name.into(),
                namespace: info.namespace.into(),
                service_account: info.service_account.into(),
            });
            let netns = match <[Netns<Fd>; 1]>::try_from(packet.netns) {
                Ok([netns]) => netns,
                Err(none) if none.is_empty() => return Err(DecodeError::MissingNetns(uid)),
                Err(many) => return Err(DecodeError::UnexpectedFds { count: many.len(), kind: "add" }),
            };
            Ok(Message::Add { uid, info, netns })
        }
        Payload::Keep(keep) => {
            no_fds(&packet.netns, "keep")?;
            Ok(Message::Keep { uid: keep.uid.into() })
        }
        Payload::Del(del) => {
            no_fds(&packet.netns, "del")?;
            Ok(Message::Del { uid: del.uid.into() })
        }
        Payload::SnapshotSent(proto::SnapshotSent {}) => {
            no_fds(&packet.netns, "snapshot_sent")?;
            Ok(Message::SnapshotSent)
        }
    }
}

fn no_fds<Fd>(netns: &[Netns<Fd>], kind: &'static str) -> Result<(), DecodeError> {
    match netns.len() {
        0 => Ok(()),
        count => Err(DecodeError::UnexpectedFds { count, kind }),
    }
}

/// ztunnel's first packet.
pub fn encode_hello() -> Vec<u8> {
    proto::ZdsHello { version: proto::Version::V1.into() }.encode_to_vec()
}

/// Room for the text of a refusal: tags and lengths of two nested messages take eight bytes at most, and
/// the agent's buffer must not be filled to its last byte.
const MAX_ERROR: usize = MAX_PACKET - 16;

/// The answer to one request: success, or the reason why not, cut to what the agent can read.
pub fn encode_ack(error: Option<&str>) -> Vec<u8> {
    let error = error.unwrap_or_default();
    let error = &error[..error.floor_char_boundary(MAX_ERROR)];
    let ack = proto::Ack { error: error.to_owned() };
    proto::WorkloadResponse { payload: Some(proto::workload_response::Payload::Ack(ack)) }.encode_to_vec()
}

/// The node agent's side of the conversation, for in-process agents and tests.
pub mod agent {
    use prost::Message as _;

    use super::proto::workload_request::Payload;
    use super::{PodInfo, proto};

    /// A request without its descriptor.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum Request<'a> {
        /// Serve a pod; its namespace goes beside the packet.
        Add(&'a str, Option<&'a PodInfo>),
        /// The pod still exists.
        Keep(&'a str),
        /// Stop serving a pod.
        Del(&'a str),
        /// Every known pod has been named.
        SnapshotSent,
    }

    /// The packet of one request.
    pub fn encode_request(request: &Request<'_>) -> Vec<u8> {
        let payload = match request {
            Request::Add(uid, info) => Payload::Add(proto::AddWorkload {
                uid: (*uid).to_owned(),
                workload_info: info.map(|info| proto::WorkloadInfo {
                    name: info.name.as_ref().to_owned(),
                    namespace: info.namespace.as_ref().to_owned(),
                    service_account: info.service_account.as_ref().to_owned(),
                }),
            }),
            Request::Keep(uid) => Payload::Keep(proto::KeepWorkload { uid: (*uid).to_owned() }),
            Request::Del(uid) => Payload::Del(proto::DelWorkload { uid: (*uid).to_owned() }),
            Request::SnapshotSent => Payload::SnapshotSent(proto::SnapshotSent {}),
        };
        proto::WorkloadRequest { payload: Some(payload) }.encode_to_vec()
    }

    /// Reads ztunnel's hello: whether it speaks the first version.
    pub fn decode_hello(packet: &[u8]) -> bool {
        proto::ZdsHello::decode(packet).is_ok_and(|hello| hello.version() == proto::Version::V1)
    }

    /// Reads one response: the error text of a refusal, empty for success; nothing if it is none.
    pub fn decode_ack(packet: &[u8]) -> Option<String> {
        match proto::WorkloadResponse::decode(packet).ok()?.payload? {
            proto::workload_response::Payload::Ack(ack) => Some(ack.error),
        }
    }
}

impl fmt::Display for PodInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} ({})", self.namespace, self.name, self.service_account)
    }
}

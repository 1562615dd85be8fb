// SPDX-License-Identifier: Apache-2.0
//! The CA part of an istiod: certificates for those whom a node proxy speaks for, with faults.
//!
//! It signs for the impersonated identity as istiod does, whatever the request itself names, and wants the token that
//! is in the token file at that moment. Everything that was asked is kept, for the test to look at.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use parking_lot::Mutex;
use prost::Message as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber,
};
use ztunnel_core::certs::proto::IMPERSONATED_IDENTITY;
use ztunnel_core::certs::proto::auth::{IstioCertificateRequest, IstioCertificateResponse};

use super::grpc::{self, Call};

/// Certificates begin this long ago, for nodes whose clocks differ.
const BACKDATED: Duration = Duration::from_secs(1);

/// Who signs, what goes wrong, and what was asked.
#[derive(Debug)]
pub struct Ca {
    token: PathBuf,
    state: Mutex<State>,
    in_flight: AtomicUsize,
}

#[derive(Debug)]
struct State {
    /// Oldest first. All of them are in the bundle that goes with a certificate.
    roots: Vec<Root>,
    /// Which of them signs.
    signer: usize,
    faults: Faults,
    seen: Vec<Seen>,
    most_in_flight: usize,
    serial: u64,
}

/// What goes wrong. The default is nothing.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Refuses everybody with this status and message.
    pub refuse_all: Option<(u32, String)>,
    /// Refuses one SPIFFE ID with this status and message.
    pub refuse: BTreeMap<String, (u32, String)>,
    /// Answers this late.
    pub delay: Duration,
    /// Answers one SPIFFE ID this late.
    pub delay_one: BTreeMap<String, Duration>,
    /// Returns something wrong for one SPIFFE ID.
    pub wrong: BTreeMap<String, Wrong>,
    /// Certificates live this long, whatever was asked for.
    pub lifetime: Option<Duration>,
}

/// Something that must not be accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrong {
    /// A certificate for another SPIFFE ID.
    Identity(String),
    /// A certificate for another key.
    Key,
    /// A certificate whose time is over.
    Expired,
    /// A certificate without a root.
    NoRoot,
    /// No certificate.
    Garbage,
    /// Nothing.
    Empty,
}

/// A request.
#[derive(Debug, Clone)]
pub struct Seen {
    /// When it came.
    pub at: Instant,
    /// The SPIFFE ID that was asked for in the metadata.
    pub impersonated: Option<String>,
    /// The SPIFFE ID in the signing request.
    pub requested: Option<String>,
    /// Lifetime that was asked for, in seconds.
    pub validity: i64,
    /// The headers.
    pub metadata: http::HeaderMap,
    /// The serial number of the certificate that was issued, if one was.
    pub serial: Option<u64>,
}

struct Root {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl std::fmt::Debug for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Root").finish_non_exhaustive()
    }
}

impl Root {
    fn generate(number: usize) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, format!("root {number} of the mesh"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }
}

/// For tests.
impl Ca {
    /// With one root, and callers who must present what is in the file `token`.
    pub(super) fn new(token: PathBuf) -> Result<Self> {
        let state = State {
            roots: vec![Root::generate(0)?],
            signer: 0,
            faults: Faults::default(),
            seen: Vec::new(),
            most_in_flight: 0,
            serial: 0,
        };
        Ok(Self { token, state: Mutex::new(state), in_flight: AtomicUsize::new(0) })
    }

    /// Changes what goes wrong from now on.
    pub fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.state.lock().faults);
    }

    /// Everything that was asked so far.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.state.lock().seen.clone()
    }

    /// Requests that were under way at once, at most.
    #[must_use]
    pub fn most_in_flight(&self) -> usize {
        self.state.lock().most_in_flight
    }

    /// Adds a root to the bundle; it does not sign yet.
    ///
    /// # Errors
    /// No randomness.
    pub fn add_root(&self) -> Result<()> {
        let mut state = self.state.lock();
        let root = Root::generate(state.roots.len())?;
        state.roots.push(root);
        Ok(())
    }

    /// From now on the newest root signs.
    pub fn sign_with_newest(&self) {
        let mut state = self.state.lock();
        state.signer = state.roots.len() - 1;
    }

    /// Takes every root out of the bundle that does not sign.
    pub fn drop_old_roots(&self) {
        let mut state = self.state.lock();
        let signer = state.signer;
        let root = state.roots.swap_remove(signer);
        state.roots = vec![root];
        state.signer = 0;
    }

    /// A revocation list of the signing root, as PEM.
    ///
    /// # Errors
    /// It cannot be signed.
    pub fn revoke(&self, serials: &[u64]) -> Result<String> {
        let state = self.state.lock();
        let now = SystemTime::now();
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: now.into(),
            next_update: (now + Duration::from_secs(3600)).into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let root = state.roots.get(state.signer).context("there is a signer")?;
        Ok(list.signed_by(&root.issuer)?.pem()?)
    }
}

/// Counts a request for as long as it lives.
struct InFlight<'a>(&'a AtomicUsize);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Ca {
    pub(super) async fn serve(&self, call: Call) {
        let now = self.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        let _in_flight = InFlight(&self.in_flight);
        {
            let mut state = self.state.lock();
            state.most_in_flight = state.most_in_flight.max(now);
        }
        let metadata = call.metadata().clone();
        if let Err(error) = self.authenticate(&metadata) {
            return call.refuse(grpc::UNAUTHENTICATED, &error);
        }
        let Ok((mut requests, mut responses)) = call.accept() else { return };
        let request = match requests.next().await {
            Ok(Some(bytes)) => IstioCertificateRequest::decode(bytes).context("not a request"),
            Ok(None) => Err(anyhow::anyhow!("no request")),
            Err(error) => Err(error),
        };
        let request = match request {
            Ok(request) => request,
            Err(error) => return responses.finish(grpc::INVALID_ARGUMENT, &format!("{error:#}")),
        };
        let (identity, faults) = self.record(&request, metadata);
        let late = faults.delay_one.get(&identity).copied().unwrap_or_default();
        tokio::time::sleep(faults.delay + late).await;
        if let Some((status, message)) = faults.refuse_all.as_ref().or_else(|| faults.refuse.get(&identity)) {
            return responses.finish(*status, message);
        }
        match self.answer(&identity, &request, &faults) {
            Ok(cert_chain) => {
                let answer = IstioCertificateResponse { cert_chain }.encode_to_vec();
                if responses.send(&answer).await.is_ok() {
                    responses.finish(grpc::OK, "");
                }
            }
            Err(error) => responses.finish(grpc::INVALID_ARGUMENT, &format!("{error:#}")),
        }
    }

    fn authenticate(&self, metadata: &http::HeaderMap) -> Result<(), String> {
        let token = std::fs::read_to_string(&self.token).map_err(|error| error.to_string())?;
        let expected = format!("Bearer {}", token.trim());
        if metadata.get("authorization").is_none_or(|value| value.as_bytes() != expected.as_bytes()) {
            return Err("authentication failure: the token is not valid".to_owned());
        }
        if metadata.get("clusterid").is_none() {
            return Err("impersonation needs a cluster".to_owned());
        }
        Ok(())
    }

    fn record(&self, request: &IstioCertificateRequest, metadata: http::HeaderMap) -> (String, Faults) {
        let impersonated = request.metadata.as_ref().and_then(|metadata| {
            match metadata.fields.get(IMPERSONATED_IDENTITY)?.kind.as_ref()? {
                prost_types::value::Kind::StringValue(identity) => Some(identity.clone()),
                _ => None,
            }
        });
        let requested = CertificateSigningRequestParams::from_pem(&request.csr).ok().and_then(|csr| {
            csr.params.subject_alt_names.iter().find_map(|name| match name {
                SanType::URI(uri) => Some(uri.to_string()),
                _ => None,
            })
        });
        let identity = impersonated.clone().or_else(|| requested.clone()).unwrap_or_default();
        let seen = Seen {
            at: Instant::now(),
            impersonated,
            requested,
            validity: request.validity_duration,
            metadata,
            serial: None,
        };
        let mut state = self.state.lock();
        state.seen.push(seen);
        (identity, state.faults.clone())
    }

    fn answer(
        &self,
        identity: &str,
        request: &IstioCertificateRequest,
        faults: &Faults,
    ) -> Result<Vec<String>> {
        let wrong = faults.wrong.get(identity);
        let mut csr =
            CertificateSigningRequestParams::from_pem(&request.csr).context("the signing request")?;
        let named = match wrong {
            Some(Wrong::Identity(other)) => other,
            _ => identity,
        };
        let now = SystemTime::now();
        let asked = Duration::from_secs(u64::try_from(request.validity_duration).unwrap_or(0));
        let lifetime = faults.lifetime.unwrap_or(asked);
        let mut state = self.state.lock();
        state.serial += 1;
        let serial = state.serial;
        csr.params.serial_number = Some(SerialNumber::from(serial));
        csr.params.subject_alt_names = vec![SanType::URI(named.try_into()?)];
        csr.params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let (from, until) = match wrong {
            Some(Wrong::Expired) => (now - Duration::from_secs(120), now - Duration::from_secs(60)),
            _ => (now - BACKDATED, now + lifetime),
        };
        csr.params.not_before = from.into();
        csr.params.not_after = until.into();
        let root = state.roots.get(state.signer).context("there is a signer")?;
        let leaf = if wrong == Some(&Wrong::Key) {
            csr.params.signed_by(&KeyPair::generate()?, &root.issuer)?.pem()
        } else {
            csr.signed_by(&root.issuer)?.pem()
        };
        let bundle: String = state.roots.iter().map(|root| root.pem.as_str()).collect();
        if let Some(seen) = state.seen.iter_mut().rev().find(|seen| seen.is_for(identity)) {
            seen.serial = Some(serial);
        }
        Ok(match wrong {
            Some(Wrong::NoRoot) => vec![leaf],
            Some(Wrong::Garbage) => vec!["this is no certificate".to_owned(), bundle],
            Some(Wrong::Empty) => Vec::new(),
            _ => vec![leaf, bundle],
        })
    }
}

impl Seen {
    /// True if it asked for this SPIFFE ID.
    #[must_use]
    pub fn is_for(&self, identity: &str) -> bool {
        self.impersonated.as_deref().or(self.requested.as_deref()) == Some(identity)
    }
}

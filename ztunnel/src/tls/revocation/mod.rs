// SPDX-License-Identifier: Apache-2.0
//! Certificates that are no longer to be believed: the lists in `CRL_PATH`, for new connections and for open ones.
//!
//! The file is looked at every second and read when it has changed, whichever way it was replaced. A list that cannot
//! be read is an error at start; later it is reported, and the lists from before stay in force.
//!
//! Source: data-plane contract, section 1.2.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustls::pki_types::pem::{PemObject as _, SectionKind};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{CertificateError, RootCertStore};
use tokio::sync::watch;
use tracing::{error, info, warn};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList,
    RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy,
};

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// A list of a million certificates is a third of this.
const MAX_FILE: u64 = 128 << 20;

/// Why a file of revocation lists cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the revocation lists in CRL_PATH={} cannot be used: {reason}", path.display())]
pub struct CrlError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// The lists that are in force.
#[derive(Debug, Default)]
struct Lists(Vec<CertRevocationList<'static>>);

/// What the operator wants to be checked, shared by every handshake and every open tunnel.
#[derive(Debug, Clone)]
pub struct Revocations(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    lists: watch::Sender<Arc<Lists>>,
    status: Mutex<Status>,
    /// Certificates of servers that were refused, and of clients.
    rejections: [AtomicU64; 2],
}

/// What the admin server shows.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Status {
    /// Lists in force.
    pub lists: usize,
    /// Why the file as it is now is not in force.
    pub error: Option<String>,
}

/// The side on which a certificate stands in a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// It was presented by a client.
    Client,
    /// It was presented by a server.
    Server,
}

/// What tells one state of the file from the next.
type Mark = Option<(u64, u64, u64, i64, i64)>;

impl Revocations {
    /// Reads the lists in `path`. A file that is not there yet revokes nothing.
    ///
    /// # Errors
    /// It is there, and cannot be used: going on would be to believe what the operator said not to believe.
    pub fn open(path: &Path) -> Result<(Self, Follower), CrlError> {
        let mark = mark(path);
        let lists = match read(path) {
            Ok(Some(lists)) => lists,
            Ok(None) => {
                warn!(path = %path.display(), "there is no revocation list yet: nothing is revoked until there is");
                Lists::default()
            }
            Err(reason) => return Err(CrlError { path: path.to_owned(), reason }),
        };
        let status = Mutex::new(Status { lists: lists.0.len(), error: None });
        let lists = watch::Sender::new(Arc::new(lists));
        let inner = Inner { path: path.to_owned(), lists, status, rejections: Default::default() };
        let revocations = Self(Arc::new(inner));
        Ok((revocations.clone(), Follower { revocations, mark }))
    }

    /// What is in force.
    pub fn status(&self) -> Status {
        self.0.status.lock().clone()
    }

    /// How many certificates of this side were refused, or cost an open connection.
    pub fn rejections(&self, usage: Usage) -> u64 {
        self.0.rejections[usize::from(usage == Usage::Client)].load(Ordering::Relaxed)
    }

    fn count(&self, usage: Usage) {
        self.0.rejections[usize::from(usage == Usage::Client)].fetch_add(1, Ordering::Relaxed);
    }

    /// Checks a chain that was found genuine otherwise: leaf first.
    ///
    /// # Errors
    /// One of its certificates is revoked, or a list that speaks about it is not genuine.
    pub fn check(
        &self,
        chain: &[CertificateDer<'_>],
        roots: &RootCertStore,
        usage: Usage,
        when: UnixTime,
    ) -> Result<(), rustls::Error> {
        let lists = Arc::clone(&self.0.lists.borrow());
        let checked = lists.check(chain, roots, usage, when);
        if is_revocation(&checked) {
            self.count(usage);
        }
        checked
    }

    /// Follows the chain of an open connection; returns once it is revoked.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn revoked(&self, chain: &[CertificateDer<'_>], roots: &RootCertStore, usage: Usage) {
        // As of now: that a certificate expires later is no reason to cut a connection.
        let established = UnixTime::now();
        let mut changes = self.0.lists.subscribe();
        loop {
            let lists = Arc::clone(&changes.borrow_and_update());
            if is_revocation(&lists.check(chain, roots, usage, established)) {
                self.count(usage);
                return;
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Keeps the lists as the file has them.
#[derive(Debug)]
pub struct Follower {
    revocations: Revocations,
    mark: Mark,
}

impl Follower {
    /// Follows the file for as long as it is polled.
    #[expect(clippy::infinite_loop, reason = "it ends when its task is dropped")]
    pub async fn follow(mut self) {
        let mut tick = tokio::time::interval(LOOK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.look();
        }
    }

    /// Reads the file if it has changed.
    fn look(&mut self) {
        let inner = &self.revocations.0;
        let now = mark(&inner.path);
        if now == self.mark {
            return;
        }
        self.mark = now;
        let path = inner.path.display();
        let failure = match read(&inner.path) {
            Ok(Some(lists)) => {
                info!(%path, lists = lists.0.len(), "revocation lists read");
                *inner.status.lock() = Status { lists: lists.0.len(), error: None };
                inner.lists.send_replace(Arc::new(lists));
                return;
            }
            Ok(None) => "the file is gone".to_owned(),
            Err(reason) => reason,
        };
        error!(%path, "revocation lists cannot be used, those from before stay in force: {failure}");
        inner.status.lock().error = Some(failure);
    }
}

fn mark(path: &Path) -> Mark {
    let found = fs::metadata(path).ok()?;
    Some((found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
}

/// Reads a file of lists; nothing if there is none.
fn read(path: &Path) -> Result<Option<Lists>, String> {
    let size = match fs::metadata(path) {
        Ok(found) => found.size(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    if size > MAX_FILE {
        return Err(format!("{size} bytes are more than {MAX_FILE}"));
    }
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    Lists::parse(&bytes).map(Some)
}

impl Lists {
    /// PEM with any number of lists, one list in DER, or nothing.
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let one = |der: &[u8]| {
            let list = OwnedCertRevocationList::from_der(der);
            list.map(CertRevocationList::from).map_err(|error| format!("not a revocation list: {error}"))
        };
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self::default());
        }
        if !bytes.starts_with(b"-----BEGIN") {
            return Ok(Self(vec![one(bytes)?]));
        }
        let mut lists = Vec::new();
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(bytes) {
            let (kind, der) = section.map_err(|error| format!("not PEM: {error}"))?;
            // Whatever else is in the file is not for us.
            if kind == SectionKind::Crl {
                lists.push(one(&der)?);
            }
        }
        Ok(Self(lists))
    }

    fn check(
        &self,
        chain: &[CertificateDer<'_>],
        roots: &RootCertStore,
        usage: Usage,
        when: UnixTime,
    ) -> Result<(), rustls::Error> {
        let Some((leaf, intermediates)) = chain.split_first() else { return Ok(()) };
        let lists: Vec<_> = self.0.iter().collect();
        // Without a list there is nothing to ask.
        let Ok(options) = RevocationOptionsBuilder::new(&lists) else { return Ok(()) };
        let options = options
            .with_depth(RevocationCheckDepth::Chain)
            .with_status_policy(UnknownStatusPolicy::Allow)
            .with_expiration_policy(ExpirationPolicy::Ignore)
            .build();
        let usage = match usage {
            Usage::Client => KeyUsage::client_auth(),
            Usage::Server => KeyUsage::server_auth(),
        };
        let leaf = EndEntityCert::try_from(leaf).map_err(|error| refuse(&error))?;
        let algorithms = webpki::ALL_VERIFICATION_ALGS;
        let verified =
            leaf.verify_for_usage(algorithms, &roots.roots, intermediates, when, usage, Some(options), None);
        verified.map(|_path| ()).map_err(|error| refuse(&error))
    }
}

fn refuse(error: &webpki::Error) -> rustls::Error {
    if *error == webpki::Error::CertRevoked {
        return rustls::Error::InvalidCertificate(CertificateError::Revoked);
    }
    rustls::Error::General(format!("the peer's certificate cannot be checked for revocation: {error}"))
}

fn is_revocation(checked: &Result<(), rustls::Error>) -> bool {
    matches!(checked, Err(rustls::Error::InvalidCertificate(CertificateError::Revoked)))
}

#[cfg(test)]
mod tests;

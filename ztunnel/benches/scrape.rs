// SPDX-License-Identifier: Apache-2.0
//! What the text of a scrape costs, 1,000 workloads with 20 peers each, and what connections that open meanwhile
//! notice. `cargo bench -p ztunnel --bench scrape`; with sockets and compression: `tests/tests/scrape.rs`.

#![expect(clippy::print_stdout, reason = "figures are what it is for")]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ztunnel::telemetry::metrics::Metrics;
use ztunnel::telemetry::metrics::exposition::Exposition;
use ztunnel::telemetry::metrics::series::Limits;
use ztunnel_core::mesh::Workload;
use ztunnel_core::report::{Facts, Flag, Labels, Reporter, Security};

const WORKLOADS: usize = 1_000;
const PEERS: usize = 20;
/// Scrapes that are timed.
const SCRAPES: usize = 41;

fn workload(name: &str) -> Arc<Workload> {
    Arc::new(Workload {
        name: format!("{name}-7d9f8b6c5-x2x4z").into(),
        workload_name: name.into(),
        canonical_name: name.into(),
        canonical_revision: "v1".into(),
        namespace: "production".into(),
        service_account: name.into(),
        trust_domain: "cluster.local".into(),
        cluster_id: "Kubernetes".into(),
        ..Workload::default()
    })
}

/// A node's metrics and who they are about.
struct World {
    metrics: Metrics,
    servers: Vec<Arc<Workload>>,
    peers: Vec<Arc<Workload>>,
}

impl World {
    fn new() -> Self {
        let many = |name: &str, count| (0..count).map(|at| workload(&format!("{name}-{at}"))).collect();
        let world = Self {
            metrics: Metrics::new(Limits::default()),
            servers: many("server", WORKLOADS),
            peers: many("peer", PEERS),
        };
        for server in &world.servers {
            world.peers.iter().for_each(|peer| world.connection(server, peer));
        }
        world
    }

    /// Opens one and closes it.
    fn connection(&self, server: &Arc<Workload>, peer: &Arc<Workload>) {
        let identity = peer.identity();
        let facts = Facts {
            source: Some(peer),
            source_principal: Some(&identity),
            destination: Some(server),
            security: Security::MutualTls,
            ..Facts::new(Reporter::Destination)
        };
        self.metrics.opened(Labels::new(&facts), [Some(peer), Some(server)]).close(Flag::None);
    }

    /// What connections take until `stop`, in order of time.
    fn connections(&self, stop: &AtomicBool) -> Vec<Duration> {
        let mut times = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let server = &self.servers[times.len() % self.servers.len()];
            let begun = Instant::now();
            self.connection(server, &self.peers[0]);
            times.push(begun.elapsed());
        }
        times.sort_unstable();
        times
    }

    /// What connections take while this runs.
    fn during(&self, what: &str, run: impl FnOnce()) {
        let stop = AtomicBool::new(false);
        let times = thread::scope(|scope| {
            let opener = scope.spawn(|| self.connections(&stop));
            run();
            stop.store(true, Ordering::Relaxed);
            opener.join().expect("the opener ends")
        });
        let at = |share: usize| times[(times.len() - 1) * share / 10_000];
        println!("open and close, {what}: p50 {:?} p99 {:?} p99.99 {:?}", at(5000), at(9900), at(9999));
    }

    fn scrape<W: io::Write>(&self, out: W) -> io::Result<W> {
        let mut out = Exposition::new(out);
        self.metrics.expose_istio(&mut out)?;
        out.end()
    }
}

fn main() -> io::Result<()> {
    let world = World::new();
    let size = world.scrape(Vec::new())?.len();
    let mut took = Vec::new();
    let mut scrape = || {
        let begun = Instant::now();
        let scraped = world.scrape(io::BufWriter::with_capacity(64 << 10, io::sink()));
        took.push(begun.elapsed());
        scraped.map(drop)
    };
    let mut scraped = Ok(());
    world.during("scraped all the time", || scraped = (0..SCRAPES).try_for_each(|_| scrape()));
    scraped?;
    world.during("alone", || thread::sleep(Duration::from_secs(1)));
    took.sort_unstable();
    println!(
        "{} label sets, {size} bytes: {:?} (fastest {:?})",
        WORKLOADS * PEERS,
        took[SCRAPES / 2],
        took[0]
    );
    Ok(())
}

// SPDX-License-Identifier: Apache-2.0
//! A mesh of many thousand workloads: how long until it is known, what it costs, and who is held up meanwhile.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::time::{Duration, Instant};

use ztunnel_tests::istiod::{Istiod, describe};
use ztunnel_tests::node::READINESS;
use ztunnel_tests::traffic::{Pulse, Server};
use ztunnel_tests::{Mesh, Node, PodSpec, wait};

const SOON: Duration = Duration::from_secs(60);
const WEB: &str = "web.demo.svc.cluster.local";
/// Between two exchanges, so that the machine has time for somebody else.
const REST: Duration = Duration::from_micros(200);

fn world() -> (Mesh, Istiod) {
    let server = PodSpec::mesh("server").service(WEB, 80, 8080);
    let mesh = Mesh::builder().pod(PodSpec::mesh("client")).pod(server).build().unwrap();
    let istiod = Istiod::start(&mesh).unwrap();
    istiod.configure(&mesh);
    istiod.ads().update(|resources| describe::mesh(&mesh, resources));
    (mesh, istiod)
}

#[expect(clippy::cast_precision_loss, reason = "megabytes")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Seconds from the start of the process until it is ready.
fn time_to_ready(node: &Node) -> f64 {
    let begin = Instant::now();
    node.launch().unwrap();
    let ready = || node.get(READINESS, "/healthz/ready").is_ok_and(|response| response.status == 200);
    wait::until("readiness", SOON, ready).unwrap();
    begin.elapsed().as_secs_f64()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn seventy_thousand_workloads_at_once_hold_up_nobody() {
    let (mesh, istiod) = world();
    let node = mesh.node("n1");
    let server = Server::echo(mesh.pod("server"), 8080).unwrap();
    node.start().unwrap();
    istiod.ads().wait_settled(1, SOON).unwrap();
    let conn = mesh.pod("client").dial((mesh.vip(WEB), 80).into()).unwrap();
    let pulse = Pulse::start(conn, REST);
    wait::until("exchanges", SOON, || pulse.peek().count >= 1_000).unwrap();
    println!("quiet: {:?}", pulse.take());
    let mut longest = Vec::new();
    for _ in 0..3 {
        // Made before the clock runs: istiod is another machine.
        let push = istiod.ads().prepare(|resources| describe::crowd(70_000, 1_000, resources));
        let _before = pulse.take();
        let begin = Instant::now();
        istiod.ads().publish(push);
        istiod.ads().wait_settled(1, SOON).unwrap();
        let (took, pushed) = (begin.elapsed(), pulse.take());
        // And all of it gone at once.
        istiod.ads().update(|resources| {
            (0..70_000).for_each(|place| resources.remove_address(&describe::crowd_member(place, 1_000).uid));
        });
        istiod.ads().wait_settled(1, SOON).unwrap();
        let removed = pulse.take();
        println!("pushed in {took:.2?}: {pushed:?}; removed: {removed:?}");
        longest.push(pushed.longest.max(removed.longest));
    }
    pulse.stop().unwrap();
    println!("resident {:.1} MiB", mebibytes(node.memory().unwrap().resident));
    assert!(node.is_ready());
    // A machine with other work holds somebody up now and then; a push that does so does it every time.
    let best = longest.iter().min().unwrap();
    assert!(*best < Duration::from_millis(10), "{longest:?}");
    drop(server);
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_large_mesh_is_known_soon_and_small() {
    for (workloads, services, seconds, mebibyte) in [(50_000, 1_000, 0.9, 63.0), (100_000, 5_000, 2.0, 130.0)]
    {
        let (mesh, istiod) = world();
        let node = mesh.node("n1");
        istiod.ads().update(|resources| describe::crowd(workloads, services, resources));
        let mut times = Vec::new();
        for _ in 0..3 {
            times.push(time_to_ready(node));
            istiod.ads().wait_settled(1, SOON).unwrap();
            let memory = node.memory().unwrap();
            let (resident, peak) = (mebibytes(memory.resident), mebibytes(memory.peak));
            println!(
                "{workloads} workloads, {services} services: {times:.3?} s, {resident:.1} MiB, peak {peak:.1}"
            );
            assert!(resident < mebibyte, "{resident:.1} MiB");
            node.terminate().unwrap();
        }
        times.sort_by(f64::total_cmp);
        assert!(times[0] < seconds, "{times:?} s");
        mesh.stop().unwrap();
    }
}

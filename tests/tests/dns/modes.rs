// SPDX-License-Identifier: Apache-2.0
//! The DNS proxy beside other settings: without the proxy, in dedicated mode, switched off, during an update.

use std::fs;
use std::time::Duration;

use ztunnel_core::dns::kind;
use ztunnel_tests::resolver::Resolver;
use ztunnel_tests::traffic::stream::is_turned_away;
use ztunnel_tests::{Mesh, PodSpec, wait};

use super::ask::{By, KUBE_DNS, addresses, ask, look_up, question};
use super::mesh;

const SOON: Duration = Duration::from_secs(15);

#[test]
#[ignore = "needs root: cargo xtask test"]
fn dns_works_without_the_proxy_and_the_proxy_without_dns() {
    let mesh = mesh().env("ENABLE_PROXY", "false").start().unwrap();
    let _resolver = Resolver::start(mesh.pod("resolver")).unwrap();
    let client = mesh.pod("client");
    for by in [By::Udp, By::Tcp] {
        assert_eq!(look_up(client, by, "A productpage.").unwrap(), "9.9.9.9");
        assert_eq!(look_up(client, by, "A www.bing.com").unwrap(), "192.0.2.1");
    }
    // Nobody listens where connections are redirected to.
    assert!(client.connect_timeout(mesh.pod("server").addr(8080), SOON).is_err());
    mesh.set_env("ENABLE_PROXY", "true");
    mesh.set_env("ISTIO_META_DNS_CAPTURE", "FALSE");
    mesh.restart().unwrap();
    assert!(client.connect_timeout("127.0.0.1:15053".parse().unwrap(), SOON).is_err());
    // A pod whose loopback has no IPv6 has no listener there.
    let neighbor = mesh.pod("neighbor");
    neighbor.run(|| fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "1")).unwrap();
    mesh.set_env("ISTIO_META_DNS_CAPTURE", "true");
    mesh.restart().unwrap();
    for (pod, to, found) in
        [(neighbor, "127.0.0.1:15053", true), (client, "[::1]:15053", true), (neighbor, "[::1]:15053", false)]
    {
        assert_eq!(pod.connect_timeout(to.parse().unwrap(), SOON).is_ok(), found, "{}, {to}", pod.name());
    }
    // Another port, and one address only.
    mesh.set_env("ISTIO_META_DNS_PROXY_ADDR", "127.0.0.1:15054");
    mesh.restart().unwrap();
    let answer = ask(client, "127.0.0.1:15054", By::Udp, &question("A productpage.")).unwrap();
    assert_eq!(addresses(&answer, kind::A).unwrap(), "9.9.9.9");
    mesh.set_env("DNS_RESOLV_CONF", "/nowhere/resolv.conf");
    let node = mesh.node("n1");
    node.terminate().unwrap();
    node.launch().unwrap();
    assert!(!node.wait_exit(SOON).unwrap().success());
    assert!(
        node.stderr().contains("DNS_RESOLV_CONF=\"/nowhere/resolv.conf\": cannot read"),
        "{}",
        node.stderr()
    );
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn an_update_of_ztunnel_costs_no_answer() {
    let mesh = mesh().start().unwrap();
    let resolver = Resolver::start(mesh.pod("resolver")).unwrap();
    let (client, node) = (mesh.pod("client"), mesh.node("n1"));
    let successor = node.successor(mesh.pod("second").netns()).unwrap();
    std::thread::scope(|scope| {
        // Asked of one of the two, and answered by it although it has been told to end.
        let slow: Vec<_> = (0..8)
            .map(|number| scope.spawn(move || look_up(client, By::Udp, &format!("A slow-{number}.example"))))
            .collect();
        wait::until("all to be asked", SOON, || resolver.received().len() == 8).unwrap();
        let ending = scope.spawn(|| node.terminate());
        for _ in 0..300 {
            assert_eq!(look_up(client, By::Udp, "A productpage.").unwrap(), "9.9.9.9");
        }
        for answer in slow {
            assert_eq!(answer.join().unwrap().unwrap(), "192.0.2.1");
        }
        ending.join().unwrap().unwrap();
    });
    assert_eq!(look_up(client, By::Tcp, "A productpage.").unwrap(), "9.9.9.9");
    drop(successor);
    mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_dedicated_proxy_answers_its_own_workload() {
    let pod = PodSpec::mesh("single").namespace("ns1").on("n1").service(super::SERVER, 80, 8080);
    let mesh = Mesh::builder().pod(pod).pod(PodSpec::unknown("resolver").on("n2"));
    let mesh = mesh.dns(&["resolver"]).services(super::SERVICES).build().unwrap();
    let node = mesh.node("n1");
    for (name, value) in [
        ("PROXY_MODE", "dedicated"),
        ("PROXY_WORKLOAD_INFO", "ns1/single/single"),
        ("PACKET_MARK", "1337"),
        ("INPOD_UDS", "/nowhere/agent.sock"),
    ] {
        node.set_env(name, value);
    }
    let single = mesh.pod("single");
    let _resolver = Resolver::start(mesh.pod("resolver")).unwrap();
    let _proxy = node.successor(single.netns()).unwrap();
    assert_eq!(look_up(single, By::Udp, "A productpage.").unwrap(), "9.9.9.9");
    assert_eq!(look_up(single, By::Udp, "A www.bing.com").unwrap(), "192.0.2.1");
    // Its search list is that of its own resolv.conf.
    assert_eq!(look_up(single, By::Udp, "A www.google.com.nowhere.example").unwrap(), "1.1.1.1");
    assert!(!is_turned_away(single, "10.96.0.53:53".parse().unwrap(), Duration::from_millis(200)));
    assert_eq!(look_up(single, By::Tcp, "A productpage.").unwrap(), "9.9.9.9");
    let answer = ask(single, KUBE_DNS, By::Tcp, &question("A productpage.")).unwrap();
    assert_eq!(addresses(&answer, kind::A).unwrap(), "9.9.9.9");
    mesh.stop().unwrap();
}

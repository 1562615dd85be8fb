// SPDX-License-Identifier: Apache-2.0
//! Peers that do not keep to HBONE are refused, nobody else notices, and no application is reached.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use ztunnel_tests::node::{PATIENCE, STATS};
use ztunnel_tests::peer::{Answer, Authority, Peer, connect_request, garbage_instead_of_tls};
use ztunnel_tests::traffic::Server;
use ztunnel_tests::{Mesh, PodSpec, wait};

const SOON: Duration = Duration::from_secs(10);

struct Scene {
    mesh: Mesh,
    app: Server,
    shared: Authority,
}

/// A server in the mesh, and an attacker outside of it who has whatever the test gives it.
fn scene() -> Scene {
    let mesh = Mesh::builder()
        .pod(PodSpec::mesh("server").on("n1"))
        .pod(PodSpec::mesh("neighbor").on("n1"))
        .pod(PodSpec::unknown("attacker").on("n2"))
        .start()
        .unwrap();
    let app = Server::echo(mesh.pod("server"), 8080).unwrap();
    let shared = Authority::open(&mesh.ca_dir()).unwrap();
    Scene { mesh, app, shared }
}

impl Scene {
    fn hbone(&self) -> SocketAddr {
        self.mesh.pod("server").addr(15008)
    }

    fn peer(&self, uri: &str) -> Peer {
        let credentials = self.shared.issue(uri).unwrap();
        Peer::connect(self.mesh.pod("attacker"), self.hbone(), Some(&credentials)).unwrap()
    }

    /// What a CONNECT to the application gives, also if the handshake fails.
    fn connect(&self, credentials: Option<&ztunnel_tests::peer::Credentials>) -> Answer {
        let to_app = connect_request(&self.mesh.pod("server").addr(8080).to_string()).unwrap();
        match Peer::connect(self.mesh.pod("attacker"), self.hbone(), credentials) {
            Ok(peer) => peer.request(to_app).unwrap(),
            Err(_) => Answer::Refused,
        }
    }

    /// The application was not reached, and the mesh still works.
    fn unharmed(self) {
        assert_eq!(self.app.peers(), [], "the application was reached");
        assert!(self.mesh.node("n1").is_ready());
        let conn = self.mesh.pod("neighbor").dial(self.mesh.pod("server").addr(8080)).unwrap();
        assert_eq!(conn.ask(b"still here").unwrap(), b"still here");
        drop(self.app);
        self.mesh.stop().unwrap();
    }
}

const GOOD: &str = "spiffe://cluster.local/ns/demo/sa/somebody";

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_peer_with_a_certificate_of_the_mesh_is_served() {
    let scene = scene();
    let credentials = scene.shared.issue(GOOD).unwrap();
    assert_eq!(scene.connect(Some(&credentials)), Answer::Status(200));
    wait::until("the application to be reached", SOON, || scene.app.peers().len() == 1).unwrap();
    assert_eq!(scene.app.peers()[0].ip(), scene.mesh.pod("attacker").ip4());
    let presented = scene.peer(GOOD).server_certificate();
    let own = scene.mesh.pod("server").spiffe();
    assert!(presented.windows(own.len()).any(|window| window == own.as_bytes()), "not the server's identity");
    scene.mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_peer_without_a_certificate_is_refused() {
    let scene = scene();
    assert_eq!(scene.connect(None), Answer::Refused);
    scene.unharmed();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_certificate_of_another_authority_or_trust_domain_is_refused() {
    let scene = scene();
    let unknown = Authority::unknown().unwrap().issue(GOOD).unwrap();
    assert_eq!(scene.connect(Some(&unknown)), Answer::Refused, "another authority");
    for uri in [
        "spiffe://other.domain/ns/demo/sa/somebody",
        "spiffe://cluster.local.evil/ns/demo/sa/somebody",
        "https://cluster.local/ns/demo/sa/somebody",
        "spiffe://cluster.local/demo/somebody",
        "spiffe://cluster.local/ns/demo/sa/somebody/more",
    ] {
        let credentials = scene.shared.issue(uri).unwrap();
        assert_eq!(scene.connect(Some(&credentials)), Answer::Refused, "{uri}");
    }
    scene.unharmed();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn connect_reaches_only_the_pod_that_it_was_sent_to() {
    let scene = scene();
    let neighbor = scene.mesh.pod("neighbor");
    let other = Server::echo(neighbor, 8080).unwrap();
    let own = scene.mesh.pod("server").ip4();
    for (authority, status) in [
        (neighbor.addr(8080).to_string(), 400),
        (neighbor.addr6(8080).to_string(), 400),
        ("127.0.0.1:8080".to_owned(), 400),
        ("0.0.0.0:8080".to_owned(), 400),
        ("[::1]:8080".to_owned(), 400),
        (format!("{own}:15001"), 503),
        (format!("{own}:15006"), 503),
        (format!("{own}:15008"), 503),
        ("nobody.demo.svc.cluster.local:80".to_owned(), 503),
        (format!("{own}:1"), 503),
    ] {
        let answer = scene.peer(GOOD).request(connect_request(&authority).unwrap()).unwrap();
        assert_eq!(answer, Answer::Status(status), "{authority}");
    }
    assert_eq!(other.peers(), [], "another pod was reached");
    drop(other);
    scene.unharmed();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn other_methods_and_addresses_without_a_port_are_bad_requests() {
    let scene = scene();
    let app = scene.mesh.pod("server").addr(8080);
    for method in [http::Method::GET, http::Method::POST, http::Method::OPTIONS] {
        let uri = format!("http://{app}/");
        let request = http::Request::builder().method(&method).uri(uri).body(()).unwrap();
        assert_eq!(scene.peer(GOOD).request(request).unwrap(), Answer::Status(400), "{method}");
    }
    for authority in [app.ip().to_string(), "somewhere".to_owned(), format!("{}:99999", app.ip())] {
        let Ok(request) = connect_request(&authority) else { continue };
        assert_eq!(scene.peer(GOOD).request(request).unwrap(), Answer::Status(400), "{authority}");
    }
    scene.unharmed();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn strange_headers_do_not_end_the_tunnel() {
    let scene = scene();
    let app = scene.mesh.pod("server").addr(8080).to_string();
    // As long as a real one, with fewer dashes than it needs.
    let broken = "0".repeat(55);
    let long = "a".repeat(8000);
    for (name, value) in [
        ("traceparent", broken.as_str()),
        ("traceparent", "00-zz"),
        ("baggage", ",,=,==,k8s.namespace.name"),
        ("baggage", long.as_str()),
        ("forwarded", "for=;host=;;;\"\""),
        ("x-forwarded-network", ""),
    ] {
        let mut request = connect_request(&app).unwrap();
        request.headers_mut().insert(http::HeaderName::from_static(name), value.parse().unwrap());
        let answer = scene.peer(GOOD).request(request).unwrap();
        assert_eq!(answer, Answer::Status(200), "{name}: {value}");
    }
    assert!(scene.mesh.node("n1").is_ready());
    scene.mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn garbage_before_and_inside_tls_ends_the_connection() {
    let scene = scene();
    let attacker = scene.mesh.pod("attacker");
    let noise: Vec<u8> = (0..100_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    for port in [15008, 15006, 15001] {
        let to = scene.mesh.pod("server").addr(port);
        for bytes in
            [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &noise, &[0x16, 0x03, 0x01, 0xff, 0xff, 0x01]]
        {
            // 15001 and 15006 of a pod are redirected to 15006, which refuses its own ports.
            let half_a_record = bytes.len() == 6;
            if !half_a_record || port != 15008 {
                garbage_instead_of_tls(attacker, to, bytes).unwrap();
            }
        }
    }
    // Settings of five bytes: RFC 9113, section 6.5.
    let settings =
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x05\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    for bytes in [&noise[..], settings, b"GET / HTTP/1.1\r\n\r\n"] {
        scene.peer(GOOD).garbage(bytes).unwrap();
    }
    scene.unharmed();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn silent_connections_do_not_keep_others_out() {
    let scene = scene();
    let attacker = scene.mesh.pod("attacker");
    let silent: Vec<_> = (0..300).map(|_| attacker.connect(scene.hbone()).unwrap()).collect();
    let credentials = scene.shared.issue(GOOD).unwrap();
    assert_eq!(scene.connect(Some(&credentials)), Answer::Status(200));
    let before = scene.mesh.node("n1").memory().unwrap();
    assert!(before.resident < 256 << 20, "{} bytes for 300 silent connections", before.resident);
    drop(silent);
    scene.mesh.stop().unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn one_reader_of_the_metrics_does_not_keep_others_out() {
    let mesh =
        Mesh::builder().pod(PodSpec::plain("greedy")).pod(PodSpec::plain("prometheus")).start().unwrap();
    let metrics = SocketAddr::from((mesh.node("n1").ip4(), STATS));
    let ask = |pod: &str| {
        let mut client = mesh.pod(pod).connect(metrics).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        // One that is closed at once may not take it.
        client.write_all(b"GET /stats/prometheus HTTP/1.1\r\nHost: x\r\n\r\n").ok();
        client
    };
    // Each stays open after its answer, for the next request.
    let answered = |mut client: &TcpStream| client.read(&mut [0; 12]).is_ok_and(|count| count == 12);
    let greedy: Vec<TcpStream> = (0..64).map(|_| ask("greedy")).collect();
    let held = greedy.iter().filter(|client| answered(client)).count();
    // A few more, if the first ones were idle for too long meanwhile.
    assert!((16..32).contains(&held), "{held} of 64");
    assert!(answered(&ask("prometheus")));
    drop(greedy);
    wait::until("a place", PATIENCE, || answered(&ask("greedy"))).unwrap();
    mesh.stop().unwrap();
}

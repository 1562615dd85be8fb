use std::fmt::Write;
fn rss() -> u64 { std::fs::read_to_string("/proc/self/statm").unwrap().split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096 / 1024 / 1024 }
fn main() {
    let n = 100_000;
    let mut y = String::from("workloads:\n");
    for i in 0..n { writeln!(y, "- {{uid: cluster1//Pod/ns{}/web-{i}, name: web-{i}, namespace: ns{}, serviceAccount: sa, trustDomain: cluster.local, node: node{}, protocol: HBONE, workloadIps: [10.{}.{}.{}], canonicalName: web, workloadName: web, workloadType: deployment, clusterId: Kubernetes, services: {{ns{}/web.ns{}.svc.cluster.local: {{80: 8080}}}}}}", i%1000, i%1000, i%500, i/65536, (i/256)%256, i%256, i%1000, i%1000).unwrap(); }
    y.push_str("services:\n");
    for i in 0..1000 { writeln!(y, "- {{name: web, namespace: ns{i}, hostname: web.ns{i}.svc.cluster.local, vips: [/172.16.{}.{}], ports: {{80: 8080}}}}", i/256, i%256).unwrap(); }
    eprintln!("file {} MiB rss {}", y.len() >> 20, rss());
    let t = std::time::Instant::now();
    let m = ztunnel_core::mesh::local::parse(&y).unwrap();
    eprintln!("parse {:?} rss {}", t.elapsed(), rss());
    let s = m.workload_by_uid("cluster1//Pod/ns1/web-1").unwrap();
    let mut x = 88172645463325252u64;
    let t = std::time::Instant::now();
    let k = 20000u64;
    for _ in 0..k {
        let c = ztunnel_core::route::Outbound { source: s, network: "", original_dst: ztunnel_core::addr::OriginalDst("172.16.0.7:80".parse().unwrap()) };
        let r = ztunnel_core::route::outbound::outbound(&m, &c, &mut || { x ^= x << 13; x ^= x >> 7; x ^= x << 17; x });
        std::hint::black_box(r);
    }
    eprintln!("route via service of 100 endpoints: {:?}", t.elapsed() / k as u32);
}

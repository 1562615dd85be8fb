// SPDX-License-Identifier: Apache-2.0
//! Who is admitted and why, as tables and as properties.

use std::sync::Arc;

use proptest::prelude::*;

use super::rule::policy_matches;
use super::{Because, DryRun, Facts, Unknown, Verdict, evaluate};
use crate::identity::Identity;
use crate::mesh::local::parse;
use crate::mesh::{
    Action, Clause, Match, Mesh, Policy, Rule, Scope, ServiceAccountMatch, StringMatch, Subject, Workload,
};

const FRONT: &str = "spiffe://td/ns/shop/sa/front";

fn judge(mesh: &Mesh, source_ip: &str, identity: Option<&Identity>) -> Verdict {
    let destination = mesh.workload_by_uid("web").unwrap();
    let facts = Facts {
        destination,
        source_ip: source_ip.parse().unwrap(),
        dst: "10.1.0.2:8080".parse().unwrap(),
        identity,
    };
    evaluate(mesh, &facts, Unknown::Skip)
}

/// A workload `web` in namespace `shop` that names policy `shop/own`, and these policies.
fn mesh(policies: &str) -> Mesh {
    let workload = "{uid: web, namespace: shop, workloadIps: [10.1.0.2], services: {}, \
                    authorizationPolicies: [shop/own]}";
    let policies = if policies.is_empty() { " []" } else { policies };
    parse(&format!("workloads: [{workload}]\npolicies:\n{policies}")).unwrap()
}

/// Of each policy (`name scope action rules`), the verdict on `front`'s connection over mutual TLS.
#[track_caller]
fn check(policies: &[&str], expected: &str) {
    let yaml: String = policies
        .iter()
        .map(|policy| {
            let parts: Vec<&str> = policy.splitn(4, ' ').collect();
            let (action, dry_run) = match parts[2] {
                "TryAllow" => ("Allow", true),
                "TryDeny" => ("Deny", true),
                action => (action, false),
            };
            format!(
                "- {{name: {}, namespace: shop, scope: {}, action: {action}, dryRun: {dry_run}, rules: {}}}\n",
                parts[0], parts[1], parts[3]
            )
        })
        .collect();
    let verdict = judge(&mesh(&yaml), "10.1.0.1", Some(&FRONT.parse().unwrap()));
    let mut text = format!("{}: {}", if verdict.allowed { "allow" } else { "deny" }, verdict.because);
    for event in &verdict.dry_run {
        text += &format!("; {} {}", event.event(), event.policy().map_or("", |policy| policy));
    }
    assert_eq!(text.trim_end(), expected, "{policies:?}");
}

const HITS: &str = "[[[{principals: [!Exact td/ns/shop/sa/front]}]]]";
const MISSES: &str = "[[[{principals: [!Exact td/ns/shop/sa/back]}]]]";

#[test]
fn policies_are_judged_in_the_contracts_order() {
    let none = "allow: no allow policies, allow";
    check(&[], none);
    check(&[&format!("d Namespace Deny {MISSES}")], none);
    check(&[&format!("d Namespace Deny {HITS}")], "deny: explicitly denied by: shop/d");
    check(&[&format!("a Global Allow {HITS}")], "allow: explicitly allowed by: shop/a");
    check(&[&format!("a Global Allow {MISSES}")], "deny: allow policies exist, but none allowed");
    check(
        &[&format!("a Global Allow {HITS}"), &format!("d Namespace Deny {HITS}")],
        "deny: explicitly denied by: shop/d",
    );
    check(
        &[&format!("a Global Allow {MISSES}"), &format!("b Namespace Allow {HITS}")],
        "allow: explicitly allowed by: shop/b",
    );
}

#[test]
fn a_selector_policy_applies_to_those_that_name_it() {
    check(&[&format!("other WorkloadSelector Deny {HITS}")], "allow: no allow policies, allow");
    check(&[&format!("own WorkloadSelector Deny {HITS}")], "deny: explicitly denied by: shop/own");
    let verdict = judge(&mesh(""), "10.1.0.1", None);
    assert_eq!(verdict.missing, ["shop/own".into()]);
    let elsewhere = mesh(
        "- {name: d, namespace: other, scope: Namespace, action: Deny, dryRun: false, rules: [[]]}\n\
         - {name: own, namespace: shop, scope: Global, action: Allow, dryRun: false, rules: [[]]}",
    );
    let verdict = judge(&elsewhere, "10.1.0.1", None);
    assert_eq!(verdict.because, Because::AllowedBy("shop/own".into()));
    assert_eq!(verdict.missing, []);
}

#[test]
fn a_named_policy_that_is_not_known_is_skipped_or_keeps_everybody_out() {
    let identity: Identity = FRONT.parse().unwrap();
    let judge = |policies: &str, unknown: Unknown| {
        let mesh = mesh(policies);
        let facts = Facts {
            destination: mesh.workload_by_uid("web").unwrap(),
            source_ip: "10.1.0.1".parse().unwrap(),
            dst: "10.1.0.2:8080".parse().unwrap(),
            identity: Some(&identity),
        };
        let verdict = evaluate(&mesh, &facts, unknown);
        (verdict.allowed, verdict.because.to_string(), verdict.missing.len())
    };
    let text = "policy is not known (yet): shop/own".to_owned();
    assert_eq!(judge("", Unknown::Skip), (true, "no allow policies, allow".to_owned(), 1));
    assert_eq!(judge("", Unknown::Deny), (false, text.clone(), 1));
    let allow = "- {name: a, namespace: shop, scope: Global, action: Allow, dryRun: false, rules: [[]]}";
    assert_eq!(judge(allow, Unknown::Deny), (false, text, 1), "who is let in by others");
    let deny = "- {name: d, namespace: shop, scope: Global, action: Deny, dryRun: false, rules: [[]]}";
    assert_eq!(judge(deny, Unknown::Deny), (false, "explicitly denied by: shop/d".to_owned(), 1));
    let own =
        "- {name: own, namespace: shop, scope: WorkloadSelector, action: Deny, dryRun: false, rules: []}";
    assert_eq!(judge(own, Unknown::Deny), (true, "no allow policies, allow".to_owned(), 0));
}

#[test]
fn a_policy_that_is_named_twice_is_one_policy() {
    let mut mesh = mesh(
        "- {name: own, namespace: shop, scope: WorkloadSelector, action: Deny, dryRun: true, rules: [[], []]}",
    );
    let mut web = Workload::clone(mesh.workload_by_uid("web").unwrap());
    web.authorization_policies = vec!["shop/own".into(), "shop/own".into()];
    mesh.insert_workload(Arc::new(web));
    let verdict = judge(&mesh, "10.1.0.1", None);
    assert_eq!(verdict.dry_run, [DryRun::Deny("shop/own".into())]);
    assert_eq!(verdict.because, Because::NoAllowPolicies);
}

/// What istiod makes of PeerAuthentication (data-plane contract, section 4.4), with and without an identity.
#[test]
fn strict_and_permissive_ports_are_policies() {
    let policy = |rules: &str| {
        format!(
            "- {{name: own, namespace: shop, scope: WorkloadSelector, action: Deny, dryRun: false, rules: {rules}}}"
        )
    };
    let strict = policy("[[[{notPrincipals: [!Presence []]}]]]");
    let strict_port = policy("[[[{notPrincipals: [!Presence []], destinationPorts: [8080]}]]]");
    let strict_elsewhere = policy("[[[{notPrincipals: [!Presence []], destinationPorts: [9090]}]]]");
    let permissive_port = policy(
        "[[[{notPrincipals: [!Presence []]}], [{notDestinationPorts: [8080]}], [{notDestinationPorts: [81]}]]]",
    );
    let permissive_elsewhere =
        policy("[[[{notPrincipals: [!Presence []]}], [{notDestinationPorts: [9090]}]]]");
    let identity: Identity = FRONT.parse().unwrap();
    for (policy, plaintext_passes) in [
        (strict, false),
        (strict_port, false),
        (strict_elsewhere, true),
        (permissive_port, true),
        (permissive_elsewhere, false),
    ] {
        let mesh = mesh(&policy);
        assert!(judge(&mesh, "10.1.0.1", Some(&identity)).allowed, "{policy}");
        let plaintext = judge(&mesh, "10.1.0.1", None);
        assert_eq!(plaintext.allowed, plaintext_passes, "{policy}");
        if !plaintext_passes {
            assert_eq!(plaintext.because, Because::DeniedBy("shop/own".into()));
        }
    }
}

#[test]
fn every_event_of_a_decision_reads_as_the_contract_has_it() {
    let event = |policies: &str| {
        let verdict = judge(&mesh(policies), "10.1.0.1", Some(&FRONT.parse().unwrap()));
        let tried: Vec<_> = verdict.dry_run.iter().map(DryRun::event).collect();
        (tried, verdict.because.event(), verdict.because.policy().map(ToString::to_string))
    };
    let policy = |action: &str, dry_run: bool, rules: &str| {
        format!(
            "- {{name: p, namespace: shop, scope: Global, action: {action}, dryRun: {dry_run}, rules: {rules}}}"
        )
    };
    let by = Some("shop/p".to_owned());
    assert_eq!(event(""), (vec![], "no allow policies, allow", None));
    assert_eq!(event(&policy("Deny", false, "[[]]")), (vec![], "deny policy match", by.clone()));
    assert_eq!(event(&policy("Allow", false, "[[]]")), (vec![], "allow policy match", by));
    assert_eq!(event(&policy("Allow", false, "[]")), (vec![], "no allow policies matched", None));
    let passes = "no allow policies, allow";
    assert_eq!(event(&policy("Deny", true, "[[]]")), (vec!["dry-run: deny policy match"], passes, None));
    assert_eq!(event(&policy("Allow", true, "[[]]")), (vec!["dry-run: allow policy match"], passes, None));
    assert_eq!(event(&policy("Allow", true, "[]")), (vec!["dry-run: no allow policies match"], passes, None));
}

#[test]
fn a_policy_on_trial_is_reported_and_changes_nothing() {
    check(
        &[&format!("d Namespace TryDeny {HITS}"), &format!("a Namespace TryAllow {HITS}")],
        "allow: no allow policies, allow; dry-run: deny policy match shop/d; dry-run: allow policy match shop/a",
    );
    check(
        &[&format!("a Namespace TryAllow {MISSES}")],
        "allow: no allow policies, allow; dry-run: no allow policies match",
    );
    check(
        &[&format!("a Namespace TryAllow {MISSES}"), &format!("b Namespace Allow {MISSES}")],
        "deny: allow policies exist, but none allowed",
    );
    check(
        &[&format!("d Namespace Deny {HITS}"), &format!("a Namespace TryAllow {HITS}")],
        "deny: explicitly denied by: shop/d",
    );
}

#[test]
fn what_is_empty_means_something_else_on_each_level() {
    let denied = "deny: explicitly denied by: shop/d";
    let passed = "allow: no allow policies, allow";
    check(&["d Namespace Deny []"], passed);
    check(&["d Namespace Deny [[]]"], denied);
    check(&["d Namespace Deny [[[]]]"], denied);
    check(&["d Namespace Deny [[[{}]]]"], passed);
    check(&["d Namespace Deny [[[{}, {destinationPorts: [8080]}]]]"], denied);
    check(&["d Namespace Deny [[[{destinationPorts: [8080]}], [{}]]]"], passed);
    check(&["a Namespace Allow []"], "deny: allow policies exist, but none allowed");
}

/// Whether a match with these keys hits: over mutual TLS, and without it.
#[track_caller]
fn check_match(cases: &[(&str, bool, bool)]) {
    for (keys, with_identity, without) in cases {
        let mesh = mesh(&format!(
            "- {{name: d, namespace: shop, scope: Global, action: Deny, dryRun: false, rules: [[[{{{keys}}}]]]}}\n"
        ));
        let identity = FRONT.parse().unwrap();
        assert_eq!(
            !judge(&mesh, "10.1.0.1", Some(&identity)).allowed,
            *with_identity,
            "{keys} with identity"
        );
        assert_eq!(!judge(&mesh, "10.1.0.1", None).allowed, *without, "{keys} without identity");
        let mapped = judge(&mesh, "::ffff:10.1.0.1", None).allowed;
        assert_eq!(!mapped, *without, "{keys} from a mapped address");
    }
}

#[test]
fn each_field_is_compared_with_what_the_contract_says() {
    check_match(&[
        ("principals: [!Exact td/ns/shop/sa/front]", true, false),
        ("principals: [!Exact spiffe://td/ns/shop/sa/front]", false, false),
        ("principals: [!Exact TD/ns/shop/sa/front]", false, false),
        ("principals: [!Prefix td/ns/shop/]", true, false),
        ("principals: [!Suffix /sa/front]", true, false),
        ("principals: [!Presence []]", true, false),
        ("principals: [!Exact no, !Suffix front]", true, false),
        ("notPrincipals: [!Presence []]", false, true),
        ("notPrincipals: [!Exact td/ns/shop/sa/front]", false, true),
        ("notPrincipals: [!Exact td/ns/shop/sa/back]", true, true),
        ("principals: [!Presence []], notPrincipals: [!Suffix front]", false, false),
        ("namespaces: [!Exact shop]", true, false),
        ("namespaces: [!Presence []]", true, false),
        ("namespaces: [!Prefix '']", true, true),
        ("notNamespaces: [!Exact shop]", false, true),
        ("notNamespaces: [!Presence []]", false, true),
        ("serviceAccounts: [{namespace: shop, serviceAccount: front}]", true, false),
        ("serviceAccounts: [{namespace: shop, serviceAccount: back}]", false, false),
        ("notServiceAccounts: [{namespace: shop, serviceAccount: front}]", false, true),
        ("sourceIps: [10.1.0.0/24]", true, true),
        ("sourceIps: ['::ffff:10.1.0.0/120']", true, true),
        ("sourceIps: [10.1.0.2/32]", false, false),
        ("notSourceIps: [10.1.0.1/32]", false, false),
        ("notSourceIps: ['::/0']", true, true),
        ("destinationIps: [10.1.0.2/32]", true, true),
        ("notDestinationIps: [10.1.0.2/32]", false, false),
        ("destinationPorts: [8080]", true, true),
        ("destinationPorts: [15008]", false, false),
        ("notDestinationPorts: [8080]", false, false),
        ("notDestinationPorts: [80]", true, true),
        ("destinationPorts: [8080], sourceIps: [192.0.2.0/24]", false, false),
    ]);
}

fn string_match() -> impl Strategy<Value = StringMatch> + Clone {
    let text = prop_oneof![Just(""), Just("shop"), Just("td/ns/shop/sa/front"), Just("front"), Just("td/")];
    prop_oneof![
        text.clone().prop_map(|text| StringMatch::Exact(text.into())),
        text.clone().prop_map(|text| StringMatch::Prefix(text.into())),
        text.prop_map(|text| StringMatch::Suffix(text.into())),
        Just(StringMatch::Presence()),
    ]
}

/// Values of a field and of its `not_` twin; mostly none.
fn field<T: std::fmt::Debug + Clone>(
    value: impl Strategy<Value = T> + Clone + 'static,
) -> impl Strategy<Value = (Vec<T>, Vec<T>)> {
    let some = || {
        let some = prop::collection::vec(value.clone(), 1..3);
        prop_oneof![2 => Just(Vec::new()), 1 => some]
    };
    (some(), some())
}

fn one_match() -> impl Strategy<Value = Match> {
    let account = |name: &str| ServiceAccountMatch { namespace: "shop".into(), service_account: name.into() };
    let accounts = prop_oneof![Just(account("front")), Just(account("back"))];
    let nets = ["0.0.0.0/0", "10.1.0.1/32", "10.1.0.0/24", "10.1.0.2/31", "::/0", "::ffff:10.1.0.0/120"];
    let nets = prop::sample::select(nets.to_vec()).prop_map(|net| net.parse::<ipnet::IpNet>().unwrap());
    let fields = (
        field(string_match()),
        field(string_match()),
        field(accounts),
        field(nets.clone()),
        field(nets),
        field(prop_oneof![Just(8080), Just(80)]),
    );
    fields.prop_map(|(namespaces, principals, accounts, sources, destinations, ports)| Match {
        namespaces: namespaces.0,
        not_namespaces: namespaces.1,
        principals: principals.0,
        not_principals: principals.1,
        service_accounts: accounts.0,
        not_service_accounts: accounts.1,
        source_ips: sources.0,
        not_source_ips: sources.1,
        destination_ips: destinations.0,
        not_destination_ips: destinations.1,
        destination_ports: ports.0,
        not_destination_ports: ports.1,
    })
}

fn policies() -> impl Strategy<Value = Vec<Policy>> {
    let rule = prop::collection::vec(prop::collection::vec(one_match(), 0..3), 0..3).prop_map(|clauses| {
        Rule { clauses: clauses.into_iter().map(|matches| Clause { matches }).collect() }
    });
    let scope = prop_oneof![Just(Scope::Global), Just(Scope::Namespace), Just(Scope::WorkloadSelector)];
    let action = prop_oneof![Just(Action::Allow), Just(Action::Deny)];
    let policy = (scope, action, prop::collection::vec(rule, 0..3), any::<bool>());
    prop::collection::vec(policy, 0..6).prop_map(|all| {
        all.into_iter()
            .enumerate()
            .map(|(index, (scope, action, rules, dry_run))| Policy {
                name: format!("p{index}").into(),
                namespace: "shop".into(),
                scope,
                action,
                rules,
                dry_run,
            })
            .collect()
    })
}

/// A workload `web` that names two policies, and these policies, which arrive in this order.
fn mesh_of<'p>(policies: impl Iterator<Item = &'p Policy>) -> Mesh {
    let mut mesh = Mesh::default();
    let destination = Workload {
        uid: "web".into(),
        namespace: "shop".into(),
        authorization_policies: vec!["shop/p3".into(), "shop/p1".into()],
        ..Workload::default()
    };
    mesh.insert_workload(Arc::new(destination));
    for policy in policies {
        mesh.insert_policy(Arc::new(policy.clone()));
    }
    mesh
}

fn verdict<'p>(policies: impl Iterator<Item = &'p Policy>, identity: Option<&Identity>) -> Verdict {
    judge(&mesh_of(policies), "10.1.0.1", identity)
}

/// The contract's order word by word: every policy is asked, one after the other.
fn by_the_book(mesh: &Mesh, source_ip: &str, identity: Option<&Identity>) -> (Because, Vec<DryRun>) {
    let subject = Subject {
        identity,
        principal: identity.map(Identity::principal),
        source_ip: source_ip.parse().unwrap(),
        destination_ip: "10.1.0.2".parse().unwrap(),
        destination_port: 8080,
    };
    let all: Vec<_> = mesh.policies_for(mesh.workload_by_uid("web").unwrap()).iter().collect();
    let of = |action: Action, dry_run: bool| {
        let chosen: Vec<_> =
            all.iter().filter(|(_, policy)| policy.action == action && policy.dry_run == dry_run).collect();
        chosen
    };
    let matching = |action: Action, dry_run: bool| {
        let all = of(action, dry_run).into_iter().filter(|(_, policy)| policy_matches(policy, &subject));
        all.map(|&(key, _)| Arc::clone(key)).collect::<Vec<_>>()
    };
    let mut tried: Vec<_> = matching(Action::Deny, true).into_iter().map(DryRun::Deny).collect();
    if let Some(policy) = matching(Action::Deny, false).first() {
        return (Because::DeniedBy(Arc::clone(policy)), tried);
    }
    let allowing = matching(Action::Allow, true);
    let none_enforced = of(Action::Allow, false).is_empty();
    if none_enforced && allowing.is_empty() && !of(Action::Allow, true).is_empty() {
        tried.push(DryRun::NoneAllowed);
    }
    tried.extend(allowing.into_iter().map(DryRun::Allow));
    let because = match matching(Action::Allow, false).first() {
        _ if none_enforced => Because::NoAllowPolicies,
        Some(policy) => Because::AllowedBy(Arc::clone(policy)),
        None => Because::NotAllowed,
    };
    (because, tried)
}

/// A policy that matches everything.
fn catch_all(name: &str, action: Action) -> Policy {
    Policy {
        name: name.into(),
        namespace: "shop".into(),
        scope: Scope::Namespace,
        action,
        rules: vec![Rule::default()],
        dry_run: false,
    }
}

proptest! {
    #[test]
    fn no_rule_is_overlooked_whatever_came_and_went(
        policies in policies(),
        others in policies(),
        mtls in any::<bool>(),
        source in prop::sample::select(vec!["10.1.0.1", "10.1.0.3", "fd00::1"]),
    ) {
        let identity: Identity = FRONT.parse().unwrap();
        let identity = mtls.then_some(&identity);
        // Others of the same names were there before; each is replaced or removed.
        let mut mesh = mesh_of(others.iter());
        for other in others.iter().skip(policies.len()) {
            mesh.remove_policy(&other.key());
        }
        for policy in &policies {
            mesh.insert_policy(Arc::new(policy.clone()));
        }
        let verdict = judge(&mesh, source, identity);
        let (because, dry_run) = by_the_book(&mesh_of(policies.iter()), source, identity);
        prop_assert_eq!(verdict.because, because);
        prop_assert_eq!(verdict.dry_run, dry_run);
    }

    #[test]
    fn deny_beats_allow_whatever_the_order_and_the_names(
        policies in policies(),
        name in "[a-z]{1,3}",
        at in any::<prop::sample::Index>(),
        mtls in any::<bool>(),
    ) {
        let identity: Identity = FRONT.parse().unwrap();
        let mut policies = policies;
        policies.push(catch_all("everybody", Action::Allow));
        policies.insert(at.index(policies.len()), catch_all(&name, Action::Deny));
        let verdict = verdict(policies.iter(), mtls.then_some(&identity));
        prop_assert!(!verdict.allowed);
        prop_assert!(matches!(verdict.because, Because::DeniedBy(_)));
    }

    #[test]
    fn the_answer_does_not_depend_on_the_order_of_arrival(policies in policies(), mtls in any::<bool>()) {
        let identity: Identity = FRONT.parse().unwrap();
        let identity = mtls.then_some(&identity);
        prop_assert_eq!(verdict(policies.iter(), identity), verdict(policies.iter().rev(), identity));
    }

    #[test]
    fn a_policy_on_trial_never_changes_the_answer(policies in policies(), mtls in any::<bool>()) {
        let identity: Identity = FRONT.parse().unwrap();
        let identity = mtls.then_some(&identity);
        let enforced = verdict(policies.iter().filter(|policy| !policy.dry_run), identity);
        let all = verdict(policies.iter(), identity);
        prop_assert_eq!(enforced.because, all.because);
        prop_assert_eq!(enforced.allowed, all.allowed);
        prop_assert_eq!(enforced.dry_run, Vec::<DryRun>::new());
    }

    #[test]
    fn an_allow_policy_never_admits_what_is_denied_without_it(policies in policies(), mtls in any::<bool>()) {
        let identity: Identity = FRONT.parse().unwrap();
        let identity = mtls.then_some(&identity);
        let before = verdict(policies.iter(), identity);
        let more = catch_all("zz", Action::Allow);
        let after = verdict(policies.iter().chain([&more]), identity);
        prop_assert_eq!(after.allowed, !matches!(before.because, Because::DeniedBy(_)));
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Under which names a question is sought in the mesh (data-plane contract, section 5.2, steps 1 and 2).

/// One name to look for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    /// The name.
    pub name: String,
    /// The name that was asked for without the search domain that the client had added.
    pub stripped: Option<String>,
}

/// All names to look for, most likely first, each once: the name itself, its Kubernetes forms, and the same for what is left
/// of it without each search domain that it ends with.
#[must_use]
pub fn aliases(host: &str, namespace: &str, domain: &str, search: &[String]) -> Vec<Alias> {
    let mut all: Vec<Alias> = Vec::with_capacity(4);
    let mut add = |name: String, stripped: Option<&str>| {
        if all.iter().all(|known| known.name != name) {
            all.push(Alias { name, stripped: stripped.map(str::to_owned) });
        }
    };
    add(host.to_owned(), None);
    for name in kubernetes(host, namespace, domain) {
        add(name, None);
    }
    for zone in search {
        let Some(stripped) = host.strip_suffix(zone.as_str()).and_then(|rest| rest.strip_suffix('.')) else {
            continue;
        };
        add(stripped.to_owned(), Some(stripped));
        for name in kubernetes(stripped, namespace, domain) {
            add(name, Some(stripped));
        }
    }
    all
}

/// What a short name stands for in Kubernetes.
fn kubernetes(host: &str, namespace: &str, domain: &str) -> Vec<String> {
    let ends_in_svc = host.ends_with(".svc");
    match host.split('.').count() {
        1 => vec![format!("{host}.{namespace}.svc.{domain}")],
        2 => vec![format!("{host}.svc.{domain}"), format!("{host}.{namespace}.svc.{domain}")],
        3 if ends_in_svc => vec![format!("{host}.{domain}"), format!("{host}.svc.{domain}")],
        3 => vec![format!("{host}.svc.{domain}")],
        4 if ends_in_svc => vec![format!("{host}.{domain}")],
        _ => Vec::new(),
    }
}

/// The wildcards that cover a name, the most specific first: `*.b.c` and `*.c` for `a.b.c`.
pub fn wildcards(name: &str) -> impl Iterator<Item = String> + '_ {
    name.match_indices('.').map(|(at, _)| format!("*{}", name.get(at..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(host: &str, expected: &[&str]) {
        let search = super::super::search_domains("ns", "c.l");
        let found = aliases(host, "ns", "c.l", &search);
        let found: Vec<String> = found
            .iter()
            .map(|alias| match &alias.stripped {
                Some(stripped) => format!("{} < {stripped}", alias.name),
                None => alias.name.clone(),
            })
            .collect();
        assert_eq!(found, expected, "{host}");
    }

    #[test]
    fn short_names_are_completed_and_search_domains_taken_off() {
        check("a", &["a", "a.ns.svc.c.l"]);
        check("a.b", &["a.b", "a.b.svc.c.l", "a.b.ns.svc.c.l"]);
        check("a.b.c", &["a.b.c", "a.b.c.svc.c.l"]);
        check("a.b.svc", &["a.b.svc", "a.b.svc.c.l", "a.b.svc.svc.c.l"]);
        check("x.a.b.svc", &["x.a.b.svc", "x.a.b.svc.c.l"]);
        check("a.b.c.d", &["a.b.c.d"]);
        check(
            "a.ns.svc.c.l",
            &[
                "a.ns.svc.c.l",
                "a < a",
                "a.ns < a.ns",
                "a.ns.ns.svc.c.l < a.ns",
                "a.ns.svc < a.ns.svc",
                "a.ns.svc.svc.c.l < a.ns.svc",
            ],
        );
        check("svc.c.l", &["svc.c.l", "svc.c.l.svc.c.l", "svc < svc", "svc.ns.svc.c.l < svc"]);
        check("xc.l", &["xc.l", "xc.l.svc.c.l", "xc.l.ns.svc.c.l"]);
    }

    #[test]
    fn wildcards_replace_leading_labels() {
        assert_eq!(wildcards("a.b.c").collect::<Vec<_>>(), ["*.b.c", "*.c"]);
        assert_eq!(wildcards("a").count(), 0);
    }
}

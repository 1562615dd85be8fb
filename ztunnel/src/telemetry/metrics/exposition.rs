// SPDX-License-Identifier: Apache-2.0
//! OpenMetrics text, written as it is made. Source: OpenMetrics 1.0; data-plane contract, section 6.1.

use std::fmt::Display;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;

use tokio::sync::SemaphorePermit;
use ztunnel_core::report::families::{self, Family, Kind};
use ztunnel_core::report::labels::place::FLAGS;
use ztunnel_core::report::labels::{NAMES, escape};
use ztunnel_core::report::{Flag, Labels};

use super::series::{Series, Store};

/// Observations.
#[derive(Debug)]
pub struct Histogram {
    /// How many were at most this, and more than the bound before.
    pub buckets: Vec<(&'static str, u64)>,
    /// All of them together.
    pub sum: f64,
    /// How many there were.
    pub count: u64,
}

/// Writes families and samples.
#[derive(Debug)]
pub struct Exposition<W>(W);

impl<W: Write> Exposition<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self(out)
    }

    /// The head of a family.
    ///
    /// # Errors
    /// The reader is gone; so for all below.
    pub fn head(&mut self, family: &Family) -> io::Result<()> {
        let Family { name, kind, unit, help, labels: _ } = family;
        writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {}", kind.as_str())?;
        unit.map_or(Ok(()), |unit| writeln!(self.0, "# UNIT {name} {unit}"))
    }

    /// A family of samples, left out if there are none: the values of the labels, then the value.
    pub fn family<const N: usize, V: Display>(
        &mut self,
        family: &Family,
        samples: impl IntoIterator<Item = ([&'static str; N], V)>,
    ) -> io::Result<()> {
        self.named(family, samples)
    }

    /// As [`family`](Self::family), with values that are not known beforehand.
    pub fn named<S: AsRef<str>, const N: usize, V: Display>(
        &mut self,
        family: &Family,
        samples: impl IntoIterator<Item = ([S; N], V)>,
    ) -> io::Result<()> {
        let mut begun = false;
        for (values, value) in samples {
            if !std::mem::replace(&mut begun, true) {
                self.head(family)?;
            }
            self.name(family)?;
            let mut separator = "{";
            for (name, value) in family.labels.iter().zip(&values) {
                write!(self.0, "{separator}{name}=\"{}\"", escape(value.as_ref()))?;
                separator = ",";
            }
            writeln!(self.0, "{} {value}", if N == 0 { "" } else { "}" })?;
        }
        Ok(())
    }

    /// A family of one sample without labels.
    pub fn value(&mut self, family: &Family, value: impl Display) -> io::Result<()> {
        self.family(family, [([], value)])
    }

    /// A family of histograms, left out if there are none.
    pub fn histogram<'a, const N: usize>(
        &mut self,
        family: &Family,
        samples: impl IntoIterator<Item = ([&'a str; N], Histogram)>,
    ) -> io::Result<()> {
        let Family { name, labels, .. } = family;
        let mut begun = false;
        for (values, histogram) in samples {
            if !std::mem::replace(&mut begun, true) {
                self.head(family)?;
            }
            let set = labels.iter().zip(values);
            let set: Vec<String> = set.map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
            let set = set.join(",");
            writeln!(
                self.0,
                "{name}_sum{{{set}}} {}\n{name}_count{{{set}}} {}",
                histogram.sum, histogram.count
            )?;
            let mut below = 0;
            for (bound, count) in histogram.buckets {
                below += count;
                writeln!(self.0, "{name}_bucket{{le=\"{bound}\",{set}}} {below}")?;
            }
            writeln!(self.0, "{name}_bucket{{le=\"+Inf\",{set}}} {}", histogram.count)?;
        }
        Ok(())
    }

    fn name(&mut self, family: &Family) -> io::Result<()> {
        self.0.write_all(family.name.as_bytes())?;
        if family.kind == Kind::Counter { self.0.write_all(b"_total") } else { Ok(()) }
    }

    /// The families of connections.
    pub fn connections(&mut self, store: &Store) -> io::Result<()> {
        let all = store.all();
        if all.is_empty() {
            return Ok(());
        }
        let mut sets = Sets::new(store, &all);
        self.traffic(&families::OPENED, 0, &mut sets)?;
        for (family, flags) in [(&families::CLOSED, &Flag::ALL[..]), (&families::FAILED, &Flag::ALL[1..])] {
            let mut begun = false;
            for (index, series) in all.iter().enumerate() {
                for flag in flags {
                    let count = series.closed(*flag);
                    if count == 0 {
                        continue;
                    }
                    if !std::mem::replace(&mut begun, true) {
                        self.head(family)?;
                    }
                    self.sample(family, sets.get(index), *flag, count)?;
                }
            }
        }
        self.traffic(&families::RECEIVED, 1, &mut sets)?;
        self.traffic(&families::SENT, 2, &mut sets)
    }

    /// The family of one of [`Series::traffic`]'s counters.
    fn traffic(&mut self, family: &Family, counter: usize, sets: &mut Sets<'_>) -> io::Result<()> {
        self.head(family)?;
        for (index, series) in sets.all.iter().enumerate() {
            self.sample(family, sets.get(index), Flag::None, series.traffic()[counter])?;
        }
        Ok(())
    }

    /// One of many thousands: no formatting machinery.
    fn sample(
        &mut self,
        family: &Family,
        (before, after): (&str, &str),
        flag: Flag,
        value: u64,
    ) -> io::Result<()> {
        self.name(family)?;
        for part in [before, flag.as_str(), after, itoa::Buffer::new().format(value), "\n"] {
            self.0.write_all(part.as_bytes())?;
        }
        Ok(())
    }

    /// The end; gives back what was written to.
    pub fn end(mut self) -> io::Result<W> {
        self.0.write_all(b"# EOF\n")?;
        self.0.flush()?;
        Ok(self.0)
    }
}

/// Label sets in their text form, braces and all: several families say the same. Those of a large node are many
/// megabytes, for as long as the reader takes: only a few scrapes at a time keep them, the others make each anew.
#[derive(Debug)]
struct Sets<'a> {
    all: &'a [Arc<Series>],
    kept: Option<SemaphorePermit<'a>>,
    /// What comes before a value, by the label's place; none where the operator does not want the label.
    openings: [Option<String>; NAMES.len()],
    text: String,
    /// Where a set is, and where in it the flag goes.
    sets: Vec<(Range<usize>, usize)>,
}

impl<'a> Sets<'a> {
    /// A little more than a set of a real mesh takes, in bytes: text that grows is copied.
    const USUAL: usize = 1 << 10;

    fn new(store: &'a Store, all: &'a [Arc<Series>]) -> Self {
        let openings = std::array::from_fn(|place| {
            let before = if place == 0 { "{" } else { "\"," };
            store.filter().keeps(place).then(|| format!("{before}{}=\"", NAMES[place]))
        });
        let kept = store.room_for_text();
        let count = if kept.is_some() { all.len() } else { 1 };
        let (text, sets) = (String::with_capacity(count * Self::USUAL), Vec::with_capacity(count));
        Self { all, kept, openings, text, sets }
    }

    /// The set of a series before and after its flag. The first family asks for all of them, in order: it is on its way to
    /// the reader while those of the others are being made.
    fn get(&mut self, index: usize) -> (&str, &str) {
        let mut place = index;
        if self.kept.is_none() {
            self.text.clear();
            self.sets.clear();
            place = 0;
        }
        if self.sets.len() == place {
            self.add(self.all[index].labels());
        }
        let (set, flag) = &self.sets[place];
        (&self.text[set.start..*flag], &self.text[*flag..set.end])
    }

    fn add(&mut self, labels: &Labels) {
        let start = self.text.len();
        let mut flag = start;
        for (place, (opening, value)) in self.openings.iter().zip(labels.values()).enumerate() {
            let (Some(opening), Some(value)) = (opening, value) else { continue };
            self.text.push_str(opening);
            if place == FLAGS {
                flag = self.text.len();
            } else {
                self.text.push_str(&escape(value));
            }
        }
        self.text.push_str("\"} ");
        self.sets.push((start..self.text.len(), flag));
    }
}

#[cfg(test)]
mod tests {
    use ztunnel_core::identity::Identity;
    use ztunnel_core::mesh::Workload;
    use ztunnel_core::report::{Facts, LabelFilter, Labels, Reporter, Security};

    use super::*;
    use crate::telemetry::metrics::Metrics;
    use crate::telemetry::metrics::series::Limits;

    fn expose(metrics: &Metrics) -> String {
        let mut out = Exposition::new(Vec::new());
        metrics.expose_istio(&mut out).unwrap();
        metrics.expose_pods(&mut out).unwrap();
        String::from_utf8(out.end().unwrap()).unwrap()
    }

    fn denied(metrics: &Metrics) {
        let source = Workload { workload_name: "a\"b\\c\nd".into(), ..Workload::default() };
        let identity =
            Identity { trust_domain: "td".into(), namespace: "ns".into(), service_account: "sa".into() };
        let facts = Facts {
            source: Some(&source),
            source_principal: Some(&identity),
            security: Security::MutualTls,
            ..Facts::new(Reporter::Destination)
        };
        let counted = metrics.opened(Labels::new(&facts), [None; 2]);
        counted.series().received(7);
        counted.series().sent(9);
        counted.close(Flag::Deny);
    }

    #[test]
    fn the_text_is_open_metrics_to_the_byte() {
        let metrics = Metrics::new(Limits::default());
        denied(&metrics);
        metrics.xds().received("type.googleapis.com/istio.workload.Address", 12);
        metrics.xds().terminated("Reconnect");
        let labels = |flag: &str| {
            let unknown = |names: &[&str]| -> String {
                names.iter().map(|name| format!("{name}=\"unknown\",")).collect()
            };
            let source = ["canonical_service", "canonical_revision", "workload_namespace"]
                .map(|name| format!("source_{name}"));
            let destination = NAMES[9..20].to_vec();
            format!(
                "{{reporter=\"destination\",source_workload=\"a\\\"b\\\\c\\nd\",{}\
                 source_principal=\"spiffe://td/ns/ns/sa/sa\",{}{}request_protocol=\"tcp\",response_flags=\"{flag}\",\
                 connection_security_policy=\"mutual_tls\",{}}}",
                unknown(&source.each_ref().map(String::as_str)),
                unknown(&["source_app", "source_version", "source_cluster"]),
                unknown(&destination),
                unknown(&NAMES[23..]).trim_end_matches(','),
            )
        };
        let (dash, deny) = (labels("-"), labels("DENY"));
        let expected = format!(
            "\
# HELP istio_tcp_connections_opened The total number of TCP connections opened.
# TYPE istio_tcp_connections_opened counter
istio_tcp_connections_opened_total{dash} 1
# HELP istio_tcp_connections_closed The total number of TCP connections closed.
# TYPE istio_tcp_connections_closed counter
istio_tcp_connections_closed_total{deny} 1
# HELP istio_tcp_connections_failed The total number of TCP connections that failed (unstable).
# TYPE istio_tcp_connections_failed counter
istio_tcp_connections_failed_total{deny} 1
# HELP istio_tcp_received_bytes The size of total bytes received during request in case of a TCP connection.
# TYPE istio_tcp_received_bytes counter
istio_tcp_received_bytes_total{dash} 7
# HELP istio_tcp_sent_bytes The size of total bytes sent during response in case of a TCP connection.
# TYPE istio_tcp_sent_bytes counter
istio_tcp_sent_bytes_total{dash} 9
# HELP istio_tcp_sockets_open The number of accepted sockets that are open (unstable).
# TYPE istio_tcp_sockets_open gauge
istio_tcp_sockets_open{{reporter=\"source\"}} 0
istio_tcp_sockets_open{{reporter=\"destination\"}} 0
# HELP istio_xds_connection_terminations The total number of completed connections to xds server (unstable).
# TYPE istio_xds_connection_terminations counter
istio_xds_connection_terminations_total{{reason=\"Reconnect\"}} 1
# HELP istio_xds_message The total number of messages received (unstable).
# TYPE istio_xds_message counter
istio_xds_message_total{{url=\"type.googleapis.com/istio.workload.Address\"}} 1
# HELP istio_xds_message_bytes The total number of bytes received (unstable).
# TYPE istio_xds_message_bytes counter
# UNIT istio_xds_message_bytes bytes
istio_xds_message_bytes_total{{url=\"type.googleapis.com/istio.workload.Address\"}} 12
# HELP workload_manager_active_proxy_count The total number of active pod proxies (unstable).
# TYPE workload_manager_active_proxy_count gauge
workload_manager_active_proxy_count 0
# HELP workload_manager_pending_proxy_count The total number of pending pod proxies (unstable).
# TYPE workload_manager_pending_proxy_count gauge
workload_manager_pending_proxy_count 0
# HELP workload_manager_proxies_started The total number of pod proxies started (unstable).
# TYPE workload_manager_proxies_started counter
workload_manager_proxies_started_total 0
# HELP workload_manager_proxies_stopped The total number of pod proxies stopped (unstable).
# TYPE workload_manager_proxies_stopped counter
workload_manager_proxies_stopped_total 0
# EOF
"
        );
        assert_eq!(expose(&metrics), expected);
    }

    #[test]
    fn the_text_is_the_same_where_there_is_no_room_to_keep_parts_of_it() {
        let metrics = Metrics::new(Limits::default());
        for name in ["a", "b", "c"] {
            let source = Workload { workload_name: name.into(), ..Workload::default() };
            let facts = Facts { source: Some(&source), ..Facts::new(Reporter::Source) };
            for flag in [Flag::None, Flag::Deny] {
                metrics.opened(Labels::new(&facts), [None; 2]).close(flag);
            }
        }
        let kept = expose(&metrics);
        let store = &metrics.0.series;
        let _all: Vec<_> = std::iter::from_fn(|| store.room_for_text()).collect();
        assert_eq!(expose(&metrics), kept);
    }

    #[test]
    fn families_without_samples_are_left_out() {
        let text = expose(&Metrics::new(Limits::default()));
        assert!(!text.contains("istio_tcp_connections") && !text.contains("istio_xds"), "{text}");
    }

    #[test]
    fn only_the_labels_that_are_wanted_are_shown() {
        let labels: LabelFilter = "source_workload".parse().unwrap();
        let metrics = Metrics::new(Limits { labels, ..Limits::default() });
        denied(&metrics);
        let text = expose(&metrics);
        let line = "istio_tcp_connections_closed_total{reporter=\"destination\",source_workload=\"a\\\"b\\\\c\\nd\",\
                    response_flags=\"DENY\"} 1\n";
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn names_of_families_are_unique_and_end_in_their_unit() {
        let mut names: Vec<&str> = families::ALL.iter().map(|family| family.name).collect();
        for family in families::ALL {
            assert!(family.unit.is_none_or(|unit| family.name.ends_with(&format!("_{unit}"))), "{family:?}");
            assert!(!family.name.ends_with("_total"), "{family:?}");
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), families::ALL.len());
    }
}

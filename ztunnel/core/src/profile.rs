// SPDX-License-Identifier: Apache-2.0
//! A profile in the form that `pprof` reads: samples are counted by stack, and addresses get their names.
//!
//! Source: `profile.proto`, the format of <https://github.com/google/pprof>.

use std::collections::HashMap;

use prost::Message as _;

/// The messages of `profile.proto`.
pub mod proto {
    #![expect(missing_docs, reason = "generated from profile.proto, which explains what needs it")]
    include!(concat!(env!("OUT_DIR"), "/perftools.profiles.rs"));
}

/// What a number in a profile counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measure {
    /// For example `cpu`.
    pub kind: &'static str,
    /// For example `nanoseconds`.
    pub unit: &'static str,
}

/// What is said about all samples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// What the values of a sample are.
    pub measures: Vec<Measure>,
    /// What was counted between two samples.
    pub period: (Measure, i64),
    /// When it began, in nanoseconds since 1970.
    pub time_nanos: i64,
    /// How long it took, in nanoseconds.
    pub duration_nanos: i64,
    /// For people.
    pub comment: String,
}

/// One function at an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Symbol {
    /// Its name; empty: not known.
    pub name: String,
    /// Its source file; empty: not known.
    pub file: String,
    /// The line; 0: not known.
    pub line: u32,
}

/// Writes a profile. Samples are stacks, the innermost address first, with one value per measure; those of the same
/// stack become one. `resolve` names an address: more than one symbol where calls were inlined, the innermost first.
pub fn encode(
    head: &Head,
    samples: impl IntoIterator<Item = (Vec<usize>, Vec<i64>)>,
    resolve: impl FnMut(usize) -> Vec<Symbol>,
) -> Vec<u8> {
    let mut writer =
        Writer { resolve, texts: Texts::default(), functions: HashMap::new(), locations: HashMap::new() };
    let mut profile = proto::Profile::default();
    // Index 0 is the empty text.
    writer.texts.index("");
    let mut by_stack: HashMap<Vec<usize>, usize> = HashMap::new();
    for (stack, values) in samples {
        if let Some(at) = by_stack.get(&stack) {
            let sums = &mut profile.sample[*at].value;
            sums.iter_mut().zip(&values).for_each(|(sum, value)| *sum = sum.saturating_add(*value));
            continue;
        }
        let location_id = stack.iter().map(|address| writer.location(&mut profile, *address)).collect();
        by_stack.insert(stack, profile.sample.len());
        profile.sample.push(proto::Sample { location_id, value: values });
    }
    profile.sample_type = head.measures.iter().map(|measure| writer.texts.measure(*measure)).collect();
    profile.period_type = Some(writer.texts.measure(head.period.0));
    profile.period = head.period.1;
    profile.time_nanos = head.time_nanos;
    profile.duration_nanos = head.duration_nanos;
    profile.comment = vec![writer.texts.index(&head.comment)];
    profile.string_table = writer.texts.all;
    profile.encode_to_vec()
}

struct Writer<R> {
    resolve: R,
    texts: Texts,
    functions: HashMap<(i64, i64), u64>,
    locations: HashMap<usize, u64>,
}

impl<R: FnMut(usize) -> Vec<Symbol>> Writer<R> {
    fn location(&mut self, profile: &mut proto::Profile, address: usize) -> u64 {
        if let Some(id) = self.locations.get(&address) {
            return *id;
        }
        let symbols = (self.resolve)(address);
        let line = symbols.iter().map(|symbol| self.line(profile, symbol)).collect();
        let id = profile.location.len() as u64 + 1;
        profile.location.push(proto::Location { id, address: address as u64, line });
        self.locations.insert(address, id);
        id
    }

    fn line(&mut self, profile: &mut proto::Profile, symbol: &Symbol) -> proto::Line {
        let (name, filename) = (self.texts.index(&symbol.name), self.texts.index(&symbol.file));
        let next = profile.function.len() as u64 + 1;
        let function_id = *self.functions.entry((name, filename)).or_insert(next);
        if function_id == next {
            profile.function.push(proto::Function { id: next, name, system_name: name, filename });
        }
        proto::Line { function_id, line: symbol.line.into() }
    }
}

/// Every text once.
#[derive(Default)]
struct Texts {
    all: Vec<String>,
    known: HashMap<String, i64>,
}

impl Texts {
    fn index(&mut self, text: &str) -> i64 {
        if let Some(index) = self.known.get(text) {
            return *index;
        }
        let index = i64::try_from(self.all.len()).unwrap_or(0);
        self.all.push(text.to_owned());
        self.known.insert(text.to_owned(), index);
        index
    }

    fn measure(&mut self, measure: Measure) -> proto::ValueType {
        proto::ValueType { r#type: self.index(measure.kind), unit: self.index(measure.unit) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_stacks_are_one_sample_and_every_text_is_once() {
        let cpu = Measure { kind: "cpu", unit: "nanoseconds" };
        let count = Measure { kind: "samples", unit: "count" };
        let head = Head {
            measures: vec![count, cpu],
            period: (cpu, 10),
            time_nanos: 1,
            duration_nanos: 2,
            comment: "c".into(),
        };
        let samples = [(vec![7, 9], vec![1, 10]), (vec![9], vec![1, 10]), (vec![7, 9], vec![2, 20])];
        let symbol = |name: &str| Symbol { name: name.into(), file: "f.rs".into(), line: 3 };
        let bytes = encode(&head, samples, |address| match address {
            7 => vec![symbol("inlined"), symbol("outer")],
            _ => vec![symbol("outer")],
        });
        let profile = proto::Profile::decode(&*bytes).unwrap();
        let text = |index: i64| profile.string_table[usize::try_from(index).unwrap()].as_str();
        assert_eq!(text(0), "");
        let values: Vec<_> = profile.sample.iter().map(|sample| sample.value.clone()).collect();
        assert_eq!(values, [vec![3, 30], vec![1, 10]]);
        let stack: Vec<u64> = profile.sample[0]
            .location_id
            .iter()
            .map(|id| profile.location.iter().find(|location| location.id == *id).unwrap().address)
            .collect();
        assert_eq!(stack, [7, 9]);
        assert_eq!(profile.function.len(), 2);
        let named = |line: &proto::Line| {
            text(profile.function.iter().find(|function| function.id == line.function_id).unwrap().name)
                .to_owned()
        };
        let lines: Vec<_> = profile.location[0].line.iter().map(named).collect();
        assert_eq!(lines, ["inlined", "outer"]);
        let kinds: Vec<_> =
            profile.sample_type.iter().map(|kind| (text(kind.r#type), text(kind.unit))).collect();
        assert_eq!(kinds, [("samples", "count"), ("cpu", "nanoseconds")]);
        assert_eq!((profile.period, profile.time_nanos, profile.duration_nanos), (10, 1, 2));
    }
}

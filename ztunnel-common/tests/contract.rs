// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The built object keeps the contract: its maps, programs and constants are those of this crate.
//!
//! Needs neither root nor a kernel with eBPF, only the object.

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use aya_obj::Object;
    use ztunnel_common::maps;
    use ztunnel_common::settings::{LAYOUT_SYMBOL, Layout};

    const OBJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bpf/ztunnel-ebpf.o");

    fn object() -> Object {
        Object::parse(&std::fs::read(OBJECT).unwrap()).unwrap()
    }

    #[test]
    #[cfg_attr(not(ebpf_object), ignore = "no eBPF object: run `cargo xtask build-ebpf`")]
    fn every_map_has_the_name_and_the_sizes_of_the_contract() {
        let built: BTreeMap<String, (usize, usize)> = object()
            .maps
            .iter()
            .filter(|(name, _)| !name.starts_with('.') && *name != maps::LOGS)
            .map(|(name, map)| (name.clone(), (map.key_size() as usize, map.value_size() as usize)))
            .collect();
        let contract: BTreeMap<String, (usize, usize)> =
            maps::ALL.iter().map(|shape| (shape.name.to_owned(), (shape.key, shape.value))).collect();
        assert_eq!(built, contract);
        assert!(maps::ALL.iter().all(|shape| shape.name.len() <= 15), "the kernel cuts longer names");
    }

    #[test]
    #[cfg_attr(not(ebpf_object), ignore = "no eBPF object: run `cargo xtask build-ebpf`")]
    fn the_programs_and_the_constant_are_there() {
        let mut object = object();
        let mut programs: Vec<&String> = object.programs.keys().collect();
        programs.sort();
        assert_eq!(programs, ["ztunnel_ask", "ztunnel_message", "ztunnel_pair"]);
        let words = [1_u8; Layout::WORDS * 4];
        object.patch_map_data([(LAYOUT_SYMBOL, (&words[..], true))].into()).unwrap();
    }
}

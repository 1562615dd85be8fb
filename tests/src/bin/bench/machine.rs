// SPDX-License-Identifier: Apache-2.0
//! What this machine is, and how busy it was: read from /proc.

use std::fs;

use crate::record::Machine;

/// Describes the machine.
pub(crate) fn describe() -> Machine {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let after = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key));
        line.and_then(|line| line.split_once(':'))
            .map(|(_, value)| value.trim().to_owned())
            .unwrap_or_default()
    };
    let memory = after(&read("/proc/meminfo"), "MemTotal");
    Machine {
        cpu: after(&read("/proc/cpuinfo"), "model name"),
        cores: cores(),
        memory_mib: memory.split(' ').next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024,
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        congestion: read("/proc/sys/net/ipv4/tcp_congestion_control").trim().to_owned(),
        busy: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
    }
}

/// How many cores programs may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// CPU seconds of the whole machine since it started: everything but idle and waiting.
pub(crate) fn cpu_of_machine() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields: Vec<f64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_ascii_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal: the host's share of stolen time is not ours.
    let busy: f64 = [0, 1, 2, 5, 6].iter().filter_map(|&at| fields.get(at)).sum();
    busy / ticks()
}

fn ticks() -> f64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten().map_or(100.0, |ticks| ticks as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_costs_and_cores() {
        assert!(cpu_of_machine() > 0.0);
        assert!(describe().cores >= 1);
    }
}

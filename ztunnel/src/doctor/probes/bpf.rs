// SPDX-License-Identifier: Apache-2.0
//! eBPF, tried with maps and programs that vanish at once, and with the fast path itself.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use aya::maps::MapType;
use aya::programs::{ProgramError, ProgramType, loaded_programs};
use aya::sys::{BpfHelper, SyscallError, is_helper_supported, is_map_supported, is_program_supported};
use ztunnel_core::fastpath::{Level, Mode};

use super::super::facts::{Bpf, Cgroup, Extent, Failure, Outcome, Trial};
use super::super::mounts::Mount;
use super::read;
use crate::fastpath::{self, FastPath};

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
/// First bytes of a BTF file, in the order of this machine.
const BTF_MAGIC: u16 = 0xeb9f;
/// Nothing can be pinned here: looking must neither mount a bpffs nor remove the pins of a ztunnel that runs.
const NO_PINS: &str = "/dev/null/pins";

/// The maps of the object, by kind.
const MAPS: [(&str, MapType); 6] = [
    ("map array", MapType::Array),
    ("map percpu_array", MapType::PerCpuArray),
    ("map hash", MapType::Hash),
    ("map lru_hash", MapType::LruHash),
    ("map sk_storage", MapType::SkStorage),
    ("map sockhash", MapType::SockHash),
];

/// `enum bpf_prog_type` (include/uapi/linux/bpf.h).
const PROG_TYPE_SK_SKB: u32 = 14;
const PROG_TYPE_SK_MSG: u32 = 16;

const PROGRAMS: [(&str, ProgramType); 2] =
    [("program sock_ops", ProgramType::SockOps), ("program sk_msg", ProgramType::SkMsg)];

/// The helpers that came last to their kind of program; the kernel knows the others if it knows the kind.
const HELPERS: [(&str, ProgramType, BpfHelper); 6] = [
    ("netns cookie in sock_ops", ProgramType::SockOps, BpfHelper::BPF_FUNC_get_netns_cookie),
    ("sk_storage in sock_ops", ProgramType::SockOps, BpfHelper::BPF_FUNC_sk_storage_get),
    ("sockhash in sock_ops", ProgramType::SockOps, BpfHelper::BPF_FUNC_sock_hash_update),
    ("sk_storage in sk_msg", ProgramType::SkMsg, BpfHelper::BPF_FUNC_sk_storage_get),
    ("redirect in sk_msg", ProgramType::SkMsg, BpfHelper::BPF_FUNC_msg_redirect_hash),
    ("kernel reads in sk_msg", ProgramType::SkMsg, BpfHelper::BPF_FUNC_probe_read_kernel),
];

pub(super) fn probe(config: &fastpath::Config, mounts: &[Mount]) -> Bpf {
    Bpf {
        embedded: fastpath::is_embedded(),
        btf: btf(Path::new(VMLINUX)).map_err(Failure::from),
        syscall: map(MapType::Array).map(|_| "maps can be made".to_owned()),
        types: types(),
        lockdown: read("/sys/kernel/security/lockdown"),
        jit: read("/proc/sys/net/core/bpf_jit_enable"),
        cgroups: cgroups(config.cgroup_root.as_deref(), mounts),
        // Before the trial, which would find its own.
        foreign: foreign(),
        trial: trial(config),
    }
}

fn btf(path: &Path) -> io::Result<String> {
    let mut file = fs::File::open(path)?;
    let mut magic = [0; 2];
    file.read_exact(&mut magic)?;
    if u16::from_ne_bytes(magic) != BTF_MAGIC {
        return Err(io::Error::other(format!("{} is no BTF", path.display())));
    }
    Ok(path.display().to_string())
}

fn types() -> Vec<(&'static str, Outcome)> {
    let maps = MAPS.into_iter().map(|(name, kind)| (name, map(kind)));
    let programs = PROGRAMS
        .into_iter()
        .map(|(name, kind)| (name, known(is_program_supported(kind).map_err(of_program), "loads")));
    let helpers = HELPERS.into_iter().map(|(name, kind, helper)| {
        (name, known(is_helper_supported(kind, helper).map_err(of_program), "allowed"))
    });
    programs.chain(maps).chain(helpers).collect()
}

fn map(kind: MapType) -> Outcome {
    known(is_map_supported(kind).map_err(of_syscall), "can be made")
}

fn known(answer: Result<bool, Failure>, yes: &str) -> Outcome {
    match answer {
        Ok(true) => Ok(yes.to_owned()),
        Ok(false) => Err(Failure::because("this kernel does not know it")),
        Err(failure) => Err(failure),
    }
}

fn of_syscall(error: SyscallError) -> Failure {
    error.io_error.into()
}

fn of_program(error: ProgramError) -> Failure {
    match error {
        ProgramError::SyscallError(error) => of_syscall(error),
        other => Failure::because(other.to_string()),
    }
}

/// Where `sock_ops` could be attached: what the operator named, else every mount of the hierarchy.
fn cgroups(named: Option<&Path>, mounts: &[Mount]) -> Vec<Cgroup> {
    let found = |path: PathBuf, root: String| Cgroup { extent: extent(&path), path, root };
    if let Some(path) = named {
        return vec![found(path.to_owned(), String::new())];
    }
    let mounts = mounts.iter().filter(|mount| mount.kind == "cgroup2");
    mounts.map(|mount| found(mount.point.clone(), mount.root.clone())).collect()
}

/// Every cgroup has a type but the root of all. In a container the mount table cannot tell them apart.
fn extent(path: &Path) -> Extent {
    if !path.join("cgroup.controllers").exists() {
        Extent::None
    } else if path.join("cgroup.type").exists() {
        Extent::Subtree
    } else {
        Extent::Node
    }
}

/// Loaded programs of other owners that decide over messages or streams of sockets.
fn foreign() -> Vec<String> {
    let mut names: Vec<String> = loaded_programs()
        .filter_map(Result::ok)
        .filter(|program| [PROG_TYPE_SK_SKB, PROG_TYPE_SK_MSG].contains(&(program.program_type() as u32)))
        .map(|program| program.name_as_str().unwrap_or("unnamed").to_owned())
        .filter(|name| !name.starts_with("ztunnel_"))
        .collect();
    names.sort();
    names.dedup();
    names
}

/// Loads, attaches and tests the fast path, in both directions whatever the settings say, and takes it off again.
fn trial(config: &fastpath::Config) -> Trial {
    let config = fastpath::Config { mode: Mode::Full, pin_path: PathBuf::from(NO_PINS), ..config.clone() };
    let status = FastPath::start(config).status();
    let level = match status.mode.effective.parse() {
        Ok(Mode::Full | Mode::Auto) => Level::Full,
        Ok(Mode::Half) => Level::Half,
        Ok(Mode::Off) | Err(_) => Level::Off,
    };
    Trial { level, reason: status.mode.reason, checks: status.self_test }
}

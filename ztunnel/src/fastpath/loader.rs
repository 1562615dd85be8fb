// SPDX-License-Identifier: Apache-2.0
//! Load, pin and attach the programs, and hold the maps.
//!
//! What outlives the process, and what does not:
//! * the `sock_ops` attachment dies with the process: nobody new enters the map;
//! * the sockhash is pinned: redirected bytes that an application has not read yet stay with it when
//!   ztunnel stops or is killed, as bytes in a TCP queue would. Members whose ztunnel end is gone go by
//!   TCP and leave when they close. A start removes all pins but the newest, so that a predecessor that
//!   still drains keeps its own.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use aya::maps::{Map as AyaMap, MapData, MapError, SockHash};
use aya::programs::{CgroupAttachMode, RawTracePoint, SkMsg, SockOps};
use aya::{Ebpf, EbpfLoader};
use ztunnel_common::settings::LAYOUT_SYMBOL;
use ztunnel_common::stats::SLOTS;
use ztunnel_common::{Conn, Control, Own, Pod, maps, question};

use super::pair::Place;
use super::status::Check;
use super::{Config, debug, layout};
use crate::sys::bpf::{Map, Question};

#[cfg(ebpf_object)]
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("ZTUNNEL_EBPF_OBJECT"));
#[cfg(not(ebpf_object))]
static OBJECT: &[u8] = &[];

/// Whether this binary was built with the programs.
pub(super) fn is_embedded() -> bool {
    !OBJECT.is_empty()
}

/// The largest single message that is redirected: what the credit can hold.
const MESSAGE_LIMIT: u32 = 256 << 10;
/// Bytes in one direction without an answer, after which small writes go by TCP. Measured in
/// docs/fastpath.md: TCP gathers small writes, the fast path wakes the reader for each.
const BULK_LIMIT: u32 = 128 << 10;
/// Writes of this size are faster redirected, however many.
const BULK_MESSAGE: u32 = 32 << 10;
const BPFFS: &str = "/sys/fs/bpf";
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// Why the fast path could not be loaded.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    /// `cargo xtask build-ebpf` did not run before `cargo build`.
    #[error("built without eBPF object")]
    NoObject,
    /// The kernel's own description is missing or unknown.
    #[error(transparent)]
    Layout(#[from] layout::LayoutError),
    /// The kernel refused the programs or maps.
    #[error("{0}: {1}")]
    Kernel(&'static str, String),
    /// There is no cgroup v2 to attach to.
    #[error("no cgroup v2 mount in /proc/self/mountinfo")]
    NoCgroup,
}

/// The loaded programs and their maps.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) control: Map<u32, Control>,
    pub(super) pods: Map<u64, Pod>,
    pub(super) tags: Map<i32, u32>,
    pub(super) own: Map<i32, Own>,
    pub(super) conns: Map<u64, Conn>,
    question: Question,
    stats: Map<u32, u64>,
    /// What the self-test counted, which is nobody's traffic.
    baseline: Vec<u64>,
    cpus: usize,
    /// Keeps programs, links and maps alive.
    _object: Ebpf,
}

impl Kernel {
    /// The settings that hold outside the self-test.
    pub(super) fn settings() -> Control {
        Control {
            on: 1,
            message_limit: MESSAGE_LIMIT,
            bulk_limit: BULK_LIMIT,
            bulk_message: BULK_MESSAGE,
            pass_every: 0,
        }
    }

    pub(super) fn switch(&self, on: bool) -> io::Result<()> {
        self.control.insert(&0, &Control { on: u32::from(on), ..Self::settings() })
    }

    /// Whether the application at the other end of a pair has redirected bytes to read.
    pub(super) fn has_unread(&self, place: Place) -> io::Result<bool> {
        Ok(self.ask(place, question::UNREAD)? != 0)
    }

    /// Has nothing redirected to us any more. The position behind the last byte that was.
    pub(super) fn close_gate(&self, place: Place) -> io::Result<u64> {
        let low = u64::from(self.ask(place, question::CLOSE_GATE)?);
        let high = u64::from(self.ask(place, question::CLOSED_AT_HIGH)?);
        Ok(high << 32 | low)
    }

    fn ask(&self, place: Place, asked: u32) -> io::Result<u32> {
        self.question.ask([place.id, u64::from(place.side), u64::from(asked)])
    }

    /// A counter since [`forget_counts`](Self::forget_counts).
    pub(super) fn count(&self, slot: u32) -> u64 {
        let before = self.baseline.get(slot as usize).copied().unwrap_or(0);
        self.raw_count(slot).saturating_sub(before)
    }

    /// Counts from here on.
    pub(super) fn forget_counts(&mut self) {
        self.baseline = (0..).take(SLOTS).map(|slot| self.raw_count(slot)).collect();
    }

    fn raw_count(&self, slot: u32) -> u64 {
        self.stats.get_per_cpu(&slot, self.cpus).map_or(0, |values| values.iter().sum())
    }
}

/// Loads and attaches; every step is also a check that can be read later.
pub(super) fn load(config: &Config, checks: &mut Vec<Check>) -> Result<Kernel, LoadError> {
    let mut note = |name, detail: String| checks.push(Check { name, ok: true, detail });
    if OBJECT.is_empty() {
        return Err(LoadError::NoObject);
    }
    let layout = layout::read()?;
    note("kernel_layout", format!("{layout:?}"));
    let words = layout.to_words();
    let pairs = config.max_connections;
    let mut object = EbpfLoader::new()
        .override_global(LAYOUT_SYMBOL, &words, true)
        .map_max_entries(maps::CONNS, pairs)
        .map_max_entries(maps::SOCKS, maps::socks_entries(pairs))
        .map_max_entries(maps::PENDING, maps::pending_entries(pairs))
        .override_global(debug::LEVEL, &debug::level(config.debug), true)
        .map_max_entries(maps::LOGS, debug::buffer(config.debug))
        .load(OBJECT)
        .map_err(|error| LoadError::Kernel("maps", describe(&error)))?;
    let cpus = aya::util::nr_cpus()
        .map_err(|(what, error)| LoadError::Kernel("cpus", format!("{what}: {error}")))?;
    if config.debug {
        let listening = debug::forward(&mut object);
        note("debug", listening.map_or_else(|error| format!("no: {error}"), |()| "forwarded".to_owned()));
    }
    load_programs(&mut object)?;
    note("programs", "loaded and verified".to_owned());
    let root = match &config.cgroup_root {
        Some(root) => root.clone(),
        None => cgroup_root().ok_or(LoadError::NoCgroup)?,
    };
    attach(&mut object, &root)?;
    note("attached", root.display().to_string());
    let pinned = pin(&object, &config.pin_path);
    note("pinned", pinned.unwrap_or_else(|error| format!("no: {error}; unread bytes die with ztunnel")));
    let kernel = Kernel {
        control: Map::new(map_fd(&object, maps::CONTROL)?),
        pods: Map::new(map_fd(&object, maps::PODS)?),
        tags: Map::new(map_fd(&object, maps::TAGS)?),
        own: Map::new(map_fd(&object, maps::OWN)?),
        conns: Map::new(map_fd(&object, maps::CONNS)?),
        question: Question::new(question_program(&mut object)?),
        stats: Map::new(map_fd(&object, maps::STATS)?),
        baseline: Vec::new(),
        cpus,
        _object: object,
    };
    kernel.switch(true).map_err(|error| LoadError::Kernel("control", error.to_string()))?;
    Ok(kernel)
}

fn load_programs(object: &mut Ebpf) -> Result<(), LoadError> {
    let failed = |error: aya::programs::ProgramError| LoadError::Kernel("programs", describe(&error));
    program::<SockOps>(object, "ztunnel_pair")?.load().map_err(failed)?;
    program::<SkMsg>(object, "ztunnel_message")?.load().map_err(failed)
}

/// The program that ztunnel runs itself.
fn question_program(object: &mut Ebpf) -> Result<OwnedFd, LoadError> {
    let failed = |error: aya::programs::ProgramError| LoadError::Kernel("ask", describe(&error));
    let program = program::<RawTracePoint>(object, "ztunnel_ask")?;
    program.load().map_err(failed)?;
    let fd = program.fd().map_err(failed)?;
    fd.as_fd().try_clone_to_owned().map_err(|error| LoadError::Kernel("ask", error.to_string()))
}

/// First the verdict, then the source of members: no member is ever without a verdict.
fn attach(object: &mut Ebpf, root: &Path) -> Result<(), LoadError> {
    let socks: SockHash<_, u64> = object
        .map(maps::SOCKS)
        .ok_or_else(|| missing(maps::SOCKS))?
        .try_into()
        .map_err(|error: MapError| LoadError::Kernel("sockhash", describe(&error)))?;
    let socks = socks.fd().try_clone().map_err(|error| LoadError::Kernel("sockhash", error.to_string()))?;
    program::<SkMsg>(object, "ztunnel_message")?
        .attach(&socks)
        .map_err(|error| LoadError::Kernel("attach sk_msg", describe(&error)))?;
    let cgroup = fs::File::open(root)
        .map_err(|error| LoadError::Kernel("cgroup root", format!("{}: {error}", root.display())))?;
    program::<SockOps>(object, "ztunnel_pair")?
        .attach(cgroup, CgroupAttachMode::Single)
        .map_err(|error| LoadError::Kernel("attach sock_ops", describe(&error)))?;
    Ok(())
}

fn program<'a, P>(object: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, LoadError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program>,
{
    object
        .program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| LoadError::Kernel("object", format!("no program {name}")))
}

fn missing(name: &'static str) -> LoadError {
    LoadError::Kernel("object", format!("no map {name}"))
}

/// A handle of our own on a map, after a look at its size.
fn map_fd(object: &Ebpf, name: &'static str) -> Result<OwnedFd, LoadError> {
    let data: &MapData = match object.map(name) {
        Some(
            AyaMap::Array(data)
            | AyaMap::HashMap(data)
            | AyaMap::PerCpuArray(data)
            | AyaMap::SkStorage(data)
            | AyaMap::SockHash(data),
        ) => data,
        _ => return Err(missing(name)),
    };
    let info = data.info().map_err(|error| LoadError::Kernel("map info", describe(&error)))?;
    let fits = maps::ALL.iter().any(|shape| {
        shape.name == name
            && shape.key == info.key_size() as usize
            && shape.value == info.value_size() as usize
    });
    if !fits {
        return Err(LoadError::Kernel("object", format!("map {name} is of another contract")));
    }
    data.fd().as_fd().try_clone_to_owned().map_err(|error| LoadError::Kernel("map", error.to_string()))
}

/// The root of the v2 hierarchy; on a hybrid host it is not at `/sys/fs/cgroup`, and in a container the first mount
/// may be the container's own part of it. Only the true root has no `cgroup.type`.
fn cgroup_root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let found: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| {
            let (mount, file_system) = line.split_once(" - ")?;
            let point = mount.split(' ').nth(4)?;
            file_system.starts_with("cgroup2 ").then(|| PathBuf::from(point))
        })
        .collect();
    let is_root =
        |point: &&PathBuf| point.join("cgroup.controllers").exists() && !point.join("cgroup.type").exists();
    found.iter().find(is_root).or_else(|| found.first()).cloned()
}

fn pin(object: &Ebpf, directory: &Path) -> io::Result<String> {
    if directory.starts_with(BPFFS) && !is_bpffs(Path::new(BPFFS)) {
        nix::mount::mount(Some("bpf"), BPFFS, Some("bpf"), nix::mount::MsFlags::empty(), None::<&str>)?;
    }
    // Looked at before anything is created: no stray folder outside a bpffs.
    if !directory.ancestors().find(|folder| folder.exists()).is_some_and(is_bpffs) {
        return Err(io::Error::other(format!("{} is not on a bpffs", directory.display())));
    }
    fs::create_dir_all(directory)?;
    let mut old: Vec<PathBuf> =
        fs::read_dir(directory)?.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    old.sort();
    old.pop();
    for pin in old {
        fs::remove_file(pin)?;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
    let path = directory.join(format!("socks-{:020}", now.as_nanos()));
    let map = object.map(maps::SOCKS).ok_or_else(|| io::Error::other("no sockhash"))?;
    map.pin(&path).map_err(|error| io::Error::other(describe(&error)))?;
    Ok(path.display().to_string())
}

fn is_bpffs(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|found| found.filesystem_type().0 == BPF_FS_MAGIC)
}

/// An error with its causes: the outer one alone rarely says what the kernel said.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

// SPDX-License-Identifier: Apache-2.0
//! Reads `/proc/self/mountinfo`. Source: proc_pid_mountinfo(5).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// Which part of its file system is mounted.
    pub(super) root: String,
    /// Where.
    pub(super) point: PathBuf,
    /// Type of the file system.
    pub(super) kind: String,
}

/// Every line that has the form of a mount.
pub(super) fn parse(mountinfo: &str) -> Vec<Mount> {
    mountinfo.lines().filter_map(mount).collect()
}

/// The mount that `path` is on: the longest mount point, and of two on one point the later.
pub(super) fn holding<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    let on = mounts.iter().filter(|mount| path.starts_with(&mount.point));
    on.max_by_key(|mount| mount.point.components().count())
}

fn mount(line: &str) -> Option<Mount> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    let kind = file_system.split(' ').next()?;
    Some(Mount { root: root.to_owned(), point: unescape(point), kind: kind.to_owned() })
}

/// Space, tab, newline and backslash come as `\` and three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if let (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) = (first, tail) {
            bytes.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
            rest = tail;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
25 30 0:23 / /sys rw,nosuid - sysfs sysfs rw
32 25 0:27 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755
33 32 0:28 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw
40 25 0:33 /../.. /mnt/a\\040b rw - bpf none rw
broken line
41 25";

    #[test]
    fn optional_fields_escapes_and_broken_lines() {
        let mounts = parse(HYBRID);
        assert_eq!(mounts.len(), 4);
        assert_eq!(mounts[2].kind, "cgroup2");
        assert_eq!(mounts[3].point, Path::new("/mnt/a b"));
        assert_eq!(mounts[3].root, "/../..");
        assert_eq!(unescape("a\\9x\\"), Path::new("a\\9x\\"));
    }

    #[test]
    fn the_innermost_and_latest_mount_holds_a_path() {
        let mut mounts = parse(HYBRID);
        let kind = |mounts: &[Mount], path| holding(mounts, Path::new(path)).map(|mount| mount.kind.clone());
        assert_eq!(kind(&mounts, "/sys/fs/bpf/x").as_deref(), Some("sysfs"));
        assert_eq!(kind(&mounts, "/sys/fs/cgroup/unified/a").as_deref(), Some("cgroup2"));
        assert_eq!(kind(&mounts, "/sys/fs/cgroup/unifiedly").as_deref(), Some("tmpfs"));
        assert_eq!(kind(&mounts, "/etc"), None);
        mounts.push(Mount { root: "/".into(), point: "/sys".into(), kind: "tmpfs".into() });
        assert_eq!(kind(&mounts, "/sys/x").as_deref(), Some("tmpfs"));
    }
}

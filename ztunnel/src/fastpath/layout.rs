// SPDX-License-Identifier: Apache-2.0
//! Where this kernel keeps what the gate reads, from its own description (BTF).
//!
//! Rust programs have no CO-RE, so that the offsets are found here and given to the programs as
//! constants. Only members of named structs are needed; a small reader does.

use std::collections::HashMap;

use ztunnel_common::Layout;
use ztunnel_common::settings::ABSENT;

/// Where the kernel describes itself.
pub(super) const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const KIND_STRUCT: u32 = 4;

/// Why the offsets are not known.
#[derive(Debug, thiserror::Error)]
pub(super) enum LayoutError {
    /// The file could not be read.
    #[error("cannot read {VMLINUX}: {0}")]
    Unreadable(#[from] std::io::Error),
    /// It is not what it should be.
    #[error("{VMLINUX} is malformed: {0}")]
    Malformed(&'static str),
    /// A member is missing, so that this kernel is unknown to us.
    #[error("this kernel's `struct {0}` has no member `{1}`")]
    Missing(&'static str, &'static str),
    /// Two members that the programs read at once are not neighbors.
    #[error("this kernel's `struct {0}` does not have `{2}` right behind `{1}`")]
    Apart(&'static str, &'static str, &'static str),
}

/// Bit offsets of the members of the structs we ask for.
type Members = HashMap<(&'static str, String), u32>;

/// Reads the running kernel's BTF.
pub(super) fn read() -> Result<Layout, LayoutError> {
    from_btf(&std::fs::read(VMLINUX)?)
}

fn from_btf(btf: &[u8]) -> Result<Layout, LayoutError> {
    let members = members(btf, &["sock_common", "sock", "tcp_sock", "sk_psock"])?;
    let bytes = |structure: &'static str, member: &'static str| {
        members
            .get(&(structure, member.to_owned()))
            .map(|bits| bits / 8)
            .ok_or(LayoutError::Missing(structure, member))
    };
    let common = bytes("sock", "__sk_common")?;
    let saved_callbacks = bytes("sk_psock", "saved_write_space")?;
    if bytes("sk_psock", "saved_data_ready")? != saved_callbacks + 8 {
        return Err(LayoutError::Apart("sk_psock", "saved_write_space", "saved_data_ready"));
    }
    Ok(Layout {
        sk_cookie: common + bytes("sock_common", "skc_cookie")?,
        sk_user_data: bytes("sock", "sk_user_data")?,
        copied_seq: bytes("tcp_sock", "copied_seq")?,
        write_seq: bytes("tcp_sock", "write_seq")?,
        ingress_msg: bytes("sk_psock", "ingress_msg")?,
        ingress_len: bytes("sk_psock", "msg_tot_len").unwrap_or(ABSENT),
        is_mptcp_bit: members.get(&("tcp_sock", "is_mptcp".to_owned())).copied().unwrap_or(ABSENT),
        sk_write_space: bytes("sock", "sk_write_space")?,
        saved_callbacks,
    })
}

fn members(btf: &[u8], wanted: &[&'static str]) -> Result<Members, LayoutError> {
    let header = Words(btf);
    if header.half(0)? != MAGIC {
        return Err(LayoutError::Malformed("bad magic"));
    }
    let header_len = header.word(4)?;
    let section = |offset: usize, length: usize| {
        let start = (header_len + header.word(offset)?) as usize;
        btf.get(start..start.saturating_add(header.word(length)? as usize))
            .ok_or(LayoutError::Malformed("a section is cut off"))
    };
    let (types, strings) = (Words(section(8, 12)?), section(16, 20)?);
    let mut found = Members::new();
    let mut at = 0;
    while at < types.0.len() {
        let (name, info) = (types.word(at)?, types.word(at + 4)?);
        let (kind, count) = ((info >> 24) & 0x1f, (info & 0xffff) as usize);
        let start = at + 12;
        if kind == KIND_STRUCT
            && let Some(structure) = wanted.iter().find(|name_| text(strings, name) == **name_)
        {
            for index in 0..count {
                let (member, offset) = (types.word(start + index * 12)?, types.word(start + index * 12 + 8)?);
                let bits = if info >> 31 == 1 { offset & 0x00ff_ffff } else { offset };
                found.entry((structure, text(strings, member).to_owned())).or_insert(bits);
            }
        }
        at = start + extra(kind, count)?;
    }
    Ok(found)
}

/// Bytes behind the common part of a type.
fn extra(kind: u32, count: usize) -> Result<usize, LayoutError> {
    match kind {
        // Pointer, forward, typedef, volatile, const, restrict, function, float, type tag.
        2 | 7..=12 | 16 | 18 => Ok(0),
        // Integer, variable, declaration tag.
        1 | 14 | 17 => Ok(4),
        // Array; struct, union; 64-bit enumeration; data section.
        3 => Ok(12),
        4 | 5 | 15 | 19 => Ok(12 * count),
        // Enumeration; function prototype.
        6 | 13 => Ok(8 * count),
        _ => Err(LayoutError::Malformed("unknown kind of type")),
    }
}

fn text(strings: &[u8], at: u32) -> &str {
    let rest = strings.get(at as usize..).unwrap_or_default();
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
    std::str::from_utf8(&rest[..end]).unwrap_or_default()
}

struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn word(&self, at: usize) -> Result<u32, LayoutError> {
        let bytes = self.0.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u32::from_ne_bytes).ok_or(LayoutError::Malformed("cut off"))
    }

    fn half(&self, at: usize) -> Result<u16, LayoutError> {
        let bytes = self.0.get(at..at + 2).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u16::from_ne_bytes).ok_or(LayoutError::Malformed("cut off"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_btf_is_refused() {
        assert!(from_btf(b"").is_err());
        assert!(from_btf(&[0; 64]).is_err());
        let mut cut = MAGIC.to_ne_bytes().to_vec();
        cut.extend([1, 0, 24, 0, 0, 0, 0, 0, 0, 0, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert!(from_btf(&cut).is_err());
    }

    #[test]
    fn the_running_kernel_is_known() {
        if !std::path::Path::new(VMLINUX).exists() {
            eprintln!("not run: {VMLINUX} is missing");
            return;
        }
        let layout = read().unwrap();
        assert!(layout.sk_cookie > 0 && layout.copied_seq != layout.write_seq);
    }
}

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What the loader tells the programs: kernel offsets before the load, switches at any time.

/// Name of the program's constant that holds a [`Layout`].
pub const LAYOUT_SYMBOL: &str = "LAYOUT";

/// Offset that this kernel does not have.
pub const ABSENT: u32 = u32::MAX;

/// Where the running kernel keeps what the gate reads, as found in its BTF. Rust has no CO-RE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// `sock.__sk_common.skc_cookie`.
    pub sk_cookie: u32,
    /// `sock.sk_user_data`: the psock, with flags in its three lowest bits.
    pub sk_user_data: u32,
    /// `tcp_sock.copied_seq`.
    pub copied_seq: u32,
    /// `tcp_sock.write_seq`.
    pub write_seq: u32,
    /// `sk_psock.ingress_msg`.
    pub ingress_msg: u32,
    /// `sk_psock.msg_tot_len`: bytes in the ingress list; absent in older kernels.
    pub ingress_len: u32,
    /// Bit offset of `tcp_sock.is_mptcp`; absent without MPTCP.
    pub is_mptcp_bit: u32,
    /// `sock.sk_write_space`.
    pub sk_write_space: u32,
    /// `sk_psock.saved_write_space`, with `saved_data_ready` right behind it.
    pub saved_callbacks: u32,
}

impl Layout {
    /// Number of words of the constant.
    pub const WORDS: usize = 9;

    /// As the programs' constant wants it.
    #[must_use]
    pub const fn to_words(self) -> [u32; Self::WORDS] {
        [
            self.sk_cookie,
            self.sk_user_data,
            self.copied_seq,
            self.write_seq,
            self.ingress_msg,
            self.ingress_len,
            self.is_mptcp_bit,
            self.sk_write_space,
            self.saved_callbacks,
        ]
    }

    /// Back from the constant.
    #[must_use]
    #[inline(always)]
    pub const fn from_words(words: [u32; Self::WORDS]) -> Self {
        Self {
            sk_cookie: words[0],
            sk_user_data: words[1],
            copied_seq: words[2],
            write_seq: words[3],
            ingress_msg: words[4],
            ingress_len: words[5],
            is_mptcp_bit: words[6],
            sk_write_space: words[7],
            saved_callbacks: words[8],
        }
    }
}

/// The node's switches, read by every message.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// 1: redirect where permitted; 0: everything stays on TCP.
    pub on: u32,
    /// A message larger than this stays on TCP.
    pub message_limit: u32,
    /// After so many bytes in one direction without an answer the rest goes by TCP; 0: never.
    pub bulk_limit: u32,
    /// Messages of at least this size stay on the fast path even in bulk.
    pub bulk_message: u32,
    /// For tests: pass every n-th message to TCP, so that the path changes in mid-stream; 0: never.
    pub pass_every: u32,
}

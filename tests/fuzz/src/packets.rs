// SPDX-License-Identifier: Apache-2.0
//! Several messages in one input: each is preceded by one byte that a target may interpret, and by its length.

/// Splits an input into (kind, bytes); the last one takes what is left.
pub(crate) fn split(mut data: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (&[kind, low, high], rest) = data.split_first_chunk::<3>()?;
        let length = usize::from(u16::from_le_bytes([low, high])).min(rest.len());
        let (bytes, rest) = rest.split_at(length);
        data = rest;
        Some((kind, bytes))
    })
}

/// The input that [`split`] takes apart.
pub(crate) fn join(packets: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut data = Vec::new();
    for (kind, bytes) in packets {
        let length = u16::try_from(bytes.len()).expect("seeds are small");
        data.push(*kind);
        data.extend(length.to_le_bytes());
        data.extend(bytes);
    }
    data
}

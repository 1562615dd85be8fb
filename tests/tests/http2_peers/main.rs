// SPDX-License-Identifier: Apache-2.0
//! HTTP/2 peers that are odd, and peers that are hostile: as the client of a pod's HBONE port, and as the HBONE port
//! that a pod's connections go to. What is legal works, what is not is refused, and nobody else notices.
//!
//! * [`clients`]: what a pod's HBONE port may meet. * [`servers`]: what a pod's tunnels may.

mod clients;
mod servers;

use std::time::Duration;

use anyhow::{Result, ensure};
use ztunnel_tests::peer::RawPeer;
use ztunnel_tests::peer::frames::{END_STREAM, Kind};

const SOON: Duration = Duration::from_secs(10);
const APP: u16 = 8080;

fn ended(peer: &mut RawPeer, stream: u32) -> Result<()> {
    let last = peer.until("the end of the stream", |frame| {
        frame.stream == stream
            && (frame.has(END_STREAM) && frame.kind == Kind::Data || frame.kind == Kind::RstStream)
    })?;
    ensure!(last.kind == Kind::Data, "reset instead of an end: {last:?}");
    Ok(())
}

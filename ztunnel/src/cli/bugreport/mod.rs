// SPDX-License-Identifier: Apache-2.0
//! `ztunnel bugreport`: what somebody needs who is to help, in one archive, without what nobody may see.
//!
//! What cannot be had is in the archive as the reason why: a report of a broken node is worth most.
//!
//! * [`redact`]: takes secrets out.

mod redact;

use std::fs::OpenOptions;
use std::io::{self, Read as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, Header};

use super::door::Door;
use super::form::say;
use crate::config::env::ProcessEnv;
use crate::{doctor, version};
use redact::{redact_json, redact_text};

/// The folder in the archive.
const FOLDER: &str = "ztunnel-bugreport";
/// Most of a file of the kernel or of a log that is taken; of a log the end.
const MAX_FILE: u64 = 16 << 20;

/// Facts of the kernel that decide what the fast path can do.
const KERNEL: &[&str] = &[
    "/proc/version",
    "/proc/cmdline",
    "/proc/meminfo",
    "/proc/self/status",
    "/proc/self/mountinfo",
    "/proc/self/limits",
    "/proc/net/sockstat",
    "/proc/sys/kernel/unprivileged_bpf_disabled",
    "/proc/sys/net/core/bpf_jit_enable",
    "/sys/kernel/security/lockdown",
    "/sys/kernel/security/lsm",
];

const README: &str = "\
What a running ztunnel said about itself, and facts of its kernel. Tokens, headers and keys are taken out; names and
addresses of workloads are not. A file that ends in .error says why something is missing.

status.json, connections.json, denials.json, config_dump.json, metrics.txt: as the admin server gave them.
doctor.txt: what this kernel and these privileges allow. kernel.txt: facts of the kernel.
The log is with whoever runs ztunnel (kubectl logs); `--log FILE` puts one in.
";

/// Writes the archive to a new file, or to standard output for `-`.
///
/// # Errors
/// The file exists already, or cannot be written.
pub(super) fn write(door: &Door, file: &Path, log: Option<&Path>) -> io::Result<()> {
    if file == Path::new("-") {
        return archive(door, log, io::stdout().lock()).map(drop);
    }
    // Never over another file, and for its owner alone: it may be in a folder that everybody can write to.
    let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    let created = created.map_err(|error| {
        io::Error::new(error.kind(), format!("{}: {error} (choose another with --file)", file.display()))
    })?;
    archive(door, log, created)?;
    say(&format!("wrote {}: read what is in it before you give it away\n", file.display()));
    Ok(())
}

fn archive<W: Write>(door: &Door, log: Option<&Path>, to: W) -> io::Result<W> {
    let mut archive = Archive { tar: Builder::new(GzEncoder::new(to, Compression::default())) };
    archive.add("README.txt", README)?;
    archive.add("version.txt", &version::describe())?;
    for (name, target) in [
        ("status.json", "/status"),
        ("connections.json", "/connections?limit=1000"),
        ("denials.json", "/denials"),
        ("config_dump.json", "/config_dump"),
    ] {
        let answer = door.json(target).map(|mut answer| {
            redact_json(&mut answer);
            format!("{answer:#}\n")
        });
        archive.add_or_say(name, answer)?;
    }
    archive.add_or_say("metrics.txt", door.metrics())?;
    archive.add("doctor.txt", &redact_text(&doctor::examine(&ProcessEnv).to_string()))?;
    archive.add("kernel.txt", &kernel())?;
    if let Some(log) = log {
        archive.add_or_say("log.txt", tail(log).map(|text| redact_text(&text)))?;
    }
    archive.tar.into_inner()?.finish()
}

fn kernel() -> String {
    let mut text = String::new();
    for path in KERNEL {
        let content = head(Path::new(path)).unwrap_or_else(|error| format!("{error}\n"));
        text.push_str(&format!("== {path}\n{content}\n"));
    }
    text
}

fn head(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The end of a file.
fn tail(path: &Path) -> io::Result<String> {
    use std::io::{Seek as _, SeekFrom};
    let mut file = std::fs::File::open(path)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(MAX_FILE)))?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

struct Archive<W: Write> {
    tar: Builder<GzEncoder<W>>,
}

impl<W: Write> Archive<W> {
    fn add(&mut self, name: &str, content: &str) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
        self.tar.append_data(&mut header, format!("{FOLDER}/{name}"), content.as_bytes())
    }

    fn add_or_say(&mut self, name: &str, content: io::Result<String>) -> io::Result<()> {
        match content {
            Ok(content) => self.add(name, &content),
            Err(error) => self.add(&format!("{name}.error"), &format!("{error}\n")),
        }
    }
}

#[cfg(test)]
mod tests {
    use flate2::read::GzDecoder;
    use tar::Archive as Reader;

    use super::*;

    #[test]
    fn a_node_that_is_down_is_reported_with_the_reasons() {
        let door = Door::new(None, Some(Path::new("/nonexistent/admin.sock")));
        let bytes = archive(&door, None, Vec::new()).unwrap();
        let mut found = std::collections::BTreeMap::new();
        for entry in Reader::new(GzDecoder::new(&*bytes)).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            found.insert(name, text);
        }
        assert!(found["ztunnel-bugreport/status.json.error"].contains("no ztunnel answers"), "{found:?}");
        assert!(found["ztunnel-bugreport/kernel.txt"].contains("Linux version"));
        assert!(found.contains_key("ztunnel-bugreport/doctor.txt"));
    }
}

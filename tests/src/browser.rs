// SPDX-License-Identifier: Apache-2.0
//! A real browser without a screen, in a network namespace: what a person would see of a page.
//!
//! Chromium is driven over two pipes (Chrome DevTools Protocol, `--remote-debugging-pipe`): messages are JSON, each
//! followed by a zero byte. The shell that starts it makes its descriptors 3 and 4 of them.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use nix::libc::O_NONBLOCK;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use serde_json::{Value, json};
use std::os::fd::AsFd as _;

use crate::node::Node;

/// No answer of the browser may take longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running browser with one open page. Dropping it ends it and removes what it wrote.
#[derive(Debug)]
pub struct Browser {
    child: Child,
    folder: PathBuf,
    to: File,
    from: File,
    unread: VecDeque<u8>,
    next: u64,
    session: Option<String>,
}

impl Browser {
    /// Starts it in a node's namespace; `folder` must not exist and is removed at the end.
    ///
    /// # Errors
    /// Chromium is not installed, or does not answer.
    pub fn start(node: &Node, folder: &Path) -> Result<Self> {
        fs::create_dir(folder).with_context(|| format!("make {}", folder.display()))?;
        let pipe = |name: &str| -> Result<(PathBuf, File)> {
            let path = folder.join(name);
            mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)
                .with_context(|| format!("make {}", path.display()))?;
            // Both ways, so that to open it waits for nobody.
            let file = OpenOptions::new().read(true).write(true).custom_flags(O_NONBLOCK).open(&path)?;
            Ok((path, file))
        };
        let (to_path, to) = pipe("to")?;
        let (from_path, from) = pipe("from")?;
        let script = "to=$0 from=$1; shift; exec setsid chromium \"$@\" 3<\"$to\" 4>\"$from\"";
        let child = node
            .command("/bin/sh")
            .args(["-c", script])
            .arg(&to_path)
            .arg(&from_path)
            .args([
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--remote-debugging-pipe",
                "--no-first-run",
            ])
            .args(["--disable-dev-shm-usage", "--disable-background-networking", "--disable-extensions"])
            .args(["--hide-scrollbars", "--force-color-profile=srgb"])
            .arg(format!("--user-data-dir={}", folder.join("profile").display()))
            .arg("about:blank")
            .env("HOME", folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start chromium")?;
        let (unread, session) = (VecDeque::new(), None);
        let mut browser = Self { child, folder: folder.to_owned(), to, from, unread, next: 0, session };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }))?;
        let attached = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", attached)?;
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        ensure!(browser.session.is_some(), "no session: {session}");
        browser.call("Page.enable", json!({}))?;
        Ok(browser)
    }

    /// The size of the window, and whether it is a phone's in the dark.
    ///
    /// # Errors
    /// The browser is gone.
    pub fn resize(&mut self, width: u32, height: u32, scheme: &str) -> Result<()> {
        let metrics =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.call("Emulation.setDeviceMetricsOverride", metrics)?;
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", features).map(drop)
    }

    /// Goes to an address.
    ///
    /// # Errors
    /// It cannot be loaded.
    pub fn open(&mut self, url: &str) -> Result<()> {
        let answer = self.call("Page.navigate", json!({ "url": url }))?;
        ensure!(answer["errorText"].is_null(), "{url}: {}", answer["errorText"]);
        Ok(())
    }

    /// The value of an expression in the page.
    ///
    /// # Errors
    /// It throws.
    pub fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let question = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let mut answer = self.call("Runtime.evaluate", question)?;
        ensure!(answer["exceptionDetails"].is_null(), "{expression}: {}", answer["exceptionDetails"]);
        Ok(answer["result"]["value"].take())
    }

    /// What is to be read on the page.
    ///
    /// # Errors
    /// The browser is gone.
    pub fn text(&mut self) -> Result<String> {
        let text = self.evaluate("document.body.innerText")?;
        Ok(text.as_str().unwrap_or_default().to_owned())
    }

    /// A picture of the window, as PNG.
    ///
    /// # Errors
    /// The browser is gone.
    pub fn picture(&mut self) -> Result<Vec<u8>> {
        let answer = self.call("Page.captureScreenshot", json!({ "format": "png" }))?;
        BASE64_STANDARD.decode(answer["data"].as_str().context("no picture")?).context("a picture in base64")
    }

    fn call(&mut self, method: &str, parameters: Value) -> Result<Value> {
        self.next += 1;
        let id = self.next;
        let mut message = json!({ "id": id, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.to.write_all(&bytes).with_context(|| format!("tell chromium {method}"))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Events come in between.
            let mut answer = self.receive(deadline).with_context(|| format!("after {method}"))?;
            if answer["id"] == id {
                if !answer["error"].is_null() {
                    bail!("{method}: {}", answer["error"]);
                }
                return Ok(answer["result"].take());
            }
        }
    }

    fn receive(&mut self, deadline: Instant) -> Result<Value> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == 0) {
                let message: Vec<u8> = self.unread.drain(..=end).take(end).collect();
                return serde_json::from_slice(&message).context("a message of chromium");
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("chromium ended: {status}");
            }
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "chromium has not answered within {} s", PATIENCE.as_secs());
            let slice =
                PollTimeout::try_from(left.min(Duration::from_millis(500))).unwrap_or(PollTimeout::ZERO);
            let ready = poll(&mut [PollFd::new(self.from.as_fd(), PollFlags::POLLIN)], slice)?;
            if ready > 0 {
                let mut buffer = vec![0; 64 << 10];
                let count = self.from.read(&mut buffer)?;
                self.unread.extend(&buffer[..count]);
            }
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It has children, and a group of its own.
        if let Ok(pid) = i32::try_from(self.child.id()) {
            killpg(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
        self.child.wait().ok();
        fs::remove_dir_all(&self.folder).ok();
    }
}

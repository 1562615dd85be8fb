// SPDX-License-Identifier: Apache-2.0
//! What this machine is and has: folders, root or not, and the tools that the namespace tests need.
//!
//! A missing tool is installed with apt, after saying so; where that cannot be done, one line tells what to do.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use anyhow::{Context as _, Result, bail};

/// A program the namespaces need, and the Debian package that brings it.
struct Tool {
    program: &'static str,
    package: &'static str,
}

const TOOLS: &[Tool] = &[
    Tool { program: "ip", package: "iproute2" },
    Tool { program: "iptables-restore", package: "iptables" },
    Tool { program: "nginx", package: "nginx-light" },
    Tool { program: "curl", package: "curl" },
    Tool { program: "python3", package: "python3" },
    Tool { program: "gcc", package: "gcc" },
    Tool { program: "prometheus", package: "prometheus" },
    Tool { program: "promtool", package: "prometheus" },
    Tool { program: "musl-gcc", package: "musl-tools" },
    Tool { program: "chromium", package: "chromium" },
    Tool { program: "dig", package: "bind9-dnsutils" },
    Tool { program: "nsupdate", package: "bind9-dnsutils" },
];

/// The file by which Debian asks whether an installed service may start.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// The folder of the workspace.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_path_buf)
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// A cargo command in the workspace's folder: the same cargo that runs this program.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// True for the super-user, who may make network namespaces.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// One line for those who are not.
pub(crate) fn need_root(command: &str) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    bail!(
        "`{command}` makes network namespaces, which needs root: run `sudo -E env PATH=\"$PATH\" cargo xtask {command}`"
    )
}

/// Installs what is missing of [`TOOLS`], and says what it does.
pub(crate) fn install_tools() -> Result<()> {
    install_missing(TOOLS)
}

/// Installs `program` from `package` if it is missing.
pub(crate) fn install(program: &'static str, package: &'static str) -> Result<()> {
    install_missing(&[Tool { program, package }])
}

fn install_missing(tools: &[Tool]) -> Result<()> {
    let missing: Vec<&Tool> = tools.iter().filter(|tool| !on_path(tool.program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    let programs: Vec<&str> = missing.iter().map(|tool| tool.program).collect();
    let list = packages.join(" ");
    if !is_root() || !on_path("apt-get") {
        bail!(
            "missing here: {}. Install the packages (on Debian: `apt-get install {list}`)",
            programs.join(", ")
        );
    }
    println!("installing {list} (apt-get; services stay stopped)");
    fetch(&packages)?;
    match missing.iter().find(|tool| !on_path(tool.program)) {
        None => Ok(()),
        Some(tool) => bail!("package {} is installed, yet `{}` is not on PATH", tool.package, tool.program),
    }
}

/// Installs a package that brings no program of its own.
pub(crate) fn install_package(package: &'static str) -> Result<()> {
    if !is_root() || !on_path("apt-get") {
        bail!("missing here: the package {package} (on Debian: `apt-get install {package}`)");
    }
    println!("installing {package} (apt-get)");
    fetch(&[package])
}

fn fetch(packages: &[&str]) -> Result<()> {
    let _policy = NoServices::hold()?;
    if apt(&["install"], packages).is_ok() {
        return Ok(());
    }
    apt(&["update"], &[])?;
    apt(&["install"], packages)
        .with_context(|| format!("could not install {}: install it by hand", packages.join(" ")))
}

/// True if `program` is found on PATH or in the folders of the super-user.
pub(crate) fn on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| folder.join(program).is_file())
}

fn apt(verb: &[&str], packages: &[&str]) -> Result<()> {
    let done = Command::new("apt-get")
        .args(["-qq", "-y", "--no-install-recommends"])
        .args(verb)
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .context("apt-get")?;
    if done.success() { Ok(()) } else { bail!("`apt-get {}` failed: {done}", verb.join(" ")) }
}

/// Keeps installed packages from starting their service (nginx would take port 80).
struct NoServices {
    ours: bool,
}

impl NoServices {
    fn hold() -> Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        if Path::new(POLICY).exists() {
            return Ok(Self { ours: false });
        }
        fs::write(POLICY, "#!/bin/sh\nexit 101\n").with_context(|| format!("write {POLICY}"))?;
        let held = Self { ours: true };
        fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("chmod {POLICY}"))?;
        Ok(held)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours && fs::remove_file(POLICY).is_err() {
            println!("could not remove {POLICY}: remove it by hand, it keeps services from starting");
        }
    }
}

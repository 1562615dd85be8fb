// SPDX-License-Identifier: Apache-2.0
//! The switch without a kernel, and (as root) the contract with this one.

use super::*;

fn config(mode: Mode) -> Config {
    Config {
        mode,
        full_workloads: Vec::new(),
        cgroup_root: None,
        pin_path: PathBuf::from("/nonexistent"),
        max_connections: CONNECTIONS_DEFAULT,
        debug: false,
    }
}

#[test]
fn switched_off_nothing_is_loaded_and_everything_answers() {
    let fastpath = FastPath::start(config(Mode::Off));
    let status = fastpath.status();
    assert_eq!((status.mode.effective.as_str(), status.mode.reason.as_str()), ("off", "mode_off"));
    assert_eq!(fastpath.enroll(1, "shop", "web").level, Level::Off);
    assert!(!fastpath.set_pod(1, true));
    fastpath.withdraw(1);
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let path = fastpath.connection(std::os::fd::AsFd::as_fd(&socket));
    assert_eq!((path.redirected, path.reason), (false, "mode_off"));
}

#[test]
#[ignore = "needs root and the eBPF object: cargo xtask test"]
fn contract_holds_with_this_kernel() {
    let status = FastPath::start(config(Mode::Full)).status();
    assert_eq!(status.mode.effective, "full", "{}: {:#?}", status.mode.reason, status.self_test);
}

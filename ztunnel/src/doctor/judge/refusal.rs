// SPDX-License-Identifier: Apache-2.0
//! Why the kernel said no, and what to do. A capability that is held and refused nevertheless points elsewhere.

use super::super::facts::Failure;

/// A capability by its number (include/uapi/linux/capability.h) and its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capability(u32, &'static str);

pub(super) const NET_ADMIN: Capability = Capability(12, "NET_ADMIN");
pub(super) const NET_RAW: Capability = Capability(13, "NET_RAW");
pub(super) const SYS_ADMIN: Capability = Capability(21, "SYS_ADMIN");

/// The fix of a failed attempt. `any_of`: the capabilities of which one suffices; `lacking`: what to do where the
/// kernel did not refuse but does not know what was asked for.
pub(super) fn fix(
    held: Option<u64>,
    failure: &Failure,
    any_of: &[Capability],
    lacking: impl FnOnce() -> String,
) -> String {
    if !failure.is_refusal() {
        return lacking();
    }
    let has = |capability: &&Capability| held.is_some_and(|held| held >> capability.0 & 1 == 1);
    match any_of.iter().find(has) {
        Some(Capability(_, name)) => format!(
            "CAP_{name} is held, so something else refuses: a seccomp profile, an LSM (SELinux: seLinuxOptions.type \
             spc_t; AppArmor: unconfined), lockdown, or a user namespace (set hostUsers: true)"
        ),
        None => {
            let names: Vec<&str> = any_of.iter().map(|Capability(_, name)| *name).collect();
            format!("add {} to securityContext.capabilities.add", names.join(" or "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_asks_for_the_capability_unless_it_is_held() {
        let refused = Failure { errno: Some(libc::EPERM), text: "no".into() };
        let unknown = Failure { errno: Some(libc::ENOPROTOOPT), text: "what?".into() };
        let fix =
            |held, failure: &Failure| fix(held, failure, &[NET_ADMIN, NET_RAW], || "another kernel".into());
        assert_eq!(fix(Some(0), &refused), "add NET_ADMIN or NET_RAW to securityContext.capabilities.add");
        assert_eq!(fix(None, &refused), fix(Some(1 << 21), &refused));
        assert!(fix(Some(1 << 13), &refused).starts_with("CAP_NET_RAW is held"));
        assert_eq!(fix(Some(0), &unknown), "another kernel");
    }
}

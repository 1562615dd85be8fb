// SPDX-License-Identifier: Apache-2.0
//! What membership in a sockmap does to applications as users have them: blocking sockets, splice, `MSG_WAITALL`,
//! `MSG_PEEK`, `FIONREAD`, nginx, Go. With the default settings none may notice anything; at `half` and `full`, which
//! enroll everybody, exactly what docs/fastpath.md says may happen.
//!
//! `ZTUNNEL_TESTS_HARM_RUNS` runs of each (3 if not set), of those programs whose name contains `ZTUNNEL_TESTS_HARM`, in
//! the modes that `ZTUNNEL_TESTS_MODES` names.

#![expect(clippy::print_stderr, reason = "a test that runs less than all of it says so")]

use anyhow::Result;
use ztunnel_tests::{Mesh, Mode, PodSpec, modes, times};

mod programs;
mod table;

use programs::Program;
use table::{Cell, Table};

fn mesh(mode: Mode) -> Result<Mesh> {
    let mesh = Mesh::builder()
        .mode(mode)
        .env("EBPF_FULL_WORKLOADS", "")
        .pod(PodSpec::mesh("client").on("n1"))
        .pod(PodSpec::mesh("near").on("n1"))
        .start()?;
    modes::in_effect(&mesh, mode)?;
    Ok(mesh)
}

/// The programs that are asked for; all of them unless the environment says otherwise, which is said aloud.
fn chosen() -> Vec<&'static Program> {
    let wanted = std::env::var_os("ZTUNNEL_TESTS_HARM").map(|name| name.to_string_lossy().into_owned());
    if let Some(wanted) = &wanted {
        eprintln!("NOT every program: ZTUNNEL_TESTS_HARM={wanted}");
    }
    let is_wanted = |program: &&Program| wanted.as_ref().is_none_or(|wanted| program.name.contains(wanted));
    programs::ALL.iter().filter(is_wanted).collect()
}

/// All runs of one program.
fn runs(mesh: &Mesh, program: &Program) -> Result<Cell> {
    let run = (program.prepare)(mesh)?;
    let mut cell = Cell::default();
    while cell.runs < times("ZTUNNEL_TESTS_HARM_RUNS", 3) && !cell.is_hopeless() {
        cell.count(run());
    }
    Ok(cell)
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn applications_are_harmed_in_no_other_way_than_documented() {
    let modes = modes::chosen(&[Mode::Off, Mode::Auto, Mode::Half, Mode::Full]).unwrap();
    let (mut table, mut surprises) = (Table::default(), Vec::new());
    for mode in modes {
        let mesh = mesh(mode).unwrap();
        for program in chosen() {
            if program.name.ends_with("Go") && !programs::has_go() {
                eprintln!("not run: {}: no `go` here", program.name);
                continue;
            }
            let cell =
                runs(&mesh, program).unwrap_or_else(|error| panic!("{mode}, {}: {error:#}", program.name));
            for (harm, said) in &cell.said {
                eprintln!("{mode}, {}: {harm}: {said}", program.name);
                if !program.documented(mode).contains(harm) {
                    surprises.push(format!("{mode}, {}: {harm}: {said}", program.name));
                }
            }
            table.push(program.name, mode, cell);
        }
        mesh.stop().unwrap();
    }
    println!("{table}");
    assert!(surprises.is_empty(), "not documented:\n{}", surprises.join("\n"));
}

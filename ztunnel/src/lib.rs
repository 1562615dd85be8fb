// SPDX-License-Identifier: Apache-2.0
//! The IO shell of ztunnel: it carries out what [`ztunnel_core`] decides. Modules in reading order:
//!
//! * [`app`]: builds every part once, in order, and owns the end. [`config`]: what the operator asked for.
//! * [`inpod`]: which pods to serve. [`worker`]: the threads that do. [`proxy`]: one pod's proxy.
//! * [`dns`]: the pod's DNS proxy.
//! * [`hbone`], [`tls`], [`certs`]: tunnels, and who may use them. [`grpc`]: the way to the control plane.
//! * [`fastpath`]: local hops in the kernel. [`sys`]: system calls, the only `unsafe`.
//! * [`mesh`]: the shared view of the mesh. [`xds`]: where it comes from. [`telemetry`], [`admin`]: what others see of us.
//! * [`resolve`]: workloads that are known by host name.
//! * [`doctor`], [`cli`]: the commands beside the proxy. [`mod@reference`]: what is documented of all this.

pub mod admin;
pub mod app;
pub mod certs;
pub mod cli;
pub mod config;
pub mod dns;
pub mod doctor;
pub mod entropy;
pub mod fastpath;
pub mod grpc;
pub mod hbone;
pub mod inpod;
pub mod mesh;
pub mod proxy;
pub mod reference;
pub mod resolve;
pub mod sys;
pub mod telemetry;
pub mod tls;
pub mod version;
pub mod worker;
pub mod xds;

// SPDX-License-Identifier: Apache-2.0
//! What the fast path asks of the kernel beside `aya`: map access by shared reference, from every
//! worker at once and without a lock, and the few ioctls of its self-test.

use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};

use ztunnel_common::Plain;

const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_LOOKUP_BATCH: libc::c_long = 24;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_DELETE_ELEM: libc::c_long = 3;
const ANY: u64 = 0;

const PROG_TEST_RUN: libc::c_long = 10;

/// `union bpf_attr`, as `BPF_PROG_TEST_RUN` reads it.
#[repr(C)]
#[derive(Default)]
struct RunAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

/// A raw tracepoint program that is attached to nothing: a question to the kernel, with three arguments.
#[derive(Debug)]
pub struct Question(OwnedFd);

impl Question {
    /// Takes the program.
    pub fn new(program: OwnedFd) -> Self {
        Self(program)
    }

    /// Runs the program and returns its answer.
    ///
    /// # Errors
    /// The kernel does not run programs on request.
    pub fn ask(&self, arguments: [u64; 3]) -> io::Result<u32> {
        let mut attr = RunAttr {
            prog_fd: self.0.as_raw_fd().cast_unsigned(),
            ctx_size_in: 24,
            ctx_in: arguments.as_ptr().addr() as u64,
            ..RunAttr::default()
        };
        // SAFETY: `ctx_in` points to 24 bytes that outlive the call; the kernel writes `retval` only.
        let status =
            unsafe { libc::syscall(libc::SYS_bpf, PROG_TEST_RUN, &raw mut attr, size_of::<RunAttr>()) };
        if status == 0 { Ok(attr.retval) } else { Err(io::Error::last_os_error()) }
    }
}

/// `union bpf_attr`, as the commands for one element of a map read it.
#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Keys that are read at once; more than the longest chain of a map that is not under attack.
const BATCH: u32 = 512;

/// `union bpf_attr` for `BPF_MAP_LOOKUP_BATCH`, see `linux/bpf.h`.
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// A map with its key and value types.
#[derive(Debug)]
pub struct Map<K, V> {
    fd: OwnedFd,
    types: PhantomData<fn(K) -> V>,
}

impl<K: Plain, V: Plain> Map<K, V> {
    /// The caller has checked that the map has keys and values of these sizes (the contract test
    /// and the loader do); a wrong size is an error of the kernel's for keys, so check.
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd, types: PhantomData }
    }

    /// The value of a key, if there is one.
    pub fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = MaybeUninit::<V>::zeroed();
        found(self.call(MAP_LOOKUP_ELEM, key, value.as_mut_ptr().cast()))?.map_or(Ok(None), |()| {
            // SAFETY: `Plain`: zeroes are a valid value, and whatever the kernel wrote is too.
            Ok(Some(unsafe { value.assume_init() }))
        })
    }

    /// The values of all CPUs of a key in a per-CPU map.
    pub fn get_per_cpu(&self, key: &K, cpus: usize) -> io::Result<Vec<u64>> {
        const { assert!(size_of::<V>() == 8, "per-CPU values are padded to eight bytes") };
        let mut values = vec![0_u64; cpus];
        found(self.call(MAP_LOOKUP_ELEM, key, values.as_mut_ptr().cast()))?;
        Ok(values)
    }

    /// Inserts or replaces.
    pub fn insert(&self, key: &K, value: &V) -> io::Result<()> {
        self.call(MAP_UPDATE_ELEM, key, std::ptr::from_ref(value).cast_mut().cast())
    }

    /// Removes; `false` if there was nothing.
    pub fn remove(&self, key: &K) -> io::Result<bool> {
        Ok(found(self.call(MAP_DELETE_ELEM, key, std::ptr::null_mut()))?.is_some())
    }

    fn call(&self, command: libc::c_long, key: &K, value: *mut libc::c_void) -> io::Result<()> {
        let attr = ElementAttr {
            map_fd: self.fd.as_raw_fd().cast_unsigned(),
            padding: 0,
            key: std::ptr::from_ref(key).addr() as u64,
            value: value.addr() as u64,
            flags: ANY,
        };
        // SAFETY: the pointers in `attr` are valid for the call and as large as the map's key and value.
        let status =
            unsafe { libc::syscall(libc::SYS_bpf, command, &raw const attr, size_of::<ElementAttr>()) };
        if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl<K: Plain, V: Plain> Map<K, V> {
    /// How many entries a hash map has: reads them in batches, since the kernel does not keep count.
    pub fn count(&self) -> io::Result<usize> {
        let (mut keys, mut values) =
            (Vec::<K>::with_capacity(BATCH as usize), Vec::<V>::with_capacity(BATCH as usize));
        let (mut cursor, mut begun, mut total) = (0_u64, false, 0);
        loop {
            let mut attr = BatchAttr {
                in_batch: if begun { (&raw const cursor).addr() as u64 } else { 0 },
                out_batch: (&raw mut cursor).addr() as u64,
                keys: keys.as_mut_ptr().addr() as u64,
                values: values.as_mut_ptr().addr() as u64,
                count: BATCH,
                map_fd: self.fd.as_raw_fd().cast_unsigned(),
                elem_flags: 0,
                flags: 0,
            };
            // SAFETY: the buffers take `count` keys and values of the map's sizes, the cursor any position of a hash map.
            let status = unsafe {
                libc::syscall(libc::SYS_bpf, MAP_LOOKUP_BATCH, &raw mut attr, size_of::<BatchAttr>())
            };
            match (status, io::Error::last_os_error()) {
                (0, _) => total += attr.count as usize,
                // That was the last batch.
                (_, error) if error.raw_os_error() == Some(libc::ENOENT) => {
                    return Ok(total + attr.count as usize);
                }
                (_, error) => return Err(error),
            }
            begun = true;
        }
    }
}

impl<V: Plain> Map<i32, V> {
    /// The storage of a socket.
    pub fn of_socket(&self, socket: BorrowedFd<'_>) -> io::Result<Option<V>> {
        self.get(&socket.as_raw_fd())
    }

    /// Sets the storage of a socket.
    pub fn set_socket(&self, socket: BorrowedFd<'_>, value: &V) -> io::Result<()> {
        self.insert(&socket.as_raw_fd(), value)
    }
}

fn found(result: io::Result<()>) -> io::Result<Option<()>> {
    match result {
        Ok(()) => Ok(Some(())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Bytes that a reader of this socket would be told to expect (`FIONREAD`).
pub fn readable_bytes(socket: impl AsFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: `FIONREAD` writes one `int`.
    let status = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Brings the loopback interface of the current network namespace up and gives it one more address.
pub fn raise_loopback(address: std::net::Ipv4Addr) -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    let fd = socket.as_raw_fd();
    let mut request = interface_request(b"lo");
    request.ifr_ifru.ifru_flags = libc::IFF_UP.cast_signed_short();
    interface_ioctl(fd, libc::SIOCSIFFLAGS, &mut request)?;
    let mut request = interface_request(b"lo:1");
    request.ifr_ifru.ifru_addr = ipv4_sockaddr(address);
    interface_ioctl(fd, libc::SIOCSIFADDR, &mut request)
}

trait ShortFlags {
    fn cast_signed_short(self) -> libc::c_short;
}

impl ShortFlags for libc::c_int {
    #[expect(clippy::cast_possible_truncation, reason = "IFF_UP is 1")]
    fn cast_signed_short(self) -> libc::c_short {
        self as libc::c_short
    }
}

fn interface_request(name: &[u8]) -> libc::ifreq {
    // SAFETY: `ifreq` consists of integers and a union of such; zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(name) {
        *place = byte.cast_signed();
    }
    request
}

fn ipv4_sockaddr(address: std::net::Ipv4Addr) -> libc::sockaddr {
    let [a, b, c, d] = address.octets().map(u8::cast_signed);
    // SAFETY: `sockaddr` consists of integers; zeroes are valid.
    let mut sockaddr: libc::sockaddr = unsafe { std::mem::zeroed() };
    sockaddr.sa_family = 2; // AF_INET: port in the first two bytes, address in the next four
    sockaddr.sa_data[2..6].copy_from_slice(&[a, b, c, d]);
    sockaddr
}

fn interface_ioctl(fd: RawFd, request: libc::Ioctl, argument: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: both requests read one `ifreq`.
    let status = unsafe { libc::ioctl(fd, request, std::ptr::from_mut(argument)) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

// SPDX-License-Identifier: Apache-2.0
//! The admin server's unix socket, for those who are on the node but not in its network namespace.
//!
//! Only its owner may connect, from the first moment. During a rolling update two ztunnels share the path: the newer one
//! takes it over in one step, and the older one leaves alone what is no longer its own.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixListener;

/// A path that is removed when this is dropped, unless another ztunnel has taken it over.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    inode: u64,
}

/// Listens at `path`.
///
/// # Errors
/// There is something else than a socket, or the folder does not exist or is not ours to write.
pub fn bind(path: &Path) -> io::Result<(UnixListener, Place)> {
    listen(path).map_err(|error| {
        io::Error::new(error.kind(), format!("ADMIN_SOCKET={}: cannot listen there: {error}", path.display()))
    })
}

fn listen(path: &Path) -> io::Result<(UnixListener, Place)> {
    if fs::symlink_metadata(path).is_ok_and(|found| !found.file_type().is_socket()) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is something that is no socket"));
    }
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{}", std::process::id()));
    let new = PathBuf::from(new);
    // What a process of the same id left behind.
    fs::remove_file(&new).ok();
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(&new)?)?;
    // Nobody can connect before this, since nobody listens.
    let ready = fs::set_permissions(&new, Permissions::from_mode(0o600))
        .and_then(|()| socket.listen(128))
        .and_then(|()| fs::metadata(&new))
        .and_then(|found| fs::rename(&new, path).map(|()| found.ino()));
    let inode = ready.inspect_err(|_| {
        fs::remove_file(&new).ok();
    })?;
    let place = Place { path: path.to_owned(), inode };
    Ok((UnixListener::from_std(socket.into())?, place))
}

impl Drop for Place {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            fs::remove_file(&self.path).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_newer_listener_takes_over_and_the_older_one_leaves_it_alone() {
        let folder = std::env::temp_dir().join(format!("ztunnel-admin-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("admin.sock");
        let (_listener, old) = bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let (newer, new) = bind(&path).unwrap();
        drop(old);
        assert!(path.exists(), "the older one removed what is not its own");
        let (accepted, connected) = tokio::join!(newer.accept(), tokio::net::UnixStream::connect(&path));
        drop((accepted.unwrap(), connected.unwrap()));
        drop(new);
        assert!(!path.exists());
        fs::write(&path, "precious").unwrap();
        assert!(bind(&path).unwrap_err().to_string().contains("no socket"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        fs::remove_dir_all(&folder).unwrap();
    }
}

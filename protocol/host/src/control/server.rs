//! The side of the daemon.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, timeout};

use super::{KEEPALIVE, Line, MAX_CONNECTIONS, MAX_REQUEST, REQUEST_TIMEOUT, Refusal, WRITE_TIMEOUT};
use crate::exit::Exit;
use crate::lock::{Lock, LockError};

/// What a client asks, and who it is.
#[derive(Debug)]
pub struct Request {
    /// Its request.
    pub body: Value,
    /// The user that it runs as, as the kernel says.
    pub uid: u32,
    /// Its process, where the kernel says.
    pub pid: Option<i32>,
}

/// What a daemon answers.
#[derive(Debug)]
pub enum Reply {
    /// One value.
    Value(Value),
    /// Values as they come; the answer ends when all senders are dropped, or with the first refusal. The receiver is dropped
    /// when the client has gone, so that sending fails then.
    Stream(mpsc::Receiver<Result<Value, Refusal>>),
}

/// A bound control socket. Dropped, it removes the socket's file.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    limits: Limits,
    file: SocketFile,
    _lock: Lock,
}

/// Why a control socket cannot be bound. Each is one line.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another daemon serves this path.
    #[error("{path}: another daemon is running with this control socket; stop it, or write another path as `control`")]
    Running {
        /// The socket.
        path: PathBuf,
    },
    /// Something else is at this path. It is left alone.
    #[error("{path}: something else is there that is no socket; write another path as `control`")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The path does not fit in a socket's address.
    #[error("{path}: longer than the 107 bytes that a socket's path may have; write another path as `control`")]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// The system said no.
    #[error("{path}: {error}")]
    Io {
        /// The path.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) connections: usize,
    pub(super) request: Duration,
    pub(super) write: Duration,
    pub(super) keepalive: Duration,
}

/// How often a server looks whether its socket is still there.
const LOOK: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

impl SocketFile {
    /// None: it is there, or something else is. Errors: it is not, and cannot be made.
    fn make_again(&mut self) -> io::Result<Option<UnixListener>> {
        match std::fs::symlink_metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            _ => return Ok(None),
        }
        let (listener, id) = listen(&self.path, &SocketAddrUnix::new(&self.path)?)?;
        self.id = id;
        Ok(Some(listener))
    }
}

/// Listens on a path where nothing is, and says which file that made.
fn listen(path: &Path, address: &SocketAddrUnix) -> io::Result<(UnixListener, (u64, u64))> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, address)?;
    // Nobody can connect before it listens, so that the umask's mode is never in force.
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o660))?;
    let meta = std::fs::symlink_metadata(path)?;
    rustix::net::listen(&socket, 128)?;
    Ok((UnixListener::from(socket), (meta.dev(), meta.ino())))
}

impl Server {
    /// Binds the control socket (mode 0660). A socket that a dead daemon left there is replaced; the directory must exist.
    ///
    /// A lock beside it (`PATH.lock`) keeps two daemons that start at once from doing this to each other.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let io = |error: io::Error| BindError::Io { path: path.to_owned(), error };
        let address = SocketAddrUnix::new(path).map_err(|_| BindError::TooLong { path: path.to_owned() })?;
        let mut lock = path.as_os_str().to_owned();
        lock.push(".lock");
        let lock = Lock::acquire(Path::new(&lock)).map_err(|error| match error {
            LockError::Held { .. } => BindError::Running { path: path.to_owned() },
            LockError::Io { error, .. } => io(error),
        })?;
        make_room(path)?;
        let (listener, id) = listen(path, &address).map_err(io)?;
        let file = SocketFile { path: path.to_owned(), id };
        Ok(Self { listener, limits: Limits::default(), file, _lock: lock })
    }

    /// Answers requests with `handler` until the future is dropped, which ends all connections. Needs a tokio runtime with I/O
    /// and time.
    ///
    /// Where somebody removes the socket's file, it is made again.
    ///
    /// A handler runs to its end also when its client has gone. One that panics costs its connection only.
    ///
    /// Errors: the listener cannot be registered with the runtime.
    pub async fn serve<H, F>(mut self, handler: H) -> io::Result<Infallible>
    where
        H: Fn(Request) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Reply, Refusal>> + Send + 'static,
    {
        let mut listener = tokio::net::UnixListener::from_std(self.listener.try_clone()?)?;
        let (handler, limits) = (Arc::new(handler), self.limits);
        let slots = Arc::new(Semaphore::new(limits.connections));
        let mut connections = JoinSet::new();
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failed = false;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = look.tick() => {
                    match self.file.make_again() {
                        Ok(None) => failed = false,
                        Ok(Some(again)) => {
                            listener = tokio::net::UnixListener::from_std(again)?;
                            tracing::warn!(path = %self.file.path.display(), "the control socket was removed; it is there again");
                        }
                        Err(error) if !std::mem::replace(&mut failed, true) => {
                            let path = self.file.path.display();
                            tracing::error!(%error, %path, "the control socket was removed and cannot be made again: commands do not work");
                        }
                        Err(_) => {}
                    }
                    continue;
                }
                Some(ended) = connections.join_next() => {
                    if ended.is_err() {
                        tracing::error!("a control request failed");
                    }
                    continue;
                }
            };
            let Ok((mut socket, _)) = accepted else {
                // Out of files or memory: what is queued waits until there are some again.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            if let Ok(slot) = Arc::clone(&slots).try_acquire_owned() {
                let handler = Arc::clone(&handler);
                connections.spawn(async move {
                    // A client that went away is no event.
                    drop(connection(&mut socket, handler.as_ref(), limits).await);
                    drop(slot);
                });
            } else {
                let busy = Refusal::new(Exit::TempFail, "the daemon has too many control connections; try again");
                let line = to_line(&Line::Error(busy));
                // There is room for one line in a new socket; whoever does not get it sees it closed.
                drop(socket.try_write(&line));
            }
        }
    }

    #[cfg(test)]
    pub(super) fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: MAX_CONNECTIONS, request: REQUEST_TIMEOUT, write: WRITE_TIMEOUT, keepalive: KEEPALIVE }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.id);
        if ours {
            drop(std::fs::remove_file(&self.path));
        }
    }
}

/// Removes a socket that nobody answers on.
fn make_room(path: &Path) -> Result<(), BindError> {
    let io = |error| BindError::Io { path: path.to_owned(), error };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
        Ok(meta) if !meta.file_type().is_socket() => return Err(BindError::NotASocket { path: path.to_owned() }),
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path).map_err(io),
        // Whoever it is, it is alive.
        Ok(_) => Err(BindError::Running { path: path.to_owned() }),
        Err(error) => Err(io(error)),
    }
}

async fn connection<H, F>(socket: &mut UnixStream, handler: &H, limits: Limits) -> io::Result<()>
where
    H: Fn(Request) -> F,
    F: Future<Output = Result<Reply, Refusal>>,
{
    let peer = socket.peer_cred()?;
    let asked = match timeout(limits.request, read_request(socket)).await {
        Ok(asked) => asked?,
        Err(_) => Err(Refusal::new(Exit::Protocol, "no whole request came in time")),
    };
    let reply = match asked {
        Ok(body) => {
            let mut reply = pin!(handler(Request { body, uid: peer.uid(), pid: peer.pid() }));
            loop {
                match timeout(limits.keepalive, &mut reply).await {
                    Ok(reply) => break reply,
                    // If the client has gone, the handler still ends what it began.
                    Err(_) => drop(write(socket, b"\n", limits).await),
                }
            }
        }
        Err(refusal) => Err(refusal),
    };
    match reply {
        Ok(Reply::Value(value)) => {
            let mut lines = to_line(&Line::Value(value));
            lines.extend(to_line(&Line::End(true)));
            write(socket, &lines, limits).await
        }
        Ok(Reply::Stream(mut values)) => loop {
            match timeout(limits.keepalive, values.recv()).await {
                Err(_) => write(socket, b"\n", limits).await?,
                Ok(Some(Ok(value))) => write(socket, &to_line(&Line::Value(value)), limits).await?,
                Ok(Some(Err(refusal))) => break write(socket, &to_line(&Line::Error(refusal)), limits).await,
                Ok(None) => break write(socket, &to_line(&Line::End(true)), limits).await,
            }
        },
        Err(refusal) => write(socket, &to_line(&Line::Error(refusal)), limits).await,
    }
}

/// The request, or why it is none. A client that ends its side instead of the line has sent it too.
async fn read_request(socket: &mut UnixStream) -> io::Result<Result<Value, Refusal>> {
    let mut line = Vec::new();
    let mut part = [0; 4096];
    loop {
        let n = socket.read(&mut part).await?;
        let part = &part[..n];
        let end = part.iter().position(|&byte| byte == b'\n');
        line.extend_from_slice(&part[..end.unwrap_or(n)]);
        if line.len() > MAX_REQUEST {
            return Ok(Err(Refusal::new(Exit::Protocol, "the request is longer than 1 MiB")));
        }
        if end.is_some() || n == 0 {
            let told = |_| Refusal::new(Exit::Protocol, "the request is not a line of JSON");
            return Ok(serde_json::from_slice(&line).map_err(told));
        }
    }
}

async fn write(socket: &mut UnixStream, bytes: &[u8], limits: Limits) -> io::Result<()> {
    // By parts, so that a long line has longer than a short one: the client only has to go on reading.
    for part in bytes.chunks(1 << 16) {
        timeout(limits.write, socket.write_all(part)).await??;
    }
    Ok(())
}

fn to_line(line: &Line) -> Vec<u8> {
    // A JSON value always has a text.
    let mut bytes = serde_json::to_vec(line).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

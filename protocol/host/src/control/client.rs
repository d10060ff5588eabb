//! The side of the commands: blocking, no runtime.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use serde_json::Value;

use super::{ControlError, Line, MAX_REPLY, SILENCE, WRITE_TIMEOUT};

/// Asks a daemon.
#[derive(Debug, Clone, Copy)]
pub struct Client;

/// The values of an answer, as they come. After an error it ends.
#[derive(Debug)]
pub struct Stream {
    path: PathBuf,
    lines: BufReader<UnixStream>,
    over: bool,
}

impl Client {
    /// Asks the daemon behind the socket at `path` for one value. Waits as long as the daemon shows that it is alive.
    ///
    /// Errors: all of [`ControlError`]; an answer without a value is [`ControlError::Closed`].
    pub fn call(path: &Path, request: &Value) -> Result<Value, ControlError> {
        Self::stream(path, request)?.next().unwrap_or_else(|| Err(ControlError::Closed { path: path.to_owned() }))
    }

    /// Asks for values that come one after the other, some perhaps much later. Errors: all of [`ControlError`].
    pub fn stream(path: &Path, request: &Value) -> Result<Stream, ControlError> {
        let mut socket = connect(path).map_err(|error| told(path, error))?;
        let asked = serde_json::to_writer(&mut socket, request).map_err(io::Error::from);
        match asked.and_then(|()| socket.write_all(b"\n")) {
            // A daemon may refuse before it has read the whole request. It has then sent the reason and closed the
            // connection: writing fails with EPIPE, or with ECONNRESET if data was still on its way. Read the reason.
            Err(error) if !matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                Err(told(path, error))
            }
            _ => Ok(Stream { path: path.to_owned(), lines: BufReader::new(socket), over: false }),
        }
    }
}

impl Iterator for Stream {
    type Item = Result<Value, ControlError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let path = || self.path.clone();
        let result = match read_line(&mut self.lines) {
            Ok(line) if line.is_empty() => Err(ControlError::Closed { path: path() }),
            Ok(line) => match serde_json::from_slice(&line) {
                Ok(Line::Value(value)) => Ok(value),
                Ok(Line::Error(refusal)) => Err(refusal.into()),
                Ok(Line::End(_)) => {
                    self.over = true;
                    return None;
                }
                Err(_) => Err(ControlError::Malformed { path: path() }),
            },
            Err(error) => Err(told(&self.path, error)),
        };
        self.over = result.is_err();
        Some(result)
    }
}

fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // Also how long connecting takes, should the daemon not accept.
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(WRITE_TIMEOUT))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}

/// A line that is not empty, or nothing at the end. Every byte that comes is a sign of life, but a line has to come to its
/// end some time.
fn read_line(lines: &mut BufReader<UnixStream>) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut deadline = Instant::now() + SILENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left < Duration::from_millis(1) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        lines.get_ref().set_read_timeout(Some(left))?;
        let room = (MAX_REPLY - line.len()) as u64 + 2;
        let before = line.len();
        match lines.by_ref().take(room).read_until(b'\n', &mut line) {
            Ok(0) => return if line.is_empty() { Ok(line) } else { Err(io::ErrorKind::UnexpectedEof.into()) },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && line.len() > before => {}
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        if line == b"\n" {
            line.clear();
            deadline = Instant::now() + SILENCE;
        } else if line.ends_with(b"\n") {
            return Ok(line);
        } else if line.len() > MAX_REPLY {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

fn told(path: &Path, error: io::Error) -> ControlError {
    let path = path.to_owned();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ControlError::NotRunning { path },
        io::ErrorKind::PermissionDenied => ControlError::NotAllowed { path },
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ControlError::Silent { path },
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => ControlError::Closed { path },
        io::ErrorKind::InvalidData => ControlError::Malformed { path },
        _ => ControlError::Io { path, error },
    }
}

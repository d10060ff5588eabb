//! The UDP socket of one lane: whole super-datagrams in one call where the kernel can segment them.

#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use checkvalve_protocol::transmit::Batch;
use socket2::{Domain, Protocol, Socket, Type};

use crate::trouble::Trouble;

/// Send buffer asked for, in bytes: some batches ahead, so that the sender does not sleep for each.
const SEND_BUFFER: usize = 4 << 20;
/// Datagrams in one `sendmmsg` where the kernel does not segment.
const MMSG: usize = 64;

/// Longest pause between two tries; a link that needs it is in trouble.
const LONG_WAIT: Duration = Duration::from_millis(100);

/// One lane to the receiver. Nothing is ever read from it.
pub struct Link {
    socket: Socket,
    destination: SocketAddr,
    segment: AtomicBool,
    retries: AtomicU64,
    trouble: Mutex<Option<Trouble>>,
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// All of it left.
    All,
    /// The daemon is stopping.
    Stopped,
}

impl Link {
    /// Opens the lane to `destination`, from `source` if given. Never fragments (RFC 791 "don't fragment").
    pub fn open(destination: SocketAddr, source: Option<SocketAddr>) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(destination), Type::DGRAM, Some(Protocol::UDP))?;
        if let Some(source) = source {
            socket.bind(&source.into())?;
        }
        let force = libc::c_int::try_from(SEND_BUFFER).unwrap_or(libc::c_int::MAX);
        if set_option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, force).is_err() {
            socket.set_send_buffer_size(SEND_BUFFER)?;
        }
        if destination.is_ipv4() {
            set_option(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)?;
        }
        socket.connect(&destination.into())?;
        Ok(Self {
            socket,
            destination,
            segment: AtomicBool::new(true),
            retries: AtomicU64::new(0),
            trouble: Mutex::new(None),
        })
    }

    /// Times a send had to be tried again, since the start.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Whether the kernel takes super-datagrams.
    pub fn segments(&self) -> bool {
        self.segment.load(Ordering::Relaxed)
    }

    /// Why nothing leaves over this lane at the moment; None when all is well.
    pub fn trouble(&self) -> Option<Trouble> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends the whole batch, and tries again for as long as the kernel refuses: nobody above would send these
    /// datagrams again. `stop` ends the wait.
    pub fn send(&self, batch: &Batch, stop: &AtomicBool) -> Sent {
        let mut done = 0;
        let mut wait = Duration::from_micros(50);
        while done < batch.len() {
            let sent = if self.segments() && batch.len() > 1 && done == 0 {
                self.send_segmented(batch).map(|()| batch.len())
            } else {
                self.send_each(batch, done)
            };
            let error = match sent {
                Ok(count) => {
                    done += count;
                    continue;
                }
                Err(error) => error,
            };
            match error.raw_os_error() {
                Some(libc::EINTR) => continue,
                // No segmentation offload on this path: the datagrams go one by one from now on.
                Some(libc::EIO | libc::EINVAL | libc::EOPNOTSUPP) if self.segments() && batch.len() > 1 => {
                    self.segment.store(false, Ordering::Relaxed);
                    continue;
                }
                // An ICMP answer to an earlier datagram, as on loopback: this one has not left yet.
                Some(libc::ECONNREFUSED) => {}
                _ => {
                    if wait >= LONG_WAIT {
                        self.say(Some(&error));
                    }
                    std::thread::sleep(wait);
                    wait = (wait * 2).min(LONG_WAIT);
                }
            }
            self.retries.fetch_add(1, Ordering::Relaxed);
            if stop.load(Ordering::Relaxed) {
                return Sent::Stopped;
            }
        }
        if wait >= LONG_WAIT {
            self.say(None);
        }
        Sent::All
    }

    /// Trouble begins or ends.
    fn say(&self, error: Option<&io::Error>) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if trouble.is_some() == error.is_some() {
            return;
        }
        *trouble = error.map(|error| {
            let (code, what) = match error.raw_os_error() {
                Some(libc::EMSGSIZE) => (
                    "datagram-too-large",
                    "a datagram is larger than the interface's MTU: lower link.mtu or raise the interface's".to_owned(),
                ),
                _ => ("cannot-send", format!("send: {error}")),
            };
            Trouble::new(code, format!("to {}: {what}", self.destination))
        });
        match &*trouble {
            Some(Trouble { text, .. }) => tracing::error!(trouble = %text, "nothing leaves; trying again"),
            None => tracing::info!(destination = %self.destination, "the link takes datagrams again"),
        }
    }

    /// One `sendmsg` with `UDP_SEGMENT` (Linux 4.18).
    fn send_segmented(&self, batch: &Batch) -> io::Result<()> {
        let bytes = batch.bytes();
        let size = u16::try_from(batch.segment_size()).map_err(|_| io::Error::from_raw_os_error(libc::EMSGSIZE))?;
        let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let mut control = Control::default();
        // SAFETY: all zeros is a valid msghdr; every field that is used is set below.
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        header.msg_iov = &raw mut iov;
        header.msg_iovlen = 1;
        header.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: CMSG_SPACE only computes; `control` is aligned and large enough for one u16 (asserted in Control).
        unsafe {
            header.msg_controllen = libc::CMSG_SPACE(mem::size_of::<u16>() as u32) as _;
            let first = libc::CMSG_FIRSTHDR(&raw const header);
            (*first).cmsg_level = libc::SOL_UDP;
            (*first).cmsg_type = libc::UDP_SEGMENT;
            (*first).cmsg_len = libc::CMSG_LEN(mem::size_of::<u16>() as u32) as _;
            libc::CMSG_DATA(first).cast::<u16>().write_unaligned(size);
        }
        // SAFETY: `header` points to `iov` and `control`, which live until the call returns; the kernel only reads.
        let sent = unsafe { libc::sendmsg(self.socket.as_raw_fd(), &raw const header, 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// One `sendmmsg` for the datagrams from number `done` on; returns how many left, one or more.
    fn send_each(&self, batch: &Batch, done: usize) -> io::Result<usize> {
        // SAFETY: all zeros is a valid iovec and a valid mmsghdr.
        let (mut iov, mut headers): ([libc::iovec; MMSG], [libc::mmsghdr; MMSG]) = unsafe { mem::zeroed() };
        let mut count = 0;
        for (datagram, (iov, header)) in batch.datagrams().skip(done).zip(iov.iter_mut().zip(headers.iter_mut())) {
            *iov = libc::iovec { iov_base: datagram.as_ptr().cast_mut().cast(), iov_len: datagram.len() };
            header.msg_hdr.msg_iov = iov;
            header.msg_hdr.msg_iovlen = 1;
            count += 1;
        }
        // SAFETY: the first `count` headers each point to one iovec into `batch`, which outlives the call.
        let sent = unsafe { libc::sendmmsg(self.socket.as_raw_fd(), headers.as_mut_ptr(), count, 0) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

/// Room for one control message with a u16, aligned as cmsghdr wants.
#[derive(Default)]
#[repr(C, align(8))]
struct Control([u64; 4]);

const _: () = assert!(mem::size_of::<Control>() >= mem::size_of::<libc::cmsghdr>() + 8);

fn set_option(socket: &Socket, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: `value` is a c_int that lives over the call, and its size is given.
    let result = unsafe {
        let size = mem::size_of::<libc::c_int>() as libc::socklen_t;
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), size)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

//! The UDP socket of one lane: many datagrams in one call, coalesced by the kernel where it can (`UDP_GRO`).
//!
//! Nothing is ever sent from it. The receive thread that owns it never touches a disk.

#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// Super-datagrams taken in one call.
const MESSAGES: usize = 16;
/// Room for one: the longest UDP payload, rounded up.
const MESSAGE_LEN: usize = 65_536;
/// Room for the control messages of one: a segment size and a drop counter.
const CONTROL_LEN: usize = 128;
/// Numbers in `SO_MEMINFO` (sock_diag(7)): bytes held to be received, room for them, and seven that are not asked for.
const MEMINFO: usize = 9;

/// One lane from the sender.
pub struct Link {
    socket: Socket,
    buffers: Vec<u8>,
    controls: Vec<Control>,
    kernel_drops: u32,
}

/// What could be had of the kernel's receive buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceiveBuffer {
    /// Bytes asked for.
    pub wanted: usize,
    /// Bytes that the kernel gave.
    pub got: usize,
}

/// Bytes that came together: datagrams of `segment` bytes each, the last may be shorter.
pub struct Received<'a> {
    /// The bytes, to be decrypted in place.
    pub bytes: &'a mut [u8],
    /// Length of each datagram but the last; at least 1.
    pub segment: usize,
}

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

impl Link {
    /// Listens on `address` with a kernel buffer of `buffer` bytes, or as near to it as this process may have.
    pub fn open(address: SocketAddr, buffer: usize) -> io::Result<(Self, ReceiveBuffer)> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        let want = libc::c_int::try_from(buffer).unwrap_or(libc::c_int::MAX);
        if set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, want).is_err() {
            socket.set_recv_buffer_size(buffer)?;
        }
        // The kernel doubles what is asked for, to cover its own bookkeeping (socket(7)).
        let got = socket.recv_buffer_size()? / 2;
        set_option(&socket, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1)?;
        // Linux 5.0; without it the datagrams come one by one.
        let _ = set_option(&socket, libc::SOL_UDP, libc::UDP_GRO, 1);
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        socket.bind(&address.into())?;
        let link = Self {
            socket,
            buffers: vec![0; MESSAGES * MESSAGE_LEN],
            controls: vec![Control([0; CONTROL_LEN]); MESSAGES],
            kernel_drops: 0,
        };
        Ok((link, ReceiveBuffer { wanted: buffer, got }))
    }

    /// Datagrams that the kernel dropped for want of buffer since the socket was opened.
    pub fn kernel_drops(&self) -> u32 {
        self.kernel_drops
    }

    /// Whether datagrams that wait fill half of the kernel's buffer or more.
    pub fn is_half_full(&self) -> bool {
        let mut info = [0_u32; MEMINFO];
        let mut size = mem::size_of_val(&info) as libc::socklen_t;
        // SAFETY: `info` has room for `size` bytes, of which the kernel writes as many as it has.
        let result = unsafe {
            let info = info.as_mut_ptr().cast();
            libc::getsockopt(self.socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_MEMINFO, info, &raw mut size)
        };
        let [held, room, ..] = info;
        result == 0 && held >= room / 2
    }

    /// Waits up to 100 ms for datagrams and gives each group that came to `take`. Returns how many groups came.
    pub fn receive(&mut self, mut take: impl FnMut(Received<'_>)) -> io::Result<usize> {
        // SAFETY: all zeros is a valid iovec and a valid mmsghdr.
        let (mut iov, mut headers): ([libc::iovec; MESSAGES], [libc::mmsghdr; MESSAGES]) = unsafe { mem::zeroed() };
        let places = self.buffers.chunks_exact_mut(MESSAGE_LEN).zip(&mut self.controls);
        for ((buffer, control), (iov, header)) in places.zip(iov.iter_mut().zip(&mut headers)) {
            *iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            header.msg_hdr.msg_iov = iov;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = CONTROL_LEN as _;
        }
        // SAFETY: each header points to its own buffer and control area of the stated lengths, which live and are not
        // touched until the call returns.
        let count = unsafe {
            libc::recvmmsg(
                self.socket.as_raw_fd(),
                headers.as_mut_ptr(),
                MESSAGES as u32,
                libc::MSG_WAITFORONE,
                std::ptr::null_mut(),
            )
        };
        let Ok(count) = usize::try_from(count) else {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => Ok(0),
                _ => Err(error),
            };
        };
        for (header, buffer) in headers.iter().take(count).zip(self.buffers.chunks_exact_mut(MESSAGE_LEN)) {
            let len = (header.msg_len as usize).min(MESSAGE_LEN);
            let mut segment = len.max(1);
            // SAFETY: the kernel wrote the control messages and their length into this header; the CMSG macros stay
            // within `msg_controllen`, and each value read is one that the kernel writes at that type.
            unsafe {
                let mut next = libc::CMSG_FIRSTHDR(&raw const header.msg_hdr);
                while !next.is_null() {
                    match ((*next).cmsg_level, (*next).cmsg_type) {
                        (libc::SOL_UDP, libc::UDP_GRO) => {
                            let size = libc::CMSG_DATA(next).cast::<libc::c_int>().read_unaligned();
                            segment = usize::try_from(size).unwrap_or(len).max(1);
                        }
                        (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => {
                            self.kernel_drops = libc::CMSG_DATA(next).cast::<u32>().read_unaligned();
                        }
                        _ => {}
                    }
                    next = libc::CMSG_NXTHDR(&raw const header.msg_hdr, next);
                }
            }
            if let Some(bytes) = buffer.get_mut(..len) {
                take(Received { bytes, segment });
            }
        }
        Ok(count)
    }
}

fn set_option(socket: &Socket, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: `value` is a c_int that lives over the call, and its size is given.
    let result = unsafe {
        let size = mem::size_of::<libc::c_int>() as libc::socklen_t;
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), size)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

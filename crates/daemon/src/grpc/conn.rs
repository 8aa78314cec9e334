//! Connections: where they come from, and who is at the other end.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tonic::transport::server::Connected;

use crate::metrics::{Metrics, Transport};
use crate::service::{Caller, Service};

/// Connections at a time by each listener; the next ones wait in the kernel.
const CONNECTIONS_MAX: usize = 1024;

/// The trace tells connections of gRPC and of frames apart by their transport.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// What a failed accept waits for: descriptors or memory that others give back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who is at the other end, as far as the connection itself tells.
#[derive(Clone, Debug)]
pub(super) enum Peer {
    /// A process of this machine, by the kernel's word.
    Local(Caller),
    /// Anybody.
    Remote(SocketAddr),
}

/// A connection. It lives as long as anything that came by it.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: u64,
    pub(super) transport: Transport,
    pub(super) peer: Peer,
    /// Uploads that were opened here, each as often as it was: they are closed with the connection.
    uploads: Mutex<Vec<u64>>,
    service: Service,
    metrics: Metrics,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    pub(super) fn keep_upload(&self, id: u64) {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner).push(id);
    }

    pub(super) fn forget_upload(&self, id: u64) {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner).retain(|&known| known != id);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.metrics.connection_closed();
        let uploads =
            std::mem::take(self.uploads.get_mut().unwrap_or_else(PoisonError::into_inner));
        if uploads.is_empty() {
            return;
        }
        let service = self.service.clone();
        let close = move || service.close_uploads(&uploads);
        // Closing waits for the disk, which a thread of the runtime must not.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(close)),
            Err(_outside) => close(),
        }
    }
}

/// Its place in a request's extensions.
#[derive(Clone, Debug)]
pub(super) struct ConnectInfo(pub(super) Arc<Connection>);

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// The bytes of a connection.
#[derive(Debug)]
pub(super) struct Conn {
    stream: Stream,
    info: ConnectInfo,
}

impl Connected for Conn {
    type ConnectInfo = ConnectInfo;

    fn connect_info(&self) -> ConnectInfo {
        self.info.clone()
    }
}

/// Calls a method of whichever stream it is.
macro_rules! of_stream {
    ($conn:expr, $stream:ident => $call:expr) => {
        match &mut $conn.get_mut().stream {
            Stream::Tcp(stream) => {
                let $stream = Pin::new(stream);
                $call
            }
            Stream::Unix(stream) => {
                let $stream = Pin::new(stream);
                $call
            }
        }
    };
}

impl AsyncRead for Conn {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        of_stream!(self, stream => stream.poll_read(context, buffer))
    }
}

impl AsyncWrite for Conn {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        of_stream!(self, stream => stream.poll_write(context, buffer))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        of_stream!(self, stream => stream.poll_write_vectored(context, buffers))
    }

    // Both kinds of socket can; without it every frame's header would be a write of its own.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        of_stream!(self, stream => stream.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        of_stream!(self, stream => stream.poll_shutdown(context))
    }
}

/// What takes connections.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    async fn accept(&self) -> io::Result<(Stream, Transport, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // Nagle's algorithm waits 40 ms for the acknowledgement of every half-filled packet:
                // uploads were 36 times slower (measured). tonic does not set it on streams of others.
                stream.set_nodelay(true)?;
                Ok((Stream::Tcp(stream), Transport::GrpcTcp, Peer::Remote(address)))
            }
            Self::Unix(listener) => {
                let (stream, _unnamed) = listener.accept().await?;
                let peer = librorum_sys::socket::peer(stream.as_fd())?;
                let caller = Caller { uid: peer.uid, gid: peer.gid, groups: peer.groups.into() };
                Ok((Stream::Unix(stream), Transport::GrpcUds, Peer::Local(caller)))
            }
        }
    }

    /// Takes connections until the server closes; they come out of the channel.
    pub(super) fn run(
        self,
        service: Service,
        metrics: Metrics,
        mut closing: watch::Receiver<bool>,
    ) -> mpsc::Receiver<io::Result<Conn>> {
        // One: a connection that nobody serves yet should wait in the kernel.
        let (sender, receiver) = mpsc::channel(1);
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let accepting = async move {
            loop {
                let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
                let (stream, transport, peer) = match self.accept().await {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!(%error, "cannot take a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                };
                metrics.connection_opened();
                let connection = Connection {
                    id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
                    transport,
                    peer,
                    uploads: Mutex::default(),
                    service: service.clone(),
                    metrics: metrics.clone(),
                    _permit: permit,
                };
                let conn = Conn { stream, info: ConnectInfo(Arc::new(connection)) };
                if sender.send(Ok(conn)).await.is_err() {
                    return;
                }
            }
        };
        tokio::spawn(async move {
            tokio::select! {
                () = accepting => {}
                _ = closing.wait_for(|&closing| closing) => {}
            }
        });
        receiver
    }
}

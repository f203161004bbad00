//! A listener for a page with few readers. The number of connections is limited, and each lasts some seconds, so that
//! silent ones use up no descriptors.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

/// The most simultaneous connections. Further ones wait in the kernel's queue.
const AT_ONCE: usize = 64;
/// The time after which a connection is closed. A reader opens another one.
const LASTS: Duration = Duration::from_secs(5);
/// The delay before the next attempt when nothing can be accepted.
const PAUSE: Duration = Duration::from_millis(500);

pub(super) struct FewPages {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl FewPages {
    pub(super) fn new(listener: TcpListener) -> Self {
        Self { listener, places: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

impl axum::serve::Listener for FewPages {
    type Io = Page;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Page, SocketAddr) {
        let place = self.places.clone().acquire_owned().await;
        let place = place.expect("the semaphore is never closed");
        loop {
            match self.listener.accept().await {
                Ok((tcp, from)) => {
                    let page = Page { tcp, ends: Box::pin(tokio::time::sleep(LASTS)), _place: place };
                    return (page, from);
                }
                Err(e) => {
                    tracing::debug!("metrics: not accepted: {e}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that closes itself after some time.
pub(super) struct Page {
    tcp: TcpStream,
    ends: Pin<Box<Sleep>>,
    // The permit is released when the connection is dropped.
    _place: OwnedSemaphorePermit,
}

impl AsyncRead for Page {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.ends.as_mut().poll(cx) {
            // The end looks as if the client had closed the connection.
            Poll::Ready(()) => Poll::Ready(Ok(())),
            Poll::Pending => Pin::new(&mut self.tcp).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Page {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

//! A listener for a page that few ask for: so many connections at once and no more, each for some seconds, so that silent ones
//! use up no descriptors.

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

/// Connections at once; further ones wait in the kernel's queue.
const AT_ONCE: usize = 64;
/// After this a connection is at its end: whoever asks again opens another.
const LASTS: Duration = Duration::from_secs(5);
/// While nothing can be accepted, it is tried again so often.
const PAUSE: Duration = Duration::from_millis(500);

pub(super) struct FewPages {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl FewPages {
    pub(super) fn new(listener: TcpListener) -> Self {
        Self {
            listener,
            places: Arc::new(Semaphore::new(AT_ONCE)),
        }
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
                    let page = Page {
                        tcp,
                        ends: Box::pin(tokio::time::sleep(LASTS)),
                        _place: place,
                    };
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

/// A connection that ends by itself.
pub(super) struct Page {
    tcp: TcpStream,
    ends: Pin<Box<Sleep>>,
    // Held, not read.
    _place: OwnedSemaphorePermit,
}

impl AsyncRead for Page {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.ends.as_mut().poll(cx) {
            // As if the client had hung up.
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

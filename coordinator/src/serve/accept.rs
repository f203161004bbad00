//! Connections until they have shown that they speak HTTP. Each has a few seconds for that, with or without TLS.
//!
//! The number of waiting connections is limited, for each source and for all. A new connection closes the oldest silent
//! one of the same source. So silent connections lock nobody out, neither other sources nor a person at the same
//! address.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Extension;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::ServeError;
use super::connections::{Connections, Limits, Place, Source};
use super::local_user::user_of;
use super::tls::Tls;

/// The first bytes of every HTTP/2 client (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The time in which a client must shake hands and send its first bytes. After that it is dropped.
const PATIENCE: Duration = Duration::from_secs(5);
/// The time in which a client must send the head of a request. After that its connection is closed.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);
/// The shortest interval between two log lines about a shortage.
const SHORTAGE_TOLD_EVERY: Duration = Duration::from_secs(60);
/// The shortest interval between two log lines about clients' errors, so that strangers cannot fill the log.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// The origin of a connection: its address, and the certificates that it was opened with.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    pub(super) address: SocketAddr,
    /// The user at the other end, where that is looked up and known.
    pub(super) user: Option<u32>,
    pub(super) certificates: Option<Arc<Vec<CertificateDer<'static>>>>,
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

pub(super) struct Connection {
    io: Box<dyn Io>,
    /// The bytes that were read from the connection already and are to be read again.
    unread: Bytes,
    origin: Origin,
    // The place is released when the connection is dropped.
    _place: Place,
}

impl Connected for Connection {
    type ConnectInfo = Origin;

    fn connect_info(&self) -> Origin {
        self.origin.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.unread.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buffer);
        }
        let length = self.unread.len().min(buffer.remaining());
        buffer.put_slice(&self.unread.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[derive(Clone)]
pub(super) enum Protection {
    Plain,
    /// There is no protection, but connections come from this machine, and the user of each is looked up.
    PlainOfUsers,
    /// TLS protects connections. A newer certificate counts for newer connections.
    Tls(watch::Receiver<Tls>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spoken {
    Http1,
    Http2,
}

/// Binds an address, and returns it with the port that a port of 0 became.
pub(super) async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ServeError> {
    let failed = |source| ServeError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// Accepts connections until the receiver is dropped.
pub(super) fn incoming(
    listener: TcpListener,
    protection: Protection,
    spoken: Spoken,
    limits: Limits,
) -> ReceiverStream<io::Result<Connection>> {
    let (ready, stream) = mpsc::channel(16);
    let door = Door { connections: Connections::new(limits), protection, spoken, ready, complaints: Arc::default() };
    tokio::spawn(door.keep(listener));
    ReceiverStream::new(stream)
}

/// Serves HTTP/1.1 on connections, each of which has its [`Origin`] as an extension and is closed after `lasts`.
pub(super) async fn serve_http1(
    mut incoming: impl Stream<Item = io::Result<Connection>> + Unpin,
    app: Router,
    lasts: Duration,
) {
    while let Some(connection) = incoming.next().await {
        let Ok(connection) = connection else { continue };
        let service = TowerToHyperService::new(app.clone().layer(Extension(connection.connect_info())));
        let mut server = http1::Builder::new();
        server.timer(TokioTimer::new()).header_read_timeout(HEAD_PATIENCE);
        let served = server.serve_connection(TokioIo::new(connection), service);
        // The error of a client that closes its connection is ignored.
        tokio::spawn(tokio::time::timeout(lasts, served));
    }
}

#[derive(Clone)]
struct Door {
    connections: Connections,
    protection: Protection,
    spoken: Spoken,
    ready: mpsc::Sender<io::Result<Connection>>,
    complaints: Arc<Mutex<Complaints>>,
}

impl Door {
    async fn keep(self, listener: TcpListener) {
        let mut told: Option<Instant> = None;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.ready.closed() => return,
            };
            match accepted {
                Ok((tcp, from)) => self.greet(tcp, from),
                // An immediate retry would fail in the same way.
                Err(e) if is_shortage(&e) => {
                    if told.is_none_or(|at| at.elapsed() > SHORTAGE_TOLD_EVERY) {
                        let open = self.connections.open();
                        tracing::error!(
                            "no connection can be accepted: {e} ({open} are open). It is tried again until descriptors are \
                             free; raise the limit of open files (ulimit -n) if this happens again"
                        );
                        told = Some(Instant::now());
                    }
                    self.connections.push_out_oldest();
                    tokio::time::sleep(PAUSE).await;
                }
                // The client closed the connection before it was accepted.
                Err(e) => tracing::debug!("not accepted: {e}"),
            }
        }
    }

    /// Waits in a task of its own for a client's first bytes.
    fn greet(&self, tcp: TcpStream, from: SocketAddr) {
        let source = Source::of(from.ip());
        let door = self.clone();
        let pushed_out = self.connections.begin(source, |silent| -> AbortHandle {
            let greeting = async move {
                let greeted =
                    tokio::time::timeout(PATIENCE, shake_hands(tcp, from, &door.protection, door.spoken)).await;
                let ((io, unread), origin) = match greeted {
                    Ok(Ok(greeted)) => greeted,
                    Ok(Err(e)) => return door.complain(format!("{from} did not speak {:?}: {e}", door.spoken)),
                    Err(_) => return door.complain(format!("{from} has sent nothing for {} s", PATIENCE.as_secs())),
                };
                match silent.speaks() {
                    Ok(place) => {
                        let connection = Connection { io, unread, origin, _place: place };
                        // Sending fails when the server has stopped meanwhile.
                        let _ = door.ready.send(Ok(connection)).await;
                    }
                    Err(why) => door.complain(format!("{from} is refused: {why}")),
                }
            };
            tokio::spawn(greeting).abort_handle()
        });
        if pushed_out {
            self.complain(format!("many connections from {} have sent nothing: the oldest are closed", from.ip()));
        }
    }

    fn complain(&self, text: String) {
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        complaints.tell(Instant::now(), &text);
    }
}

#[derive(Default)]
struct Complaints {
    told: Option<Instant>,
    untold: u64,
}

impl Complaints {
    fn tell(&mut self, now: Instant, text: &str) {
        if self.told.is_some_and(|told| now.duration_since(told) < TOLD_EVERY) {
            self.untold += 1;
            return;
        }
        match std::mem::take(&mut self.untold) {
            0 => tracing::warn!("{text}"),
            others => tracing::warn!("{text} (and {others} others since the last such line)"),
        }
        self.told = Some(now);
    }
}

async fn shake_hands(
    tcp: TcpStream,
    address: SocketAddr,
    protection: &Protection,
    spoken: Spoken,
) -> io::Result<(Greeted, Origin)> {
    // Small messages are sent at once. Nagle's algorithm would hold them back for 40 ms.
    tcp.set_nodelay(true)?;
    let mut origin = Origin { address, user: None, certificates: None };
    let config = match protection {
        Protection::Tls(tls) => tls.borrow().server.clone(),
        Protection::Plain => return Ok((read_start(tcp, spoken).await?, origin)),
        Protection::PlainOfUsers => {
            let own = tcp.local_addr()?;
            let io = read_start(tcp, spoken).await?;
            origin.user = user_of(address, own);
            return Ok((io, origin));
        }
    };
    let config = match spoken {
        Spoken::Http2 => config,
        Spoken::Http1 => {
            let mut config = ServerConfig::clone(&config);
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            Arc::new(config)
        }
    };
    let tls = TlsAcceptor::from(config).accept(tcp).await?;
    let certificates = tls.get_ref().1.peer_certificates();
    origin.certificates = certificates.map(|chain| Arc::new(chain.to_vec()));
    Ok((read_start(tls, spoken).await?, origin))
}

/// A connection with the bytes that were read of it: HTTP/2's preface, or the first bytes of a request.
type Greeted = (Box<dyn Io>, Bytes);

async fn read_start(mut io: impl Io + 'static, spoken: Spoken) -> io::Result<Greeted> {
    let mut said = [0; PREFACE.len()];
    let mut length = 0;
    while length < said.len() {
        let more = io.read(&mut said[length..]).await?;
        length += more;
        if more == 0 || (spoken == Spoken::Http2 && said[..length] != PREFACE[..length]) {
            let what = if more == 0 { "it closed" } else { "it sent other bytes" };
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
    }
    Ok((Box::new(io), Bytes::copy_from_slice(&said)))
}

/// Returns whether the system lacks descriptors or memory to accept with.
fn is_shortage(error: &io::Error) -> bool {
    // The standard library has no kinds for these errors.
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    let no_buffers = if cfg!(target_os = "linux") { 105 } else { 55 };
    let errno = error.raw_os_error().unwrap_or_default();
    error.kind() == io::ErrorKind::OutOfMemory || [ENFILE, EMFILE, no_buffers].contains(&errno)
}

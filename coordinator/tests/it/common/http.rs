//! The HTTP servers of tests, each of which answers every request by one function.

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, Method, Uri};
use axum::response::IntoResponse;

#[allow(dead_code)]
pub struct Asked {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Starts a server on loopback, and returns its URL.
pub fn serve<R: IntoResponse + Send + 'static>(answer: impl Fn(Asked) -> R + Clone + Send + Sync + 'static) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let handle = move |method, uri, headers, body| async move {
        let asked = Asked { method, uri, headers, body };
        tokio::task::spawn_blocking(move || answer(asked)).await.unwrap()
    };
    std::thread::spawn(move || {
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, Router::new().fallback(handle)).await.unwrap();
        });
    });
    url
}

//! A small HTTP server, which answers each connection once and may break off.
#![allow(dead_code, clippy::unwrap_used)]

use std::ops::Range;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A request without its body.
pub struct Asked {
    pub method: String,
    pub path: String,
    /// The request line and the headers, as received.
    pub head: String,
}

pub struct Answer {
    pub status: &'static str,
    /// Lines, each with its end.
    pub headers: String,
    pub body: Vec<u8>,
    /// The number of bytes after which the server closes the connection.
    pub most: usize,
}

impl Asked {
    fn of(head: String) -> Self {
        let mut words = head.split(' ').map(str::to_owned);
        Self { method: words.next().unwrap(), path: words.next().unwrap(), head }
    }

    /// Returns the asked part of a body of this length.
    pub fn range(&self, length: usize) -> Option<Range<usize>> {
        let head = self.head.to_lowercase();
        let (start, end) = head.split_once("range: bytes=")?.1.split("\r\n").next()?.split_once('-')?;
        let end = end.parse::<usize>().map_or(length, |end| (end + 1).min(length));
        Some(start.parse().unwrap()..end)
    }
}

impl Answer {
    pub fn new(status: &'static str, headers: impl Into<String>, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: headers.into(), body: body.into(), most: usize::MAX }
    }
}

/// Returns a free port of loopback and its URL.
pub async fn bind() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

pub fn serve(listener: TcpListener, answer: impl Fn(Asked) -> Answer + Clone + Send + Sync + 'static) {
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(one(stream, answer.clone()));
        }
    });
}

async fn one(mut stream: TcpStream, answer: impl Fn(Asked) -> Answer) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let asked = Asked::of(String::from_utf8(head).unwrap());
    let is_head = asked.method == "HEAD";
    let Answer { status, headers, body, most } = answer(asked);
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n");
    // The client may be gone.
    let _ = stream.write_all(head.as_bytes()).await;
    if !is_head {
        let _ = stream.write_all(&body[..length.min(most)]).await;
    }
    let _ = stream.shutdown().await;
}

//! A real S3 server on loopback, moto's, in a Python that has it (`LLINK_PYTHON`, else `python3`).
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::skip::python_with;

const SERVER: &str = "
import sys, urllib.request
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address='127.0.0.1', port=0)
server.start()
port = server.get_host_and_port()[1]
urllib.request.urlopen(urllib.request.Request(f'http://127.0.0.1:{port}/{sys.argv[1]}', method='PUT'))
print('port', port, flush=True)
sys.stdin.read()
";

pub struct Moto {
    child: Child,
    pub port: u16,
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Moto {
    /// Starts a server with a bucket. Without a Python that has it, the test is skipped.
    pub fn start(bucket: &str) -> Option<Self> {
        let mut child = Command::new(python_with(&["moto.server"])?)
            .args(["-c", SERVER, bucket])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The other messages of its start are not read.
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = lines.find_map(|line| line.unwrap().strip_prefix("port ")?.parse().ok()).unwrap();
        Some(Self { child, port })
    }
}

/// Returns the variables that open a store behind a port.
pub fn settings(port: u16) -> Vec<(String, String)> {
    [
        ("AWS_ENDPOINT", format!("http://127.0.0.1:{port}")),
        ("AWS_ALLOW_HTTP", "true".into()),
        ("AWS_ACCESS_KEY_ID", "test".into()),
        ("AWS_SECRET_ACCESS_KEY", "test".into()),
        ("AWS_REGION", "us-east-1".into()),
        // Each request has its own connection, so that the faults of a proxy are frequent.
        ("AWS_POOL_MAX_IDLE_PER_HOST", "0".into()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .to_vec()
}

//! Compressed files for tests.
#![allow(dead_code, clippy::unwrap_used)]

use std::io::Write;

pub fn gz(content: impl AsRef<[u8]>) -> Vec<u8> {
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gz.write_all(content.as_ref()).unwrap();
    gz.finish().unwrap()
}

pub fn zst(content: impl AsRef<[u8]>) -> Vec<u8> {
    zstd::encode_all(content.as_ref(), 3).unwrap()
}

pub fn xz(content: impl AsRef<[u8]>) -> Vec<u8> {
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 6);
    xz.write_all(content.as_ref()).unwrap();
    xz.finish().unwrap()
}

pub fn bz2(content: impl AsRef<[u8]>) -> Vec<u8> {
    let mut bz2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bz2.write_all(content.as_ref()).unwrap();
    bz2.finish().unwrap()
}

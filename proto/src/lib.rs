//! The gRPC contract: what people ask of a coordinator ([`job_service_client`], [`job_service_server`]) and what
//! a coordinator and its workers say to each other ([`worker_service_client`], [`worker_service_server`]).
//!
//! The messages are generated from `llink.proto`, whose comments are the documentation. [`reach`] is how a client opens a
//! connection, [`shown`] makes text from elsewhere fit to be shown.

pub mod reach;
pub mod shown;

#[allow(missing_docs, unused_qualifications, clippy::all)]
mod generated {
    tonic::include_proto!("llink.v1");
}

pub use generated::*;

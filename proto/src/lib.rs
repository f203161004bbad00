//! The gRPC contract. [`job_service_client`] and [`job_service_server`] are for people. [`worker_service_client`] and
//! [`worker_service_server`] are between a coordinator and its workers.
//!
//! The messages are generated from `llink.proto`, whose comments are the documentation. [`reach`] opens a client's
//! connection. [`shown`] makes text from elsewhere safe to show. [`settings`] has the settings of the training stages, which
//! the job file and the tasks share.

pub mod reach;
pub mod settings;
pub mod shown;

#[allow(missing_docs, unused_qualifications, clippy::all)]
mod generated {
    tonic::include_proto!("llink.v1");
}

pub use generated::*;

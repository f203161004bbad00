//! The gRPC contract: what people ask of a coordinator ([`job_service_client`], [`job_service_server`]) and what
//! a coordinator and its workers say to each other ([`worker_service_client`], [`worker_service_server`]).
//!
//! Everything here is generated from `llink.proto`, whose comments are the documentation.
#![allow(missing_docs, unused_qualifications, clippy::all)]

tonic::include_proto!("llink.v1");

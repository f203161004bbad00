//! Connects a gang: each rank publishes its address and its offer, all read the same lines, and the transport follows
//! from them.

use std::net::{IpAddr, TcpListener};
use std::time::Duration;

use llink_proto::RendezvousResponse;

use super::offer::{Offer, Transport};
use super::{AbortHandle, Collective, Ring, RingOptions};
#[cfg(feature = "nccl")]
use super::{CudaNccl, Nccl, NcclApi, NcclOffer};
use crate::device::Compute;
use crate::{Error, Result};

/// A rank that joins its gang.
#[derive(Debug, Clone, Copy)]
pub struct Joining<'a> {
    /// This rank, counted from 0.
    pub rank: usize,
    /// The generation of the gang, which all members share.
    pub generation: u64,
    /// The address at which other ranks reach this machine.
    pub address: IpAddr,
    /// The time limit of the meeting, and of each collective.
    pub timeout: Duration,
    /// The device of this rank.
    pub compute: &'a Compute,
}

impl Joining<'_> {
    /// Meets the other ranks through `rendezvous`, which gives all lines and a secret to each rank, and connects. The
    /// transport is NCCL if every rank has a GPU and the library, else TCP.
    ///
    /// # Errors
    /// [`Error::Io`] when this machine can't listen; those of `rendezvous`; those of connecting.
    pub fn connect(
        &self,
        rendezvous: &dyn Fn(String) -> Result<RendezvousResponse>,
        abort: AbortHandle,
    ) -> Result<Box<dyn Collective>> {
        let failed = |source| Error::Io { path: format!("listening on {}", self.address), source };
        let listener = TcpListener::bind((self.address, 0)).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?.to_string();
        #[cfg(feature = "nccl")]
        let (nccl, library) = self.nccl().unzip();
        #[cfg(not(feature = "nccl"))]
        let nccl = None;
        let met = rendezvous(Offer { address, nccl }.to_string())?;
        let offers: Vec<Offer> = met.addresses.iter().map(|line| line.parse()).collect::<Result<_>>()?;
        let options = RingOptions {
            rank: self.rank,
            addresses: offers.iter().map(|offer| offer.address.clone()).collect(),
            generation: self.generation,
            secret: met.secret,
            sealed: met.sealed,
            timeout: self.timeout,
        };
        let transport = Transport::agreed(&offers);
        if self.rank == 0 {
            let kind = match &transport {
                Transport::Ring if options.sealed => "TCP, sealed",
                Transport::Ring => "TCP",
                Transport::Nccl(_) => "NCCL",
            };
            tracing::info!(
                generation = self.generation,
                transport = kind,
                "gang of {}: {}",
                offers.len(),
                Transport::topology(&offers)
            );
        }
        #[cfg(feature = "nccl")]
        if let (Transport::Nccl(id), Some(library)) = (&transport, library) {
            return Ok(Box::new(Nccl::connect(library, &listener, &options, id, abort)?));
        }
        match transport {
            Transport::Ring => Ok(Box::new(Ring::connect(listener, &options, abort)?)),
            Transport::Nccl(_) => Err(Error::Device("the gang uses NCCL, which this rank does not have".into())),
        }
    }
}

#[cfg(feature = "nccl")]
impl Joining<'_> {
    /// Returns what this rank offers, and the library for it, if it has a GPU and NCCL.
    fn nccl(&self) -> Option<(NcclOffer, CudaNccl)> {
        if self.compute.device.is_cpu() {
            return None;
        }
        let loaded = self.load();
        loaded.inspect_err(|error| tracing::warn!("NCCL is not available, so this gang uses TCP: {error}")).ok()
    }

    fn load(&self) -> Result<(NcclOffer, CudaNccl)> {
        let library = CudaNccl::new(&self.compute.device)?;
        let version = library.version().map_err(Error::Device)?;
        let id = (self.rank == 0).then(|| library.unique_id()).transpose()?;
        let gpu = self.compute.name.clone();
        Ok((NcclOffer { version, gpu, id }, library))
    }
}

//! Connects a gang: each rank publishes its address and its offer, all read the same lines, and the transport follows
//! from them.

use std::net::{IpAddr, TcpListener};
use std::time::Duration;

use super::offer::{NcclOffer, Offer, Transport};
use super::{AbortHandle, Collective, Ring, RingOptions};
use crate::device::Compute;
use crate::{Error, Result};

/// What each rank learns when all ranks have met.
#[derive(Clone)]
pub struct Met {
    /// The address and offer of each rank, by rank.
    pub addresses: Vec<String>,
    /// The gang's secret.
    pub secret: Vec<u8>,
    /// True if the connections between ranks are encrypted, like those to the coordinator.
    pub sealed: bool,
}

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
        rendezvous: &dyn Fn(String) -> Result<Met>,
        abort: AbortHandle,
    ) -> Result<Box<dyn Collective>> {
        let failed = |source| Error::Io { path: format!("listening on {}", self.address), source };
        let listener = TcpListener::bind((self.address, 0)).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?.to_string();
        let (offer, library) = library::offer(self);
        let met = rendezvous(Offer { address, nccl: offer }.to_string())?;
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
        match (transport, library) {
            (Transport::Nccl(id), Some(library)) => library::connect(library, &listener, &options, &id, abort),
            (Transport::Nccl(_), None) => {
                Err(Error::Device("the gang uses NCCL, which this rank does not have".into()))
            }
            (Transport::Ring, _) => Ok(Box::new(Ring::connect(listener, &options, abort)?)),
        }
    }
}

#[cfg(feature = "nccl")]
mod library {
    use super::{AbortHandle, Collective, Joining, NcclOffer, Result, RingOptions, TcpListener};
    use crate::collective::{CudaNccl, Nccl, NcclApi, UniqueId};

    /// Returns what this rank offers, and the library for it.
    pub(super) fn offer(joining: &Joining<'_>) -> (Option<NcclOffer>, Option<CudaNccl>) {
        if joining.compute.device.is_cpu() {
            return (None, None);
        }
        match load(joining) {
            Ok((offer, library)) => (Some(offer), Some(library)),
            Err(error) => {
                tracing::warn!("NCCL is not available, so this gang uses TCP: {error}");
                (None, None)
            }
        }
    }

    fn load(joining: &Joining<'_>) -> Result<(NcclOffer, CudaNccl)> {
        let library = CudaNccl::new(&joining.compute.device)?;
        let version = library.version().map_err(crate::Error::Device)?;
        let id = (joining.rank == 0).then(|| library.unique_id()).transpose()?;
        let gpu = joining.compute.name.clone();
        Ok((NcclOffer { version, gpu, id }, library))
    }

    pub(super) fn connect(
        library: CudaNccl,
        listener: &TcpListener,
        options: &RingOptions,
        id: &UniqueId,
        abort: AbortHandle,
    ) -> Result<Box<dyn Collective>> {
        Ok(Box::new(Nccl::connect(library, listener, options, id, abort)?))
    }
}

/// Without the feature there is nothing to offer and nothing to connect with.
#[cfg(not(feature = "nccl"))]
mod library {
    use super::{AbortHandle, Collective, Joining, NcclOffer, Result, RingOptions, TcpListener};
    use crate::collective::UniqueId;

    pub(super) enum Never {}

    pub(super) fn offer(_joining: &Joining<'_>) -> (Option<NcclOffer>, Option<Never>) {
        (None, None)
    }

    pub(super) fn connect(
        library: Never,
        _listener: &TcpListener,
        _options: &RingOptions,
        _id: &UniqueId,
        _abort: AbortHandle,
    ) -> Result<Box<dyn Collective>> {
        match library {}
    }
}

//! A rank's offer when a gang meets: its address, and whether it can use NCCL.
//!
//! The coordinator passes these lines from rank to rank without reading them: `host:port`, then `;name=value` for a
//! rank with a GPU. The line of rank 0 carries the unique id of the communicator.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// The unique id of an NCCL communicator; each generation of a gang has a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UniqueId(pub [u8; 128]);

impl fmt::Display for UniqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for UniqueId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::Input(format!("`{text}` is not an NCCL id: 256 hexadecimal digits are expected"));
        if text.len() != 256 || !text.is_ascii() {
            return Err(wrong());
        }
        let mut bytes = [0; 128];
        for (byte, at) in bytes.iter_mut().zip((0..256).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

/// The offer of a rank that has a GPU and NCCL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NcclOffer {
    /// The library's version, such as `2.30.1`.
    pub version: String,
    /// The GPU's name and place, for the log.
    pub gpu: String,
    /// The id of the communicator, set on rank 0.
    pub id: Option<UniqueId>,
}

/// The line of a rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The address `host:port` at which it listens.
    pub address: String,
    /// What it offers beside TCP.
    pub nccl: Option<NcclOffer>,
}

impl fmt::Display for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address)?;
        if let Some(NcclOffer { version, gpu, id }) = &self.nccl {
            let plain = |text: &str| text.replace([';', '='], " ");
            write!(f, ";nccl={};gpu={}", plain(version), plain(gpu))?;
            if let Some(id) = id {
                write!(f, ";id={id}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for Offer {
    type Err = Error;

    fn from_str(line: &str) -> Result<Self> {
        let mut parts = line.split(';');
        let address = parts.next().unwrap_or_default().to_owned();
        let (mut version, mut gpu, mut id) = (None, String::new(), None);
        for part in parts {
            match part.split_once('=') {
                Some(("nccl", value)) => version = Some(value.to_owned()),
                Some(("gpu", value)) => gpu = value.to_owned(),
                Some(("id", value)) => id = Some(value.parse()?),
                // A later version may add other fields.
                _ => {}
            }
        }
        let nccl = version.map(|version| NcclOffer { version, gpu, id });
        Ok(Self { address, nccl })
    }
}

/// The transport between the ranks of a gang. All ranks choose the same one, because all read the same lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// TCP, because some rank has no GPU or a different version of NCCL.
    Ring,
    /// NCCL with the id that rank 0 made.
    Nccl(UniqueId),
}

impl Transport {
    /// Returns the transport for `offers`, which are in rank order.
    pub fn agreed(offers: &[Offer]) -> Self {
        let line = |offer: &Offer| {
            let version = &offer.nccl.as_ref()?.version;
            version.split('.').next().map(str::to_owned)
        };
        let id = || offers.first()?.nccl.as_ref()?.id;
        let first = offers.first().and_then(line);
        match id() {
            Some(id) if first.is_some() && offers.iter().all(|offer| line(offer) == first) => Self::Nccl(id),
            _ => Self::Ring,
        }
    }

    /// Returns one line for the log: the place of each rank.
    pub fn topology(offers: &[Offer]) -> String {
        let place = |(rank, offer): (usize, &Offer)| {
            let host = offer.address.rsplit_once(':').map_or(offer.address.as_str(), |(host, _)| host);
            let gpu = offer.nccl.as_ref().map_or("cpu", |nccl| nccl.gpu.as_str());
            format!("rank {rank}: {host} {gpu}")
        };
        let places: Vec<_> = offers.iter().enumerate().map(place).collect();
        places.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(version: Option<&str>, id: Option<UniqueId>) -> Offer {
        Offer {
            address: "10.0.0.7:4711".into(),
            nccl: version.map(|version| NcclOffer {
                version: version.into(),
                gpu: "NVIDIA H100 0000:18:00.0".into(),
                id,
            }),
        }
    }

    fn id() -> UniqueId {
        UniqueId(std::array::from_fn(|i| (i * 37) as u8))
    }

    #[test]
    fn a_line_says_what_was_put_in() {
        for offer in [offer(None, None), offer(Some("2.30.1"), None), offer(Some("2.30.1"), Some(id()))] {
            assert_eq!(offer.to_string().parse::<Offer>().unwrap(), offer);
        }
        assert_eq!("h:1;future=7".parse::<Offer>().unwrap().address, "h:1");
        assert!("h:1;nccl=2;id=zz".parse::<Offer>().is_err());
    }

    #[test]
    fn nccl_is_spoken_when_all_ranks_have_it() {
        let (first, other) = (offer(Some("2.30.1"), Some(id())), offer(Some("2.28.9"), None));
        assert_eq!(Transport::agreed(&[first.clone(), other.clone()]), Transport::Nccl(id()));
        assert_eq!(Transport::agreed(&[first.clone(), offer(None, None)]), Transport::Ring);
        assert_eq!(Transport::agreed(&[first, offer(Some("3.0.0"), None)]), Transport::Ring);
        assert_eq!(Transport::agreed(&[other.clone(), other]), Transport::Ring, "nobody made an id");
        assert_eq!(Transport::agreed(&[]), Transport::Ring);
    }

    #[test]
    fn the_topology_names_host_and_gpu() {
        let line = Transport::topology(&[offer(Some("2.30.1"), Some(id())), offer(None, None)]);
        assert_eq!(line, "rank 0: 10.0.0.7 NVIDIA H100 0000:18:00.0, rank 1: 10.0.0.7 cpu");
    }
}

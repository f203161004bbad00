//! Assigns a GPU to each local worker.

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LocalGpu {
    pub(super) device: String,
    /// The value of `NCCL_HOSTID`. NCCL refuses two ranks of one host on one GPU, so workers that share a GPU get
    /// different host ids.
    pub(super) host: Option<String>,
}

/// Returns the GPU of worker `index` of `workers` on a machine with `gpus`, in turn; `None` if there is no GPU.
pub(super) fn gpu_of(index: usize, workers: usize, gpus: usize) -> Option<LocalGpu> {
    let round = index.checked_div(gpus)?;
    Some(LocalGpu {
        device: format!("cuda:{}", index % gpus),
        host: (workers > gpus).then(|| format!("llink-local-{round}")),
    })
}

/// Returns the number of usable GPUs of this machine, or 0 if `LLINK_DEVICE` chooses a device for all workers.
pub(super) fn gpus() -> usize {
    if std::env::var_os("LLINK_DEVICE").is_some() {
        return 0;
    }
    let probe = llink_worker::device::Probe::of_this_machine();
    match probe.why_not() {
        Some(_) => 0,
        None => probe.devices,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_take_gpus_in_turn_and_share_only_when_they_must() {
        assert_eq!(gpu_of(0, 2, 0), None);
        let of = |workers, gpus| -> Vec<(String, Option<String>)> {
            let each = (0..workers).filter_map(|index| gpu_of(index, workers, gpus));
            each.map(|gpu| (gpu.device, gpu.host)).collect()
        };
        let alone = |device: &str| (device.to_owned(), None);
        assert_eq!(of(2, 4), [alone("cuda:0"), alone("cuda:1")]);
        let shared = |device: &str, host: &str| (device.to_owned(), Some(host.to_owned()));
        assert_eq!(
            of(3, 2),
            [shared("cuda:0", "llink-local-0"), shared("cuda:1", "llink-local-0"), shared("cuda:0", "llink-local-1"),]
        );
    }
}

//! The keys and values of the tokens that a sequence has so far.

use candle_core::Tensor;

use crate::Result;

/// The number of tokens for which a cache grows at once.
const GROWTH: usize = 64;

/// The keys and values of one sequence.
#[derive(Default)]
pub(crate) struct Cache {
    layers: Vec<CachedLayer>,
}

/// The keys and values of one layer, `[room, kv_heads·head_dim]` each. The first `tokens` rows are in use.
#[derive(Default)]
struct CachedLayer {
    stored: Option<(Tensor, Tensor)>,
    room: usize,
    tokens: usize,
}

impl Cache {
    pub(crate) fn tokens(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.tokens)
    }

    /// Returns a copy that grows on its own.
    pub(crate) fn copy(&self) -> Result<Self> {
        let copied = |layer: &CachedLayer| {
            let mut copy = CachedLayer::default();
            if let Some((k, v)) = layer.used()? {
                copy.add(&k, &v)?;
            }
            Ok(copy)
        };
        Ok(Self { layers: self.layers.iter().map(copied).collect::<Result<_>>()? })
    }

    fn layer(&mut self, index: usize) -> &mut CachedLayer {
        if self.layers.len() <= index {
            self.layers.resize_with(index + 1, CachedLayer::default);
        }
        &mut self.layers[index]
    }
}

impl CachedLayer {
    /// Adds rows `[n, kv_heads·head_dim]`.
    fn add(&mut self, k: &Tensor, v: &Tensor) -> Result<()> {
        let (count, width) = k.dims2()?;
        if self.tokens + count > self.room {
            let room = (self.tokens + count).next_multiple_of(GROWTH);
            let roomier = |rows: &Tensor| Tensor::zeros((room, width), rows.dtype(), rows.device());
            let (new_k, new_v) = (roomier(k)?, roomier(v)?);
            if let Some((old_k, old_v)) = self.used()? {
                new_k.slice_set(&old_k, 0, 0)?;
                new_v.slice_set(&old_v, 0, 0)?;
            }
            (self.stored, self.room) = (Some((new_k, new_v)), room);
        }
        if let Some((stored_k, stored_v)) = &self.stored {
            stored_k.slice_set(&k.contiguous()?, 0, self.tokens)?;
            stored_v.slice_set(&v.contiguous()?, 0, self.tokens)?;
        }
        self.tokens += count;
        Ok(())
    }

    fn used(&self) -> Result<Option<(Tensor, Tensor)>> {
        let Some((k, v)) = &self.stored else { return Ok(None) };
        Ok(Some((k.narrow(0, 0, self.tokens)?, v.narrow(0, 0, self.tokens)?)))
    }
}

/// Adds the keys and values of packed sequences to a layer of their caches. `offsets` has the start of each sequence,
/// then the end. Returns all keys and values of each sequence.
pub(super) fn extend(
    caches: &mut [&mut Cache],
    layer: usize,
    k: &Tensor,
    v: &Tensor,
    offsets: &[usize],
) -> Result<Vec<(Tensor, Tensor)>> {
    let mut all = Vec::with_capacity(caches.len());
    for (cache, rows) in caches.iter_mut().zip(offsets.windows(2)) {
        let (start, count) = (rows[0], rows[1] - rows[0]);
        let cached = cache.layer(layer);
        cached.add(&k.narrow(0, start, count)?, &v.narrow(0, start, count)?)?;
        all.extend(cached.used()?);
    }
    Ok(all)
}

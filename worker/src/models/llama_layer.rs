//! One layer of Llama, forward, and backward to its input and its adapter. Frozen weights have no gradient.

use candle_core::{DType, Device, Tensor};
use strum::VariantArray as _;

use super::batches::Packed;
use super::config::LlamaConfig;
use super::lora::{LayerAdapter, Projection};
use super::weights::Weights;
use crate::Result;
use crate::ops::{
    Attention, AttentionSpans, Causality, FrozenLinear, LowRankGradient, Rope, add_rms_norm, rms_norm,
    rms_norm_backward, silu_mul, silu_mul_backward,
};

pub(super) struct Layer {
    input_norm: Tensor,
    post_norm: Tensor,
    /// The linear layers in the order of [`Projection`].
    linears: Vec<FrozenLinear>,
    attention: Attention,
    /// The norms of each head of queries and of keys before the rotation, `[head_dim]` each, as in Qwen3.
    head_norms: [Option<Tensor>; 2],
    eps: f64,
}

/// The inputs that all layers of a pass share.
pub(super) struct Place<'a> {
    pub(super) spans: &'a AttentionSpans,
    pub(super) rope: &'a Rope,
    /// The last rows, set for the last layer if only these are needed.
    pub(super) only: Option<&'a LastRows>,
}

/// Adds new keys and values to those that are cached, and returns all of each sequence,
/// `[tokens, kv_heads·head_dim]` each.
pub(super) type Extend<'a> = dyn FnMut(&Tensor, &Tensor) -> Result<Vec<(Tensor, Tensor)>> + 'a;

/// The inputs with which a layer computes only the last row of each sequence.
pub(super) struct LastRows {
    rows: Tensor, // [B]
    spans: AttentionSpans,
    rope: Rope,
}

impl LastRows {
    pub(super) fn new(packed: &Packed, keys: Vec<usize>, rope: &Rope, dtype: DType, device: &Device) -> Result<Self> {
        let rows = Tensor::new(packed.last_rows(), device)?;
        let queries = (0..packed.offsets.len()).collect();
        let spans = AttentionSpans::new(queries, keys, Causality::Causal, dtype, device)?;
        let rope = rope.select(&rows)?;
        Ok(Self { rows, spans, rope })
    }
}

/// The values of the forward pass that the backward pass needs, T rows each. Other values are cheap to compute again.
pub(super) struct LayerTape {
    /// The layer's input, `[T, hidden]`.
    input: Tensor,
    /// The queries after the rotation.
    q: Tensor,
    k: Tensor,
    v: Tensor,
    /// The queries before the norms of heads, if there are any.
    raw_q: Option<Tensor>,
    raw_k: Option<Tensor>,
    /// The input of the output projection.
    attended: Tensor,
    /// The result of the first residual sum, `[T, hidden]`.
    middle: Tensor,
    /// The gate before SiLU, `[T, intermediate]`.
    gate: Tensor,
    up: Tensor,
}

impl Layer {
    pub(super) fn load(weights: &Weights, name: &str, config: &LlamaConfig) -> Result<Self> {
        let linear = |projection: Projection| -> Result<FrozenLinear> {
            let (rows, columns) = projection.shape(config);
            let path = format!("{name}.{}", projection.path());
            let bias = config.has_bias(projection).then(|| format!("{path}.bias"));
            weights.linear(&format!("{path}.weight"), [rows, columns], bias.as_deref())
        };
        let norm = |part: &str| weights.tensor(&format!("{name}.{part}.weight"), &[config.hidden_size]);
        let head_norm = |part: &str| {
            let load = || weights.tensor(&format!("{name}.self_attn.{part}.weight"), &[config.head_dim]);
            config.head_norms.then(load).transpose()
        };
        Ok(Self {
            input_norm: norm("input_layernorm")?,
            post_norm: norm("post_attention_layernorm")?,
            linears: Projection::VARIANTS.iter().copied().map(linear).collect::<Result<_>>()?,
            attention: Attention {
                heads: config.num_attention_heads,
                kv_heads: config.num_key_value_heads,
                head_dim: config.head_dim,
            },
            head_norms: [head_norm("q_norm")?, head_norm("k_norm")?],
            eps: config.rms_norm_eps,
        })
    }

    /// Maps x `[T, hidden]` to `[T, hidden]`, or to `[B, hidden]` if only each sequence's last row is needed. The tape
    /// serves a backward pass over all rows without a cache.
    pub(super) fn forward(
        &self,
        x: Tensor,
        place: &Place<'_>,
        cached: Option<&mut Extend<'_>>,
        adapter: Option<&LayerAdapter>,
    ) -> Result<(Tensor, LayerTape)> {
        use Projection::{DownProj, GateProj, KProj, OProj, QProj, UpProj, VProj};
        let Place { spans, rope, only } = *place;
        let apply = |projection: Projection, x: &Tensor| self.apply(projection, x, adapter);
        let normed = rms_norm(&x, &self.input_norm, self.eps)?;
        let [q_norm, k_norm] = &self.head_norms;
        let (k, raw_k) = self.norm_heads(apply(KProj, &normed)?, k_norm.as_ref())?; // [T, kv_heads·head_dim]
        let k = rope.turn(k)?;
        let v = apply(VProj, &normed)?;
        let each = cached.map(|extend| extend(&k, &v)).transpose()?;
        let (x, normed, spans, rope) = match only {
            None => (x, normed, spans, rope),
            Some(last) => {
                (x.index_select(&last.rows, 0)?, normed.index_select(&last.rows, 0)?, &last.spans, &last.rope)
            }
        };
        let (q, raw_q) = self.norm_heads(apply(QProj, &normed)?, q_norm.as_ref())?; // [T, heads·head_dim]
        let q = rope.turn(q)?;
        let attended = match each {
            Some(each) => self.attention.attend_each(&q, &each, spans)?,
            None => self.attention.attend(&q, &k, &v, spans)?,
        };
        let out = apply(OProj, &attended)?;
        let (middle, normed) = add_rms_norm(&x, &out, &self.post_norm, self.eps)?;
        let (gate, up) = (apply(GateProj, &normed)?, apply(UpProj, &normed)?);
        let gated = silu_mul(&gate, &up)?;
        let y = (&middle + apply(DownProj, &gated)?)?;
        Ok((y, LayerTape { input: x, q, k, v, raw_q, raw_k, attended, middle, gate, up }))
    }

    /// Takes the gradient of the layer's output. Returns the gradients of its input and of the layer's part of the
    /// adapter, f32 `[n]`.
    pub(super) fn backward(
        &self,
        tape: LayerTape,
        grad: Tensor,
        place: &Place<'_>,
        adapter: &LayerAdapter,
    ) -> Result<(Tensor, Tensor)> {
        use Projection::{DownProj, GateProj, KProj, OProj, QProj, UpProj, VProj};
        let mut gradients = Vec::new();
        let mut through = |projection: Projection, x: &Tensor, grad: &Tensor| {
            self.apply_backward(projection, x, grad, adapter, &mut gradients)
        };
        let grad_gated = through(DownProj, &silu_mul(&tape.gate, &tape.up)?, &grad)?;
        let (grad_gate, grad_up) = silu_mul_backward(&tape.gate, &tape.up, &grad_gated)?;
        let normed = rms_norm(&tape.middle, &self.post_norm, self.eps)?;
        let grad_normed = (through(GateProj, &normed, &grad_gate)? + through(UpProj, &normed, &grad_up)?)?;
        let grad = (grad + rms_norm_backward(&tape.middle, &self.post_norm, self.eps, &grad_normed)?)?;

        let grad_attended = through(OProj, &tape.attended, &grad)?;
        let (grad_q, grad_k, grad_v) =
            self.attention.backward(&tape.q, &tape.k, &tape.v, place.spans, &grad_attended)?;
        let normed = rms_norm(&tape.input, &self.input_norm, self.eps)?;
        let [q_norm, k_norm] = &self.head_norms;
        let grad_q = self.norm_heads_backward(place.rope.turn_back(grad_q)?, tape.raw_q, q_norm.as_ref())?;
        let grad_k = self.norm_heads_backward(place.rope.turn_back(grad_k)?, tape.raw_k, k_norm.as_ref())?;
        let grad_q = through(QProj, &normed, &grad_q)?;
        let grad_k = through(KProj, &normed, &grad_k)?;
        let grad_v = through(VProj, &normed, &grad_v)?;
        let grad_normed = ((grad_q + grad_k)? + grad_v)?;
        let grad_input = (grad + rms_norm_backward(&tape.input, &self.input_norm, self.eps, &grad_normed)?)?;
        gradients.sort_by_key(|(start, _)| *start);
        let gradients: Vec<Tensor> = gradients.into_iter().flat_map(|(_, matrices)| matrices).collect();
        Ok((grad_input, Tensor::cat(&gradients, 0)?))
    }

    /// Normalizes each head of x `[T, n·head_dim]`. Returns x too for the backward pass. Without norms it returns x
    /// alone.
    fn norm_heads(&self, x: Tensor, gamma: Option<&Tensor>) -> Result<(Tensor, Option<Tensor>)> {
        let Some(gamma) = gamma else { return Ok((x, None)) };
        let normed = rms_norm(&self.heads(&x)?, gamma, self.eps)?.reshape(x.shape())?;
        Ok((normed, Some(x)))
    }

    /// Returns the gradient of the input of [`Layer::norm_heads`].
    fn norm_heads_backward(&self, grad: Tensor, raw: Option<Tensor>, gamma: Option<&Tensor>) -> Result<Tensor> {
        let (Some(raw), Some(gamma)) = (raw, gamma) else {
            return Ok(grad);
        };
        let grad_raw = rms_norm_backward(&self.heads(&raw)?, gamma, self.eps, &self.heads(&grad)?)?;
        Ok(grad_raw.reshape(grad.shape())?)
    }

    /// Returns x `[T, n·head_dim]` as `[T·n, head_dim]`.
    fn heads(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.contiguous()?.reshape(((), self.attention.head_dim))?)
    }

    fn apply(&self, projection: Projection, x: &Tensor, adapter: Option<&LayerAdapter>) -> Result<Tensor> {
        let y = self.linears[projection as usize].forward(x)?;
        match adapter.and_then(|adapter| adapter.get(projection)) {
            Some((correction, _)) => correction.add_to(y, x),
            None => Ok(y),
        }
    }

    fn apply_backward(
        &self,
        projection: Projection,
        x: &Tensor,
        grad: &Tensor,
        adapter: &LayerAdapter,
        gradients: &mut Vec<(usize, [Tensor; 2])>,
    ) -> Result<Tensor> {
        let grad_x = self.linears[projection as usize].input_gradient(grad)?;
        let Some((correction, start)) = adapter.get(projection) else {
            return Ok(grad_x);
        };
        let LowRankGradient { grad_x, grad_a, grad_b } = correction.backward(x, grad, grad_x)?;
        gradients.push((*start, [grad_a.flatten_all()?, grad_b.flatten_all()?]));
        Ok(grad_x)
    }
}

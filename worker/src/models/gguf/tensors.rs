//! The file's tensors under Hugging Face's names. Whole-value formats are read in place, and blocks are unpacked to
//! bf16.

use std::collections::HashMap;
use std::io::Cursor;
use std::sync::Arc;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::TensorInfo;
use candle_core::{DType, Device};
use half::bf16;
use rayon::prelude::*;
use safetensors::tensor::Dtype;

use super::super::weights::Entry;
use super::Gguf;
use crate::Result;
use crate::ops::Memory;

/// Parts of names in GGUF, and their counterparts in Hugging Face's layout.
const NAMES: [(&str, &str); 15] = [
    ("token_embd", "embed_tokens"),
    ("output_norm", "norm"),
    ("output", "lm_head"),
    ("rope_freqs", "rope_freqs"),
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

impl Gguf {
    /// Returns the place of each tensor, by Hugging Face's name without `model.`. Tensors that Llama does not use are
    /// left out.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) with the name of a tensor that is cut off.
    pub(in crate::models) fn entries(&self) -> Result<HashMap<String, Entry>> {
        // llama.cpp rotates adjacent pairs, Transformers the halves of a head. The rows of q and k are therefore in
        // another order.
        let reordered = self.text("general.architecture")? == "llama";
        let heads = self.number("llama.attention.head_count").unwrap_or(1);
        let kv_heads = self.optional("llama.attention.head_count_kv")?.unwrap_or(heads);
        let tensors: Vec<(&String, &TensorInfo)> = self.content.tensor_infos.iter().collect();
        let entries = tensors.into_par_iter().filter_map(|(name, info)| {
            let ours = hugging_face_name(name)?;
            let heads = match () {
                () if reordered && name.contains(".attn_q.") => Some(heads),
                () if reordered && name.contains(".attn_k.") => Some(kv_heads),
                () => None,
            };
            Some(self.entry(name, info, heads).map(|entry| (ours, entry)))
        });
        entries.collect()
    }

    /// Returns one tensor. If `heads` is set, its rows are put into Hugging Face's order.
    fn entry(&self, name: &str, info: &TensorInfo, heads: Option<usize>) -> Result<Entry> {
        let shape = info.shape.dims().to_vec();
        let (elements, block) = (info.shape.elem_count(), info.ggml_dtype.block_size());
        let start = self.content.tensor_data_offset.saturating_add(info.offset) as usize;
        let len = elements.div_ceil(block) * info.ggml_dtype.type_size();
        let Some(bytes) = start.checked_add(len).filter(|end| *end <= self.file.len()).map(|end| start..end) else {
            return Err(self.refuse(format!(
                "is cut off: tensor {name} ends at byte {}, but the file has {}. Download it again",
                start.saturating_add(len),
                self.file.len()
            )));
        };
        let plain = match info.ggml_dtype {
            GgmlDType::F32 => Some(Dtype::F32),
            GgmlDType::F16 => Some(Dtype::F16),
            GgmlDType::BF16 => Some(Dtype::BF16),
            _ => None,
        };
        if let (Some(dtype), None) = (plain, heads) {
            let file = self.file.clone();
            return Ok(Entry { file, bytes, dtype, shape });
        }
        let (values, dtype) = match plain {
            Some(dtype) => (self.file[bytes].to_vec(), dtype),
            None => (self.unpacked(name)?, Dtype::BF16),
        };
        let values = match heads {
            Some(heads) => by_halves(&values, shape[0], heads),
            None => values,
        };
        Ok(Entry { bytes: 0..values.len(), file: Arc::new(Memory::of_bytes(&values)), dtype, shape })
    }

    /// Returns the values of a tensor in blocks, rounded to bf16.
    fn unpacked(&self, name: &str) -> Result<Vec<u8>> {
        let refuse = |error: candle_core::Error| self.refuse(format!("tensor {name}: {error}"));
        let packed = self.content.tensor(&mut Cursor::new(&**self.file), name, &Device::Cpu).map_err(refuse)?;
        let values = packed.dequantize(&Device::Cpu).map_err(refuse)?;
        let values = values.to_dtype(DType::BF16)?.flatten_all()?.to_vec1::<bf16>()?;
        Ok(values.iter().flat_map(|x| x.to_ne_bytes()).collect())
    }
}

/// Reorders the rows of a head from adjacent pairs to two halves, like Transformers' `_reverse_permute_weights`.
fn by_halves(values: &[u8], rows: usize, heads: usize) -> Vec<u8> {
    let (row, head) = (values.len() / rows.max(1), rows / heads.max(1));
    let mut out = Vec::with_capacity(values.len());
    for first in (0..rows).step_by(head.max(1)) {
        for half in 0..2 {
            for pair in 0..head / 2 {
                let from = (first + 2 * pair + half) * row;
                out.extend_from_slice(&values[from..from + row]);
            }
        }
    }
    out
}

/// Returns the name in Hugging Face's layout: `layers.3.self_attn.q_proj.weight` for `blk.3.attn_q.weight`.
fn hugging_face_name(name: &str) -> Option<String> {
    let (stem, kind) = name.rsplit_once('.')?;
    let known = |part: &str| NAMES.iter().find(|(theirs, _)| *theirs == part).map(|(_, ours)| *ours);
    match stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((layer, part)) => Some(format!("layers.{layer}.{}.{kind}", known(part)?)),
        None => Some(format!("{}.{kind}", known(stem)?)),
    }
}

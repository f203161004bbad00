//! The safetensors format: named tensors and a few strings. Errors name the file and the tensor.

use std::collections::HashMap;

use half::f16;
use half::slice::HalfFloatSliceExt;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::{Error, Result};

/// The values of a tensor to write.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// 16-bit floats.
    F16(&'a [f16]),
    /// Unsigned integers.
    U64(&'a [u64]),
}

/// A tensor to write: name, shape, values.
pub type Tensor<'a> = (String, Vec<usize>, Values<'a>);

/// Returns a safetensors file of these tensors.
///
/// # Errors
/// [`Error::Input`] when a tensor's shape does not match its values.
pub fn write(tensors: &[Tensor<'_>], metadata: HashMap<String, String>) -> Result<Vec<u8>> {
    let failed = |error| Error::Input(format!("writing safetensors: {error}"));
    let views = tensors.iter().map(|(name, shape, values)| {
        let (dtype, bytes) = match values {
            Values::F32(values) => (Dtype::F32, bytemuck::cast_slice(values)),
            Values::F16(values) => (Dtype::F16, bytemuck::cast_slice::<u16, u8>(values.reinterpret_cast())),
            Values::U64(values) => (Dtype::U64, bytemuck::cast_slice(values)),
        };
        TensorView::new(dtype, shape.clone(), bytes).map(|view| (name, view))
    });
    let views = views.collect::<std::result::Result<Vec<_>, _>>().map_err(failed)?;
    safetensors::serialize(views, Some(metadata)).map_err(failed)
}

/// A safetensors file that was read.
pub struct TensorFile<'a> {
    name: &'a str,
    tensors: SafeTensors<'a>,
    metadata: HashMap<String, String>,
}

impl<'a> TensorFile<'a> {
    /// Reads the file `name` with content `bytes`.
    ///
    /// # Errors
    /// [`Error::Model`] when it is not a safetensors file.
    pub fn new(name: &'a str, bytes: &'a [u8]) -> Result<Self> {
        let failed = |error| Error::model(name, format!("not a safetensors file: {error}"));
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(failed)?;
        let tensors = SafeTensors::deserialize(bytes).map_err(failed)?;
        Ok(Self { name, tensors, metadata: header.metadata().clone().unwrap_or_default() })
    }

    /// Returns an error about this file.
    pub fn error(&self, reason: impl Into<String>) -> Error {
        Error::model(self.name, reason)
    }

    /// Returns one of the file's strings.
    ///
    /// # Errors
    /// [`Error::Model`] when it is missing.
    pub fn text(&self, key: &str) -> Result<&str> {
        self.metadata.get(key).map(String::as_str).ok_or_else(|| self.error(format!("its metadata lacks `{key}`")))
    }

    /// Returns the shape and the values of a tensor of 32-bit floats, or of 16-bit floats, which are widened.
    ///
    /// # Errors
    /// [`Error::Model`] when it is missing or of another type.
    pub fn f32(&self, tensor: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        if self.tensors.tensor(tensor).is_ok_and(|view| view.dtype() == Dtype::F16) {
            let (shape, halves) = self.f16(tensor)?;
            return Ok((shape, halves.into_iter().map(f16::to_f32).collect()));
        }
        self.numbers(tensor, Dtype::F32, f32::from_le_bytes)
    }

    /// Returns the values of a tensor of 32-bit floats, or `None` if there is no such tensor.
    ///
    /// # Errors
    /// [`Error::Model`] when it is of another type.
    pub fn optional_f32(&self, tensor: &str) -> Result<Option<Vec<f32>>> {
        self.tensors.tensor(tensor).is_ok().then(|| Ok(self.f32(tensor)?.1)).transpose()
    }

    /// Returns the shape and the values of a tensor of 16-bit floats. See [`TensorFile::f32`].
    pub fn f16(&self, tensor: &str) -> Result<(Vec<usize>, Vec<f16>)> {
        self.numbers(tensor, Dtype::F16, f16::from_le_bytes)
    }

    /// Returns the shape and the values of a tensor of unsigned integers. See [`TensorFile::f32`].
    pub fn u64(&self, tensor: &str) -> Result<(Vec<usize>, Vec<u64>)> {
        self.numbers(tensor, Dtype::U64, u64::from_le_bytes)
    }

    /// Returns the shape and the values of a tensor of signed integers. See [`TensorFile::f32`].
    pub fn i64(&self, tensor: &str) -> Result<(Vec<usize>, Vec<i64>)> {
        self.numbers(tensor, Dtype::I64, i64::from_le_bytes)
    }

    /// Returns the names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.names().into_iter()
    }

    fn numbers<T, const N: usize>(
        &self,
        tensor: &str,
        dtype: Dtype,
        of_bytes: fn([u8; N]) -> T,
    ) -> Result<(Vec<usize>, Vec<T>)> {
        let view = self.tensors.tensor(tensor).map_err(|_| self.error(format!("tensor `{tensor}` is missing")))?;
        if view.dtype() != dtype {
            return Err(self.error(format!("tensor `{tensor}` is {:?}, not {dtype:?}", view.dtype())));
        }
        let numbers = view.data().as_chunks().0.iter().map(|bytes| of_bytes(*bytes));
        Ok((view.shape().to_vec(), numbers.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let halves = [f16::from_f32(0.5), f16::from_f32(-2.0)];
        let tensors = [
            ("a".to_owned(), vec![2, 1], Values::F32(&[1.5, f32::MIN])),
            ("b".to_owned(), vec![2], Values::F16(&halves)),
            ("c".to_owned(), vec![1], Values::U64(&[u64::MAX])),
        ];
        let bytes = write(&tensors, HashMap::from([("step".to_owned(), "7".to_owned())])).unwrap();
        let file = TensorFile::new("x.safetensors", &bytes).unwrap();
        assert_eq!(file.f32("a").unwrap(), (vec![2, 1], vec![1.5, f32::MIN]));
        assert_eq!(file.f16("b").unwrap(), (vec![2], halves.to_vec()));
        assert_eq!(file.f32("b").unwrap(), (vec![2], vec![0.5, -2.0]));
        assert_eq!(file.u64("c").unwrap(), (vec![1], vec![u64::MAX]));
        assert_eq!(file.text("step").unwrap(), "7");
    }

    #[test]
    fn errors_name_the_file_and_the_tensor() {
        let bytes = write(&[("a".to_owned(), vec![1], Values::F32(&[1.0]))], HashMap::new()).unwrap();
        let file = TensorFile::new("x.safetensors", &bytes).unwrap();
        for error in [file.f32("b").unwrap_err(), file.u64("a").unwrap_err(), file.text("k").unwrap_err()] {
            assert!(error.to_string().starts_with("x.safetensors: "), "{error}");
        }
        assert!(TensorFile::new("x.safetensors", &bytes[..bytes.len() - 1]).is_err());
        assert!(write(&[("a".to_owned(), vec![2], Values::F32(&[1.0]))], HashMap::new()).is_err());
    }
}

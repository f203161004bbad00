//! Named parameters in one flat buffer: their positions, their initial values, and their form in files.

use std::ops::Range;

use crate::Result;
use crate::numerics::tensor_file::{Tensor, TensorFile, Values};

/// The names and shapes of a module's parameters, in the order of its flat buffer.
pub(crate) type Shapes<const N: usize> = [(&'static str, Vec<usize>); N];
pub(super) fn ranges<const N: usize>(shapes: &Shapes<N>) -> [Range<usize>; N] {
    let mut end = 0;
    shapes.each_ref().map(|(_, shape)| {
        let start = end;
        end += shape.iter().product::<usize>();
        start..end
    })
}

pub(super) fn count<const N: usize>(shapes: &Shapes<N>) -> usize {
    ranges(shapes).last().map_or(0, |range| range.end)
}

pub(super) fn split<'a, const N: usize>(shapes: &Shapes<N>, values: &'a [f32]) -> [&'a [f32]; N] {
    ranges(shapes).map(|range| &values[range])
}

pub(super) fn split_mut<'a, const N: usize>(shapes: &Shapes<N>, mut values: &'a mut [f32]) -> [&'a mut [f32]; N] {
    ranges(shapes).map(|range| values.split_off_mut(..range.len()).expect("the buffer holds every parameter"))
}

/// Returns the parameters as tensors of a file. Their names begin with `prefix`.
pub(super) fn tensors<'a, const N: usize>(shapes: &Shapes<N>, values: &'a [f32], prefix: &str) -> Vec<Tensor<'a>> {
    let named = shapes.iter().zip(split(shapes, values));
    named.map(|((name, shape), values)| (format!("{prefix}{name}"), shape.clone(), Values::F32(values))).collect()
}

/// Reads the parameters whose names begin with `prefix` from a file.
pub(super) fn read<const N: usize>(shapes: &Shapes<N>, file: &TensorFile<'_>, prefix: &str) -> Result<Vec<f32>> {
    let mut values = Vec::with_capacity(count(shapes));
    for (name, expected) in shapes {
        let (found, tensor) = file.f32(&format!("{prefix}{name}"))?;
        if found != *expected {
            return Err(
                file.error(format!("{prefix}{name} has shape {found:?}, but the other tensors need {expected:?}"))
            );
        }
        values.extend(tensor);
    }
    Ok(values)
}
